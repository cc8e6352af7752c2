"""The only reader of time.

Durations are differences of `now_ns`, which never goes backwards and knows nothing of the wall
clock; `timestamp` says what a calendar would show and is never subtracted from anything.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
# More than any slewing (500 ppm) moves the wall clock between two looks, less than a step that matters.
_STEP_NS = NS_PER_MS
# A change below this needs no second look; it bounds the error of a conversion.
_CLOSE_NS = 20_000
_ATTEMPTS = 5


class Clock(Protocol):
    """What the driver, the client and the processes ask for the time."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary moment, monotonic."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""
        ...

    def cpu_ns(self) -> int | None:
        """CPU time that this process has used, nanoseconds; None where that has nothing to do with this clock."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    now_ns = staticmethod(time.monotonic_ns)
    sleep = staticmethod(time.sleep)
    cpu_ns = staticmethod(time.process_time_ns)


class VirtualClock:
    """A clock that moves only when told to: nothing waits, every run takes the same time."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep(self, duration_s: float) -> None:
        self._now_ns += max(0, round(duration_s * NS_PER_S))

    def sleep_until(self, at_ns: int) -> None:
        """Let time pass until then; none passes if that is over."""
        self._now_ns = max(self._now_ns, at_ns)

    def cpu_ns(self) -> None:
        return None


class WallOffset:
    """How far the wall clock is ahead of a monotonic one, to convert the kernel's stamps.

    It is looked at anew all the time, so that slewing does not add up, and a step is noticed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.offset_ns = self._measure()

    def refresh(self) -> bool:
        """Look again; True if the wall clock was set since the last look: stamps from between mean nothing."""
        before_ns = self.offset_ns
        now_ns = self._clock.now_ns()
        offset_ns = time.time_ns() - now_ns
        if abs(offset_ns - before_ns) > _CLOSE_NS:  # slewed, stepped, or interrupted between the two readings
            offset_ns = self._measure()
        self.offset_ns = offset_ns
        return abs(offset_ns - before_ns) > _STEP_NS

    def monotonic(self, wall_ns: int) -> int:
        """A reading of the wall clock as one of the monotonic clock."""
        return wall_ns - self.offset_ns

    def _measure(self) -> int:
        """The offset of the attempt that was interrupted least."""
        attempts = []
        for _ in range(_ATTEMPTS):
            before_ns = self._clock.now_ns()
            wall_ns = time.time_ns()
            after_ns = self._clock.now_ns()
            attempts.append((after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2))
        return min(attempts)[1]


def seconds_between(start_ns: int, end_ns: int) -> float:
    """The duration between two readings of one clock, in seconds."""
    return (end_ns - start_ns) / NS_PER_S


def thread_cpu_ns() -> int:
    """CPU time that this thread has used, nanoseconds."""
    return time.thread_time_ns()


def timestamp() -> datetime:
    """The wall clock in UTC, for file names and provenance only."""
    return datetime.now(timezone.utc)
