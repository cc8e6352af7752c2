"""The OpenAI protocols, completions and chat: requests out, streams of server-sent events back.

Token ids go in where the server takes them, so that lengths are exact. Tokens are counted by the ids
or the usage that the server sends, never by chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from pytest_llmperf.client import Address, Exchange, HttpClient, Limits
from pytest_llmperf.clock import Clock
from pytest_llmperf.engines.answers import read_answer
from pytest_llmperf.engines.base import Answer, Generation, Reply
from pytest_llmperf.engines.wording import WORDS, Wording
from pytest_llmperf.secret import SecretDict

PATHS = {"ids": "/v1/completions", "text": "/v1/completions", "chat": "/v1/chat/completions"}
"""Where a prompt of each form goes."""
IDS_WORDS = {"return_token_ids": True, "detokenize": False}
"""What a request says to get token ids: the first to vLLM and SGLang, the second to TensorRT-LLM, instead of text."""
# What an answer may take by what was asked for. A token with its usage is some 350 bytes on vLLM, 700 on SGLang;
# vLLM's first chunk has the ids of the prompt.
_ANSWER_BYTES = 1 << 20
_TOKEN_BYTES = 4096
_PROMPT_TOKEN_BYTES = 32


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
