"""Rows of what happened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf.arrivals import Arrival, Arrivals
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.records import (
    CacheCounters,
    ClientStats,
    Failure,
    Phase,
    Remark,
    RequestRecord,
    RunRecord,
    Window,
    added,
)


def request(**words):
    given = {
        "run": 0,
        "phase": Phase.MEASURED,
        "session": 0,
        "turn": 0,
        "released_ns": 0,
        "sent_ns": 1,
        "end_ns": 9,
        "arrivals": (Arrival(5, 1), Arrival(8, 1)),
        "new_tokens": 4,
        "input_tokens": 20,
        "output_tokens_asked": 2,
    }
    return RequestRecord(**{**given, **words})


ARRIVALS = (Arrival(5, 1), Arrival(7, None, 1), Arrival(8, 1))


@pytest.mark.parametrize("arrivals", [ARRIVALS, list(ARRIVALS), Arrivals.of(ARRIVALS)])
def test_a_request_knows_its_first_and_last_token(arrivals):
    """They are the stamps of the first and the last arrival, in whatever form arrivals are kept."""
    record = request(arrivals=arrivals)

    assert (5, 8) == (record.first_token_ns, record.last_token_ns)


@pytest.mark.parametrize("arrivals", [(), Arrivals()])
def test_a_request_without_an_arrival_has_no_token_times(arrivals):
    """Nothing arrived: both are None."""
    record = request(arrivals=arrivals)

    assert (None, None) == (record.first_token_ns, record.last_token_ns)


def test_a_request_is_ok_unless_it_failed():
    """A failure is what makes it not ok, not a missing token, and not a remark."""
    assert (True, False) == (request(arrivals=()).ok, request(failure=Failure("timeout", "")).ok)
    assert request(remarks=(Remark("no_usage", ""),)).ok


def test_what_nobody_says_is_unknown():
    """Times that there were not, and counts of the server, are None; oddities are none."""
    record = request()

    assert (None, None, ()) == (record.flushed_ns, record.connect_ns, record.remarks)
    assert (None, None, None) == (record.prompt_tokens, record.output_tokens, record.cached_tokens)


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (Window(10, 20), [10, 15, 20]),
        (Window(10, None), [10, 15, 20, 21, 99]),
        (Window(0), [0, 9, 10, 15, 20, 21, 99]),
        (Window(15, 15), [15]),
        (Window(11, 14), []),
    ],
)
def test_a_window_has_the_requests_that_were_meant_to_be_sent_within_it(window, inside):
    """Whenever they were sent or answered; both ends belong to it."""
    requests = tuple(request(released_ns=at, sent_ns=at + 50, end_ns=at + 90) for at in (0, 9, 10, 15, 20, 21, 99))
    run = RunRecord(index=0, phase=Phase.MEASURED, start_ns=0, end_ns=200, requests=requests, window=window)

    assert inside == [one.released_ns for one in requests if window.has(one)]
    assert inside == [one.released_ns for one in run.counted]


def test_without_a_window_the_whole_run_counts():
    """Every request, in order."""
    requests = (request(released_ns=5), request(released_ns=1))

    assert requests == RunRecord(index=0, phase=Phase.MEASURED, start_ns=0, end_ns=9, requests=requests).counted


def stats(*values, **words):
    made = ClientStats(**words)
    for name, value in zip(("away", "unread", "connects"), values, strict=False):
        getattr(made, name).add(value)
    return made


def test_what_several_clients_saw_of_one_run_adds_up():
    """Counts and histograms are summed, shares of processors and clocks stand beside one another."""
    mine = stats(3, 5, 7, unstamped=1, clock_steps=2, resent=3, cpu_shares=[0.5], clock_offsets_ns={"a": (1, 2)})
    theirs = stats(
        3, 6, 7, unstamped=10, clock_steps=20, resent=30, cpu_shares=[0.6, 0.7], clock_offsets_ns={"b": (3, 4)}
    )

    mine.merge(theirs)

    assert ({3: 2}, {5: 1, 6: 1}, {7: 2}) == (mine.away.bins, mine.unread.bins, mine.connects.bins)
    assert (11, 22, 33) == (mine.unstamped, mine.clock_steps, mine.resent)
    assert ([0.5, 0.6, 0.7], {"a": (1, 2), "b": (3, 4)}) == (mine.cpu_shares, mine.clock_offsets_ns)
    assert ({3: 1}, 10, [0.6, 0.7]) == (theirs.away.bins, theirs.unstamped, theirs.cpu_shares)


def test_merging_nothing_changes_nothing():
    """A worker that saw nothing adds nothing, and one that begins with nothing becomes the other."""
    one, other = stats(3, 5, 7, resent=3, cpu_shares=[0.5]), ClientStats()

    one.merge(ClientStats())
    other.merge(one)

    assert stats(3, 5, 7, resent=3, cpu_shares=[0.5]) == one == other
    assert Histogram() == ClientStats().away


BEFORE = CacheCounters(
    queried_tokens=100,
    hit_tokens=10,
    tokens_by_tier={"recomputed": 90, "gpu": 10},
    offloaded_bytes=1000,
    restored_bytes=0,
    preemptions=1,
)
AFTER = CacheCounters(
    queried_tokens=300,
    hit_tokens=160,
    tokens_by_tier={"recomputed": 140, "gpu": 110, "host": 50},
    offloaded_bytes=1500,
    restored_bytes=200,
    preemptions=1,
)
BETWEEN = CacheCounters(
    queried_tokens=200,
    hit_tokens=150,
    tokens_by_tier={"recomputed": 50, "gpu": 100, "host": 50},
    offloaded_bytes=500,
    restored_bytes=200,
    preemptions=0,
)


def test_counters_since_a_reading_are_what_happened_between():
    """Each count is subtracted; a tier that was not there before starts at nothing."""
    assert BETWEEN == AFTER.since(BEFORE)


def test_counters_add_up():
    """Adding what happened to the earlier reading gives the later one."""
    assert AFTER == BEFORE.plus(BETWEEN)


@pytest.mark.parametrize("combine", [CacheCounters.since, CacheCounters.plus])
@pytest.mark.parametrize("sides", [(AFTER, CacheCounters()), (CacheCounters(), AFTER)])
def test_what_one_reading_does_not_say_is_unknown_of_both(combine, sides):
    """A missing count is not zero: the combination does not say it either."""
    assert CacheCounters() == combine(*sides)


def test_replicas_are_added_up_and_kept():
    """Between two readings, and over runs, each replica has its own; of other replicas nothing is known."""
    before, after = added([BEFORE, BEFORE]), added([AFTER, BEFORE])
    between = after.since(before)
    assert BETWEEN == replace(between, replicas=())
    assert (BETWEEN, BEFORE.since(BEFORE)) == between.replicas
    assert (BETWEEN.plus(BETWEEN), BEFORE.since(BEFORE)) == between.plus(between).replicas
    assert () == between.plus(added([BETWEEN])).replicas == between.plus(BETWEEN).replicas


def test_fields_are_known_or_unknown_one_by_one():
    """A field that both readings have is combined although another is missing."""
    combined = CacheCounters(hit_tokens=5, preemptions=1).since(CacheCounters(hit_tokens=3))

    assert CacheCounters(hit_tokens=2) == combined


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        (CacheCounters(queried_tokens=200, hit_tokens=150), 0.75),
        (CacheCounters(queried_tokens=200, hit_tokens=0), 0.0),
        (CacheCounters(), None),
        (CacheCounters(queried_tokens=200), None),
        (CacheCounters(hit_tokens=150), None),
        (CacheCounters(queried_tokens=0, hit_tokens=0), None),
        (CacheCounters(queried_tokens=0, hit_tokens=0, tokens_by_tier={"recomputed": 50}), 0.0),
        (CacheCounters(tokens_by_tier={"recomputed": 50, "gpu": 100, "host": 50}), 0.75),
        (CacheCounters(tokens_by_tier={"recomputed": 0, "gpu": 0}), None),
        (CacheCounters(tokens_by_tier={}), None),
        (CacheCounters(tokens_by_tier={"gpu": 100}), None),
    ],
)
def test_the_hit_rate_is_a_share_of_the_prompt_tokens_or_unknown(counters, expected):
    """Of the tokens looked up, else of all prompt tokens; without a whole there is no share."""
    assert expected == counters.hit_rate
