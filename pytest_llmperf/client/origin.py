"""A server with a known answer, to hold a client's figures against what was really sent.

It speaks the OpenAI completions protocol over HTTP/1.1 and generates nothing. The first token of an
answer leaves `ttft` after the last byte of its request arrived, by the kernel's time stamp where
there is one: what waits here unread makes this server late, and is not taken for the client's
error. Each further token is due `itl` after the one before it was due. How late the first tokens
were is counted and can be asked for.

    python -m pytest_llmperf.client.origin --port 8100 --ttft-ms 100 --itl-ms 10

* `POST /v1/completions`, `POST /v1/chat/completions`: an answer of `max_tokens` (or
  `max_completion_tokens`) tokens; with `stream` token by token, otherwise whole at the first one's
  time. Understands `stream_options` and vLLM's `return_token_ids` and `continuous_usage_stats`.
* `GET /health`, `GET /v1/models`.
* `GET /stats`: JSON of `requests` (answered to the end), `tokens`, `aborted` (the client went away
  before), `active`, `peak` (the most at one time), `late_us` with `mean`, `p50`, `p99` and `max`,
  null without a request, and `cpu_s`, the CPU seconds of this process since its start.
* `POST /reset`: zeroes the stats.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
import os
import re
import resource
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from http import HTTPStatus
from typing import IO, Any

MODEL = "origin"
MAX_MODEL_LEN = 1 << 20
DEFAULT_TOKENS = 16
"""Tokens of an answer whose request does not say how many: the protocol's own default."""
FIRST_TOKEN_ID = 1000
TOKEN_IDS = 1048
"""Token ids count up from `FIRST_TOKEN_ID` and start over after this many: equal requests, equal ids."""
START_TIMEOUT_S = 10.0

_STOP_TIMEOUT_S = 5.0
_GREETING = "listening on "
_NS_PER_S = 1_000_000_000
_NS_PER_US = 1000
_READ_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 16
_MAX_BODY_BYTES = 1 << 26
_MAX_DIGITS = 18  # int() refuses thousands of them
_BACKLOG = 65535
# Nothing else is looked at while a batch is under way: 64 connections or 1024 tokens are a few ms.
_ACCEPT_BATCH = 64
_TOKEN_BATCH = 1024
# Enough for a p99, and sorted in some 10 ms.
_LATE_SAMPLES = 1 << 16
_MOST_FILES = 1 << 16
_FD_SETSIZE = 1024

# From the kernel's headers; Python has no names for them.
_SO_TIMESTAMPING = 37
_STAMP_RECEIVED = 1 << 3 | 1 << 4  # SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE
_TIMESPEC = struct.Struct("@ll")
_CONTROL_BYTES = socket.CMSG_SPACE(3 * _TIMESPEC.size)

_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[^ ?]*)(?:\?[^ ]*)? HTTP/1\.1")
_ARRAY_OF_IDS = re.compile(rb'"prompt"\s*:\s*\[')
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_MODELS = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": MODEL, "max_model_len": MAX_MODEL_LEN}],
}


