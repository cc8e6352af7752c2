"""What a streamed answer says: tokens and when they came, usage, what the engine tells beside them, and what is odd."""

from __future__ import annotations

from array import array
from typing import Any

import orjson

from pytest_llmperf.arrivals import UNKNOWN, Arrivals
from pytest_llmperf.client import Exchange, events
from pytest_llmperf.clock import NS_PER_MS
from pytest_llmperf.engines.base import Answer
from pytest_llmperf.records import EngineTimings, Failure, Remark
from pytest_llmperf.secret import concealed

_DETAIL_CHARACTERS = 300


_DONE = b"[DONE]"


_LONGEST_MS = 1e9  # eleven days: what is beyond is no duration of a request


# More in one chunk is no count, and would not fit into the column of an answer's arrivals.
_MOST_TOKENS = 2**31 - 1


_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens")


# Headers that say what to do about a refusal.
_TELLING_HEADERS = ("retry-after", "location")


def read_answer(exchange: Exchange, api_key: str | None = None, replicas: tuple[str, ...] = ()) -> Answer:
    """Turn a finished exchange into an answer; whatever is wrong with it becomes its failure.

    `api_key` is not quoted, should the server send it back. `replicas`: see `Dialect`.
    """
    exchange.settle()
    stream = _Stream(api_key)
    if exchange.failure is not None:
        stream.failure = exchange.failure
    elif exchange.status != 200:
        stream.failure = Failure(f"http_{exchange.status}", _refusal(exchange, api_key))
    elif exchange.headers.get("content-encoding", "identity") != "identity":
        stream.failure = Failure(
            "compressed", "the answer is compressed, which no request accepts; it was not unpacked"
        )
    else:
        stream.read(events(exchange.fragments))
        stream.conclude()
    return stream.answer(exchange, replicas)


def counts_throughout(exchange: Exchange) -> bool:
    """Whether each chunk of a finished answer that may bring tokens has the usage so far."""
    contents = _parsed([data for _, _, data in events(exchange.fragments)])
    chunks = [content for content in contents if type(content) is dict and content.get("choices")]
    return all(type(chunk.get("usage")) is dict for chunk in chunks)


def shows_extensions(exchange: Exchange) -> bool:
    """Whether a finished answer has what only vLLM's words ask for: token ids, or the usage beside each token.

    A server may take those words and pass over them; of one that shows this it is known that it does not.
    """
    contents = _parsed([data for _, _, data in events(exchange.fragments)])
    return any(_is_extended(event) for event in contents if type(event) is dict)


def _is_extended(event: dict[str, Any]) -> bool:
    choices = event.get("choices")
    if type(choices) is not list or not choices or type(choices[0]) is not dict:
        return False
    # Some servers put the final usage beside the last token.
    has_usage = type(event.get("usage")) is dict and choices[0].get("finish_reason") is None
    return has_usage or bool(choices[0].get("token_ids"))


def error_text(body: bytes, api_key: str | None = None) -> str:
    """The message of an error response, as short as it can be quoted, and without the key."""
    text = body.decode(errors="replace").strip()
    try:
        content = orjson.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict):
        error = content.get("error", content)
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = message if isinstance(message, str) else text
    return _quoted(text, api_key) or "(empty body)"


def _quoted(text: str, api_key: str | None) -> str:
    return concealed(text, [api_key] if api_key else [])[:_DETAIL_CHARACTERS]


def _refusal(exchange: Exchange, api_key: str | None) -> str:
    told = [f"{name}: {exchange.headers[name]}" for name in _TELLING_HEADERS if name in exchange.headers]
    return "; ".join([error_text(exchange.body, api_key), *(_quoted(one, api_key) for one in told)])


