"""The only reader of time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pytest_llmperf.clock import NS_PER_S, RealClock, VirtualClock, seconds_between, timestamp


def test_a_virtual_clock_stands_still_by_itself():
    """Two readings without a sleep are equal."""
    clock = VirtualClock(start_ns=5)

    assert (5, 5) == (clock.now_ns(), clock.now_ns())


def test_sleeping_moves_a_virtual_clock_by_exactly_that_long():
    """A sleep takes no time but the clock's own."""
    clock = VirtualClock(start_ns=5)

    clock.sleep(1.5)

    assert 5 + 1_500_000_000 == clock.now_ns()


@pytest.mark.parametrize("duration_s", [0.0, -1.0])
def test_a_virtual_clock_never_goes_backwards(duration_s):
    """Sleeping for nothing, or less, changes nothing."""
    clock = VirtualClock(start_ns=5)

    clock.sleep(duration_s)

    assert 5 == clock.now_ns()


def test_the_real_clock_counts_nanoseconds_and_never_goes_backwards():
    """Readings are whole numbers in rising order."""
    clock = RealClock()

    readings = [clock.now_ns() for _ in range(100)]

    assert sorted(readings) == readings
    assert {int} == {type(reading) for reading in readings}


def test_durations_are_seconds():
    """The difference of two readings is scaled to the base unit."""
    assert 0.25 == seconds_between(1_000, 1_000 + NS_PER_S // 4)


def test_the_wall_clock_says_its_time_zone():
    """A time stamp is UTC and says so."""
    assert timedelta(0) == timestamp().utcoffset()
