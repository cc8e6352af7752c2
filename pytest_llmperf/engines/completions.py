"""The OpenAI protocols, completions and chat: requests out, streams of server-sent events back.

Token ids go in where the server takes them, so that lengths are exact. Tokens are counted by the ids
or the usage that the server sends, never by chunks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from pytest_llmperf.arrivals import UNKNOWN, Arrivals
from pytest_llmperf.client import Address, Exchange, HttpClient, Limits, events
from pytest_llmperf.clock import NS_PER_MS, Clock
from pytest_llmperf.engines.base import Answer, Generation, Reply
from pytest_llmperf.engines.wording import WORDS, Wording
from pytest_llmperf.records import EngineTimings, Failure, Remark
from pytest_llmperf.secret import SecretDict, concealed

PATHS = {"ids": "/v1/completions", "text": "/v1/completions", "chat": "/v1/chat/completions"}
"""Where a prompt of each form goes."""
IDS_WORDS = {"return_token_ids": True, "detokenize": False}
"""What a request says to get token ids: the first to vLLM and SGLang, the second to TensorRT-LLM, instead of text."""
_DETAIL_CHARACTERS = 300
# What an answer may take by what was asked for. A token with its usage is some 350 bytes on vLLM, 700 on SGLang;
# vLLM's first chunk has the ids of the prompt.
_ANSWER_BYTES = 1 << 20
_TOKEN_BYTES = 4096
_PROMPT_TOKEN_BYTES = 32
_DONE = b"[DONE]"
_LONGEST_MS = 1e9  # eleven days: what is beyond is no duration of a request
# More in one chunk is no count, and would not fit into the column of an answer's arrivals.
_MOST_TOKENS = 2**31 - 1
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens")
# Headers that say what to do about a refusal.
_TELLING_HEADERS = ("retry-after", "location")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server understands beyond the plain protocol; found out when connecting.

    `extended`: it takes `ignore_eos`, usage in each chunk and a word for token ids. `prompts`: how prompts
    are sent, a key of `PATHS`. `ids_word`: the word for token ids, a key of `IDS_WORDS`. `ids_count`: tokens
    are told by their ids only, which are then asked for with every request. `wording`: how prompts become
    texts of exact lengths; None: not at all, or in lengths that nobody knows.
    """

    extended: bool
    prompts: str = "ids"
    ids_word: str = "return_token_ids"
    ids_count: bool = False
    wording: Wording | None = None
    replicas: tuple[str, ...] = ()
    """The names by which the engines behind a router call the model in their answers, where each has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionsConnector:
    """Opens channels to one server, in this process or, as it can be pickled, in another one."""

    address: Address
    model: str
    dialect: Dialect
    limits: Limits
    api_key: str | None = field(repr=False, default=None)

    def open(self, clock: Clock) -> CompletionsChannel:
        """A channel with connections of its own."""
        client = HttpClient(self.address, clock, headers=request_headers(self.api_key), limits=self.limits)
        return CompletionsChannel(client, self.model, self.dialect, self.api_key)


class CompletionsChannel:
    """A channel over HTTP for any server with one of the OpenAI routes."""

    def __init__(self, client: HttpClient, model: str, dialect: Dialect, api_key: str | None = None) -> None:
        """`api_key`: what must not be quoted, should the server send it back."""
        self._client = client
        self._model = model
        self._dialect = dialect
        self._api_key = api_key
        self.stats = client.stats
        client.most_answer_bytes = _ANSWER_BYTES

    def open(self, connections: int) -> None:
        self._client.open(connections)

    def encode(self, generation: Generation) -> bytes:
        most = _ANSWER_BYTES + _TOKEN_BYTES * generation.output_tokens + _PROMPT_TOKEN_BYTES * len(generation.token_ids)
        self._client.most_answer_bytes = max(most, self._client.most_answer_bytes)
        body = request_body(self._model, generation, self._dialect)
        return self._client.encode("POST", PATHS[self._dialect.prompts], body)

    def send(self, tag: int, request: bytes) -> None:
        self._client.send(tag, request)

    def poll(self, timeout_s: float) -> int:
        return self._client.poll(timeout_s)

    def ended(self) -> Sequence[Reply]:
        replicas = self._dialect.replicas
        return [CompletionsReply(exchange, self._api_key, replicas) for exchange in self._client.ended()]

    def close(self) -> None:
        self._client.close()


class CompletionsReply:
    """An exchange that has ended and has not been read yet."""

    __slots__ = ("_api_key", "_exchange", "_replicas", "end_ns", "pieces", "tag")

    def __init__(self, exchange: Exchange, api_key: str | None = None, replicas: tuple[str, ...] = ()) -> None:
        self.tag = exchange.tag
        self.end_ns = exchange.end_ns
        self.pieces = exchange.pieces
        self._exchange = exchange
        self._api_key = api_key
        self._replicas = replicas

    def read(self) -> Answer:
        return read_answer(self._exchange, self._api_key, self._replicas)


def request_headers(api_key: str | None) -> SecretDict:
    """What every request says beside its body."""
    return SecretDict({"Accept": "*/*"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}))


def request_body(model: str, generation: Generation, dialect: Dialect) -> bytes:
    """The JSON of one streamed request. Greedy, so that equal inputs give equal outputs."""
    ids, form = generation.token_ids, dialect.prompts
    if form == "ids":
        prompt: dict[str, Any] = {"prompt": ids}
    else:
        prompt = text_prompt(form, as_text(ids) if dialect.wording is None else dialect.wording.text(ids))
    return _body(model, prompt, generation.output_tokens, dialect, return_token_ids=generation.return_token_ids)


def text_request(model: str, text: str, output_tokens: int, dialect: Dialect) -> bytes:
    """The same with a text that is sent as it is."""
    prompt = text_prompt(dialect.prompts, text)
    return _body(model, prompt, output_tokens, dialect, return_token_ids=False)


def text_prompt(form: str, text: str) -> dict[str, Any]:
    """What carries a text in a request. `form`: "text" or "chat"."""
    return {"prompt": text} if form == "text" else {"messages": [{"role": "user", "content": text}]}


def _body(model: str, prompt: dict[str, Any], output_tokens: int, dialect: Dialect, *, return_token_ids: bool) -> bytes:
    options: dict[str, Any] = {"include_usage": True}
    body = {"model": model, **prompt, "max_tokens": output_tokens, "temperature": 0, "stream": True}
    body["stream_options"] = options
    if dialect.extended:
        # min_tokens would do as well, but adds a logits processor to every step of vLLM.
        body["ignore_eos"] = True
        options["continuous_usage_stats"] = True
        if return_token_ids or dialect.ids_count:
            body[dialect.ids_word] = IDS_WORDS[dialect.ids_word]
    # Ids may come in any sequence.
    return orjson.dumps(body, default=list, option=orjson.OPT_SERIALIZE_NUMPY)


def as_text(token_ids: Sequence[int] | npt.NDArray[np.int32]) -> str:
    """A text of as many words as there are ids; how many tokens that is, the server's usage says."""
    return " ".join([WORDS[token_id % len(WORDS)] for token_id in token_ids])


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