class _Stream:
    """What the events of one answer add up to."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key
        self.arrivals = Arrivals()
        self.token_ids: list[int] = []
        self.has_token_ids = False
        self.usage: dict[str, Any] = {}
        self.metrics: Any = None
        self.model: Any = None
        self.counted = 0
        self.done = False
        self.failure: Failure | None = None

    def read(self, found: list[tuple[int, int, bytes]]) -> None:
        """Take the events of a body into account; the first failure stays."""
        if found and found[-1][2] == _DONE:
            self.done = True
            found.pop()
        stamped, counts, late = self.arrivals.at_ns.append, self.arrivals.tokens.append, self.arrivals.late_ns.append
        for (at_ns, late_ns, data), event in zip(found, _parsed([data for _, _, data in found]), strict=True):
            if type(event) is not dict or event.get("error") is not None:
                self._not_an_event(event, data)
                continue
            choices, usage = event.get("choices"), event.get("usage")
            if usage is not None and type(usage) is dict:
                self.usage, self.metrics, self.model = usage, event.get("metrics"), event.get("model")
                self.done = self.done or not choices  # with choices it is only the count so far
            if not choices:
                continue
            if type(choices) is not list or type(choices[0]) is not dict:
                self._fail("not_completions", data)
                continue
            choice = choices[0]
            if choice.get("finish_reason") is not None:
                self.done = True
            if usage is None and "token_ids" not in choice:
                tokens = UNKNOWN if choice.get("text") or _has_text(choice) else 0
            else:
                tokens = self._tokens(choice, usage, data)
            if tokens:
                stamped(at_ns)
                counts(tokens)
                late(late_ns)

    def conclude(self) -> None:
        """Find what is missing of an answer."""
        odd = self._odd_count()
        if self.failure is None and odd is not None:
            self.failure = Failure("not_completions", odd)
        if self.failure is None and not len(self.arrivals):
            self.failure = Failure("no_tokens", "the stream ended without a generated token")
        if self.failure is None and not self.done:
            self.failure = Failure("truncated", "the stream ended without [DONE], a finish_reason or a final usage")

    def _odd_count(self) -> str | None:
        """What is told of tokens and can be no number of them."""
        details = self.usage.get("prompt_tokens_details")
        told = {**self.usage, **(details if isinstance(details, dict) else {})}
        for name in _COUNTS:
            if told.get(name) is not None and _number(told, name) is None:
                return f"the usage says that {name} is {repr(told[name])[:_DETAIL_CHARACTERS]}, which counts nothing"
        try:
            is_odd = bool(self.token_ids) and min(array("i", self.token_ids)) < 0
        except (TypeError, OverflowError):
            is_odd = True
        if is_odd:
            self.token_ids = []
        return "the token ids are not all whole numbers from 0 to 2,147,483,647" if is_odd else None

    def answer(self, exchange: Exchange, replicas: tuple[str, ...]) -> Answer:
        output_tokens = len(self.token_ids) if self.has_token_ids else _number(self.usage, "completion_tokens")
        details = self.usage.get("prompt_tokens_details")
        _one_token_each(self.arrivals, output_tokens)
        return Answer(
            tag=exchange.tag,
            sent_ns=exchange.sent_ns,
            flushed_ns=exchange.flushed_ns or None,
            connect_ns=exchange.connect_ns,
            end_ns=exchange.end_ns,
            arrivals=self.arrivals,
            token_ids=tuple(self.token_ids) if self.has_token_ids else None,
            prompt_tokens=_number(self.usage, "prompt_tokens"),
            output_tokens=output_tokens,
            cached_tokens=_number(details, "cached_tokens") if isinstance(details, dict) else None,
            timings=_timings(self.metrics),
            replica=replicas.index(self.model) if self.model in replicas else None,
            failure=self.failure,
            remarks=() if self.failure is not None else tuple(self._remarks()),
        )

    def _tokens(self, choice: dict[str, Any], usage: Any, data: bytes) -> int:
        """How many tokens a chunk brings, by its ids or by what the usage has grown."""
        ids = choice.get("token_ids")
        if ids is not None and type(ids) is not list:
            self._fail("not_completions", data)
            return 0
        if ids is not None:
            self.has_token_ids = True
            self.token_ids += ids
            tokens = len(ids)
        elif type(usage) is dict and type(usage.get("completion_tokens")) is int:
            tokens = max(0, usage["completion_tokens"] - self.counted)
        else:
            return UNKNOWN if _has_text(choice) else 0
        if tokens > _MOST_TOKENS:
            self._fail("not_completions", data)
            return 0
        self.counted += tokens
        return tokens

    def _not_an_event(self, event: Any, data: bytes) -> None:
        if event is not _UNPARSED:
            self._fail("stream_error", data)
        elif data == _DONE:
            self.done = True
        else:
            self._fail("not_json", data)

    def _fail(self, kind: str, data: bytes) -> None:
        self.failure = self.failure or Failure(kind, error_text(data, self._api_key))

    def _remarks(self) -> list[Remark]:
        counted = _number(self.usage, "completion_tokens")
        if counted is None and not self.has_token_ids:
            return [Remark("no_usage", "no usage and no token ids: how many tokens were generated is unknown")]
        if counted is not None and self.has_token_ids and counted != len(self.token_ids):
            detail = f"usage says {counted} tokens were generated, the token ids are {len(self.token_ids)}"
            return [Remark("wrong_usage", detail)]
        if counted is not None and counted < len(self.arrivals):
            detail = f"usage says {counted} tokens were generated, but {len(self.arrivals)} chunks brought some"
            return [Remark("wrong_usage", detail)]
        return []


_UNPARSED = object()


def _parsed(texts: list[bytes]) -> list[Any]:
    """The JSON value of each event; `_UNPARSED` in the place of what is none.

    Each by itself: parsing them as one list is no faster to speak of, and could shift them.
    """
    loads = orjson.loads
    try:
        return [loads(text) for text in texts]
    except ValueError:
        return [_value(text) for text in texts]


def _value(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return _UNPARSED


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether a chunk brings generated tokens; one with a role alone does not."""
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    if type(delta) is not dict:
        return False
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _one_token_each(arrivals: Arrivals, output_tokens: int | None) -> None:
    """Where the server counts only the whole, and it has as many chunks: each held one token."""
    if output_tokens == len(arrivals) and UNKNOWN in arrivals.tokens:
        arrivals.tokens = array("i", [1 if tokens == UNKNOWN else tokens for tokens in arrivals.tokens])


def _timings(metrics: Any) -> EngineTimings | None:
    """What vLLM puts beside the last usage (0.26 to 0.33); its `time_to_first_token_ms` leaves the queue out."""
    if not isinstance(metrics, dict):
        return None
    queue, prefill = (_span_ns(metrics.get(name)) for name in ("queue_time_ms", "time_to_first_token_ms"))
    return None if queue is None and prefill is None else EngineTimings(queue_ns=queue, prefill_ns=prefill)


def _span_ns(value: Any) -> int | None:
    """Milliseconds as nanoseconds; None for what is no duration."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LONGEST_MS:
        return None
    return round(value * NS_PER_MS)


def _number(source: dict[str, Any], name: str) -> int | None:
    value = source.get(name)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