class RefusalError(Exception):
    """A request that gets an error for an answer.

    `fatal`: where the next request would start is not known, so the connection ends.
    """

    def __init__(self, status: HTTPStatus, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.fatal = fatal


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the head of an HTTP request says, as far as it matters here. Offsets are in bytes."""

    route: bytes
    body_start: int
    body_end: int
    close: bool
    expects_continue: bool

    @classmethod
    def parse(cls, head: bytes) -> Head:
        """Read a head up to, not including, its blank line. Raises `RefusalError`."""
        line, *lines = head.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise _malformed("expected METHOD /PATH HTTP/1.1")
        headers = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise _malformed("a header line is not NAME: VALUE")
            headers[name.lower()] = value.strip().lower()
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _MAX_DIGITS:
            raise _malformed("Content-Length is not a number of bytes")
        if b"transfer-encoding" in headers:
            raise RefusalError(HTTPStatus.LENGTH_REQUIRED, "a request needs a Content-Length", fatal=True)
        if int(length) > _MAX_BODY_BYTES:
            problem = f"no more than {_MAX_BODY_BYTES} bytes are accepted"
            raise RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem, fatal=True)
        body_start = len(head) + 4
        return cls(
            route=b" ".join(match.groups()),
            body_start=body_start,
            body_end=body_start + int(length),
            close=headers.get(b"connection") == b"close",
            expects_continue=headers.get(b"expect") == b"100-continue",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a completion request asks for."""

    chat: bool
    stream: bool
    tokens: int
    prompt_tokens: int
    token_ids: bool
    final_usage: bool
    running_usage: bool

    @classmethod
    def parse(cls, body: bytes, *, chat: bool) -> Order:
        """Read a request's JSON. Raises `RefusalError` for what is not JSON or not such a request.

        Ids of a prompt are counted; anything else is taken to have one token in four bytes.
        """
        rest, prompt_ids = (body, 0) if chat else _without_ids(body)
        try:
            fields = json.loads(rest)
        except (ValueError, RecursionError):
            raise RefusalError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
        if not isinstance(fields, dict):
            raise RefusalError(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
        prompt = "messages" if chat else "prompt"
        if not fields.get(prompt) and not prompt_ids:
            raise RefusalError(HTTPStatus.BAD_REQUEST, f"{prompt} is missing or empty")
        options = fields.get("stream_options") or {}
        if not isinstance(options, dict):
            raise RefusalError(HTTPStatus.BAD_REQUEST, "stream_options is not an object")
        return cls(
            chat=chat,
            stream=fields.get("stream") is True,
            tokens=_tokens_wanted(fields),
            prompt_tokens=prompt_ids or max(1, len(body) // 4),
            token_ids=fields.get("return_token_ids") is True,
            final_usage=options.get("include_usage") is True,
            running_usage=options.get("continuous_usage_stats") is True,
        )


def _not_found(*_: object) -> None:
    raise RefusalError(HTTPStatus.NOT_FOUND, "there is nothing here")


def _malformed(problem: str) -> RefusalError:
    return RefusalError(HTTPStatus.BAD_REQUEST, f"not an HTTP/1.1 request: {problem}", fatal=True)


def _without_ids(body: bytes) -> tuple[bytes, int]:
    """The body with null for the array of ids that is its prompt, and how many there were.

    To parse 50,000 ids takes milliseconds, in which no token could leave. The key cannot be part of
    a text: the quotes would be escaped there.
    """
    match = _ARRAY_OF_IDS.search(body)
    if match is None:
        return body, 0
    start, end = match.end(), body.find(b"]", match.end())
    ids = body[start:end].strip()
    if end < 0 or not ids or b'"' in ids or b"[" in ids:  # an array of something else
        return body, 0
    return body[: start - 1] + b"null" + body[end + 1 :], ids.count(b",") + 1


def _tokens_wanted(fields: Mapping[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        tokens = fields.get(name)
        if tokens is None:
            continue
        if type(tokens) is not int or not 1 <= tokens <= MAX_MODEL_LEN:
            raise RefusalError(HTTPStatus.BAD_REQUEST, f"{name} is not an integer from 1 to {MAX_MODEL_LEN}")
        return tokens
    return DEFAULT_TOKENS


class _Connection:
    """A client's socket with what has been read of a request and what the kernel did not take."""

    __slots__ = ("arrived_ns", "closing", "head", "received", "sock", "stream", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.unsent = bytearray()
        self.head: Head | None = None
        self.stream: _Stream | None = None
        self.arrived_ns = 0
        self.closing = False


class _Stream:
    """An answer under way."""

    __slots__ = ("_chunk", "_kind", "_numbered", "connection", "number", "order", "sent", "tokens")

    def __init__(self, connection: _Connection, order: Order, number: int) -> None:
        self.connection: _Connection | None = connection
        """None as soon as the client has gone."""
        self.order = order
        self.number = number
        self.tokens = order.tokens
        self.sent = 0
        self._kind = "chat.completion.chunk" if order.chat else "text_completion"
        self._numbered = order.token_ids or order.running_usage
        self._chunk = self._template("null")

    def next_data(self) -> bytes:
        """What is to be sent next; `sent` says how many of the `tokens` that makes."""
        self.sent = sent = self.sent + 1
        if 1 < sent < self.tokens:
            return self._chunk % self._numbers() if self._numbered else self._chunk
        return self._edge() if self.order.stream else self._whole()

    def _edge(self) -> bytes:
        """The first token, with the response's head, or the last one, with its end, or both."""
        last = self.sent == self.tokens
        data = self._template('"length"' if last else "null", first=self.sent == 1) % self._numbers()
        if self.sent == 1:
            data = _STREAM_HEAD + data
        return data + self._end() if last else data

    def _whole(self) -> bytes:
        """The answer in one piece."""
        order = self.order
        self.sent = order.tokens
        text = " tok" * order.tokens
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if order.chat else {"text": text}
        if order.token_ids:
            choice["token_ids"] = [FIRST_TOKEN_ID + i % TOKEN_IDS for i in range(order.tokens)]
        self._kind = self._kind.removesuffix(".chunk")
        return _response(HTTPStatus.OK, self._object([choice], self._usage()))

    def _numbers(self) -> tuple[int, ...]:
        """What differs from one token to the next, in the order of the template's gaps."""
        numbers: tuple[int, ...] = ()
        if self.order.token_ids:
            numbers = (FIRST_TOKEN_ID + (self.sent - 1) % TOKEN_IDS,)
        if self.order.running_usage:
            numbers += (self.order.prompt_tokens + self.sent, self.sent)
        return numbers

    def _template(self, finish: str, *, first: bool = False) -> bytes:
        """A token's chunk with gaps for `_numbers`, of fixed width, so that its length is known before."""
        role = '"role":"assistant",' if first else ""
        content = f'"delta":{{{role}"content":" tok"}}' if self.order.chat else '"text":" tok"'
        ids = ',"token_ids":[%4d]' if self.order.token_ids else ""
        usage = ""
        if self.order.running_usage:
            usage = (
                f',"usage":{{"prompt_tokens":{self.order.prompt_tokens},"total_tokens":%8d,"completion_tokens":%8d}}'
            )
        choice = f'{{"index":0,{content},"logprobs":null,"finish_reason":{finish}{ids}}}'
        data = (
            f'{{"id":"cmpl-{self.number}","object":"{self._kind}","created":1,"model":"{MODEL}",'
            f'"choices":[{choice}]{usage}}}'
        ).encode()
        return _event(data, len(data % self._numbers()))

    def _end(self) -> bytes:
        if not self.order.final_usage:
            return _STREAM_END
        data = _json(self._object([], self._usage()))
        return _event(data, len(data)) + _STREAM_END

    def _usage(self) -> dict[str, int]:
        prompt, tokens = self.order.prompt_tokens, self.order.tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}

    def _object(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        head = {"id": f"cmpl-{self.number}", "object": self._kind, "created": 1, "model": MODEL}
        return {**head, "choices": choices, "usage": usage}


def _event(data: bytes, length: int) -> bytes:
    """A server-sent event as one chunk of the body; `length` is that of `data` as it will be sent."""
    return f"{length + 8:x}\r\ndata: ".encode() + data + b"\n\n\r\n"


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _response(status: HTTPStatus, content: object) -> bytes:
    body = _json(content)
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def _refusal(error: RefusalError) -> bytes:
    detail = {"message": str(error), "type": error.status.phrase, "param": None, "code": error.status.value}
    return _response(error.status, {"error": detail})


@dataclass(slots=True)
class _Tally:
    """What `/stats` tells and `/reset` forgets."""

    requests: int = 0
    tokens: int = 0
    aborted: int = 0
    peak: int = 0
    late_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_LATE_SAMPLES))

    def late_us(self) -> dict[str, float | None]:
        late_us = sorted(late_ns / _NS_PER_US for late_ns in self.late_ns)
        if not late_us:
            return dict.fromkeys(("mean", "p50", "p99", "max"))
        count = len(late_us)
        mean, p50, p99 = sum(late_us) / count, late_us[count // 2], late_us[count * 99 // 100]
        return {"mean": mean, "p50": p50, "p99": p99, "max": late_us[-1]}


_Entry = tuple[int, int, _Stream]
"""When a stream's next token is due, in ns of the monotonic clock; the number decides between equals."""


class _Agenda:
    """Whose token is due next.

    Further tokens come due in the order in which those before them did, so that a queue is sorted
    as it grows: cheaper than the heap, which takes the first tokens and any other out of turn.
    """

    __slots__ = ("_heap", "_queue")

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._queue: deque[_Entry] = deque()

    def add_first(self, entry: _Entry) -> None:
        heappush(self._heap, entry)

    def add(self, entry: _Entry) -> None:
        queue = self._queue
        if queue and entry < queue[-1]:
            heappush(self._heap, entry)
        else:
            queue.append(entry)

    def next_ns(self) -> int | None:
        """When the next token is due."""
        heads = [entries[0][0] for entries in (self._heap, self._queue) if entries]
        return min(heads, default=None)

    def take_due(self, now_ns: int) -> _Entry | None:
        """The next token if it is due by now."""
        heap, queue = self._heap, self._queue
        if queue and not (heap and heap[0] < queue[0]):
            return queue.popleft() if queue[0][0] <= now_ns else None
        return heappop(heap) if heap and heap[0][0] <= now_ns else None


class Origin:
    """The server; it listens as soon as it is made, on any free port unless `port` says otherwise.

    `ttft_s`, `itl_s`: seconds to the first token, and from each to the next. Raises `OSError` if it
    cannot listen there, `ValueError` for a negative time.
    """

    def __init__(self, ttft_s: float = 0.1, itl_s: float = 0.01, host: str = "127.0.0.1", port: int = 0) -> None:
        if not (0 <= ttft_s < float("inf") and 0 <= itl_s < float("inf")):
            raise ValueError(f"no time of a token: ttft_s={ttft_s}, itl_s={itl_s}")
        self._ttft_ns = round(ttft_s * _NS_PER_S)
        self._itl_ns = round(itl_s * _NS_PER_S)
        self._tally = _Tally()
        self._active = 0
        self._numbers = itertools.count(1)
        self._agenda = _Agenda()
        self._connections: set[_Connection] = set()
        self._stopping = False
        self._listener = _listen(host, port)
        self._selector = selectors.DefaultSelector()
        self._sleeper, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._sleeper, selectors.EVENT_READ, lambda _: None)  # stop() says it all
        self._routes: dict[bytes, Callable[[_Connection, bytes], None]] = {
            b"POST /v1/completions": functools.partial(self._complete, chat=False),
            b"POST /v1/chat/completions": functools.partial(self._complete, chat=True),
            b"GET /health": functools.partial(self._answer, dict),
            b"GET /v1/models": functools.partial(self._answer, lambda: _MODELS),
            b"GET /stats": functools.partial(self._answer, self._stats),
            b"POST /reset": functools.partial(self._answer, self._reset),
        }

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    @property
    def url(self) -> str:
        """Its base URL."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def stop_at_end_of(self, file: int) -> None:
        """Make `serve` return also when the other end of this pipe is closed.

        `file`: a descriptor of which nothing else is read. Raises `PermissionError` for a regular file.
        """

        def look(_: int) -> None:
            if not os.read(file, _READ_BYTES):
                self.stop()

        self._selector.register(file, selectors.EVENT_READ, look)

    def serve(self) -> None:
        """Serve until `stop` is called; all connections are closed then."""
        try:
            while not self._stopping:
                self._send_due()
                self._wait()
        finally:
            self.close()

    def stop(self) -> None:
        """Make `serve` return; may be called from another thread or a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # it has ended already, or has been told often enough
            self._waker.send(b".")

    def close(self) -> None:
        """Close everything; for a server that does not serve any more, or never did."""
        for connection in tuple(self._connections):
            self._drop(connection)
        for sock in (self._listener, self._sleeper, self._waker):
            sock.close()
        self._selector.close()

    # Time.

    def _send_due(self) -> None:
        """Send the tokens that are due."""
        agenda = self._agenda
        now_ns = time.monotonic_ns()
        for _ in range(_TOKEN_BATCH):
            entry = agenda.take_due(now_ns)
            if entry is None:
                return
            due_ns, number, stream = entry
            connection, sent = stream.connection, stream.sent
            if connection is None:
                continue
            if not sent:
                self._tally.late_ns.append(time.monotonic_ns() - due_ns)
            self._put(connection, stream.next_data())
            self._tally.tokens += stream.sent - sent
            if stream.sent < stream.tokens:
                agenda.add((due_ns + self._itl_ns, number, stream))
            else:
                self._finish(stream)

    def _wait(self) -> None:
        """Look after the sockets; return when a token is due or something has happened, if not before."""
        pause_s: float | None = None
        due_ns = self._agenda.next_ns()
        if due_ns is not None:
            pause_s = max(0, due_ns - time.monotonic_ns()) / _NS_PER_S
        # The selector may know whole milliseconds only, select knows microseconds.
        if pause_s != 0 and self._selector.fileno() < _FD_SETSIZE:
            if not select.select([self._selector], [], [], pause_s)[0]:
                return
            pause_s = 0
        for key, mask in self._selector.select(pause_s):
            key.data(mask)

    # Sockets.

    def _accept(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            for _ in range(_ACCEPT_BATCH):
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = _Connection(sock)
                self._connections.add(connection)
                self._selector.register(sock, selectors.EVENT_READ, functools.partial(self._look_after, connection))

    def _look_after(self, connection: _Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(connection)
        if mask & selectors.EVENT_READ and connection in self._connections:
            self._read(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data, ancillary, _, _ = connection.sock.recvmsg(_READ_BYTES, _CONTROL_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        connection.arrived_ns = _arrival_ns(ancillary)
        if not data:
            self._drop(connection)
        elif not connection.closing:
            connection.received += data
            self._take_requests(connection)

    def _put(self, connection: _Connection, data: bytes) -> None:
        """Send now what the kernel takes and the rest when it can."""
        if connection.unsent:
            connection.unsent += data
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        if sent < len(data):
            connection.unsent += data[sent:]
            self._watch(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _flush(self, connection: _Connection) -> None:
        try:
            del connection.unsent[: connection.sock.send(connection.unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        if not connection.unsent:
            self._watch(connection, selectors.EVENT_READ)
            self._close_if_done(connection)

    def _watch(self, connection: _Connection, events: int) -> None:
        self._selector.modify(connection.sock, events, functools.partial(self._look_after, connection))

    def _close_if_done(self, connection: _Connection) -> None:
        """Say that nothing more will come; the client closes. To close here could lose what is on its way."""
        if connection.closing and not connection.unsent and connection.stream is None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)

    def _drop(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        connection.closing = True
        if connection.stream is not None:
            connection.stream.connection = None
            connection.stream = None
            self._active -= 1
            self._tally.aborted += 1
        self._selector.unregister(connection.sock)
        connection.sock.close()

    # Requests.

    def _take_requests(self, connection: _Connection) -> None:
        """Answer what has been received completely, one request after the other."""
        while not connection.closing and connection.stream is None:
            try:
                head = connection.head or self._take_head(connection)
                if head is None or len(connection.received) < head.body_end:
                    return
                body = bytes(connection.received[head.body_start : head.body_end])
                del connection.received[: head.body_end]
                connection.head, connection.closing = None, head.close
                self._routes.get(head.route, _not_found)(connection, body)
            except RefusalError as error:
                connection.closing |= error.fatal
                self._put(connection, _refusal(error))
            self._close_if_done(connection)

    def _take_head(self, connection: _Connection) -> Head | None:
        end = connection.received.find(b"\r\n\r\n")
        if max(end, len(connection.received) if end < 0 else 0) > _MAX_HEAD_BYTES:
            problem = f"no more than {_MAX_HEAD_BYTES} bytes of headers are accepted"
            raise RefusalError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, problem, fatal=True)
        if end < 0:
            return None
        connection.head = Head.parse(bytes(connection.received[:end]))
        if connection.head.expects_continue and len(connection.received) < connection.head.body_end:
            self._put(connection, b"HTTP/1.1 100 Continue\r\n\r\n")
        return connection.head

    def _complete(self, connection: _Connection, body: bytes, *, chat: bool) -> None:
        """Begin an answer; its first token is due when it is due, whatever has passed since."""
        stream = _Stream(connection, Order.parse(body, chat=chat), next(self._numbers))
        connection.stream = stream
        self._active += 1
        self._tally.peak = max(self._tally.peak, self._active)
        self._agenda.add_first((connection.arrived_ns + self._ttft_ns, stream.number, stream))

    def _finish(self, stream: _Stream) -> None:
        connection = stream.connection
        if connection is None:  # it broke with the last token
            return
        connection.stream = stream.connection = None
        self._active -= 1
        self._tally.requests += 1
        self._close_if_done(connection)
        if connection.received:  # sent ahead; it could not be answered before
            connection.arrived_ns = time.monotonic_ns()
            self._take_requests(connection)

    def _answer(self, content: Callable[[], object], connection: _Connection, _: bytes) -> None:
        self._put(connection, _response(HTTPStatus.OK, content()))

    def _stats(self) -> dict[str, Any]:
        tally = self._tally
        return {
            "requests": tally.requests,
            "tokens": tally.tokens,
            "aborted": tally.aborted,
            "active": self._active,
            "peak": tally.peak,
            "late_us": tally.late_us(),
            "cpu_s": time.process_time(),
        }

    def _reset(self) -> dict[str, Any]:
        self._tally = _Tally(peak=self._active)
        return {}


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
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
                age_ns: int = wall_ns - seconds * _NS_PER_S - nanoseconds
                return now_ns - max(0, age_ns)
    return now_ns


class OriginProcess:
    """The server in a process of its own, which ends with the context or with this process.

    `ttft_s`, `itl_s`: seconds, as for `Origin`. Entering, `stats` and `reset` raise `RuntimeError`,
    with what the process had to say, if it does not listen within `START_TIMEOUT_S` or has ended.
    """

    def __init__(self, ttft_s: float = 0.1, itl_s: float = 0.01, *, port: int = 0) -> None:
        # By its path, not as a module: this process may have found the package where another would
        # not look, and importing the package takes longer than all the rest of the start.
        self._command = [sys.executable, "-I", "-S", __file__, "--with-parent", "--port", str(port)]
        self._command += ["--ttft-ms", str(ttft_s * 1e3), "--itl-ms", str(itl_s * 1e3)]
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self.url = ""
        """Its base URL."""

    @property
    def pid(self) -> int:
        """The process id; 0 before the start and after the end."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> OriginProcess:
        with contextlib.ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            self._process = process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
            stack.callback(self._end, process)
            self.url = _read_url(process)
            if not self.url:
                raise self._failure("did not come up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def stats(self) -> dict[str, Any]:
        """What `GET /stats` says."""
        stats: dict[str, Any] = self._ask("GET /stats")
        return stats

    def reset(self) -> None:
        """Begin the stats anew."""
        self._ask("POST /reset")

    def _ask(self, route: str) -> Any:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        request = f"{route} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        try:
            with socket.create_connection((host, int(port)), START_TIMEOUT_S) as sock:
                sock.sendall(request)
                answer = b"".join(iter(lambda: sock.recv(_READ_BYTES), b""))
        except (OSError, ValueError) as error:
            raise self._failure(f"did not answer {route}: {error}") from error
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    def _failure(self, problem: str) -> RuntimeError:
        said = ""
        if self._errors is not None and not self._errors.closed:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()
        return RuntimeError(f"the server with a known answer {problem}\n{said}".rstrip())

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.url = None, ""
        with process:  # closes the pipes
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _read_url(process: subprocess.Popen[bytes]) -> str:
    """The URL that a new process prints; empty if it ends or takes too long."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    if not poll.poll(START_TIMEOUT_S * 1000):
        return ""
    return process.stdout.readline().decode().strip().removeprefix(_GREETING)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; see the module. Returns the process's exit code."""
    arguments = _parse_arguments(argv)
    _raise_file_limit()
    try:
        origin = Origin(arguments.ttft_ms / 1e3, arguments.itl_ms / 1e3, arguments.host, arguments.port)
        if arguments.with_parent:
            origin.stop_at_end_of(sys.stdin.fileno())
    except (OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"cannot serve: {error}\n")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: origin.stop())
    sys.stdout.write(f"{_GREETING}{origin.url}\n")
    sys.stdout.flush()
    # Nothing here refers to itself in a circle, and a collection would hold up every stream.
    gc.disable()
    origin.serve()
    return 0


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server that answers on time and says nothing.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0: any that is free")
    parser.add_argument("--ttft-ms", type=float, default=100, help="from a request's last byte to the first token")
    parser.add_argument("--itl-ms", type=float, default=10, help="from each token to the next")
    parser.add_argument("--with-parent", action="store_true", help="end also when the standard input does, a pipe")
    return parser.parse_args(argv)


def _raise_file_limit() -> None:
    """Each stream is an open file, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
