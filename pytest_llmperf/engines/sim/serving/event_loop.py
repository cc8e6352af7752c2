"""An asyncio loop that wakes up when it should."""

from __future__ import annotations

import asyncio
import select
import selectors


class _ExactSelector(selectors.DefaultSelector):
    """Waits to the microsecond. `epoll` knows whole milliseconds only, and asyncio rounds up to them."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        select.select([self], [], [], timeout)
        return super().select(0)


def exact_event_loop() -> asyncio.AbstractEventLoop:
    """A new loop; its time is that of `RealClock`."""
    return asyncio.SelectorEventLoop(_ExactSelector())
