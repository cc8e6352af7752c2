"""Statistics against other implementations, definitions and published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pytest_llmperf.errors import NoSamplesError
from pytest_llmperf.stats import MANY_RUNS, Comparison, Sample, pooled_t

STATISTICS = ("mean", "p50", "p90", "p95", "p99")


def sample(*values):
    return Sample(values, of="TTFT")


def test_a_sample_shows_itself_in_short():
    """An assertion on a result does not print thousands of values."""
    assert "<TTFT: 2 values, mean 1.5, p50 1.5, p99 1.99>" == repr(Sample((1.0, 2.0), "TTFT"))
    assert "<TTFT: not measured>" == repr(Sample((), "TTFT"))


def test_a_sample_counts_its_values():
    """Nothing is a count, too."""
    assert (3, 0) == (sample(1.0, 2.0, 4.0).count, sample().count)


@pytest.mark.parametrize(
    ("statistic", "expected"), [("mean", 3.0), ("p50", 2.5), ("p90", 5.1), ("p95", 5.55), ("p99", 5.91)]
)
def test_statistics_of_a_sample(statistic, expected):
    """Quantiles interpolate linearly between the sorted values, whatever their order was."""
    assert expected == pytest.approx(getattr(sample(6.0, 1.0, 3.0, 2.0), statistic))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_value_is_each_of_its_statistics(statistic):
    """A single measurement is its own mean and quantiles."""
    assert 7.0 == getattr(sample(7.0), statistic)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_nothing_has_no_statistics(statistic):
    """Asking a statistic of no values is an error that says what was not measured."""
    with pytest.raises(NoSamplesError, match="no TTFT was measured"):
        getattr(sample(), statistic)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 5), (30, 5), (3, 17)])
def test_the_pooled_t_agrees_with_scipy(seed, n, m):
    """The p-values of both sides are those of `scipy.stats.ttest_ind` with equal variances."""
    random = np.random.default_rng(seed)
    base, new = random.normal(-3.0, 0.02, n).tolist(), random.normal(-2.99, 0.02, m).tolist()

    comparison = pooled_t(base, new)

    assert scipy_stats.ttest_ind(new, base, alternative="greater").pvalue == pytest.approx(comparison.p_worse())
    assert scipy_stats.ttest_ind(new, base, alternative="less").pvalue == pytest.approx(comparison.p_better())
    assert (n, m, n + m - 2) == (comparison.base_count, comparison.new_count, comparison.degrees)
    assert sum(new) / m - sum(base) / n == pytest.approx(comparison.effect)


def test_a_margin_asks_for_more_than_a_difference():
    """With a margin the p-values are those of a change larger than it, on either side."""
    random = np.random.default_rng(1)
    base, new = random.normal(0.0, 0.02, 5), random.normal(0.03, 0.02, 7)

    comparison = pooled_t(base.tolist(), new.tolist())

    above = scipy_stats.ttest_ind(new - 0.02, base, alternative="greater").pvalue
    below = scipy_stats.ttest_ind(new + 0.02, base, alternative="less").pvalue
    assert (above, below) == pytest.approx((comparison.p_worse(0.02), comparison.p_better(0.02)))


def test_an_exact_change_within_the_margin_is_none():
    """Values without spread are compared exactly with the margin, too."""
    comparison = pooled_t([1.0, 1.0], [1.5, 1.5])

    assert (0.0, 1.0) == (comparison.p_worse(0.25), comparison.p_worse(0.75))


@pytest.mark.parametrize("alpha", [0.05, 0.0005])
def test_the_interval_agrees_with_scipy(alpha):
    """The interval of the effect is two-sided at level 1 - alpha."""
    random = np.random.default_rng(1)
    base, new = random.normal(0.0, 0.02, 5), random.normal(0.03, 0.02, 7)

    low, high = pooled_t(base.tolist(), new.tolist()).interval(alpha)

    expected = scipy_stats.ttest_ind(new, base).confidence_interval(1 - alpha)
    assert (expected.low, expected.high) == pytest.approx((low, high))


@pytest.mark.parametrize(("n", "m"), [(0, 5), (1, 5), (5, 1), (1, 1)])
def test_one_run_on_a_side_cannot_be_compared(n, m):
    """One value has no spread; the error says how many there were."""
    with pytest.raises(NoSamplesError, match=f"at least 2 runs on each side, got {n} and {m}"):
        pooled_t([0.1] * n, [0.1] * m)


def test_without_spread_any_rise_is_certain():
    """Values that are exact are compared exactly."""
    comparison = pooled_t([1.0, 1.0], [1.5, 1.5, 1.5])

    assert (0.5, 0.0, 0.0, 1.0) == (
        comparison.effect,
        comparison.standard_error,
        comparison.p_worse(),
        comparison.p_better(),
    )
    assert 0.0 == comparison.detectable(0.01)
    assert (0.5, 0.5) == comparison.interval(0.01)
    assert 2 == comparison.runs_to_detect(0.1, 0.01)


@given(value=st.floats(-30, 30), n=st.integers(2, 40), m=st.integers(2, 40))
@settings(deadline=None)
def test_equal_values_have_no_effect_however_many_there_are(value, n, m):
    """Rounding makes neither an effect nor a spread out of a measurement that never varies."""
    comparison = pooled_t([value] * n, [value] * m)

    assert (0.0, 0.0, 1.0, 1.0) == (
        comparison.effect,
        comparison.standard_error,
        comparison.p_worse(),
        comparison.p_better(),
    )


# Total standard deviation in percent, and for M = 10, 20, 50 metrics the smallest slowdown in percent
# that base + new runs find with probability 0.8 at a family-wise 1 %: computed elsewhere with scipy's
# noncentral t, and within 0.2 points of a simulation.
SPREADS = (1.0, 1.5, 2.1, 2.7, 3.5)
DETECTABLE = {
    (3, 3): ((7.6, 9.1, 11.6), (11.6, 14.0, 17.9), (16.6, 20.1, 26.0), (21.8, 26.5, 34.6), (29.1, 35.7, 46.9)),
    (5, 5): ((3.6, 4.0, 4.6), (5.5, 6.1, 7.0), (7.7, 8.6, 9.9), (10.1, 11.2, 12.9), (13.2, 14.8, 17.0)),
    (10, 10): ((2.1, 2.2, 2.4), (3.1, 3.3, 3.6), (4.4, 4.7, 5.1), (5.6, 6.1, 6.6), (7.4, 7.9, 8.7)),
    (20, 20): ((1.3, 1.4, 1.5), (2.0, 2.1, 2.3), (2.8, 3.0, 3.2), (3.6, 3.9, 4.2), (4.8, 5.0, 5.4)),
    (30, 3): ((2.6, 2.8, 3.0), (3.9, 4.2, 4.5), (5.6, 5.9, 6.4), (7.2, 7.7, 8.3), (9.5, 10.1, 10.9)),
    (30, 5): ((2.1, 2.2, 2.4), (3.1, 3.3, 3.6), (4.4, 4.7, 5.0), (5.7, 6.0, 6.5), (7.4, 7.9, 8.5)),
    (30, 10): ((1.5, 1.6, 1.8), (2.3, 2.5, 2.7), (3.3, 3.5, 3.7), (4.2, 4.5, 4.8), (5.5, 5.9, 6.3)),
}


def seen(n, m, spread):
    """A comparison without an effect whose pooled standard deviation is `spread`."""
    return Comparison(
        base_count=n,
        new_count=m,
        effect=0.0,
        standard_error=spread * math.sqrt(1 / n + 1 / m),
        degrees=n + m - 2,
        run_variance=spread**2,
    )


@pytest.mark.parametrize(
    ("runs", "spread", "metrics", "expected"),
    [
        (runs, spread, metrics, percent)
        for runs, rows in DETECTABLE.items()
        for spread, row in zip(SPREADS, rows, strict=True)
        for metrics, percent in zip((10, 20, 50), row, strict=True)
    ],
)
def test_the_smallest_detectable_change_is_that_of_the_table(runs, spread, metrics, expected):
    """The effect found with probability 0.8 is within 0.2 points of the closed form's table."""
    percent = 100 * math.expm1(seen(*runs, spread / 100).detectable(0.01 / metrics))

    assert expected == pytest.approx(percent, abs=0.2)


