"""When samples are due, in made-up time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.telemetry.beat import Beat

MS = NS_PER_S // 1000
PERIOD_NS = 100 * MS


def moments(count, took_ms=0, period_ns=PERIOD_NS):
    """When so many samples are taken, milliseconds, and which of them read everything."""
    now_ns, beat, found = 0, Beat(0, period_ns), []
    for _ in range(count):
        now_ns += round(beat.left_s(now_ns) * NS_PER_S)
        found.append((now_ns // MS, beat.is_rare))
        now_ns += took_ms * MS
        beat.taken(now_ns)
    return found


@pytest.mark.parametrize("took_ms", [0, 10, 99])
def test_samples_keep_to_their_deadlines(took_ms):
    """The time that a sample takes is not added to the period."""
    assert [at for at, _ in moments(30, took_ms)] == [100 * number for number in range(1, 31)]


def test_everything_is_read_once_a_second():
    """At 10 Hz with every tenth sample; at less than one a second with each."""
    assert [at for at, is_rare in moments(30) if is_rare] == [1000, 2000, 3000]
    assert all(is_rare for _, is_rare in moments(5, period_ns=2 * NS_PER_S))


def test_what_was_missed_is_left_out():
    """A driver that took 250 ms is not asked thrice in a row afterwards."""
    assert [at for at, _ in moments(4, took_ms=250)] == [100, 400, 700, 1000]


@given(period_ms=st.integers(10, 10_000), took_ms=st.lists(st.integers(0, 30_000), min_size=1, max_size=20))
def test_the_next_sample_is_always_ahead_and_on_the_beat(period_ms, took_ms):
    """By no more than a period, however long samples take."""
    now_ns, beat = 0, Beat(0, period_ms * MS)
    for one in took_ms:
        now_ns += round(beat.left_s(now_ns) * NS_PER_S) + one * MS
        beat.taken(now_ns)
        left_ns = round(beat.left_s(now_ns) * NS_PER_S)
        assert 0 < left_ns <= period_ms * MS
        assert (now_ns + left_ns) % (period_ms * MS) == 0
