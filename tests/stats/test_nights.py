"""Tonight against stored nights: by the formulas, by simulation, and where there is nothing to estimate from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pytest_llmperf.errors import NoSamplesError
from pytest_llmperf.stats import KNOWN_NIGHTS, History, against_nights, assumed, pooled_t, shared_spread


def history(array):
    """A history of an array `[nights, runs]`."""
    return History(tuple(tuple(map(float, night)) for night in array))


def drawn(random, nights, runs, *, run=0.02, night=0.0, tests=1):
    """Histories of some tests whose nights differ by the same common causes."""
    common = random.normal(0, night, (1, nights, 1)) if night else 0.0
    return [history(one) for one in random.normal(0, run, (tests, nights, runs)) + common]


@given(st.integers(1, 8), st.integers(1, 6), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_nights_that_do_not_differ_make_a_pooled_t_test_of_all_runs(nights, stored, tonight, seed):
    """With no spread between nights it does not matter which night a run is of."""
    random = np.random.default_rng(seed)
    base, new = random.normal(0, 0.02, (nights, stored)), random.normal(0.01, 0.02, tonight).tolist()
    expected = pooled_t(base.ravel().tolist(), new) if nights * stored > 1 else None

    comparison = against_nights(history(base), new, assumed(0.0))

    if expected is None:
        assert comparison.degrees == pytest.approx(tonight - 1)
    else:
        assert (comparison.effect, comparison.standard_error) == (expected.effect, expected.standard_error)
        assert comparison.degrees == expected.degrees


def test_one_value_a_night_is_the_prediction_t():
    """A single test with one mean per night: sd * sqrt(1 + 1/H) with H - 1 degrees of freedom."""
    random = np.random.default_rng(3)
    values = random.normal(0, 0.05, (12, 1)) + random.normal(0, 1e-6, (12, 5))
    new = [0.2 + 1e-6 * step for step in range(5)]

    spread = shared_spread([history(values)])
    comparison = against_nights(history(values), new, spread)

    means = values.mean(axis=1)
    assert comparison.standard_error == pytest.approx(means.std(ddof=1) * math.sqrt(1 + 1 / 12), rel=1e-3)
    assert comparison.degrees == pytest.approx(11, rel=1e-3)
    assert comparison.effect == pytest.approx(0.2 - means.mean(), abs=1e-5)
    assert comparison.p_worse() == pytest.approx(
        scipy_stats.t.sf(comparison.effect / comparison.standard_error, 11), rel=0.01
    )


def test_the_spread_between_nights_is_found():
    """Its estimate is unbiased: that of the means, less what the runs add to it."""
    random = np.random.default_rng(7)
    found = [shared_spread(drawn(random, 10, 5, night=0.03, tests=4)).variance for _ in range(400)]

    assert np.mean(found) == pytest.approx(0.03**2, rel=0.1)


@pytest.mark.parametrize("nights", [1, KNOWN_NIGHTS - 1])
def test_few_nights_do_not_tell_how_much_nights_differ(nights):
    """Nothing is estimated from less than what was shown to be enough."""
    assert shared_spread(drawn(np.random.default_rng(1), nights, 5, tests=30)) is None


def test_single_runs_do_not_tell_it_either():
    """One run per night: its own spread and the night's are one."""
    assert shared_spread(drawn(np.random.default_rng(1), 30, 1, tests=3)) is None


def test_more_tests_know_the_spread_better():
    """Up to one share of certainty per test where they are independent, fewer where nights move them together."""
    random = np.random.default_rng(11)
    alone = shared_spread(drawn(random, 6, 5))
    many = shared_spread(drawn(random, 6, 5, tests=20))
    moved = shared_spread(drawn(random, 6, 5, night=0.2, tests=20))

    assert (5, 6) == (alone.degrees, alone.nights)
    assert 20 * 5 > many.degrees > 5 * 5
    assert 4 * 5 == moved.degrees


def test_an_assumed_spread_is_added_to_that_of_the_runs():
    """sigma^2 (1 + 1/H) + s^2 (1/R + 1/(H n))."""
    base = np.array([[0.0, 0.02], [0.02, 0.0]])
    new = [0.1, 0.12]

    comparison = against_nights(history(base), new, assumed(0.03))

    runs = 3 * 2e-4 / 3
    assert comparison.standard_error == pytest.approx(math.sqrt(0.03**2 * 1.5 + runs * (1 / 2 + 1 / 4)))
    assert comparison.run_variance == pytest.approx(runs)
    assert comparison.degrees > 3  # what is assumed is not uncertain


