"""A figure over all runs, and the same of each."""

from __future__ import annotations

import pytest

from pytest_llmperf.errors import NoSamplesError
from pytest_llmperf.stats import Sample, Statistic

RUNS = (Sample((1.0, 2.0, 3.0), "TTFT"), Sample((2.0, 4.0, 60.0), "TTFT"))
ALL = Sample((1.0, 2.0, 3.0, 2.0, 4.0, 60.0), "TTFT", lambda: RUNS)


@pytest.mark.parametrize(
    ("name", "expected", "runs"),
    [
        ("mean", 12.0, (2.0, 22.0)),
        ("gmean", 2880 ** (1 / 6), (6 ** (1 / 3), 480 ** (1 / 3))),
        ("p50", 2.5, (2.0, 4.0)),
        ("p90", 32.0, (2.8, 48.8)),
        ("p99", 57.2, (2.98, 58.88)),
    ],
)
def test_a_statistic_remembers_its_runs(name, expected, runs):
    """Each by the same formula, not a share of the whole."""
    found = getattr(ALL, name)

    assert (expected, runs) == (pytest.approx(found), pytest.approx(found.runs))


def test_without_runs_it_is_a_number():
    """There is nothing to remember."""
    found = RUNS[0].quantile(0.5)

    assert (2.0, False) == (found, isinstance(found, Statistic))


def test_of_nothing_there_is_no_statistic():
    with pytest.raises(NoSamplesError, match="no TTFT was measured"):
        _ = Sample((), "TTFT").p50