@pytest.mark.parametrize("alpha", [0.01, 0.0005, 1e-6])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 3), (5, 5), (200, 200)])
def test_a_change_of_the_detectable_size_is_found_four_times_in_five(n, m, alpha):
    """The power at the detectable effect is 0.8, by scipy's own noncentral t."""
    noncentrality = seen(n, m, 1.0).detectable(alpha) / math.sqrt(1 / n + 1 / m)
    critical = scipy_stats.t.isf(alpha, n + m - 2)

    assert 0.8 == pytest.approx(scipy_stats.nct.sf(critical, n + m - 2, noncentrality), abs=1e-6)


@pytest.mark.parametrize(
    ("spread", "percent", "expected"),
    [(1.0, 3, 7), (1.0, 5, 5), (2.1, 3, 20), (2.1, 5, 10), (2.7, 3, 32), (2.7, 5, 14), (3.5, 3, 51), (3.5, 5, 21)],
)
def test_the_runs_that_a_change_needs_are_those_of_the_table(spread, percent, expected):
    """With 20 metrics at 1 %, so many runs on each side find the change."""
    assert expected == seen(5, 5, spread / 100).runs_to_detect(math.log1p(percent / 100), 0.01 / 20)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (30, 3), (2, 9)])
def test_the_runs_needed_do_not_depend_on_how_the_spread_was_seen(n, m):
    """The proposal follows from the spread, not from the number of runs that showed it."""
    assert 10 == seen(n, m, 0.021).runs_to_detect(math.log1p(0.05), 0.01 / 20)


@pytest.mark.parametrize("effect", [0.02, 0.05, 0.3])
def test_the_runs_needed_are_the_fewest_that_find_the_change(effect):
    """One run less would have missed it."""
    runs = seen(5, 5, 0.03).runs_to_detect(effect, 0.001)

    assert seen(runs, runs, 0.03).detectable(0.001) <= effect < seen(runs - 1, runs - 1, 0.03).detectable(0.001)


def test_absurdly_many_runs_are_not_proposed():
    """Beyond a limit lowering the noise is the better advice."""
    needed = math.ceil(seen(MANY_RUNS, MANY_RUNS, 0.5).detectable(0.01) * 1000) / 1000

    assert (None, MANY_RUNS) == (
        seen(5, 5, 0.5).runs_to_detect(0.01, 0.01),
        seen(5, 5, 0.5).runs_to_detect(needed, 0.01),
    )


def test_more_noise_hides_larger_changes():
    """The detectable effect is in proportion to the spread."""
    assert 3 * seen(5, 5, 0.01).detectable(0.001) == pytest.approx(seen(5, 5, 0.03).detectable(0.001))
