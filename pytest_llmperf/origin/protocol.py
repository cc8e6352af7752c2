"""What clients send: the heads of HTTP requests and orders of completions; and the refusals they may get."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

MODEL = "origin"
MAX_MODEL_LEN = 1 << 20

_DEFAULT_TOKENS = 16  # the protocol's own default
_MAX_HEAD_BYTES = 1 << 16
_MAX_BODY_BYTES = 1 << 26
_HEAD = re.compile(rb"([A-Z]+) (/[^\s?]*)(?:\?\S*)? HTTP/1\.1((?:\r\n[^\s:]+:[^\r\n]*)*)")
_HEADER = re.compile(rb"\r\n([^:]+):([^\r]*)")
_ARRAY_OF_IDS = re.compile(rb'"prompt"\s*:\s*\[')


class RefusalError(Exception):
    """A request that gets an error for an answer.

    `fatal`: where the next request would start is not known, so the connection ends.
    """

    def __init__(self, status: int, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal
        error = {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": status}
        self.response = response(json.dumps({"error": error}), status)


class Head(NamedTuple):
    """What the head of an HTTP request says, as far as it matters here."""

    route: bytes
    body_bytes: int
    close: bool
    expects_continue: bool

    @classmethod
    def take(cls, received: bytearray) -> Head | None:
        """Remove the head that comes first; None if it is not complete. Raises `RefusalError`."""
        end = received.find(b"\r\n\r\n")
        if (len(received) if end < 0 else end) > _MAX_HEAD_BYTES:
            raise RefusalError(431, f"no more than {_MAX_HEAD_BYTES} bytes of headers are accepted", fatal=True)
        if end < 0:
            return None
        match = _HEAD.fullmatch(bytes(received[:end]))
        del received[: end + 4]
        if match is None:
            raise RefusalError(400, "not an HTTP/1.1 request", fatal=True)
        method, path, lines = match.groups()
        headers = {name.lower(): value.strip().lower() for name, value in _HEADER.findall(lines)}
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18:  # int() refuses thousands of digits
            raise RefusalError(400, "Content-Length is not a number of bytes", fatal=True)
        if b"transfer-encoding" in headers:
            raise RefusalError(411, "a request needs a Content-Length", fatal=True)
        if int(length) > _MAX_BODY_BYTES:
            raise RefusalError(413, f"no more than {_MAX_BODY_BYTES} bytes are accepted", fatal=True)
        close, expects = headers.get(b"connection") == b"close", headers.get(b"expect") == b"100-continue"
        return cls(method + b" " + path, int(length), close, expects)


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
            fields = None
        _expect(isinstance(fields, dict), "the body is not a JSON object")
        prompt = "messages" if chat else "prompt"
        _expect(fields.get(prompt) or prompt_ids, f"{prompt} is missing or empty")
        options = fields.get("stream_options") or {}
        _expect(isinstance(options, dict), "stream_options is not an object")
        wanted = (fields.get(name) for name in ("max_completion_tokens", "max_tokens"))
        tokens = next((tokens for tokens in wanted if tokens is not None), _DEFAULT_TOKENS)
        _expect(type(tokens) is int and 1 <= tokens <= MAX_MODEL_LEN, f"max_tokens is not from 1 to {MAX_MODEL_LEN}")
        return cls(
            chat=chat,
            stream=fields.get("stream") is True,
            tokens=tokens,
            prompt_tokens=prompt_ids or max(1, len(body) // 4),
            token_ids=fields.get("return_token_ids") is True,
            final_usage=options.get("include_usage") is True,
            running_usage=options.get("continuous_usage_stats") is True,
        )


def response(content: str, status: int = 200) -> bytes:
    """The response that has this JSON for its body, ASCII."""
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode()


def _expect(condition: object, problem: str) -> None:
    if not condition:
        raise RefusalError(400, problem)


def _without_ids(body: bytes) -> tuple[bytes, int]:
    """The body with null for the array of ids that is its prompt, and how many there were.

    To parse 50,000 ids takes milliseconds, in which no token could leave. The key cannot be part of
    a text: the quotes would be escaped there.
    """
    match = _ARRAY_OF_IDS.search(body)
    if match is not None:
        ids, _, rest = body[match.end() :].partition(b"]")
        if ids.strip() and b'"' not in ids and b"[" not in ids:  # not an array of something else
            return body[: match.end() - 1] + b"null" + rest, ids.count(b",") + 1
    return body, 0