def test_further_runs_do_not_lower_what_nights_differ_by():
    """A change below the floor cannot be shown by running more tonight."""
    base = np.tile([0.0, 0.02, 0.01], (2, 1))
    comparison = against_nights(history(base), [0.0, 0.02, 0.01], assumed(0.02))

    assert comparison.runs_to_detect(0.02, 0.0005) is None
    assert comparison.runs_to_detect(0.15, 0.0005) is not None


def test_equal_values_have_no_effect_and_no_spread():
    """Deterministic results compare exactly."""
    comparison = against_nights(history([[0.1] * 3] * 7), [0.1] * 5, shared_spread([history([[0.1] * 3] * 7)]))

    assert (0.0, 0.0) == (comparison.effect, comparison.standard_error)


@pytest.mark.parametrize("new", [[], [0.1]])
def test_no_night_with_two_runs_cannot_be_compared(new):
    """A run's own spread has to be known from somewhere."""
    with pytest.raises(NoSamplesError, match="at least 2 runs in one night"):
        against_nights(history([[0.1], [0.2]]), new, assumed(0.02))


@pytest.mark.parametrize("nights", [(), ((),), ((0.1,), ())])
def test_a_history_has_nights_and_nights_have_runs(nights):
    """Nothing is not a history."""
    with pytest.raises(NoSamplesError):
        History(nights)


@pytest.mark.slow
@pytest.mark.parametrize(("nights", "night"), [(6, 0.0), (6, 0.01), (6, 0.02), (20, 0.02)])
def test_healthy_nights_are_flagged_no_more_often_than_allowed(nights, night):
    """10 tests at 1 % together, of which nights move all alike; of 800 sessions 19 alarms would be 4 sigma too many."""
    random = np.random.default_rng(nights + round(1000 * night))
    alarms = 0
    for _ in range(800):
        shift = random.normal(0, night)
        stored = drawn(random, nights, 5, night=night, tests=10)
        spread = shared_spread(stored)
        new = random.normal(shift, 0.02, (10, 5)).tolist()
        alarms += any(
            against_nights(one, values, spread).p_worse() <= 0.01 / 10 for one, values in zip(stored, new, strict=True)
        )

    assert alarms < 19


@pytest.mark.parametrize("nights", [1, 4])
def test_what_more_runs_tonight_cannot_overcome(nights):
    """Without a spread between nights it is the stored runs' own noise; of one night, which can go on, nothing."""
    random = np.random.default_rng(11)
    stored, tonight = random.normal(0, 0.02, (nights, 5)), random.normal(0, 0.02, 5).tolist()

    comparison = against_nights(history(stored), tonight, assumed(0.0))

    assert comparison.floor == pytest.approx(comparison.run_variance / (nights * 5) if nights > 1 else None)


def test_what_more_runs_tonight_cannot_overcome_where_nights_differ():
    """How nights differ, and what is stored of them: 8 nights of 5 runs."""
    random = np.random.default_rng(12)
    stored, tonight = random.normal(0, 0.02, (8, 5)), random.normal(0, 0.02, 5).tolist()

    comparison = against_nights(history(stored), tonight, assumed(0.03))

    assert comparison.floor == pytest.approx(0.03**2 * (1 + 1 / 8) + comparison.run_variance / 5 / 8)


def test_one_night_of_two_runs_tells_noise_from_nights():
    """It takes no more than one degree of freedom within nights."""
    stored = [(0.1 * night, *(() if night else (0.01,))) for night in range(KNOWN_NIGHTS)]

    assert shared_spread([History(tuple(stored))]).nights == KNOWN_NIGHTS


def test_tests_that_share_their_nights_count_for_few():
    """With correlation r, of 40 tests for 40 / (1 + 39 r^2), r being 1 of what nights add and 0.3 of what runs do."""
    random = np.random.default_rng(13)
    alone = [drawn(random, 10, 5)[0] for _ in range(40)]

    found = shared_spread(alone)

    own = np.mean([h.shares * h.within_squares / h.within_degrees for h in alone])
    alike = (found.variance + 0.3 * own) / (found.variance + own)
    assert found.degrees == pytest.approx(9 * 40 / (1 + 39 * alike**2))
    assert 9 * 4 < found.degrees < 9 * 40
