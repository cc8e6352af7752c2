"""Putting together what the workers of one run have done."""

from __future__ import annotations

import pytest

from pytest_llmperf.driver import Driven
from pytest_llmperf.records import ClientStats, Window


def driven(window=None, *, start_ns=10, end_ns=90, **words):
    return Driven(start_ns=start_ns, end_ns=end_ns, window=window or Window(10, None), **words)


def merged(*parts):
    first, *others = parts
    for other in others:
        first.merge(other)
    return first


def test_a_run_lasts_from_the_first_start_to_the_last_end():
    """Of all its workers."""
    whole = merged(driven(start_ns=10, end_ns=90), driven(start_ns=8, end_ns=70), driven(start_ns=12, end_ns=99))

    assert (8, 99) == (whole.start_ns, whole.end_ns)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([Window(10, 50), Window(20, 60)], Window(20, 50)),
        ([Window(20, 60), Window(10, 50)], Window(20, 50)),
        ([Window(10, None), Window(10, 60)], Window(10, 60)),
        ([Window(10, 60), Window(10, None)], Window(10, 60)),
        ([Window(10, None), Window(12, None)], Window(12, None)),
        ([Window(10, 50), Window(10, 40), Window(10, 45)], Window(10, 40)),
    ],
)
def test_it_is_measured_while_all_workers_are_steady(windows, expected):
    """From the latest begin to the earliest end; one without a tail does not end it."""
    assert expected == merged(*map(driven, windows)).window


def test_counts_and_problems_add_up():
    """Shed turns, reasons against the run, and the client's own statistics."""
    parts = [
        driven(shed=2, problems=("lost a worker",), client=ClientStats(resent=1, cpu_shares=[0.5])),
        driven(shed=3, problems=("lost another",), client=ClientStats(resent=4, cpu_shares=[0.7])),
    ]

    whole = merged(*parts)

    assert (5, ("lost a worker", "lost another")) == (whole.shed, whole.problems)
    assert (5, [0.5, 0.7]) == (whole.client.resent, whole.client.cpu_shares)
