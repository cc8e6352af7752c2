"""Which sockets have something to read or can be written to, in the order in which it matters.

What waits for its first byte comes before what streams: a first token that is read together with the
second one has no exact time any more, and TTFT is what is gated most. While a long list of streams
is served, the others are looked at again and again.
"""

from __future__ import annotations

import select
import selectors
import socket
from collections.abc import Iterator
from typing import Any, TypeAlias

from pytest_llmperf.client.sockets import wants_kernel_stamps
from pytest_llmperf.clock import NS_PER_MS, Clock, WallOffset
from pytest_llmperf.records import ClientStats

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
Ready: TypeAlias = "list[tuple[Any, int]]"
"""What was given with each socket, and what it is ready for."""

FEW = 64
"""With no more than so many exchanges a look at all of them is short, and each is looked at when it comes."""
_REST_S = 250e-6
"""Between two looks at many exchanges. The kernel notes when things come; looking less often finds more at a time."""
_SLICE = 64
"""Streams that are read before the others are looked at again: about 0.3 ms."""
# Between the kernel's look at the sockets and ours at the clock; covers the reading of a long list of them.
_LOOK_NS = NS_PER_MS
_MOST_FD = 1024
"""`select` takes no descriptor from here on, and `poll` no microseconds."""


class Look:
    """What one look at some sockets has found.

    `since_ns`: nothing of it was there then. `trusted`: the kernel's stamps can be converted, by taking
    `offset_ns` off.
    """

    __slots__ = ("offset_ns", "ready", "since_ns", "trusted", "woke_ns")

    def __init__(self, ready: Ready, since_ns: int, woke_ns: int, offset_ns: int, *, trusted: bool) -> None:
        self.ready = ready
        self.since_ns = since_ns
        self.woke_ns = woke_ns
        self.offset_ns = offset_ns
        self.trusted = trusted


class Lookout:
    """Watches sockets; `data` is handed back with a socket that is ready."""

    def __init__(self, clock: Clock, stats: ClientStats) -> None:
        self.wall = WallOffset(clock)
        self._clock = clock
        self._stats = stats
        self._first = selectors.DefaultSelector()
        # Without epoll all sockets are equal.
        self._streams = _Streams() if hasattr(select, "epoll") else None
        self._looked_ns: dict[Any, int] = dict.fromkeys((self._first, self._streams), clock.now_ns())
        self._stepped: set[Any] = set()
        """Selectors that have not been looked at since the wall clock was set."""
        self._woke_ns = clock.now_ns()
        self._rests = wants_kernel_stamps()

    def watch(self, sock: socket.socket, events: int, data: object) -> None:
        """Look out for something that has not begun to stream."""
        self._first.register(sock, events, data)

    def change(self, sock: socket.socket, events: int, data: object, *, streaming: bool) -> None:
        """Look out for other events on a socket."""
        self._which(streaming=streaming).modify(sock, events, data)

    def move(self, sock: socket.socket, events: int, data: object, *, streaming: bool) -> None:
        """Put a socket among those that stream, or back among the others."""
        self._which(streaming=not streaming).unregister(sock)
        self._which(streaming=streaming).register(sock, events, data)

    def forget(self, sock: socket.socket, *, streaming: bool) -> None:
        """Do not look at it any more."""
        self._which(streaming=streaming).unregister(sock)

    def _which(self, *, streaming: bool) -> selectors.BaseSelector | _Streams:
        return self._streams if streaming and self._streams is not None else self._first

    def missed_nothing(self) -> None:
        """Until this moment nothing could arrive."""
        self._woke_ns = self._clock.now_ns()
        self._looked_ns = dict.fromkeys(self._looked_ns, self._woke_ns)

    def looks(self, timeout_s: float, in_flight: int) -> Iterator[Look]:
        """Wait up to `timeout_s`, then look until everything that was ready has been handed out.

        `in_flight`: how many answers are outstanding; with none, being away does not count.
        """
        waiting = in_flight > 0
        if in_flight > FEW and self._rests and timeout_s > _REST_S:
            self._clock.sleep(_REST_S)
            timeout_s -= _REST_S
        yield self._look(self._first, timeout_s, waiting=waiting)
        if self._streams is None:
            return
        streams = self._look(self._streams, 0, waiting=False)
        for start in range(0, len(streams.ready), _SLICE):
            if start:
                yield self._look(self._first, 0, waiting=waiting)
            trusted = streams.trusted and self._streams not in self._stepped
            ready = streams.ready[start : start + _SLICE]
            yield Look(ready, streams.since_ns, streams.woke_ns, streams.offset_ns, trusted=trusted)

    def close(self) -> None:
        self._first.close()
        if self._streams is not None:
            self._streams.close()

    def _look(self, selector: selectors.BaseSelector | _Streams, timeout_s: float, *, waiting: bool) -> Look:
        call_ns = self._clock.now_ns()
        if waiting:
            self._stats.away.add(call_ns - self._woke_ns)
        since_ns = self._looked_ns[selector]
        if isinstance(selector, _Streams):
            ready = selector.ready()
        else:
            ready = [(key.data, mask) for key, mask in selector.select(self._waited(timeout_s))]
        woke_ns = self._woke_ns = self._clock.now_ns()
        self._looked_ns[selector] = max(call_ns, woke_ns - _LOOK_NS)
        if self.wall.refresh():
            self._stats.clock_steps += 1
            self._stepped = {self._first, self._streams}
        trusted = selector not in self._stepped
        self._stepped.discard(selector)
        return Look(ready, since_ns, woke_ns, self.wall.offset_ns, trusted=trusted)

    def _waited(self, timeout_s: float) -> float:
        """Wait until a socket has something; returns how long the selector, which knows of no streams, still has to.

        Both are waited for side by side. With one inside the other the kernel would pass on each arrival
        at once, on the processor and in the time of whoever sends: 5 to 8 % of its rate over loopback.
        """
        if timeout_s <= 0 or self._streams is None:
            return timeout_s
        watched = [self._first.fileno(), self._streams.fileno()]
        if max(watched) < _MOST_FD:
            select.select(watched, [], [], timeout_s)
        else:
            poll = select.poll()
            for descriptor in watched:
                poll.register(descriptor, select.POLLIN)
            poll.poll(timeout_s * 1000)
        return 0


class _Streams:
    """The sockets that stream. As a selector, which spends half a microsecond more on each socket."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._data: dict[int, object] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def register(self, sock: socket.socket, events: int, data: object) -> None:
        self._epoll.register(sock, _MASKS[events])
        self._data[sock.fileno()] = data

    def modify(self, sock: socket.socket, events: int, data: object) -> None:
        self._epoll.modify(sock, _MASKS[events])
        self._data[sock.fileno()] = data

    def unregister(self, sock: socket.socket) -> None:
        del self._data[sock.fileno()]
        self._epoll.unregister(sock)

    def ready(self) -> Ready:
        """All that are ready at this moment, for reading or, what a broken one is, for both."""
        data = self._data
        found = self._epoll.poll(0, max(1, len(data)))
        return [(data[fd], READ if mask == _EPOLLIN else _events(mask)) for fd, mask in found]

    def close(self) -> None:
        self._epoll.close()


_EPOLLIN, _EPOLLOUT = 1, 4
_MASKS = {READ: _EPOLLIN, WRITE: _EPOLLOUT, READ | WRITE: _EPOLLIN | _EPOLLOUT}


def _events(mask: int) -> int:
    """As selectors have it: an error or a hang-up is something to read and something to write."""
    return (READ if mask & ~_EPOLLOUT else 0) | (WRITE if mask & ~_EPOLLIN else 0)
