"""Where a series steps: what is found, what is not, and what the finder does not depend on."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nights import levels

from pytest_llmperf.history import FEWEST_NIGHTS, noise, steps_in

pytest.importorskip("ruptures", reason="no release for this Python")


def logs(*segments):
    return [math.log(value) for value in levels(*segments)]


def places(values):
    return [step.at for step in steps_in(values)]


def test_a_step_is_found_where_it_is():
    """With both levels, and the direction."""
    (step,) = steps_in(logs((0.100, 10), (0.105, 5)))

    assert 10 == step.at
    assert (0.100, 0.105) == pytest.approx((math.exp(step.before), math.exp(step.after)), rel=0.003)
    assert step.is_worse
    assert step.undone_at is None


@pytest.mark.parametrize(
    ("segments", "found"),
    [
        ([(0.1, 20)], []),
        ([(0.1, 10), (0.107, 1), (0.1, 9)], []),
        ([(0.1, 10), (0.2, 2)], [(10, True, None)]),
        ([(0.1, 2), (0.2, 10)], [(2, True, None)]),
        ([(0.1, 8), (0.09, 8)], [(8, False, None)]),
        ([(0.1, 8), (0.12, 8), (0.1, 8)], [(8, True, 16), (16, False, None)]),
        ([(0.1, 8), (0.09, 8), (0.1, 8)], [(8, False, 16), (16, True, None)]),
        ([(0.1, 8), (0.12, 8), (0.117, 8)], [(8, True, None)]),
        ([(0.1, 8), (0.12, 8), (0.114, 8), (0.104, 8)], [(8, True, 24), (16, False, None), (24, False, None)]),
    ],
    ids=["none", "one night", "at the end", "at the start", "better", "recovered", "lost again", "small", "by halves"],
)
def test_steps_of_a_series(segments, found):
    """Where each is, whether it is for the worse, and from when on more than half of it is gone.

    The third of "small" is a change that the noise does not let be seen.
    """
    assert found == [(step.at, step.is_worse, step.undone_at) for step in steps_in(logs(*segments))]


@pytest.mark.parametrize("nights", range(FEWEST_NIGHTS))
def test_few_nights_have_no_steps(nights):
    """There is nothing to tell one from noise by."""
    assert () == steps_in([0.0, 0.0, 1.0, 1.0][:nights])


def test_equal_nights_have_no_steps():
    """A simulation's last digit is none, and a quarter of a percent is one."""
    assert () == steps_in([0.0] * 20)
    assert () == steps_in([0.0] * 10 + [0.001] * 2)
    assert [10] == places([0.0] * 10 + [0.0025] * 2)


def test_the_noise_does_not_see_the_step():
    """Of ten differences one is the step's, which the median leaves out."""
    quiet = noise(logs((0.1, 20)))

    assert noise(logs((0.1, 10), (0.2, 10))) == pytest.approx(quiet, rel=0.2)


def test_the_noise_is_that_of_the_nights():
    """Over many nights the standard deviation."""
    values = np.random.default_rng(1).normal(0.0, 0.03, 5000)

    assert 0.03 == pytest.approx(noise(values.tolist()), rel=0.05)


series = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(FEWEST_NIGHTS, 40), st.lists(st.floats(-8, 8), min_size=1, max_size=3)
)


def drawn(seed, nights, offsets):
    """Noise of 1 %, with steps of some of its deviations at random places."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(nights)
    for offset in offsets:
        values[random.integers(nights) :] += offset
    return 0.01 * values


@settings(deadline=None, max_examples=100)
@given(one=series, shift=st.floats(-20, 20))
def test_only_ratios_count(one, shift):
    """In other units the same nights have the same steps."""
    values = drawn(*one)

    assert places(values.tolist()) == places((values + shift).tolist())


@settings(deadline=None, max_examples=100)
@given(one=series, scale=st.floats(1, 100))
def test_only_multiples_of_the_noise_count(one, scale):
    """A series that is noisier by a factor, steps and all, has the same steps."""
    values = drawn(*one)
    assume(noise(values.tolist()) > 0.0006)  # below that it is taken for a simulation's

    assert places(values.tolist()) == places((scale * values).tolist())


@settings(deadline=None, max_examples=100)
@given(one=series)
def test_up_and_down_are_alike(one):
    """Improvements are found as regressions are."""
    values = drawn(*one)

    assert places(values.tolist()) == places((-values).tolist())


@settings(deadline=None, max_examples=100)
@given(one=series)
def test_past_and_future_are_alike(one):
    """Backwards the steps are where they were."""
    values = drawn(*one)

    assert places(values.tolist()) == sorted(len(values) - at for at in places(values[::-1].tolist()))


@settings(deadline=None, max_examples=100)
@given(one=series)
def test_every_level_is_held_for_two_nights(one):
    """And each step goes from the mean of its nights to the next."""
    values = drawn(*one).tolist()

    found = steps_in(values)

    edges = [0, *(step.at for step in found), len(values)]
    assert all(end - start >= 2 for start, end in pairwise(edges))
    for step, start, end in zip(found, edges, edges[2:], strict=False):
        assert step.before == pytest.approx(np.mean(values[start : step.at]))
        assert step.after == pytest.approx(np.mean(values[step.at : end]))


def test_the_quick_search_is_pelt_with_squared_distances():
    """ruptures' own PELT over the same costs, which is what the documentation names, cuts at the same nights."""
    import ruptures

    for seed in range(20):
        values = drawn(seed, 24, [3.0, -2.0])
        scaled = (values / noise(values.tolist())).reshape(-1, 1)
        search = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(scaled)
        assert places(values.tolist()) == search.predict(pen=6 * math.log(24))[:-1]


def test_healthy_series_seldom_step():
    """As docs/history.md has it, with room for chance: at most 3 % of any length; a step of 5 % is found in 90 %."""
    random = np.random.default_rng(1)
    for nights in (FEWEST_NIGHTS, 8, 30):
        assert sum(bool(steps_in(one.tolist())) for one in random.normal(0, 0.009, (1000, nights))) <= 30
    stepped = random.normal(0, 0.009, (300, 33)) + 0.0488 * (np.arange(33) >= 30)
    assert sum(30 in places(one.tolist()) for one in stepped) >= 270
