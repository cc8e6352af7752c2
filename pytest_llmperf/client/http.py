"""One thread, many keep-alive HTTP/1.1 connections, a time of arrival for every piece received.

The hot path waits for sockets, reads, and looks at the last bytes. Nothing here knows of tokens, and
no proxy is ever used: a measurement through one is a measurement of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import httptools

from pytest_llmperf.client.address import Address
from pytest_llmperf.client.connection import Connection, Dialer
from pytest_llmperf.client.descriptors import check_descriptors
from pytest_llmperf.client.exchange import MOST_ANSWER_BYTES, Exchange, failure_of
from pytest_llmperf.client.failures import connect_failure, receive_failure
from pytest_llmperf.client.lookout import FEW, READ, WRITE, Look, Lookout
from pytest_llmperf.client.pool import Pool
from pytest_llmperf.client.sockets import ANCILLARY_BYTES, READ_BYTES, wall_stamp_ns
from pytest_llmperf.clock import NS_PER_S, Clock
from pytest_llmperf.records import ClientStats, Failure
from pytest_llmperf.secret import SecretBytes

CONNECT_TIMEOUT_S = 10.0
_EXPIRE_EVERY_NS = NS_PER_S // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a client waits. Seconds.

    `silence_s`: for the next byte of an exchange. `exchange_s`: for the whole of one, so that a
    server that drips is not waited for without end.
    """

    silence_s: float
    exchange_s: float = 3600.0


