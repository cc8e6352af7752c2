"""Servers on loopback for tests: one plays scripts byte by byte, one speaks the completions protocol.

Both are context managers, bounded in time, and close every socket that they have opened.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LIMIT_S = 10.0
"""No server waits longer than this for anything."""
_LONGEST_PAUSE_S = 0.2


class Do(Enum):
    """A step of a script that is not simply bytes to send."""

    RECEIVE = "read one whole request"
    RECEIVE_HEAD = "read a request up to its blank line and leave the rest unread"
    HOLD = "stay silent until the client goes or the server is stopped"
    RESET = "break the connection with RST"


@dataclass(frozen=True)
class Wire:
    """Bytes to be sent as they go over the wire: the records of TLS, where the server speaks it.

    `records` are sealed one by one and sent together, in pieces of `piece` bytes with a pause after
    each; 0 for one piece. The last `drop` bytes are not sent.
    """

    records: tuple[bytes, ...]
    sealed: bool = True
    """False: the bytes as they are, below TLS."""
    piece: int = 0
    pause_s: float = 0.0
    drop: int = 0


Step = bytes | float | threading.Event | Do | Wire
"""Bytes are sent; a float is a pause in seconds; an event is waited for."""


class RawServer:
    """Plays one script for each connection, in the order in which they are made.

    A connection is closed at the end of its script; connections without a script are closed at once.
    """

    def __init__(self, *scripts: Sequence[Step], host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        """What was read by `RECEIVE` and `RECEIVE_HEAD`."""
        self.sent_ns: list[int] = []
        """The monotonic clock just before each piece of bytes was sent."""
        self.connections = 0
        self.errors: list[Exception] = []
        self._scripts = scripts
        self._tls = tls
        self._stopped = threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self._tls else ''}://{host}:{self.port}"

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(ConnectionError), socket.create_connection((self.host, self.port), LIMIT_S):
            pass  # wakes the thread that accepts, unless another connection has just done so
        for thread in self._threads:
            thread.join(LIMIT_S)
        assert not any(thread.is_alive() for thread in self._threads)

    def _accept(self) -> None:
        with self._listener:
            while True:
                connection, _ = self._listener.accept()
                if self._stopped.is_set():
                    connection.close()
                    return
                script = self._scripts[self.connections] if self.connections < len(self._scripts) else ()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._play, args=(connection, script)))
                self._threads[-1].start()

    def _play(self, sock: socket.socket, script: Sequence[Step]) -> None:
        with sock:
            sock.settimeout(LIMIT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                connection = _Connection(sock) if self._tls is None else _TlsConnection(sock, self._tls)
                for step in script:
                    self._take(connection, step)
                connection.say_goodbye()
            except OSError as error:  # the client has gone, which some tests want
                self.errors.append(error)

    def _take(self, connection: _Connection, step: Step) -> None:
        if isinstance(step, bytes):
            self._take(connection, Wire((step,)))
        elif isinstance(step, Wire):
            sealed = connection.sealed(step.records) if step.sealed else b"".join(step.records)
            sealed = sealed[: len(sealed) - step.drop]
            connection.goodbye = not step.drop
            self.sent_ns.append(time.monotonic_ns())
            size = step.piece or len(sealed) or 1
            for start in range(0, len(sealed), size):
                connection.raw.sendall(sealed[start : start + size])
                time.sleep(step.pause_s)
        elif isinstance(step, threading.Event):
            assert step.wait(LIMIT_S)
        elif isinstance(step, float):
            assert step <= _LONGEST_PAUSE_S
            time.sleep(step)
        elif step is Do.RESET:
            connection.goodbye = False
            connection.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.raw.close()
        elif step is Do.HOLD:
            self._hold(connection)
        else:
            self.requests.append(_read_request(connection, with_body=step is Do.RECEIVE))

    def _hold(self, connection: _Connection) -> None:
        connection.raw.settimeout(0.02)
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.raw.recv(1 << 16):
                    return


class _Connection:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.raw = sock
        self.goodbye = True
        """Whether to end the connection properly."""

    def recv(self, size: int) -> bytes:
        return self.raw.recv(size)

    def sealed(self, records: Sequence[bytes]) -> bytes:
        return b"".join(records)

    def say_goodbye(self) -> None:
        """Say that nothing follows, where closing does not say it."""


class _TlsConnection(_Connection):
    """The same over TLS, on bytes in memory, so that a script can cut them anywhere."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        try:
            self._until_done(self._tls.do_handshake)
        finally:
            sock.sendall(self._outgoing.read())

    def recv(self, size: int) -> bytes:
        try:
            data: bytes = self._until_done(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return data

    def sealed(self, records: Sequence[bytes]) -> bytes:
        for record in records:
            self._tls.write(record)
        return self._outgoing.read()

    def say_goodbye(self) -> None:
        if self.goodbye:
            with contextlib.suppress(ssl.SSLWantReadError):  # it would wait for the client's
                self._tls.unwrap()
            self.raw.sendall(self._outgoing.read())

    def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.raw.sendall(self._outgoing.read())
                data = self.raw.recv(1 << 16)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()


@contextlib.contextmanager
def full_listener() -> Iterator[int]:
    """The port of a listener whose queue is full: whoever connects gets no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def _read_request(connection: _Connection, *, with_body: bool) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    if not with_body:
        return head
    pieces = [body]
    left = _content_length(head) - len(body)
    while left > 0:
        pieces.append(_receive(connection))
        left -= len(pieces[-1])
    return head + b"\r\n\r\n" + b"".join(pieces)


def _receive(connection: _Connection) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionError("the client closed the connection within a request")
    return data


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


@dataclass(frozen=True)
class Received:
    """One request as a `CompletionsServer` has seen it."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class CompletionsServer:
    """An OpenAI-compatible server, as capable as its fields say. `with` starts and stops it."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "tiny", "max_model_len": 4096}])
    api_key: str | None = None
    """When set, a request without it is answered with 401."""
    token_ids: bool = True
    running_usage: bool = True
    """Whether `return_token_ids` is understood."""
    refuse_extensions: int | None = None
    """The status that answers a request with anything beyond the plain protocol."""
    metrics: str | None = None
    """The text of `/metrics`; None: no such route."""
    count: Callable[[str], int] = lambda text: len(text.split())
    """The tokens of a text, as they are served."""
    template_tokens: int = 0
    """What a chat template adds."""
    tokenize: Callable[[str], int] | None = None
    """The tokens of a text, as `/tokenize` counts them; None: no such route."""
    usage: bool = True
    """Whether tokens are counted for the client."""
    routes: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Status and body for a path, in place of what it would answer."""
    requests: list[Received] = field(default_factory=list)

    def __enter__(self) -> CompletionsServer:
        self._http = _HttpServer(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join(LIMIT_S)
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [request.path for request in self.requests]

    def answer(self, request: Received) -> tuple[int, bytes] | None:
        """What a request gets, or None where it gets a stream of tokens."""
        wanted = f"Bearer {self.api_key}"
        if self.api_key is not None and request.headers.get("authorization") != wanted:
            return 401, b'{"error": {"message": "Unauthorized"}}'
        if request.path in self.routes:
            return self.routes[request.path]
        if request.path == "/tokenize" and self.tokenize is not None:
            return 200, json.dumps({"count": self._tokens(request.body, self.tokenize)}).encode()
        if request.method == "POST" and request.path in ("/v1/completions", "/v1/chat/completions"):
            if self.refuse_extensions is not None and _is_extended(request.body):
                return self.refuse_extensions, b'{"error": {"message": "ignore_eos: extra inputs are not permitted"}}'
            return None
        contents = {"/v1/models": json.dumps({"object": "list", "data": self.models}), "/metrics": self.metrics}
        content = contents.get(request.path)
        return (404, b'{"detail": "Not Found"}') if content is None else (200, content.encode())

    def events(self, body: dict[str, Any]) -> Iterator[bytes]:
        """The events of a stream of as many tokens as were asked for."""
        continuous = self.running_usage and body.get("stream_options", {}).get("continuous_usage_stats", False)
        chat = "messages" in body
        prompt_tokens = self._tokens(body, self.count)
        if chat:
            yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": None})
        for number in range(1, body["max_tokens"] + 1):
            choice: dict[str, Any] = {"index": 0, "delta": {"content": "x"}} if chat else {"index": 0, "text": "x"}
            if self.token_ids and body.get("return_token_ids"):
                choice["token_ids"] = [1000 + number]
            counted = continuous and self.usage
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": number} if counted else None
            yield _event({"choices": [choice], "usage": usage})
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": body["max_tokens"]}
        yield _event({"choices": [], "usage": usage if self.usage else None})
        yield b"data: [DONE]\n\n"

    def _tokens(self, body: dict[str, Any], count: Callable[[str], int]) -> int:
        """Of a request's prompt; ids are what they are."""
        if "messages" in body:
            return count(body["messages"][0]["content"]) + self.template_tokens
        return count(body["prompt"]) if isinstance(body["prompt"], str) else len(body["prompt"])


def _is_extended(body: dict[str, Any]) -> bool:
    return "ignore_eos" in body or "return_token_ids" in body or "continuous_usage_stats" in body["stream_options"]


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = False  # closing the server waits for them
    owner: CompletionsServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = LIMIT_S
    disable_nagle_algorithm = True
    server: _HttpServer

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Received(self.command, self.path, headers, json.loads(body or b"{}"))
        owner.requests.append(request)
        answer = owner.answer(request)
        if answer is not None:
            status, content = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in owner.events(request.body):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Tests print nothing."""
