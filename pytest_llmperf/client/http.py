"""One thread, many keep-alive HTTP/1.1 connections, a clock reading for every piece received.

The hot path does three things: wait for sockets, read the clock right after a read returned, and
let `httptools` find where the response ends. What the body means is worked out later, by whoever
sent the request. Nothing here knows of tokens.
"""

from __future__ import annotations

import selectors
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from pytest_llmperf.clock import NS_PER_S, Clock, seconds_between
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.records import Failure

CONNECT_TIMEOUT_S = 10.0
_READ_BYTES = 1 << 18
# A response with more headers than this is not one that a serving engine sends.
_MAX_HEADERS = 200


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: the parts of its base URL."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Split `http://host:port/prefix`. Raises `ConfigurationError` for anything else."""
        if "@" in url:
            host = url.rpartition("@")[2]
            msg = f"the URL of {host} carries credentials; set LLMPERF_API_KEY in the environment instead"
            raise ConfigurationError(msg)
        problem = f"not a server's URL: {url!r}; expected http://HOST:PORT or https://HOST/PREFIX"
        try:
            parts = urlsplit(url)
            port = parts.port
            (parts.hostname or "").encode("idna")  # as the resolver will do
        except ValueError as error:
            raise ConfigurationError(f"{problem} ({error})") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
            raise ConfigurationError(problem)
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


@dataclass(slots=True)
class Exchange:
    """One request and what came back, as timed bytes."""

    tag: int
    sent_ns: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    fragments: list[tuple[int, bytes]] = field(default_factory=list)
    end_ns: int = 0
    failure: Failure | None = None

    @property
    def body(self) -> bytes:
        return b"".join(fragment for _, fragment in self.fragments)


