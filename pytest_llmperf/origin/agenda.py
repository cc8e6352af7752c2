"""Whose token is due next."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from pytest_llmperf.origin.connection import Connection

Entry = tuple[int, int, Connection]
"""When a connection's next token is due, in ns of the monotonic clock; the number decides between equals."""


class Agenda:
    """All that is due, soonest first.

    Further tokens come due in the order in which those before them did, so that a queue is sorted
    as it grows: cheaper than the heap, which takes the first tokens and any other out of turn.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._queue: deque[Entry] = deque()

    def add_first(self, entry: Entry) -> None:
        """Add a first token."""
        heappush(self._heap, entry)

    def add(self, entry: Entry) -> None:
        """Add a further token."""
        if self._queue and entry < self._queue[-1]:
            heappush(self._heap, entry)
        else:
            self._queue.append(entry)

    def next_ns(self) -> int | None:
        """When the next token is due."""
        return min((entries[0][0] for entries in (self._heap, self._queue) if entries), default=None)

    def take_due(self, now_ns: int) -> Entry | None:
        """The next token if it is due by now."""
        heap, queue = self._heap, self._queue
        if queue and not (heap and heap[0] < queue[0]):
            return queue.popleft() if queue[0][0] <= now_ns else None
        return heappop(heap) if heap and heap[0][0] <= now_ns else None
