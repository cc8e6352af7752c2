"""Putting together what the workers of one run have done."""

from __future__ import annotations

import pytest

from pytest_llmperf.driver import Driven
from pytest_llmperf.driver.parcel import together
from pytest_llmperf.records import ClientStats, Failure, Phase, RequestRecord, Window


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
        driven(
            shed=2,
            problems=("lost a worker",),
            client=ClientStats(resent=1, retransmitted=2, out_of_order=3, disturbed_connections=1, cpu_shares=[0.5]),
        ),
        driven(
            shed=3,
            problems=("lost another",),
            client=ClientStats(resent=4, retransmitted=5, out_of_order=0, disturbed_connections=2, cpu_shares=[0.7]),
        ),
    ]

    whole = merged(*parts)

    assert (5, ("lost a worker", "lost another")) == (whole.shed, whole.problems)
    assert (5, [0.5, 0.7]) == (whole.client.resent, whole.client.cpu_shares)
    assert (7, 3, 3) == (whole.client.retransmitted, whole.client.out_of_order, whole.client.disturbed_connections)


def row(session=0, turn=0, failure=None):
    return RequestRecord(
        run=0, phase=Phase.MEASURED, session=session, turn=turn, released_ns=0, sent_ns=0, end_ns=1, arrivals=(),
        new_tokens=1, input_tokens=1, output_tokens_asked=1, failure=failure,
    )  # fmt: skip


class TestUnaccounted:
    """What was let go is completed or failed; what was shed or abandoned never was."""

    ABANDONED = row(1, 1, Failure("abandoned", ""))

    @pytest.mark.parametrize(
        ("sent", "rows"),
        [
            (0, []),
            (2, [row(0), row(1)]),
            (2, [row(0), row(1, failure=Failure("timeout", "")), ABANDONED]),
            (None, [row(0)]),
        ],
        ids=["nothing", "completed", "failed and abandoned", "not known, as a worker was lost"],
    )
    def test_nothing(self, sent, rows):
        assert [] == list(driven(sent=sent, shed=3).unaccounted(rows))

    @pytest.mark.parametrize(
        ("sent", "rows", "said"),
        [
            (2, [row(0)], "2 requests were let go and 1 have ended, 0 of them twice"),
            (1, [row(0), row(1)], "1 requests were let go and 2 have ended"),
            (2, [row(0), row(0)], "1 of them twice"),
            (2, [row(1), ABANDONED], "2 requests were let go and 1 have ended"),
        ],
        ids=["lost", "too many", "twice", "abandoned is not sent"],
    )
    def test_something(self, sent, rows, said):
        (sentence,) = driven(sent=sent).unaccounted(rows)

        assert said in sentence
        assert "please report it" in sentence

    def test_of_several_workers(self):
        """Sums; not known where one of them is not."""
        assert 5 == merged(driven(sent=2), driven(sent=3)).sent
        assert merged(driven(sent=2), driven(sent=None), driven(sent=1)).sent is None
        assert together([driven(sent=2)], ["lost a worker"]).sent is None
