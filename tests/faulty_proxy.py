"""A TCP proxy on loopback that does to connections what networks and servers at their limits do."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass

LIMIT_S = 10.0
_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the answers of each connection; bytes are counted from when the fault was put in."""

    reset_after: int | None = None
    close_after: int | None = None
    stall_after: int | None = None
    """Nothing further arrives, and the connection stays."""
    piece: int = _PIECE
    """How many bytes are passed on at a time."""
    most: int | None = None
    """So many connections at a time; each further one is reset as soon as it is made."""
    every: int = 1
    """It meets every so many-th connection only."""


class Proxy:
    """In front of one port. `fault` may be changed at any time, and holds for connections made afterwards."""

    def __init__(self, port: int) -> None:
        self.fault = Fault()
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._made = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)
        assert not any(thread.is_alive() for thread in self._threads)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._made += 1
            fault = self.fault if self._made % self.fault.every == 0 else Fault()
            if fault.most is not None and sum(sock.fileno() >= 0 for sock in self._open) >= 2 * fault.most:
                _reset(client)
                continue
            server = socket.create_connection(self._target, LIMIT_S)
            for sock in (client, server):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [client, server]
            for work in (lambda c=client, s=server: _forward(c, s), lambda c=client, s=server, f=fault: _back(s, c, f)):
                self._threads.append(threading.Thread(target=work, daemon=True))
                self._threads[-1].start()


def _forward(client: socket.socket, server: socket.socket) -> None:
    """Requests, as they are."""
    with suppress(OSError):
        while data := client.recv(_PIECE):
            server.sendall(data)
        server.shutdown(socket.SHUT_RDWR)


def _back(server: socket.socket, client: socket.socket, fault: Fault) -> None:
    """Answers, with the fault."""
    passed = 0
    with suppress(OSError), server:
        while data := server.recv(fault.piece):
            if fault.stall_after is not None and passed + len(data) > fault.stall_after:
                continue
            client.sendall(data)
            passed += len(data)
            if fault.reset_after is not None and passed >= fault.reset_after:
                _reset(client)
                return
            if fault.close_after is not None and passed >= fault.close_after:
                break
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    client.close()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RD)  # wakes who reads from it
    sock.close()
