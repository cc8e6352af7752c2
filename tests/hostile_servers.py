"""Servers that let themselves be measured, and then answer as nobody should.

They list a model and answer the first generation as they ought to, so that the engine starts; then they attack.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from servers import CompletionsServer, _Handler

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MOST_S = 15.0
"""Nobody attacks longer than that."""
_DEEP = 100_000


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(content: object) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return chunk(b"data: " + text + b"\n\n")


def counted(**usage: object) -> bytes:
    """A whole answer whose usage says this."""
    token = {"choices": [{"index": 0, "text": "x"}]}
    return HEAD + event(token) + event({"choices": [], "usage": usage}) + event(b"[DONE]") + b"0\r\n\r\n"


def endless(first: bytes, again: bytes) -> Iterator[bytes]:
    """The beginning, then the same without end, some kB at a time."""
    yield first
    many = again * max(1, 65_536 // len(again))
    while True:
        yield many


def dripping(data: bytes) -> Iterator[bytes]:
    for byte in data:
        yield bytes([byte])
        time.sleep(0.02)


Attack = Callable[["HostileServer"], Iterator[bytes]]
_BOMB = gzip.compress(b"data: {}\n\n" * 1_000_000, 9)
_ENCODED = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
_LOOPS = b'data: {"choices":[{"index":0,"text":"x"}]}\n\n'

ATTACKS: dict[str, tuple[str, Attack]] = {
    "headers without end": ("not_http", lambda _: endless(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n")),
    "a header line without end": ("not_http", lambda _: endless(b"HTTP/1.1 200 OK\r\nX-A: ", b"b")),
    "interim responses without end": ("not_http", lambda _: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    "a chunk of two exabytes": ("too_long", lambda _: endless(HEAD + b"1fffffffffffffff\r\n", b"x")),
    "a chunk of no number": ("not_http", lambda _: iter([HEAD + b"ffffffffffffffffff\r\n"])),
    "a body without end": ("too_long", lambda _: endless(b"HTTP/1.1 200 OK\r\n\r\n", b"data: x\n")),
    "a line without end": ("too_long", lambda _: endless(HEAD, chunk(b"data: " + b"x" * 4096))),
    "events without end": ("too_long", lambda _: endless(HEAD, chunk(_LOOPS))),
    "the smallest chunks without end": ("too_long", lambda _: endless(HEAD, chunk(b":"))),
    "a decompression bomb": ("compressed", lambda _: iter([_ENCODED + chunk(_BOMB) + b"0\r\n\r\n"])),
    "a redirect elsewhere": (
        "http_307",
        lambda server: iter(
            [b"HTTP/1.1 307 T\r\nLocation: %b/v1\r\nContent-Length: 0\r\n\r\n" % server.elsewhere.encode()]
        ),
    ),
    "more promised than sent": (
        "connection_closed",
        lambda _: iter([b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nshort"]),
    ),
    "less promised than sent": (
        "no_tokens",
        lambda _: iter([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + _LOOPS]),
    ),
    "HTTP/0.9": ("not_http", lambda _: iter([_LOOPS])),
    "a byte now and then": ("timeout", lambda _: dripping(HEAD * 9)),
    "deep JSON": ("not_json", lambda _: iter([HEAD + event(b"[" * _DEEP) + b"0\r\n\r\n"])),
    "a negative count": ("not_completions", lambda _: iter([counted(prompt_tokens=-5, completion_tokens=4)])),
    "a count beyond all": ("not_completions", lambda _: iter([counted(prompt_tokens=8, completion_tokens=2**63)])),
    "a count that is a text": ("not_completions", lambda _: iter([counted(prompt_tokens="8", completion_tokens=4)])),
    "a count that is NaN": ("not_json", lambda _: iter([counted(prompt_tokens=float("nan"), completion_tokens=4)])),
    "ids that are texts": (
        "not_completions",
        lambda _: iter([HEAD + event({"choices": [{"index": 0, "token_ids": ["x", None]}]}) + b"0\r\n\r\n"]),
    ),
}
"""What a server does, how that is counted, and the bytes."""


@dataclass
class HostileServer(CompletionsServer):
    """Answers its first generation, then attacks."""

    attack: Attack = lambda _: iter(())
    elsewhere: str = ""
    """Where it would like to have the key sent."""
    generations: int = field(default=0, init=False)

    def __enter__(self) -> HostileServer:
        super().__enter__()
        self._http.RequestHandlerClass = _HostileHandler
        return self


class _HostileHandler(_Handler):
    def do_POST(self) -> None:
        owner = self.server.owner
        assert isinstance(owner, HostileServer)
        owner.generations += 1
        if owner.generations == 1:
            super().do_POST()
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        deadline = time.monotonic() + _MOST_S
        with contextlib.suppress(OSError):  # the client has had enough
            for piece in owner.attack(owner):
                self.wfile.write(piece)
                if time.monotonic() > deadline:
                    return
