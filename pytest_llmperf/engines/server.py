"""Servers with the OpenAI completions route: the connection to one.

What a server can tell is found out when connecting: its models, its limits, which extensions of the protocol it
takes and whose metrics it has. What it cannot tell stays unknown.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import orjson

from pytest_llmperf.client import Address, Exchange, HttpClient, Limits
from pytest_llmperf.engines.answers import counts_throughout, error_text, read_answer, shows_extensions
from pytest_llmperf.engines.base import TOKEN_IDS, Connector, Generation, Surroundings
from pytest_llmperf.engines.completions import (
    PATHS,
    CompletionsConnector,
    Dialect,
    request_body,
    request_headers,
    text_prompt,
    text_request,
)
from pytest_llmperf.engines.server_metrics import CACHE_ROUTES, SETTLE_S, TIMING_ROUTES, CacheConfig, Metrics
from pytest_llmperf.engines.server_metrics import PATHS as METRICS_PATHS
from pytest_llmperf.engines.tokenizer import load_tokenizer
from pytest_llmperf.engines.wording import Count, settled
from pytest_llmperf.errors import (
    ConfigurationError,
    EngineStartError,
)
from pytest_llmperf.records import CacheCounters, EngineTimings

CONTROL_TIMEOUT_S = 10.0
"""For every request but the probe: these answer at once or something is wrong."""
PROBE_TIMEOUT_S = 120.0
"""For the first generation, which may compile kernels."""
HANGING_S = 30.0
"""For one token from a server that has just let a request go unanswered: what it still does was given up with that."""
# The first prompt of a server must not be very short: 3 tokens killed vLLM 0.32's CPU worker with
# bfloat16 on a processor with AMX (7 of 7 starts), 8 and more did not.
PROBE_IDS = tuple(TOKEN_IDS)[:32]
PROBE_OUTPUT_TOKENS = 4
_UNUSABLE_EXTENSIONS = (400, 422)
# What a server is asked for that refuses vLLM's words: first TensorRT-LLM's, then the protocol's own.
_LESSER_DIALECTS: tuple[dict[str, Any], ...] = ({"ids_word": "detokenize"}, {"extended": False})
_LONGEST_CONTEXT = 2**31 - 1
_LONGEST_NAME = 1000
_MOST_LISTED = 20
UNKNOWN_LEN = 4096
"""Tokens that a server is taken to accept if it does not say, while lengths are found out."""


class OpenAIServer:
    """A connection to a server that runs already."""

    def __init__(
        self,
        address: Address,
        surroundings: Surroundings,
        prompts: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        """`tokenizer`: the model's, a folder or file, for a server that does not offer its own."""
        prefix = address.prefix.removesuffix("/v1")
        self.address = Address(address.host, address.port, address.tls, prefix)
        self.max_model_len: int | None = None
        self.model = ""
        self.returns_token_ids = False
        self.forces_lengths = False
        self.prompt_lengths = "ids"
        """What makes prompts as long as asked for: see `wording.settled`."""
        self.cache: CacheConfig | None = None
        self._metrics_path: str | None = None
        self._engine: str | None = None
        self._surroundings = surroundings
        self._dialect = Dialect(extended=True, prompts=prompts or "ids")
        self._tokenizer = tokenizer

    def connect(self, model: str | None) -> None:
        """Find out what the server is.

        Raises `EngineStartError` if it does not answer as a completions server would, and
        `ConfigurationError` if it does not have `model`, or the tokenizer cannot be read.
        """
        local = None if self._tokenizer is None else load_tokenizer(Path(self._tokenizer))
        self._choose_model(model)
        self._probe()
        self._find_metrics()
        if self._dialect.prompts != "ids":
            self._find_lengths(local)

    def connect_like(self, other: OpenAIServer, replicas: tuple[str, ...] = ()) -> None:
        """Take over what `other` has told, and see that it can be reached here: a router in front of it.

        `replicas`: the names by which those behind it answer, where each has its own.
        Raises `EngineStartError` if it cannot.
        """
        self.model, self.max_model_len = other.model, other.max_model_len
        self.prompt_lengths, self._dialect = other.prompt_lengths, replace(other._dialect, replicas=replicas)
        self._probe()

    @property
    def prompt_overhead(self) -> int:
        """Tokens that every prompt has whatever its ids; 0 where that is not known, too."""
        return 0 if self._dialect.wording is None else self._dialect.wording.overhead

    def is_healthy(self) -> bool:
        """Whether `GET /health` answers 200 at this moment."""
        return self.control("GET", "/health").status == 200

    def is_answering(self) -> bool:
        """Whether it generates, if only an error, within `HANGING_S`."""
        body = request_body(self.model, Generation(PROBE_IDS, 1, return_token_ids=False), self._dialect)
        exchange = self._request("POST", PATHS[self._dialect.prompts], body, HANGING_S)
        return exchange.failure is None or exchange.failure.kind not in ("timeout", "connect_timeout")

    def control(self, method: str, path: str) -> Exchange:
        """One request beside the measured ones, on a connection of its own."""
        return self._request(method, path, b"", CONTROL_TIMEOUT_S)

    def json(self, path: str) -> Any:
        """What `GET` of a route answers, None where that is no JSON."""
        exchange = self.control("GET", path)
        try:
            return orjson.loads(exchange.body) if exchange.status == 200 else None
        except ValueError:
            return None

    def connector(self) -> CompletionsConnector:
        surroundings = self._surroundings
        return CompletionsConnector(
            address=self.address,
            model=self.model,
            dialect=self._dialect,
            limits=surroundings.limits,
            api_key=surroundings.api_key,
        )

    def cache_counters(self, *, settled: bool = False) -> CacheCounters:
        """What the server has counted; `settled`: its counters have had time to appear."""
        if self._metrics_path is None:
            return CacheCounters()
        if not settled:
            self._surroundings.clock.sleep(SETTLE_S)
        metrics = self._metrics(self._metrics_path)
        return CacheCounters() if metrics is None else metrics.counters()

    def request_timings(self) -> tuple[EngineTimings, ...]:
        """How it has timed requests since this was last asked, where it tells that apart from the answers."""
        if self._engine not in TIMING_ROUTES:
            return ()
        path, read = TIMING_ROUTES[self._engine]
        return read(self.json(path))

    def version(self) -> str | None:
        """What `GET /version` says, which vLLM and TensorRT-LLM have, or SGLang's `GET /server_info`."""
        for path in ("/version", "/server_info"):
            content = self.json(path)
            version = content.get("version") if isinstance(content, dict) else None
            if isinstance(version, str):
                return version[:_LONGEST_NAME]
        return None

    def describe(self) -> dict[str, Any]:
        """What is known of the server, unknown things left out."""
        return described(self, version=self.version())

    def _find_metrics(self) -> None:
        """Look for the metrics of an engine that we know, and for its cache's size in them or beside them."""
        for path in METRICS_PATHS:
            metrics = self._metrics(path)
            if metrics is not None and metrics.engine is not None:
                self._metrics_path, self._engine = path, metrics.engine
                self.cache = metrics.cache_config() or self._cache_beside(metrics.engine)
                return

    def _metrics(self, path: str) -> Metrics | None:
        """A reading; None where there is nothing of the kind."""
        exchange = self.control("GET", path)
        if exchange.status != 200:
            return None
        try:
            return Metrics.of(exchange.body)
        except ValueError:
            return None

    def _cache_beside(self, engine: str) -> CacheConfig | None:
        if engine not in CACHE_ROUTES:
            return None
        path, read = CACHE_ROUTES[engine]
        return read(self.json(path))

    def _request(self, method: str, path: str, body: bytes, timeout_s: float) -> Exchange:
        headers, limits = request_headers(self._surroundings.api_key), Limits(silence_s=timeout_s)
        client = HttpClient(self.address, self._surroundings.clock, headers=headers, limits=limits)
        try:
            return client.request(method, path, body, timeout_s=timeout_s)
        finally:
            client.close()

    def _choose_model(self, wanted: str | None) -> None:
        exchange = self.control("GET", "/v1/models")
        if exchange.failure is not None or exchange.status != 200:
            raise EngineStartError(self._complaint("GET /v1/models", exchange))
        models = self._models(exchange)
        if wanted is None and len(models) != 1:
            msg = f"{self.address} serves {_list(models)}; say which one with model=... or --llmperf-model"
            raise ConfigurationError(msg)
        name = next(iter(models)) if wanted is None else wanted
        if name not in models:
            msg = (
                f"{self.address} does not have the model {name!r}; it serves {_list(models)} (--llmperf-model sets it)"
            )
            raise ConfigurationError(msg)
        self.model = name
        limit = models[name].get("max_model_len")
        self.max_model_len = limit if type(limit) is int and 0 < limit <= _LONGEST_CONTEXT else None

    def _models(self, exchange: Exchange) -> dict[str, dict[str, Any]]:
        try:
            return {_name(entry["id"]): entry for entry in orjson.loads(exchange.body)["data"]}
        except (ValueError, KeyError, TypeError):
            body = error_text(exchange.body, self._surroundings.api_key)
            msg = f"{self.address}/v1/models does not answer with a list of models: {body}"
            raise EngineStartError(msg) from None

    def _probe(self) -> None:
        """Generate a few tokens: the server's own warm-up, and the test of what it understands."""
        exchange = self._generate()
        for change in _LESSER_DIALECTS:
            if exchange.status not in _UNUSABLE_EXTENSIONS:
                break
            self._dialect = replace(self._dialect, **change)
            exchange = self._generate()
        answer = read_answer(exchange, self._surroundings.api_key)
        if answer.failure is not None:
            path = PATHS[self._dialect.prompts]
            raise EngineStartError(self._complaint(f"POST {path}", exchange, answer.failure.detail))
        if answer.token_ids is not None and not counts_throughout(exchange):
            # vllm-router 0.1.17 does not pass continuous_usage_stats on, and a token may have no text to be known by.
            self._dialect = replace(self._dialect, ids_count=True)
        self.returns_token_ids = answer.token_ids is not None and self._dialect.prompts == "ids"
        self.forces_lengths = self._dialect.extended and shows_extensions(exchange)

    def _generate(self) -> Exchange:
        generation = Generation(PROBE_IDS, PROBE_OUTPUT_TOKENS, return_token_ids=True)
        return self._answered(request_body(self.model, generation, self._dialect))

    def _answered(self, body: bytes) -> Exchange:
        timeout_s = min(PROBE_TIMEOUT_S, self._surroundings.limits.silence_s)
        return self._request("POST", PATHS[self._dialect.prompts], body, timeout_s)

    def _find_lengths(self, local: Any) -> None:
        """Find texts of exact lengths; `local`: the tokenizer that was named, or None."""
        tokenizers: dict[str, Count] = {"server tokenizer": self._tokenized}
        if local is not None:
            tokenizers["local tokenizer"] = lambda text: len(local.encode(text).ids)
        self.prompt_lengths, wording = settled(tokenizers, self._used, self.max_model_len or UNKNOWN_LEN)
        self._dialect = replace(self._dialect, wording=wording)

    def _tokenized(self, text: str) -> int | None:
        """How many tokens the server's own tokenizer makes of a prompt with this text, as vLLM offers it."""
        form = self._dialect.prompts
        template = {"add_generation_prompt": True} if form == "chat" else {}
        body = orjson.dumps({"model": self.model, **text_prompt(form, text), **template})
        exchange = self._request("POST", "/tokenize", body, CONTROL_TIMEOUT_S)
        if exchange.status != 200:
            return None
        try:
            content = orjson.loads(exchange.body)
        except ValueError:
            return None
        count = content.get("count") if isinstance(content, dict) else None
        return count if type(count) is int and 0 <= count <= _LONGEST_CONTEXT else None

    def _used(self, text: str) -> int | None:
        """How many tokens the server says that a prompt with this text had, once it has answered it."""
        answer = read_answer(self._answered(text_request(self.model, text, 1, self._dialect)))
        return None if answer.failure is not None else answer.prompt_tokens

    def _complaint(self, request: str, exchange: Exchange, detail: str | None = None) -> str:
        """One sentence on a server that does not answer as it should, and what to do."""
        where = f"{self.address} cannot be used, {request}"
        if exchange.failure is not None:
            return f"{where}: {exchange.failure.detail}. Is the server running, and is the URL right?"
        what = f"{where} answered {exchange.status}: {detail or error_text(exchange.body, self._surroundings.api_key)}"
        advice = _ADVICE.get(exchange.status or 0, "The server's own log says more.")
        return f"{what}. {advice.format(key='is' if self._surroundings.api_key else 'is not')}"


