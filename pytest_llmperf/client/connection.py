"""One connection to a server, and how it is made: to the first of a name's addresses that takes it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pytest_llmperf.client.address import Address
from pytest_llmperf.client.exchange import Exchange
from pytest_llmperf.client.sockets import PlainSocket, Received, TlsSocket
from pytest_llmperf.clock import Clock


@dataclass(slots=True, eq=False)
class Connection:
    """A socket and the exchange that it carries at the moment, if any."""

    socket: PlainSocket | TlsSocket
    began_ns: int
    """When connecting began."""
    where: tuple[int, Any]
    """The family and address that it is being made to."""
    ready: bool = False
    fresh: bool = True
    """Made for the exchange that it carries; not idle before."""
    exchange: Exchange | None = None
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    active_ns: int = 0
    send_error: OSError | None = None
    events: int = 0
    """What it is watched for."""
    segments: int = 0
    """Segments with data that it has brought before this exchange."""
    receive: Callable[[int, int], Received] = field(init=False)
    """The socket's `recvmsg`."""
    streaming: bool = False
    """Watched among the streams, of which only the last token's time may become inexact."""

    def __post_init__(self) -> None:
        self.receive = self.socket.recvmsg


class Dialer:
    """Makes connections to one address, whose name may stand for several."""

    def __init__(self, address: Address, clock: Clock) -> None:
        self._address = address
        self._clock = clock
        self._tls = ssl.create_default_context() if address.tls else None
        self._candidates: list[tuple[int, Any]] = []

    def dial(self, *, fresh: bool, candidate: int = 0) -> Connection:
        """Begin to connect: to this candidate, or the next one that can be tried. Raises `OSError` if none can."""
        began_ns = self._clock.now_ns()
        if not self._candidates:
            found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
            self._candidates = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
        where = self._candidates[candidate]
        try:
            return Connection(self._socket(*where), began_ns, where, fresh=fresh, active_ns=began_ns)
        except OSError:  # as for a family that this machine does not have
            if candidate + 1 == len(self._candidates):
                raise
            return self.dial(fresh=fresh, candidate=candidate + 1)

    def dial_after(self, failed: Connection, error: OSError) -> Connection | None:
        """Begin to connect to the address after the one that failed; None if it was the last one. Raises `OSError`."""
        following = self._candidates.index(failed.where) + 1 if failed.where in self._candidates else 0
        if following >= len(self._candidates) or isinstance(error, ssl.SSLError):
            return None
        return self.dial(fresh=failed.fresh, candidate=following)

    def is_through(self, connection: Connection) -> bool:
        """Go on with a connection that is being made; whether it is there. Raises `OSError` if it cannot be."""
        problem = connection.socket.raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            raise OSError(problem, os.strerror(problem))
        if not connection.socket.handshake():
            return False
        self._candidates = [connection.where]
        return True

    def _socket(self, family: int, where: Any) -> PlainSocket | TlsSocket:
        """A socket that is being connected."""
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            wrapped = TlsSocket(sock, self._tls, self._address.host) if self._tls else PlainSocket(sock)
            with suppress(BlockingIOError):
                sock.connect(where)
        except OSError:
            sock.close()
            raise
        return wrapped
