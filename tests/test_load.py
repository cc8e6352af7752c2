"""Who sends next."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load import closed_loop, round_robin


def batches(load, turns, *, failing=(), ends_first=min):
    """What is sent at once, in order; `ends_first` chooses the one in flight that ends next.

    `failing`: (session, turn) pairs that end their session.
    """
    schedule = load.schedule(turns)
    left = list(turns)
    sent, in_flight = [], []

    def send():
        due = tuple(schedule.due())
        if due:
            sent.append(due)
            in_flight.extend(due)

    send()
    while in_flight:
        session = ends_first(in_flight)
        in_flight.remove(session)
        turn = turns[session] - left[session]
        left[session] = 0 if (session, turn) in failing else left[session] - 1
        schedule.ended(session, more=left[session] > 0)
        send()
    return sent


def test_round_robin_sends_one_user_after_another_round_by_round():
    """Every user has its first turn before any has its second, one at a time."""
    assert [(0,), (1,), (2,), (0,), (1,), (2,)] == batches(round_robin(), [2, 2, 2])


def test_round_robin_passes_over_users_who_have_finished():
    """A later round has only those who still have a turn."""
    assert [(0,), (1,), (2,), (0,), (2,), (2,)] == batches(round_robin(), [2, 1, 3])


def test_a_barrier_sends_all_users_of_a_round_at_once():
    """The next round comes when the last answer of this one has come."""
    assert [(0, 1, 2), (0, 2), (2,)] == batches(round_robin(barrier=True), [2, 1, 3], ends_first=max)


def test_with_a_barrier_nothing_is_due_while_one_answer_is_missing():
    """Asking again in the middle of a round gives nobody."""
    schedule = round_robin(barrier=True).schedule([2, 2])
    schedule.due()

    schedule.ended(0, more=True)

    assert () == tuple(schedule.due())


def test_a_closed_loop_keeps_its_number_of_sessions_busy():
    """A session sends its next turn at once; a new one starts only when another has finished."""
    assert [(0, 1), (0,), (2,), (1,), (2,)] == batches(closed_loop(2), [2, 2, 2])


def test_a_closed_loop_goes_on_with_whoever_is_answered():
    """The order is that of the answers, not of the sessions."""
    assert [(0, 1), (1,), (2,), (2,), (0,)] == batches(closed_loop(2), [2, 2, 2], ends_first=max)


def test_a_closed_loop_wider_than_its_sessions_sends_them_all():
    """Concurrency is a limit, not a promise."""
    assert [(0, 1)] == batches(closed_loop(8), [1, 1])


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (round_robin(), [(0,), (1,), (1,), (1,)]),
        (round_robin(barrier=True), [(0, 1), (1,), (1,)]),
        (closed_loop(1), [(0,), (1,), (1,), (1,)]),
        (closed_loop(2), [(0, 1), (1,), (1,)]),
    ],
)
def test_a_session_that_failed_is_dropped(load, expected):
    """Its later turns are never due, and the others go on."""
    assert expected == batches(load, [3, 3], failing={(0, 0)})


@pytest.mark.parametrize("load", [round_robin(), round_robin(barrier=True), closed_loop(3)])
def test_without_sessions_nothing_is_due(load):
    """An empty workload ends at once."""
    assert [] == batches(load, [])


LOADS = st.sampled_from([round_robin(), round_robin(barrier=True)]) | st.integers(1, 6).map(closed_loop)


@given(load=LOADS, turns=st.lists(st.integers(1, 5), max_size=8), data=st.data())
@settings(deadline=None)
def test_every_turn_is_sent_exactly_once(load, turns, data):
    """Whatever the order of the answers, each session sends each of its turns, one at a time."""
    sent = batches(load, turns, ends_first=lambda waiting: data.draw(st.sampled_from(sorted(waiting))))

    assert Counter(dict(enumerate(turns))) == Counter(s for due in sent for s in due)
    assert all(len(set(due)) == len(due) for due in sent)


@given(concurrency=st.integers(1, 6), turns=st.lists(st.integers(1, 5), max_size=8), data=st.data())
@settings(deadline=None)
def test_a_closed_loop_is_full_whenever_it_can_be(concurrency, turns, data):
    """There are always as many requests in flight as asked for, or as sessions are left."""
    schedule = closed_loop(concurrency).schedule(turns)
    left = list(turns)
    in_flight = list(schedule.due())
    while in_flight:
        assert min(concurrency, sum(count > 0 for count in left)) == len(in_flight)
        session = data.draw(st.sampled_from(sorted(in_flight)))
        in_flight.remove(session)
        left[session] -= 1
        schedule.ended(session, more=left[session] > 0)
        in_flight.extend(schedule.due())


@pytest.mark.parametrize("load", [round_robin(), round_robin(barrier=True), closed_loop(1)])
def test_each_schedule_starts_afresh(load):
    """A load has no memory of the runs before."""
    assert batches(load, [1, 2]) == batches(load, [1, 2])


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (round_robin(), "round_robin()"),
        (round_robin(barrier=True), "round_robin(barrier=True)"),
        (closed_loop(8), "closed_loop(8)"),
    ],
)
def test_a_load_is_described_as_it_is_written(load, expected):
    """The description is what stands in the test."""
    assert expected == load.describe()


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "8", None])
def test_a_concurrency_that_is_not_a_positive_whole_number_is_refused(concurrency):
    """The error says what was given and what is accepted."""
    with pytest.raises(ConfigurationError, match="whole number of at least 1, got " + repr(concurrency)):
        closed_loop(concurrency)
