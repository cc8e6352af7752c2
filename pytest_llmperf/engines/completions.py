"""The OpenAI completions protocol: requests out, streams of server-sent events back.

Token ids go in, so that lengths are exact. Tokens are counted by the ids or the usage that the
server sends, never by chunks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from pytest_llmperf.client import Exchange, HttpClient, events
from pytest_llmperf.engines.base import Answer, Generation
from pytest_llmperf.records import Arrival, Failure

PATH = "/v1/completions"
_DETAIL_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server understands beyond the plain protocol; found out when connecting.

    `extended`: it takes vLLM's `ignore_eos`, `return_token_ids` and usage in each chunk.
    """

    extended: bool


class CompletionsChannel:
    """A channel over HTTP for any server with the OpenAI completions route."""

    def __init__(self, client: HttpClient, model: str, dialect: Dialect) -> None:
        self._client = client
        self._model = model
        self._dialect = dialect
        self.busy_ns = client.busy_ns

    def send(self, tag: int, generation: Generation) -> int:
        return self._client.send(tag, "POST", PATH, request_body(self._model, generation, self._dialect))

    def wait(self, timeout_s: float | None) -> Sequence[Answer]:
        return [read_answer(exchange) for exchange in self._client.wait(timeout_s)]

    def close(self) -> None:
        self._client.close()


def request_body(model: str, generation: Generation, dialect: Dialect) -> bytes:
    """The JSON of one streamed request. Greedy, so that equal inputs give equal outputs."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(generation.token_ids),
        "max_tokens": generation.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if dialect.extended:
        # min_tokens would do as well, but adds a logits processor to every step of vLLM.
        body["ignore_eos"] = True
        body["stream_options"]["continuous_usage_stats"] = True
        if generation.return_token_ids:
            body["return_token_ids"] = True
    return json.dumps(body, separators=(",", ":")).encode()


def read_answer(exchange: Exchange) -> Answer:
    """Turn a finished exchange into an answer; whatever is wrong with it becomes its failure."""
    if exchange.failure is not None:
        return Answer(tag=exchange.tag, sent_ns=exchange.sent_ns, end_ns=exchange.end_ns, failure=exchange.failure)
    if exchange.status != 200:
        failure = Failure(f"http_{exchange.status}", error_text(exchange.body))
        return Answer(tag=exchange.tag, sent_ns=exchange.sent_ns, end_ns=exchange.end_ns, failure=failure)
    stream = _Stream()
    for at_ns, data in events(exchange.fragments):
        stream.add(at_ns, data)
    return stream.answer(exchange)


def error_text(body: bytes) -> str:
    """The message of an error response, as short as it can be quoted."""
    text = body.decode(errors="replace").strip()
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict):
        error = content.get("error", content)
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = message if isinstance(message, str) else text
    return text[:_DETAIL_CHARACTERS] or "(empty body)"


class _Stream:
    """What the events of one answer add up to."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.token_ids: list[int] = []
        self.has_token_ids = False
        self.usage: dict[str, Any] = {}
        self.counted = 0
        self.done = False
        self.failure: Failure | None = None

    def add(self, at_ns: int, data: bytes) -> None:
        """Take one event into account; the first failure stays."""
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            self._fail("not_json", data)
            return
        if not isinstance(event, dict) or event.get("error") is not None:
            self._fail("stream_error", data)
            return
        choices = event.get("choices") or []
        if not _are_choices(choices):
            self._fail("not_completions", data)
            return
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
            self.done = self.done or not choices  # with choices it is only the count so far
        if choices:
            self._choice(at_ns, choices[0], usage)

    def _choice(self, at_ns: int, choice: dict[str, Any], usage: dict[str, Any] | None) -> None:
        self.done = self.done or choice.get("finish_reason") is not None
        ids = choice.get("token_ids")
        if ids is not None:
            self.has_token_ids = True
            self.token_ids.extend(ids)
            tokens: int | None = len(ids)
        elif isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            tokens = max(0, usage["completion_tokens"] - self.counted)
        else:
            tokens = None if choice.get("text") else 0
        if tokens != 0:
            self.arrivals.append(Arrival(at_ns, tokens))
        self.counted += tokens or 0

    def _fail(self, kind: str, data: bytes) -> None:
        self.failure = self.failure or Failure(kind, error_text(data))

    def answer(self, exchange: Exchange) -> Answer:
        failure = self.failure
        if failure is None and not self.arrivals:
            failure = Failure("no_tokens", "the stream ended without a generated token")
        if failure is None and not self.done:
            failure = Failure("truncated", "the stream ended without [DONE], a finish_reason or a final usage")
        output_tokens = len(self.token_ids) if self.has_token_ids else _number(self.usage, "completion_tokens")
        details = self.usage.get("prompt_tokens_details")
        return Answer(
            tag=exchange.tag,
            sent_ns=exchange.sent_ns,
            end_ns=exchange.end_ns,
            arrivals=_one_token_each(self.arrivals, output_tokens),
            token_ids=tuple(self.token_ids) if self.has_token_ids else None,
            prompt_tokens=_number(self.usage, "prompt_tokens"),
            output_tokens=output_tokens,
            cached_tokens=_number(details, "cached_tokens") if isinstance(details, dict) else None,
            failure=failure,
        )


def _are_choices(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(choice, dict) and isinstance(choice.get("token_ids"), (list, NoneType)) for choice in value
    )


def _one_token_each(arrivals: list[Arrival], output_tokens: int | None) -> tuple[Arrival, ...]:
    """Where the server counts only the whole, and it has as many chunks: each held one token."""
    if output_tokens == len(arrivals):
        return tuple(Arrival(arrival.at_ns, arrival.tokens or 1) for arrival in arrivals)
    return tuple(arrivals)


def _number(source: dict[str, Any], name: str) -> int | None:
    value = source.get(name)
    return value if isinstance(value, int) else None
