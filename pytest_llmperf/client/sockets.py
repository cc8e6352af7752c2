"""Non-blocking sockets whose received bytes carry the kernel's time of arrival.

Linux stamps each segment when it arrives and hands the newest stamp out with the bytes
(`SO_TIMESTAMPING`, software receive), however late they are read. The stamp is wall-clock time.
Elsewhere there is none, and the time at which the read returned has to do.
"""

from __future__ import annotations

import platform
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from pytest_llmperf.clock import NS_PER_S

READ_BYTES = 8192
"""How much one read takes at most.

A token is some 200 bytes, and the buffer is allocated anew for each read: with 256 KiB a read costs
2.5 times as much as with 4 to 16 KiB, and the memory that is given back is left in holes.
"""
_TLS_READ_BYTES = 65_536
_TLS_FILLS = 8
"""How often to read in a row, as `most_reads`."""
_TLS_WRITE_BYTES = 65_536

_Ancillary: TypeAlias = "list[tuple[int, int, bytes]]"
Received: TypeAlias = "tuple[bytes, _Ancillary, int, object]"
"""What `socket.recvmsg` returns."""

# The socket module has no names for these; the number is that of every architecture with the generic socket header.
_SO_TIMESTAMPING = 37
_RX_SOFTWARE = 1 << 3
_SOFTWARE = 1 << 4
_STAMP = struct.Struct("@qq32x")
"""A `scm_timestamping`: three timespecs, of which the first is the software stamp."""
_unpacked: Callable[[bytes], tuple[int, int]] = _STAMP.unpack
ANCILLARY_BYTES = socket.CMSG_SPACE(_STAMP.size)
_COUNT = struct.Struct("@I")
# Places in `struct tcp_info`, which only ever grows at its end.
_RETRANSMITTED_AT = 100
"""`tcpi_total_retrans`"""
_SEGMENTS_AT = 152
"""`tcpi_data_segs_in`, Linux 4.6"""
_OUT_OF_ORDER_AT = 224
"""`tcpi_rcv_ooopack`, Linux 5.4"""
_TCP_INFO_BYTES = _OUT_OF_ORDER_AT + _COUNT.size
# A peer that vanished without a word is asked after this time, and then so often. Answers come from its kernel,
# however busy the server is.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_GENERIC = ("x86_64", "aarch64", "riscv64", "loongarch64", "ppc64le", "s390x")


def wants_kernel_stamps() -> bool:
    """Whether this platform can stamp what arrives."""
    return sys.platform == "linux" and platform.machine() in _GENERIC


def ask_for_stamps(sock: socket.socket) -> bool:
    """Have the kernel stamp what this socket receives; whether it agreed."""
    if not wants_kernel_stamps():
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _RX_SOFTWARE | _SOFTWARE)
    except OSError:
        return False
    return True


def wall_stamp_ns(ancillary: _Ancillary) -> int:
    """The kernel's stamp among the ancillary data of a read, nanoseconds of the wall clock; 0 if there is none."""
    if not ancillary:
        return 0
    seconds, nanoseconds = _unpacked(ancillary[0][2])  # nothing else was asked for
    return seconds * NS_PER_S + nanoseconds


def _counted(sock: socket.socket, *places: int) -> list[int | None]:
    """What the kernel has counted of a connection; None where it does not say."""
    told = b""
    if wants_kernel_stamps():
        with suppress(OSError):
            told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return [_COUNT.unpack_from(told, place)[0] if len(told) >= place + _COUNT.size else None for place in places]


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out when the peer is gone; without it only the silence would tell, and not why."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not everywhere
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class PlainSocket:
    """A connected or connecting TCP socket."""

    hides_bytes = False
    """Whether bytes may be readable although the kernel has none."""
    most_reads = 64
    """How often to read in a row: a server that sends faster than it is read is not the only one."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask_for_stamps(sock)
        _keep_alive(sock)
        self.raw = sock
        self.recvmsg: Callable[[int, int], Received] = sock.recvmsg
        self.send: Callable[[memoryview], int] = sock.send

    def handshake(self) -> bool:
        """Go on with what has to be said before the first request; True when all is said."""
        return True

    def segments(self) -> int | None:
        """Segments with data that have come so far; None where the kernel does not say."""
        return _counted(self.raw, _SEGMENTS_AT)[0]

    def disturbances(self) -> tuple[int, int]:
        """Segments sent again, and segments that came out of order; 0 where the kernel does not say."""
        retransmitted, out_of_order = _counted(self.raw, _RETRANSMITTED_AT, _OUT_OF_ORDER_AT)
        return retransmitted or 0, out_of_order or 0

    def flush(self) -> bool:
        """Hand to the kernel what it would not take before; True when it has everything."""
        return True

    def close(self) -> None:
        self.raw.close()


class TlsSocket:
    """The same over TLS: the record layer works on memory, so the kernel's stamps stay in sight.

    Decrypted bytes carry the stamp of the segment that completed their record.
    """

    hides_bytes = True
    most_reads = sys.maxsize  # it stops by itself, when everything is decrypted

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._plain = PlainSocket(sock)
        self.raw = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._unsent = memoryview(b"")
        self._ancillary: _Ancillary = []
        self._fills = _TLS_FILLS

    def handshake(self) -> bool:
        """As `PlainSocket`; raises `ssl.SSLError`, `OSError`."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                try:
                    self._fill()
                except BlockingIOError:
                    return False
            else:
                return self.flush()

    def recvmsg(self, size: int, ancillary_size: int) -> Received:
        """As `socket.recvmsg`, of the decrypted bytes.

        Raises `BlockingIOError` when there are none, and another `OSError` when the connection has
        ended without TLS saying so: what came may be cut short.
        """
        del ancillary_size
        while True:
            try:
                return self._tls.read(size), self._ancillary, 0, None
            except ssl.SSLWantReadError:
                if not self._fills:
                    self._fills = _TLS_FILLS
                    raise BlockingIOError from None
                self._fills = self._fills - 1 if self._fill() == _TLS_READ_BYTES else 0
            except ssl.SSLZeroReturnError:
                return b"", [], 0, None

    def send(self, data: memoryview) -> int:
        """Encrypt a piece and send it; returns its length. Raises `BlockingIOError` if the last one is still here."""
        if not self.flush():
            raise BlockingIOError
        count = self._tls.write(data[:_TLS_WRITE_BYTES])
        self.flush()
        return count

    def segments(self) -> int | None:
        """Not known: what was decrypted together may have come apart."""
        return None

    def disturbances(self) -> tuple[int, int]:
        return self._plain.disturbances()

    def flush(self) -> bool:
        try:
            while True:
                if not self._unsent:
                    self._unsent = memoryview(self._outgoing.read())
                    if not self._unsent:
                        return True
                self._unsent = self._unsent[self._plain.send(self._unsent) :]
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.raw.close()

    def _fill(self) -> int:
        data, ancillary, _, _ = self._plain.recvmsg(_TLS_READ_BYTES, ANCILLARY_BYTES)
        if data:
            self._ancillary = ancillary
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return len(data)
