"""Stopping who drives, from outside and without a loss."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.clock import Clock, RealClock


class Stopped(BaseException):
    """Nobody wants what is being driven any more."""


class StoppableClock:
    """A clock that stops, once, who looks at it.

    The driver looks at the clock between answers, never while it reads or records one: an exception
    out of nowhere could cut an answer or a message in two. It costs no more than the clock itself.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        clock = clock or RealClock()
        self._now_ns = clock.now_ns
        self.sleep = clock.sleep
        self.cpu_ns = clock.cpu_ns
        self.now_ns: Callable[[], int] = clock.now_ns

    def stop(self) -> None:
        """Raise `Stopped` in who looks next, this thread or another."""
        self.now_ns = self._raise

    def resume(self) -> None:
        """Forget a stop that has met nobody."""
        self.now_ns = self._now_ns

    def _raise(self) -> int:
        self.resume()
        raise Stopped
