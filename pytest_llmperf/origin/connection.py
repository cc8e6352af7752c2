"""A client's connection: what came, when it came, and what the kernel did not take yet."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from pytest_llmperf.origin.protocol import Head
from pytest_llmperf.origin.streams import Stream

_READ_BYTES = 1 << 16
_BACKLOG = 65535
# From the kernel's headers; Python has no names for them.
_SO_TIMESTAMPING = 37
_STAMP_RECEIVED = 1 << 3 | 1 << 4  # SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE
_TIMESPEC = struct.Struct("@ll")
_CONTROL_BYTES = socket.CMSG_SPACE(3 * _TIMESPEC.size)


class Connection:
    """An accepted socket. It registers itself; `look_after` is called with it and the events found."""

    __slots__ = ("_head", "_selector", "_sock", "_unsent", "arrived_ns", "closing", "received", "stream")

    def __init__(
        self, sock: socket.socket, selector: selectors.BaseSelector, look_after: Callable[[Connection, int], None]
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ, partial(look_after, self))
        self._sock = sock
        self._selector = selector
        self._head: Head | None = None
        self._unsent = bytearray()
        self.received = bytearray()
        self.arrived_ns = 0
        """When the last of `received` came, on the monotonic clock."""
        self.stream: Stream | None = None
        self.closing = False

    def read(self) -> bool:
        """Read what is there; False if the client has gone."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, _CONTROL_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.arrived_ns = _arrival_ns(ancillary)
        if not self.closing:
            self.received += data
        return bool(data)

    def take_request(self) -> tuple[bytes, bytes] | None:
        """Route and body of the next request if it is complete. Raises `RefusalError`."""
        head = self._head
        if head is None:
            self._head = head = Head.take(self.received)
            if head is not None and head.expects_continue and len(self.received) < head.body_bytes:
                self.put(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head is None or len(self.received) < head.body_bytes:
            return None
        body = bytes(self.received[: head.body_bytes])
        del self.received[: head.body_bytes]
        self._head, self.closing = None, head.close
        return head.route, body

    def put(self, data: bytes) -> None:
        """Send now what the kernel takes and the rest when it can."""
        if self._unsent:
            self._unsent += data
            return
        sent = self._send(data)
        if sent < len(data):
            self._unsent += data[sent:]
            self._watch(selectors.EVENT_READ | selectors.EVENT_WRITE)

    def flush(self) -> None:
        """Send what the kernel did not take before."""
        del self._unsent[: self._send(self._unsent)]
        if not self._unsent:
            self._watch(selectors.EVENT_READ)
            self.end_if_done()

    def end_if_done(self) -> None:
        """Say that nothing more will come; the client closes. To close here could lose what is on its way."""
        if self.closing and not self._unsent and self.stream is None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close it, whatever is under way."""
        self._selector.unregister(self._sock)
        self._sock.close()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the client has gone: the next read will tell
            return len(data)

    def _watch(self, events: int) -> None:
        self._selector.modify(self._sock, events, self._selector.get_key(self._sock).data)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections have their data stamped with its arrival, where the kernel can."""
    listener = socket.create_server((host, port), backlog=_BACKLOG)
    listener.setblocking(False)
    if sys.platform == "linux":  # accepted sockets inherit it
        listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _STAMP_RECEIVED)
    return listener


def _arrival_ns(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    """When what was just read had arrived, on the monotonic clock. The kernel's stamp is on the wall clock."""
    # In this order: whatever comes between the two readings can make a token late, never early.
    wall_ns = time.time_ns()
    now_ns = time.monotonic_ns()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPING and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            if seconds:
                age_ns: int = wall_ns - seconds * 1_000_000_000 - nanoseconds
                return now_ns - max(0, age_ns)
    return now_ns
