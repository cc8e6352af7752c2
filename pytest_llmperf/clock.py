"""The only reader of time.

Durations are differences of `now_ns`, which never goes backwards and knows nothing of the wall
clock; `timestamp` says what a calendar would show and is never subtracted from anything.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """What the driver, the client and the processes ask for the time."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary moment, monotonic."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    now_ns = staticmethod(time.monotonic_ns)
    sleep = staticmethod(time.sleep)


class VirtualClock:
    """A clock that moves only when told to: nothing waits, every run takes the same time."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep(self, duration_s: float) -> None:
        self._now_ns += max(0, round(duration_s * NS_PER_S))


def seconds_between(start_ns: int, end_ns: int) -> float:
    """The duration between two readings of one clock, in seconds."""
    return (end_ns - start_ns) / NS_PER_S


def timestamp() -> datetime:
    """The wall clock in UTC, for file names and provenance only."""
    return datetime.now(timezone.utc)
