"""HTTP/1.1 on asyncio, as far as a server of completions needs it.

A connection takes one request at a time, in the order in which they came; what it sends goes to the
kernel in the call that sends it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

import httptools
import orjson

from pytest_llmperf.clock import RealClock

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"

_MOST_HEAD_BYTES = 1 << 16
_MOST_BODY_BYTES = 1 << 26
# More requests sent ahead than any client does.
_MOST_AHEAD = 64
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Request(NamedTuple):
    """One request, complete."""

    method: str
    path: str
    body: bytes
    arrived_ns: int
    """When its last bytes were read; for one sent ahead, when its turn came."""


class Reply:
    """The way back to who sent a request. Everything after the client has gone is dropped."""

    __slots__ = ("_chunked", "_connection", "_keep_alive", "_started", "on_gone")

    def __init__(self, connection: Connection, *, keep_alive: bool, chunked: bool) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self._chunked = chunked
        self._started = False
        self.on_gone: Callable[[], None] | None = None
        """Called if the client goes before the answer has ended."""

    def respond(
        self, body: bytes, status: int = 200, content_type: str = JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the whole answer."""
        named = {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}
        self._end(_head(status, named, keep_alive=self._keep_alive) + body)

    def stream(self, data: bytes, *, last: bool = False) -> None:
        """Send a part of an answer of events, in one write; the first part brings the head."""
        sent = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if not self._started:
            self._started = True
            named = {"Content-Type": EVENTS, "Cache-Control": "no-cache"}
            named |= {"Transfer-Encoding": "chunked"} if self._chunked else {}
            sent = _head(200, named, keep_alive=self._keep_alive) + sent
        if last:
            self._end(sent + _LAST_CHUNK if self._chunked else sent)
        else:
            self._connection.write(sent)

    def _end(self, data: bytes) -> None:
        self.on_gone = None
        self._connection.write(data)
        self._connection.end_reply(close=not self._keep_alive)


Handler = Callable[[Request, Reply], None]


class Connection(asyncio.Protocol):
    """One client. `open_connections` holds it while it lives."""

    def __init__(self, handler: Handler, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._open = open_connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._head_bytes = 0
        self._body_bytes = 0
        self._in_head = True
        self._ignoring = False
        """Whether nothing more is read: the connection is about to end."""
        self._url = b""
        self._body: list[bytes] = []
        self._expects = False
        self._arrived_ns = 0
        self._ahead: deque[tuple[Request, Reply]] = deque()
        self._reply: Reply | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._open.discard(self)
        self._transport = None
        self._ahead.clear()
        reply, self._reply = self._reply, None
        if reply is not None and reply.on_gone is not None:
            reply.on_gone()

    def data_received(self, data: bytes) -> None:
        if self._ignoring:
            return
        self._arrived_ns = RealClock.now_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # it goes on as it was; what followed the request is lost with it
            self._ignoring = True
        except httptools.HttpParserError:
            self._refuse(400, "this is not HTTP/1.1")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._refuse(431, f"no more than {_MOST_HEAD_BYTES} bytes of headers are accepted")
        if self._reply is None and self._ahead:
            self._handle(*self._ahead.popleft())

    def abort(self) -> None:
        """End it, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def write(self, data: bytes) -> None:
        """Send."""
        if self._transport is not None:
            self._transport.write(data)

    def end_reply(self, *, close: bool) -> None:
        """The answer under way has been sent."""
        self._reply = None
        if close or self._transport is None:
            self._close()
        elif self._ahead:
            # Not within the call that ended this one: they could be many.
            asyncio.get_running_loop().call_soon(self._next)

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._body_bytes = 0
        self._url = b""
        self._body = []
        self._expects = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        if name.lower() == b"content-length" and value.isdigit() and int(value) > _MOST_BODY_BYTES:
            self._refuse_body()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._expects and self._reply is None and not self._ignoring:
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > _MOST_BODY_BYTES:
            self._refuse_body()
        elif not self._ignoring:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._ignoring:
            return
        path = unquote(self._url.partition(b"?")[0].decode("latin-1"))
        request = Request(self._parser.get_method().decode(), path, b"".join(self._body), self._arrived_ns)
        self._body = []
        chunked = self._parser.get_http_version() != "1.0"
        keep_alive = chunked and self._parser.should_keep_alive() and not self._parser.should_upgrade()
        # Handled outside of the parser, which would take an error of ours for one of the client's.
        self._ahead.append((request, Reply(self, keep_alive=keep_alive, chunked=chunked)))
        if len(self._ahead) > _MOST_AHEAD:
            self.abort()

    def _next(self) -> None:
        if self._reply is None and self._ahead:
            request, reply = self._ahead.popleft()
            self._handle(request._replace(arrived_ns=RealClock.now_ns()), reply)

    def _handle(self, request: Request, reply: Reply) -> None:
        self._reply = reply
        self._handler(request, reply)

    def _refuse_body(self) -> None:
        self._refuse(413, f"no more than {_MOST_BODY_BYTES} bytes are accepted")

    def _refuse(self, status: int, message: str) -> None:
        """Refuse what came; where the next request would begin is not known, so this is the end."""
        if not self._ignoring and self._reply is None:
            Reply(self, keep_alive=False, chunked=True).respond(error_body(status, message), status)
        elif not self._ignoring:
            self.abort()
        self._ignoring = True

    def _close(self) -> None:
        self._ignoring = True
        if self._transport is not None:
            self._transport.close()


def error_body(status: int, message: str) -> bytes:
    """The JSON of an error, as OpenAI's servers word it."""
    error = {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": status}
    return orjson.dumps({"error": error})


def _head(status: int, headers: Mapping[str, str], *, keep_alive: bool) -> bytes:
    named = headers if keep_alive else {**headers, "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}\r\n".encode()