class _Connection:
    """A socket and the exchange that it carries at the moment, if any."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.exchange: Exchange | None = None
        self.unsent = memoryview(b"")
        self.active_ns = 0
        self.complete = False
        self.reusable = False
        self.framed = False
        self.send_error: OSError | None = None
        self._reading_ns = 0
        self._parser = httptools.HttpResponseParser(self)

    def start(self, exchange: Exchange, data: bytes) -> None:
        self.exchange, self.unsent, self.active_ns = exchange, memoryview(data), exchange.sent_ns
        self.complete = self.framed = False
        self.send_error = None

    def feed(self, data: bytes, at_ns: int) -> None:
        """Give the parser what was read at `at_ns`; raises `httptools.HttpParserError`."""
        self.active_ns = self._reading_ns = at_ns
        self._parser.feed_data(data)

    # Callbacks of the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.exchange is None or self.complete:
            return
        headers = self.exchange.headers
        if len(headers) >= _MAX_HEADERS:
            raise ValueError(f"more than {_MAX_HEADERS} headers")
        key = name.decode("latin-1").lower()
        headers[key] = value.decode("latin-1")
        self.framed = self.framed or key in ("content-length", "transfer-encoding")

    def on_headers_complete(self) -> None:
        if self.exchange is not None and not self.complete:
            self.exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.exchange is not None and not self.complete:
            self.exchange.fragments.append((self._reading_ns, body))

    def on_message_complete(self) -> None:
        if self.complete:  # bytes after the answer are no part of it, and the connection is not reused
            self.reusable = False
        elif self._parser.get_status_code() >= 200:
            self.complete = True
            self.reusable = bool(self._parser.should_keep_alive())
        elif self.exchange is not None:  # 1xx announces the real response and says nothing about it
            self.exchange.status, self.framed = None, False
            self.exchange.headers.clear()


class HttpClient:
    """Sends requests to one address and hands back finished exchanges.

    `send` never raises for what the network does: a connection that cannot be made or breaks ends
    its exchange with a `Failure`, which `wait` returns like any other. `silence_s` bounds how long
    an exchange may stay without a byte.
    """

    def __init__(self, address: Address, clock: Clock, *, headers: Mapping[str, str], silence_s: float) -> None:
        self.address = address
        self.silence_s = silence_s
        self.busy_ns: list[int] = []
        self._clock = clock
        self._head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Connection] = []
        self._active: set[_Connection] = set()
        self._finished: deque[Exchange] = deque()
        self._woke_ns: int | None = None
        self._tls: ssl.SSLContext | None = None

    def send(self, tag: int, method: str, path: str, body: bytes = b"") -> int:
        """Send one request on a connection that is open; returns the clock just before.

        The connection is made first where none is idle, so that connecting is in no one's timing.
        """
        data = self._request_bytes(method, path, body)
        try:
            connection = self._take_idle() or self._connect()
        except OSError as error:
            now = self._clock.now_ns()
            self._finished.append(Exchange(tag, now, end_ns=now, failure=_connect_failure(self.address, error)))
            return now
        exchange = Exchange(tag, self._clock.now_ns())
        if not self._active:  # until now no arrival could be late
            self._woke_ns = exchange.sent_ns
        connection.start(exchange, data)
        self._active.add(connection)
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        self._write(connection)
        return exchange.sent_ns

    def wait(self, timeout_s: float | None) -> list[Exchange]:
        """Return exchanges that have finished, waiting for the first one up to `timeout_s`."""
        deadline_ns = None if timeout_s is None else self._clock.now_ns() + int(timeout_s * NS_PER_S)
        while not self._finished and self._active:
            now_ns = self._clock.now_ns()
            left_s = self.silence_s if deadline_ns is None else seconds_between(now_ns, deadline_ns)
            self._poll(max(0.0, min(1.0, self.silence_s, left_s)))
            self._expire(self._clock.now_ns())
            if left_s <= 0:  # one look at what is there is due to every caller
                break
        finished = list(self._finished)
        self._finished.clear()
        return finished

    def request(self, method: str, path: str, body: bytes = b"", *, timeout_s: float) -> Exchange:
        """Send one request and wait for its end; for a client that has nothing else in flight."""
        self.send(0, method, path, body)
        finished = self.wait(timeout_s)
        if finished:
            return finished[0]
        for connection in tuple(self._active):
            self._finish(connection, Failure("timeout", f"{method} {path} did not finish within {timeout_s:g} s"))
        return self._finished.popleft()

    def close(self) -> None:
        """Close every connection; what is in flight is lost."""
        for connection in (*self._active, *self._idle):
            connection.sock.close()
        self._active.clear()
        self._idle.clear()
        self._selector.close()

    def _request_bytes(self, method: str, path: str, body: bytes) -> bytes:
        address = self.address
        default_port = address.port == (443 if address.tls else 80)
        host = f"[{address.host}]" if ":" in address.host else address.host
        head = (
            f"{method} {address.prefix}{path} HTTP/1.1\r\n"
            f"Host: {host if default_port else f'{host}:{address.port}'}\r\n{self._head}"
        )
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        elif method == "POST":
            head += "Content-Length: 0\r\n"
        return head.encode("latin-1") + b"\r\n" + body

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if _is_open(connection.sock):
                return connection
            connection.sock.close()
        return None

    def _connect(self) -> _Connection:
        address = self.address
        sock = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                self._tls = self._tls or ssl.create_default_context()
                sock = self._tls.wrap_socket(sock, server_hostname=address.host)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return _Connection(sock)

    def _poll(self, pause_s: float) -> None:
        if self._woke_ns is not None:
            self.busy_ns.append(self._clock.now_ns() - self._woke_ns)
        ready = self._selector.select(pause_s)
        self._woke_ns = self._clock.now_ns()
        for key, mask in ready:
            connection: _Connection = key.data
            if mask & selectors.EVENT_WRITE:
                self._write(connection)
            if mask & selectors.EVENT_READ and connection.exchange is not None:
                self._read(connection)

    def _write(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
                connection.active_ns = self._clock.now_ns()
            wanted = selectors.EVENT_READ
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            wanted = selectors.EVENT_READ | selectors.EVENT_WRITE
        except OSError as error:
            # A server may answer early, 413 or 401, and close: what can still be read says more.
            connection.unsent, connection.send_error = memoryview(b""), error
            wanted = selectors.EVENT_READ
        if self._selector.get_key(connection.sock).events != wanted:
            self._selector.modify(connection.sock, wanted, connection)

    def _read(self, connection: _Connection) -> None:
        try:
            while True:
                data = connection.sock.recv(_READ_BYTES)
                at_ns = self._clock.now_ns()
                if not data:
                    self._at_end_of_stream(connection)
                    return
                connection.feed(data, at_ns)
                if connection.complete:
                    self._finish(connection, None)
                    return
                # Only a TLS socket can hold bytes that the selector does not see.
                if not isinstance(connection.sock, ssl.SSLSocket):
                    return
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._finish(connection, Failure("not_http", f"{type(error).__name__}: {error.__context__ or error}"))
        except OSError as error:
            self._finish(connection, Failure("connection_reset", f"while receiving: {error}"))

    def _at_end_of_stream(self, connection: _Connection) -> None:
        exchange = connection.exchange
        if exchange is not None and exchange.status is not None and not connection.framed:
            self._finish(connection, None)  # HTTP/1.0 style: the body ends with the connection
        elif connection.send_error is not None:
            self._finish(connection, Failure("connection_reset", f"while sending: {connection.send_error}"))
        else:
            self._finish(
                connection, Failure("connection_closed", "the server closed it before the answer was complete")
            )

    def _expire(self, now_ns: int) -> None:
        limit_ns = now_ns - int(self.silence_s * NS_PER_S)
        for connection in [c for c in self._active if c.active_ns < limit_ns]:
            self._finish(connection, Failure("timeout", f"no byte for {self.silence_s:g} s"))

    def _finish(self, connection: _Connection, failure: Failure | None) -> None:
        exchange = connection.exchange
        if exchange is None:
            return
        exchange.end_ns = connection.active_ns if failure is None else self._clock.now_ns()
        exchange.failure = failure
        connection.exchange = None
        self._active.discard(connection)
        self._selector.unregister(connection.sock)
        if failure is None and connection.complete and connection.reusable and not connection.unsent:
            self._idle.append(connection)
        else:
            connection.sock.close()
        self._finished.append(exchange)


def _is_open(sock: socket.socket) -> bool:
    """Whether an idle connection can still be used: the server has neither closed it nor spoken."""
    if isinstance(sock, ssl.SSLSocket):
        try:
            sock.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        return False
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _connect_failure(address: Address, error: OSError) -> Failure:
    if isinstance(error, ConnectionRefusedError):
        return Failure("connection_refused", f"nothing listens at {address}")
    if isinstance(error, TimeoutError):
        return Failure("connect_timeout", f"{address} did not accept a connection within {CONNECT_TIMEOUT_S:g} s")
    if isinstance(error, socket.gaierror):
        return Failure("unknown_host", f"the name {address.host!r} does not resolve: {error.strerror}")
    if isinstance(error, ssl.SSLError):
        return Failure("tls", f"{address}: {error.reason or error}")
    return Failure("connect_failed", f"{address}: {error}")
