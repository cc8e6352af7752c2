"""The only reader of time."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from pytest_llmperf import clock
from pytest_llmperf.clock import NS_PER_MS, NS_PER_S, RealClock, VirtualClock, WallOffset, seconds_between, timestamp


def test_a_virtual_clock_stands_still_by_itself():
    """Two readings without a sleep are equal."""
    virtual = VirtualClock(start_ns=5)

    assert (5, 5) == (virtual.now_ns(), virtual.now_ns())


def test_sleeping_moves_a_virtual_clock_by_exactly_that_long():
    """A sleep takes no time but the clock's own."""
    virtual = VirtualClock(start_ns=5)

    virtual.sleep(1.5)

    assert 5 + 1_500_000_000 == virtual.now_ns()


@pytest.mark.parametrize("duration_s", [0.0, -1.0])
def test_a_virtual_clock_never_goes_backwards(duration_s):
    """Sleeping for nothing, or less, changes nothing."""
    virtual = VirtualClock(start_ns=5)

    virtual.sleep(duration_s)

    assert 5 == virtual.now_ns()


def test_the_real_clock_counts_nanoseconds_and_never_goes_backwards():
    """Readings are whole numbers in rising order."""
    real = RealClock()

    readings = [real.now_ns() for _ in range(100)]

    assert sorted(readings) == readings
    assert {int} == {type(reading) for reading in readings}


def test_durations_are_seconds():
    """The difference of two readings is scaled to the base unit."""
    assert 0.25 == seconds_between(1_000, 1_000 + NS_PER_S // 4)


def test_the_wall_clock_says_its_time_zone():
    """A time stamp is UTC and says so."""
    assert timedelta(0) == timestamp().utcoffset()


class Wall:
    """A wall clock beside a monotonic one: `ahead_ns` before it, each reading `takes_ns`."""

    def __init__(self, monkeypatch):
        self.monotonic_ns = 1_000_000_000
        self.ahead_ns = 5 * NS_PER_S
        self.takes_ns = 0
        self.interruptions = []
        monkeypatch.setattr(clock.time, "time_ns", self.time_ns)

    def now_ns(self):
        self._pass()
        return self.monotonic_ns

    def sleep(self, duration_s):
        self.monotonic_ns += round(duration_s * NS_PER_S)

    def time_ns(self):
        self._pass()
        return self.monotonic_ns + self.ahead_ns

    def _pass(self):
        self.monotonic_ns += self.takes_ns
        if self.interruptions:
            self.monotonic_ns += self.interruptions.pop(0)


class TestWallOffset:
    """What a reading of the wall clock is on the monotonic one."""

    @pytest.fixture
    def wall(self, monkeypatch):
        return Wall(monkeypatch)

    def test_conversion(self, wall):
        """A reading of the wall clock becomes the monotonic clock's of the same moment."""
        offset = WallOffset(wall)
        assert wall.monotonic_ns == offset.monotonic(wall.time_ns())
        assert wall.monotonic_ns - 7 == offset.monotonic(wall.time_ns() - 7)

    @pytest.mark.parametrize("step_ns", [2 * NS_PER_MS, -2 * NS_PER_MS, 3600 * NS_PER_S, -3600 * NS_PER_S])
    def test_a_step_is_noticed_once(self, wall, step_ns):
        """A clock that is set is noticed at the next look, and converted rightly from there on."""
        offset = WallOffset(wall)
        assert not offset.refresh()
        wall.ahead_ns += step_ns
        assert [True, False] == [offset.refresh(), offset.refresh()]
        assert wall.monotonic_ns == offset.monotonic(wall.time_ns())

    def test_slewing_is_followed(self, wall):
        """A clock that is made to go slower or faster is followed without being called set."""
        offset = WallOffset(wall)
        for _ in range(1000):
            wall.sleep(1.0)
            wall.ahead_ns += 500_000  # 500 ppm, the most that the kernel does
            assert not offset.refresh()
            assert wall.monotonic_ns == offset.monotonic(wall.time_ns())

    def test_slewing_between_looks_that_are_close(self, wall):
        """Changes too small for a second look do not add up."""
        offset = WallOffset(wall)
        for _ in range(1000):
            wall.ahead_ns += 10_000
            assert not offset.refresh()
        assert wall.monotonic_ns == offset.monotonic(wall.time_ns())

    @pytest.mark.parametrize("interruptions", [[0, 50_000_000], [0, 5_000_000] * 3 + [0] * 20, [0, 0, 0, 9_000_000]])
    def test_interruptions(self, wall, interruptions):
        """A process that is interrupted between two readings takes that for neither a step nor an offset."""
        wall.takes_ns = 50
        offset = WallOffset(wall)
        wall.interruptions = interruptions
        assert not offset.refresh()
        assert abs(wall.monotonic_ns - offset.monotonic(wall.time_ns())) < 1000

    def test_interrupted_from_the_start(self, wall):
        """The first measurement is the one that was interrupted least."""
        wall.takes_ns = 50
        wall.interruptions = [0, 5_000_000, 0, 0, 0, 0, 0, 0, 7_000_000]
        offset = WallOffset(wall)
        assert abs(wall.monotonic_ns - offset.monotonic(wall.time_ns())) < 1000

    def test_the_real_clocks(self):
        """On this machine the two clocks agree to far less than a millisecond."""
        offset = WallOffset(RealClock())
        errors = []
        for _ in range(20):
            assert not offset.refresh()
            before_ns = time.monotonic_ns()
            at_ns = offset.monotonic(time.time_ns())
            errors.append(max(before_ns - at_ns, at_ns - time.monotonic_ns()))
        assert sorted(errors)[10] < 100_000
