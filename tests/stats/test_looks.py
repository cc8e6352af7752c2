"""Looks while a measurement goes on: boundaries against published ones, and the error rate they are for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.stats import Looks
from pytest_llmperf.stats.looks import cubic, levels, obrien_fleming

LOOKS = Looks((3, 5, 8, 12, 20))


def test_boundaries_are_the_published_ones():
    """Lan and DeMets' form of O'Brien and Fleming, five looks, one-sided 0.025 (Jennison and Turnbull 2000)."""
    found = [scipy_stats.norm.isf(level) for level in levels((0.2, 0.4, 0.6, 0.8, 1.0), 0.025, obrien_fleming)]

    assert found == pytest.approx((4.8769, 3.3569, 2.6803, 2.2898, 2.0310), abs=1e-3)


def test_a_single_look_is_the_test_itself():
    """Nothing is spent on looking where it is done once."""
    assert levels((1.0,), 0.003) == pytest.approx((0.003,))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 0.01])
def test_all_looks_together_keep_the_error_rate(alpha):
    """400,000 healthy measurements, each looked at five times."""
    sums = np.random.default_rng(2).standard_normal((400_000, 20)).cumsum(axis=1)
    significant = np.zeros(len(sums), bool)
    for runs in LOOKS.runs:
        p = scipy_stats.norm.sf(sums[:, runs - 1] / np.sqrt(runs))
        significant |= p <= LOOKS.level(runs, alpha)

    assert significant.mean() == pytest.approx(alpha, abs=4 * np.sqrt(alpha / 400_000) + 0.01 * alpha)


def test_what_the_looks_have_in_common_only_lowers_the_error_rate():
    """A baseline's error, or the night's, is the same at each look."""
    random = np.random.default_rng(3)
    means = random.standard_normal((200_000, 20)).cumsum(axis=1) / np.arange(1, 21)
    shared = random.standard_normal(200_000) * 0.3
    significant = np.zeros(len(means), bool)
    for runs in LOOKS.runs:
        z = (means[:, runs - 1] + shared) / np.sqrt(1 / runs + 0.3**2)
        significant |= scipy_stats.norm.sf(z) <= LOOKS.level(runs, 0.01)

    assert significant.mean() < 0.01


@given(st.sampled_from(LOOKS.runs), st.floats(1e-9, 0.4))
def test_the_level_of_a_look_and_its_overall_rate_are_inverse(runs, alpha):
    """A p-value at the level is just significant."""
    assert LOOKS.overall(runs, LOOKS.level(runs, alpha)) == pytest.approx(alpha, rel=1e-6)


@given(st.sampled_from(LOOKS.runs), st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_p_value_is_never_less_significant(runs, one, other):
    """The overall rate rises with the p-value, from 0 to 1, and is never below it."""
    low, high = sorted((one, other))

    assert 0 <= LOOKS.overall(runs, low) <= LOOKS.overall(runs, high) <= 1
    assert LOOKS.overall(runs, high) >= high * 0.999 or high < 1e-11


def test_a_run_that_was_cut_short_counts_as_the_look_before():
    """A budget of minutes may end anywhere: after 6 runs the look after 5 is what may be spent."""
    assert (0, 0, 1, 1, 4, 4) == tuple(LOOKS.number(runs) for runs in (1, 3, 5, 7, 20, 25))


def test_spending_ends_with_all_of_it():
    """Early next to nothing, in the end everything."""
    assert (pytest.approx(1e-5), 0.01) == (cubic(0.1, 0.01), cubic(1.0, 0.01))


@pytest.mark.parametrize("runs", [(), (0, 3), (3, 3), (5, 3)])
def test_looks_come_later_and_later(runs):
    """Anything else is a mistake."""
    with pytest.raises(ConfigurationError, match="after more and more runs"):
        Looks(runs)


def test_looks_that_may_come_after_one_run():
    assert Looks((1, 2)).runs == (1, 2)


def test_certainty_takes_no_error_rate_and_a_high_p_value_all_of_it():
    assert (0.0, 1.0) == (LOOKS.overall(5, 0.0), LOOKS.overall(5, 0.9999))