_ADVICE = {
    401: "It wants an API key: LLMPERF_API_KEY {key} set in the environment.",
    403: "It refuses this API key: LLMPERF_API_KEY {key} set in the environment.",
    404: "Expected the base URL of an OpenAI-compatible server, such as http://HOST:8000.",
    429: "It is limiting requests; a performance test needs a server without a rate limit.",
}


def _name(value: object) -> str:
    """What a server calls a model. Raises `ValueError` for what is no name, `TypeError` for no text."""
    if not isinstance(value, str):
        raise TypeError
    if not 0 < len(value) <= _LONGEST_NAME:
        raise ValueError
    return value


def _list(models: dict[str, dict[str, Any]]) -> str:
    """Their names; of a gateway's hundreds the first ones."""
    names = ", ".join(repr(name) for name in islice(models, _MOST_LISTED)) or "no model"
    return names if len(models) <= _MOST_LISTED else f"{names} and {len(models) - _MOST_LISTED} more"


class Server(Protocol):
    """What a `StartedEngine` asks: a connection to something that runs."""

    address: Address
    model: str
    max_model_len: int | None
    returns_token_ids: bool
    forces_lengths: bool
    prompt_lengths: str
    """How prompts come to have exactly the tokens that are asked for."""
    cache: CacheConfig | None

    @property
    def prompt_overhead(self) -> int:
        """Tokens that every prompt has whatever its ids; 0 where that is not known, too."""
        ...

    def is_healthy(self) -> bool:
        """Whether it may be connected to at this moment."""
        ...

    def connect(self, model: str | None) -> None:
        """Find out what it is. Raises `EngineStartError` and `ConfigurationError`."""
        ...

    def is_answering(self) -> bool:
        """Whether it still generates, within half a minute."""
        ...

    def connector(self) -> Connector:
        """What opens channels to it."""
        ...

    def cache_counters(self, *, settled: bool = False) -> CacheCounters:
        """What it has counted; `settled`: it has had time to count what has ended."""
        ...

    def request_timings(self) -> tuple[EngineTimings, ...]:
        """How it has timed requests since this was last asked, where it tells that apart from the answers."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is known of it, unknown things left out."""
        ...


def described(server: Server, **own: Any) -> dict[str, Any]:
    """What is known of what runs, with what only its kind knows; unknown things left out."""
    cache = server.cache
    known = {
        "model": server.model,
        **own,
        "max_model_len": server.max_model_len,
        "returns_token_ids": server.returns_token_ids,
        "prompt_lengths": server.prompt_lengths,
        "prompt_overhead": server.prompt_overhead or None,
        "kv_capacity_tokens": cache.capacity_tokens if cache else None,
        "kv_block_tokens": cache.block_tokens if cache else None,
        "prefix_caching": cache.prefix_caching if cache else None,
    }
    return {name: value for name, value in known.items() if value is not None}