class HttpClient:
    """Sends requests to one address and hands back finished exchanges.

    `send` never raises for what the network does: a connection that cannot be made or breaks ends its
    exchange with a `Failure`, which is handed back like any other.
    """

    def __init__(self, address: Address, clock: Clock, *, headers: Mapping[str, str], limits: Limits) -> None:
        self.address = address
        self.limits = limits
        self.stats = ClientStats()
        self.most_answer_bytes = MOST_ANSWER_BYTES
        """What each answer may take; whoever knows what is asked for sets it lower."""
        self._clock = clock
        self._head = SecretBytes("".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1"))
        self._lookout = Lookout(clock, self.stats)
        self._dialer = Dialer(address, clock)
        self._pool = Pool(self._lookout, self.stats)
        self._ended: list[Exchange] = []
        self._expires_ns = clock.now_ns() + _EXPIRE_EVERY_NS

    @property
    def in_flight(self) -> int:
        """Exchanges that have not ended."""
        return len(self._pool.active)

    def open(self, count: int) -> None:
        """Have `count` idle connections, as far as the server accepts them; what fails shows when it is needed.

        Raises `ConfigurationError` if this process may not open so many.
        """
        check_descriptors(count - len(self._pool.all))
        now_ns = self._clock.now_ns()
        with suppress(OSError):
            while len(self._pool.all) < count:
                self._connect(fresh=False)
        deadline_ns = now_ns + int(CONNECT_TIMEOUT_S * NS_PER_S)
        while any(not c.ready for c in self._pool.all) and self._clock.now_ns() < deadline_ns:
            self.poll(0.1)

    def encode(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of a request, for `send`."""
        head = f"{method} {self.address.prefix}{path} HTTP/1.1\r\nHost: {self.address.host_header}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        elif method == "POST":
            head += "Content-Length: 0\r\n"
        return SecretBytes(b"".join((head.encode("latin-1"), self._head, b"\r\n", body)))

    def send(self, tag: int, request: bytes) -> None:
        """Send one encoded request, on a connection that is open where there is one."""
        if not self._pool.active:
            self.poll(0)  # an idle connection may have been closed while nobody looked
            self._lookout.missed_nothing()
        self._start(Exchange(tag, request, self.most_answer_bytes))

    def poll(self, timeout_s: float) -> int:
        """Wait up to `timeout_s` for sockets and serve them once; how many there were."""
        served = 0
        for look in self._lookout.looks(timeout_s, len(self._pool.active)):
            if look.ready:
                served += len(look.ready)
                self._serve(look)
        now_ns = self._clock.now_ns()
        if now_ns > self._expires_ns:
            self._expires_ns = now_ns + _EXPIRE_EVERY_NS
            self._expire(now_ns)
        return served

    def _serve(self, look: Look) -> None:
        oldest_ns = 0
        connection: Connection
        for connection, mask in look.ready:
            try:
                if connection.streaming and mask == READ and look.trusted:
                    at_ns = self._read_on(connection, look)
                else:
                    at_ns = self._serve_one(connection, mask, look)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self._fail(connection, failure_of(error))
            except OSError as error:
                self._broken(connection, receive_failure(self.address, error))
            else:
                if at_ns and (at_ns < oldest_ns or not oldest_ns):
                    oldest_ns = at_ns
        if oldest_ns:
            self.stats.unread.add(look.woke_ns - oldest_ns)

    def _serve_one(self, connection: Connection, mask: int, look: Look) -> int:
        """Do what a socket is ready for; returns when what was read had come, 0 for nothing."""
        if mask & WRITE and connection.events:  # else an earlier one of these has ended it
            self._writable(connection)
        if mask & READ and connection.events:
            return self._read(connection, look.since_ns, trust=look.trusted)
        return 0

    def ended(self) -> list[Exchange]:
        """Take the exchanges that have ended since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def request(self, method: str, path: str, body: bytes = b"", *, timeout_s: float) -> Exchange:
        """Send one request and wait for its end; for a client that has nothing else in flight."""
        self.send(0, self.encode(method, path, body))
        deadline_ns = self._clock.now_ns() + int(timeout_s * NS_PER_S)
        while not self._ended and (left_ns := deadline_ns - self._clock.now_ns()) > 0:
            self.poll(min(0.5, left_ns / NS_PER_S))
        for connection in tuple(self._pool.active):
            self._fail(connection, Failure("timeout", f"did not finish within {timeout_s:g} s"))
        (exchange,) = self.ended()
        exchange.settle()
        return exchange

    def close(self) -> None:
        """Close every connection; what is in flight is lost."""
        self._pool.close()

    # Making connections.

    def _start(self, exchange: Exchange) -> None:
        try:
            connection = self._pool.wake() or self._connect(fresh=True)
        except OSError as error:
            self._lose(exchange, error)
            return
        self._carry(connection, exchange)
        if connection.ready:
            self._begin(connection, exchange)

    def _connect(self, *, fresh: bool) -> Connection:
        return self._pool.take_in(self._dialer.dial(fresh=fresh))

    def _carry(self, connection: Connection, exchange: Exchange) -> None:
        connection.exchange = exchange
        self._pool.active.add(connection)

    def _connected(self, connection: Connection) -> None:
        """Go on with a connection that is being made."""
        try:
            if not self._dialer.is_through(connection):
                self._pool.watch(connection, READ)
                return
        except OSError as error:
            self._unconnected(connection, error)
            return
        connection.ready = True
        self._pool.watch(connection, READ)
        took_ns = self._clock.now_ns() - connection.began_ns
        self.stats.connects.add(took_ns)
        if connection.exchange is None:
            self._pool.rest(connection)
        else:
            connection.exchange.connect_ns = took_ns
            self._begin(connection, connection.exchange)

    def _unconnected(self, connection: Connection, error: OSError) -> None:
        """Try the next address of the name, or give up."""
        exchange = connection.exchange
        connection.exchange = None
        self._pool.discard(connection)
        try:
            another = self._dialer.dial_after(connection, error)
        except OSError as another_error:
            another, error = None, another_error
        if another is not None:
            self._pool.take_in(another)
            if exchange is not None:
                self._carry(another, exchange)
        elif exchange is not None:
            self._lose(exchange, error)

    def _lose(self, exchange: Exchange, error: OSError) -> None:
        """End an exchange that has got no connection."""
        exchange.sent_ns = exchange.end_ns = self._clock.now_ns()
        exchange.failure = connect_failure(self.address, error, CONNECT_TIMEOUT_S)
        self._ended.append(exchange)

    # Sending.

    def _begin(self, connection: Connection, exchange: Exchange) -> None:
        connection.unsent, connection.send_error = memoryview(exchange.request), None
        self._pool.move(connection, streaming=False)
        exchange.sent_ns = connection.active_ns = self._clock.now_ns()
        self._write(connection, exchange)

    def _writable(self, connection: Connection) -> None:
        if not connection.ready:
            self._connected(connection)
        elif connection.exchange is not None:
            self._write(connection, connection.exchange)

    def _write(self, connection: Connection, exchange: Exchange) -> None:
        sock = connection.socket
        try:
            unsent = connection.unsent
            while unsent:
                unsent = connection.unsent = unsent[sock.send(unsent) :]
            done = sock.flush()
        except BlockingIOError:
            done = False
        except OSError as error:
            # A server may answer early, 413 or 401, and close: what can still be read says more.
            connection.unsent, connection.send_error, done = memoryview(b""), error, True
        exchange.flushed_ns = connection.active_ns = self._clock.now_ns()
        self._pool.watch(connection, READ if done else READ | WRITE)

    # Receiving.

    def _read_on(self, connection: Connection, look: Look) -> int:
        """The short way of `_read` for what nearly every read is: one stamped piece of a running stream."""
        exchange = connection.exchange
        if exchange is None:
            return self._serve_one(connection, READ, look)
        try:
            data, ancillary, _, _ = connection.receive(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._at_end_of_stream(connection, exchange)
            return 0
        at_ns = wall_stamp_ns(ancillary) - look.offset_ns if ancillary else self._unstamped(exchange, 0)
        connection.active_ns = at_ns
        if exchange.take(at_ns, look.since_ns, data):
            self._finish(connection, exchange)
        elif len(data) == READ_BYTES:  # there may be more
            self._read(connection, look.since_ns, trust=True)
        return at_ns

    def _read(self, connection: Connection, since_ns: int, *, trust: bool) -> int:
        """Read what is there; returns when it had come, 0 for nothing.

        `trust` says whether the kernel's stamps can be converted. Raises what the socket and the parser raise.
        """
        at_ns = 0
        exchange = connection.exchange
        if exchange is None or not connection.ready:
            self._read_unasked(connection)
            return at_ns
        receive, hides_bytes = connection.receive, connection.socket.hides_bytes
        for _ in range(connection.socket.most_reads):
            try:
                data, ancillary, _, _ = receive(READ_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                return at_ns
            if not data:
                self._at_end_of_stream(connection, exchange)
                return at_ns
            stamp_ns = wall_stamp_ns(ancillary) if trust else 0
            exact = stamp_ns and not hides_bytes
            at_ns = self._lookout.wall.monotonic(stamp_ns) if exact else self._unstamped(exchange, stamp_ns)
            connection.active_ns = at_ns
            if exchange.take(at_ns, since_ns, data):
                self._finish(connection, exchange)
                return at_ns
            if not connection.streaming:
                self._let_stream(connection, exchange)
            if len(data) < READ_BYTES and not hides_bytes:
                return at_ns
        return at_ns

    def _unstamped(self, exchange: Exchange, stamp_ns: int) -> int:
        """The time of a read that is not exactly stamped.

        A TLS read has a stamp, but what was decrypted may have come before the rest of its segment.
        """
        exchange.stamped = False
        if stamp_ns:
            return self._lookout.wall.monotonic(stamp_ns)
        self.stats.unstamped += 1
        return self._clock.now_ns()

    def _read_unasked(self, connection: Connection) -> None:
        """Read where no answer is due: an idle connection has nothing to say but that it is closed."""
        if not connection.ready:
            self._connected(connection)
            return
        try:
            connection.socket.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:  # a ticket for a TLS session
            return
        except OSError:
            pass
        self._pool.discard(connection)

    def _at_end_of_stream(self, connection: Connection, exchange: Exchange) -> None:
        try:
            exchange.parse()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(connection, failure_of(error))
            return
        if exchange.ended_with_connection():
            exchange.reusable = False
            self._finish(connection, exchange)
        elif connection.send_error is not None:
            self._broken(connection, Failure("connection_reset", f"while sending: {connection.send_error}"))
        else:
            reason = "the server closed it before the answer was complete"
            self._broken(connection, Failure("connection_closed", reason))

    def _broken(self, connection: Connection, failure: Failure) -> None:
        """End the exchange, unless the server has only closed a connection that was idle until now."""
        exchange = connection.exchange
        if exchange is None or connection.fresh or exchange.began or exchange.resent:
            self._fail(connection, failure)
            return
        connection.exchange = None
        self._pool.discard(connection)
        self.stats.resent += 1
        again = Exchange(exchange.tag, exchange.request, exchange.most_bytes, resent=True)
        try:
            self._carry(self._connect(fresh=True), again)
        except OSError as error:
            self._lose(again, error)

    # Ending.

    def _expire(self, now_ns: int) -> None:
        silent_ns = now_ns - int(self.limits.silence_s * NS_PER_S)
        oldest_ns = now_ns - int(self.limits.exchange_s * NS_PER_S)
        unconnected_ns = now_ns - int(CONNECT_TIMEOUT_S * NS_PER_S)
        for connection in [c for c in self._pool.all if not c.ready and c.began_ns < unconnected_ns]:
            self._unconnected(connection, TimeoutError())
        for connection in tuple(self._pool.active):
            exchange = connection.exchange
            if exchange is None or not connection.ready:
                continue
            if connection.active_ns < silent_ns:
                self._fail(connection, Failure("timeout", f"no byte for {self.limits.silence_s:g} s"))
            elif exchange.sent_ns < oldest_ns:
                self._fail(connection, Failure("timeout", f"not finished within {self.limits.exchange_s:g} s"))
            elif connection.active_ns < now_ns - _EXPIRE_EVERY_NS and exchange.began:
                self._look_again(connection, exchange)

    def _look_again(self, connection: Connection, exchange: Exchange) -> None:
        """A quiet stream may have ended in a way that its last bytes did not show."""
        try:
            if exchange.parse():
                exchange.reusable = False
                self._finish(connection, exchange)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(connection, failure_of(error))

    def _fail(self, connection: Connection, failure: Failure) -> None:
        exchange = connection.exchange
        if exchange is not None:
            exchange.failure, exchange.reusable = failure, False
            exchange.end_ns = self._clock.now_ns()
            self._hand_back(connection, exchange)

    def _finish(self, connection: Connection, exchange: Exchange) -> None:
        exchange.end_ns = connection.active_ns
        segments = connection.socket.segments()
        if segments is not None:
            came, connection.segments = segments - connection.segments, segments
            exchange.by_segment = exchange.stamped and not exchange.filled and came == exchange.reads
        self._hand_back(connection, exchange)

    def _hand_back(self, connection: Connection, exchange: Exchange) -> None:
        connection.exchange = None
        if exchange.reusable and self._pool.is_reusable(connection):
            connection.fresh = False
            self._pool.rest(connection)
            if connection.socket.hides_bytes:  # what came along with the answer must not look like the next one
                self._read_unasked(connection)
        else:
            self._pool.discard(connection)
        exchange.request = b""
        self._ended.append(exchange)

    def _let_stream(self, connection: Connection, exchange: Exchange) -> None:
        """Once the first token is there, the connection need not be looked at before others."""
        if len(self._pool.active) > FEW and exchange.has_body and not connection.socket.hides_bytes:
            self._pool.move(connection, streaming=True)
