"""One request and what came back: timed reads first, an HTTP message when somebody asks.

While a stream of events runs, a read is kept as it came and only its last bytes are looked at.
What the bytes mean is found out afterwards, when nothing waits for the client.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools

from pytest_llmperf.client.sockets import READ_BYTES
from pytest_llmperf.client.sse import Fragment
from pytest_llmperf.records import Failure

# A response with more or longer headers than this is not one that a serving engine sends.
_MAX_HEADERS = 200
_MAX_HEAD_BYTES = 1 << 18
MOST_ANSWER_BYTES = 64 << 20
"""What one answer may take: SGLang's and TensorRT-LLM's longest lists of statistics are some MiB."""
_PIECE_BYTES = 128
"""What a read or a chunk costs beside its bytes: a server that sends them one by one shall not take more memory."""
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LAST_CHUNK_BYTES = len(_LAST_CHUNK)


class OverlongError(httptools.HttpParserError):
    """An answer that is longer than anything that was asked for."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"more than {most_bytes / 2**20:.3g} MiB, and no end: no answer to this request is as long")


@dataclass(slots=True)
class Exchange:
    """One request and its response.

    `sent_ns`: just before the first byte was handed to the kernel; `flushed_ns`: just after the last
    was. `connect_ns`: how long making the connection took, None if there was one already. `resent`:
    the server had closed an idle connection at the moment of sending, and the request went out again.
    `stamped`: every read carries the kernel's own time of arrival. `most_bytes`: what the response may
    take, beyond which it is a failure.
    """

    tag: int
    request: bytes = field(repr=False)
    """With the key, where there is one."""
    most_bytes: int = MOST_ANSWER_BYTES
    sent_ns: int = 0
    flushed_ns: int = 0
    end_ns: int = 0
    connect_ns: int | None = None
    resent: bool = False
    stamped: bool = True
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    failure: Failure | None = None
    reusable: bool = False
    """Whether the connection can carry another request after this one."""
    by_segment: bool = False
    """Whether each read was one segment, so that its stamp is that of all its bytes."""
    filled: bool = False
    """Whether a read took all that it could, and so perhaps not the whole of a segment."""
    _reads: list[tuple[int, int, bytes]] = field(default_factory=list)
    _fragments: list[Fragment] = field(default_factory=list)
    _parser: httptools.HttpResponseParser | None = None
    _reading: tuple[int, int] = (0, 0)
    _parsed: int = 0
    """How many reads have been parsed."""
    _taken_bytes: int = 0
    _head_bytes: int = 0
    _header_lines: int = 0
    _began: bool = False
    _framed: bool = False
    _streams: bool = False
    _complete: bool = False

    @property
    def began(self) -> bool:
        """Whether anything has come back."""
        return self._began

    @property
    def reads(self) -> int:
        """How often something was read."""
        return self._parsed + len(self._reads)

    @property
    def pieces(self) -> int:
        """In how many pieces the body has come, as far as that is known before it is parsed."""
        return len(self._fragments) + len(self._reads)

    @property
    def has_body(self) -> bool:
        """Whether something of a stream of events has come."""
        return self._streams and bool(self._fragments or self._reads)

    @property
    def fragments(self) -> list[Fragment]:
        """The body, in the pieces in which it was received."""
        self.settle()
        if self.by_segment:
            self._fragments = [(at_ns, at_ns, exact, data) for at_ns, _, exact, data in self._fragments]
            self.by_segment = False
        return self._fragments

    @property
    def body(self) -> bytes:
        return b"".join(data for _, _, _, data in self.fragments)

    def take(self, at_ns: int, since_ns: int, data: bytes) -> bool:
        """Keep what was read; True if the response has ended.

        In a stream of events the end is told by its last bytes; `settle` finds out whether it was one.
        Raises `httptools.HttpParserError`, also for more than `most_bytes`.
        """
        self._reads.append((at_ns, since_ns, data))
        size = len(data)
        self._taken_bytes += size + _PIECE_BYTES
        if self._taken_bytes > self.most_bytes:
            self._reads.clear()
            self._fragments.clear()
            raise OverlongError(self.most_bytes)
        if size >= READ_BYTES:
            self.filled = True
        if not self._streams:
            return self.parse()
        return (size < _LAST_CHUNK_BYTES or data[-4:] == b"\r\n\r\n") and self._may_have_ended()

    def parse(self) -> bool:
        """Parse all that was read; True if the response has ended. Raises `httptools.HttpParserError`."""
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpResponseParser(self)
        fragments, stamped = self._fragments, self.stamped
        reads, self._reads = self._reads, []
        self._parsed += len(reads)
        self._began = self._began or bool(reads)
        for at_ns, since_ns, data in reads:
            self._reading = at_ns, since_ns
            if self.status is None:
                self._head_bytes += len(data)
                if self._head_bytes > _MAX_HEAD_BYTES:
                    raise httptools.HttpParserError(f"headers of more than {_MAX_HEAD_BYTES} bytes")
            before = len(fragments)
            try:
                parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                if not self._complete:
                    raise
            if stamped and len(fragments) > before and len(data) < READ_BYTES:
                # The stamp is that of the newest byte: of the last fragment, unless more came after it.
                body = fragments[-1][3]
                if data.endswith(body, 0, -2) or data.endswith(body):
                    fragments[-1] = at_ns, since_ns, True, body
        if self._complete:
            self._parser = None  # it refers to this exchange, and nothing collects cycles during a run
        return self._complete

    def settle(self) -> None:
        """Parse what was left for later; a response that turns out not to have ended becomes a failure."""
        if not self._reads:
            return
        problem = None
        try:
            if not self.parse():
                problem = Failure("not_http", "the stream went on after what looked like its end")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            problem = failure_of(error)
        self.failure = self.failure or problem
        self._parser = None

    def ended_with_connection(self) -> bool:
        """Whether the end of the connection is the end of the body, as in HTTP/1.0."""
        return self._complete or (self.status is not None and not self._framed)

    def _may_have_ended(self) -> bool:
        tail = b""
        for _, _, data in reversed(self._reads):
            tail = data[-len(_LAST_CHUNK) :] + tail
            if len(tail) >= len(_LAST_CHUNK):
                break
        if tail.endswith(_LAST_CHUNK):
            self.reusable = True
            return True
        # Trailers, extensions of the last chunk, the last bytes of a read that was parsed: rare enough.
        return (tail.endswith(b"\r\n\r\n") or len(tail) < len(_LAST_CHUNK)) and self.parse()

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self._complete:  # bytes after the answer are no part of it
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self._header_lines += 1
        if self._header_lines > _MAX_HEADERS:
            raise ValueError(f"more than {_MAX_HEADERS} headers")
        key = name.decode("latin-1").lower()
        self.headers[key] = value.decode("latin-1")
        self._framed = self._framed or key in ("content-length", "transfer-encoding")

    def on_headers_complete(self) -> None:
        if self._complete or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        self._streams = (
            self.status == 200
            and self.headers.get("content-type", "").startswith("text/event-stream")
            and self.headers.get("transfer-encoding", "").lower() == "chunked"
            and bool(self._parser.should_keep_alive())
        )

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._taken_bytes += _PIECE_BYTES
            if self._taken_bytes > self.most_bytes:
                raise OverlongError(self.most_bytes)
            at_ns, since_ns = self._reading
            self._fragments.append((at_ns, since_ns, False, body))

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if self._parser is not None and self._parser.get_status_code() >= 200:
            self._complete = True
            self.reusable = bool(self._parser.should_keep_alive())
        else:  # 1xx announces the real response and says nothing about it
            self.status, self._framed = None, False
            self.headers.clear()


def failure_of(error: Exception) -> Failure:
    """The failure of a response that cannot be parsed, or is not parsed any further."""
    cause = error.__context__ or error
    if isinstance(error, OverlongError) or isinstance(cause, OverlongError):
        return Failure("too_long", str(error if isinstance(error, OverlongError) else cause))
    return Failure("not_http", f"{type(error).__name__}: {cause}")
