"""Servers with the OpenAI completions route: the connection to one, and an engine made of it.

What a server can tell is found out when connecting: its models, its limits, which extensions of the protocol it
takes and whose metrics it has. What it cannot tell stays unknown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import orjson

from pytest_llmperf.client import Address, Exchange, HttpClient, Limits
from pytest_llmperf.clock import seconds_between
from pytest_llmperf.engines.base import TOKEN_IDS, Connector, EngineSpec, Generation, Surroundings
from pytest_llmperf.engines.completions import (
    PATHS,
    CompletionsConnector,
    Dialect,
    counts_throughout,
    error_text,
    read_answer,
    request_body,
    request_headers,
    shows_extensions,
    text_prompt,
    text_request,
)
from pytest_llmperf.engines.server_metrics import CACHE_ROUTES, SETTLE_S, TIMING_ROUTES, CacheConfig, Metrics
from pytest_llmperf.engines.server_metrics import PATHS as METRICS_PATHS
from pytest_llmperf.engines.tokenizer import load_tokenizer
from pytest_llmperf.engines.wording import Count, settled
from pytest_llmperf.errors import (
    ConfigurationError,
    EngineAnswerError,
    EngineDiedError,
    EngineError,
    EngineStartError,
    LLMPerfError,
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
MOST_STARTS = 2
"""So many in a row may fail before an engine is given up: what was chance seldom comes twice, and a start is dear."""
_TOLD = ("prefix_caching", "max_model_len")
"""Words of which engines say what became of them."""
_QUOTED_LINES = 5
"""Of a log, where the same failure is told again."""
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


def contradictions(spec: EngineSpec, told: Mapping[str, Any]) -> Iterator[str]:
    """What an engine says of itself that is not what was asked for, a sentence each."""
    for word in _TOLD:
        asked, found = getattr(spec, word), told.get(word)
        if asked is not None and found is not None and asked != found:
            yield f"{word}={asked!r} was asked for, and the engine says that it is {found!r}"


def abridged(failure: str) -> str:
    """What was said of a failure, of the log that it quotes the last lines only."""
    lines = failure.splitlines()
    quoted = [line for line in lines if line.startswith("  | ")]
    return "\n".join([*(line for line in lines if line not in quoted), *quoted[-_QUOTED_LINES:]])


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


class Host(Protocol):
    """Who runs what a `StartedEngine` asks."""

    is_ours: bool

    def launch(self) -> Address:
        """Start the server if it is to be started by us; returns where it will listen."""
        ...

    def wait_until_ready(self, is_healthy: Callable[[], bool]) -> None:
        """Return when it may be connected to. Raises `EngineStartError`."""
        ...

    def is_running(self) -> bool:
        """False if a process of ours has ended, or was never started."""
        ...

    def check(self) -> None:
        """Raise `EngineDiedError` if a process of ours has ended."""
        ...

    def end_hung(self) -> str:
        """End what does not answer any more; returns what it had to say, its stacks if it has any."""
        ...

    def report(self) -> str:
        """The command of a process of ours and its log's last lines; empty where there is none."""
        ...

    def stop(self) -> None:
        """End what we have started. Idempotent."""
        ...

    def reset_cache(self, server: Any) -> bool:
        """Empty the prefix cache, outer tiers included; False where there is no way."""
        ...

    def completed(self, counters: CacheCounters) -> CacheCounters:
        """What the server has counted, with what only the host knows."""
        ...

    def describe(self) -> dict[str, Any]:
        """What only the host knows."""
        ...


ServerT = TypeVar("ServerT", bound=Server)


class StartedEngine(ABC, Generic[ServerT]):
    """An engine in a process that somebody runs, however it is asked."""

    is_simulated = False

    def __init__(self, spec: EngineSpec, host: Host, model: str | None, surroundings: Surroundings) -> None:
        """`model`: the name to ask for; None: the only one that the server has."""
        self.spec = spec
        self.clock = surroundings.clock
        self.host = host
        self._model = model
        self._surroundings = surroundings
        self._launched: ServerT | None = None
        self._connected: ServerT | None = None
        self._failed_starts: list[str] = []
        """What was said of those since it last ran."""
        self._is_given_up = False
        self.recovered_from: str | None = None
        """What was said of a start that failed before the one that it runs since; None: there was none."""
        self._launched_ns = 0
        self.ready_ns: int | None = None
        """When it was last ready for requests, on `clock`; None before its first start."""

    def start(self) -> None:
        if self._connected is not None and self.host.is_running():
            return
        if self._is_given_up:
            times = "its first start" if len(self._failed_starts) == 1 else f"{len(self._failed_starts)} starts"
            told = abridged(self._failed_starts[-1])
            raise EngineStartError(f"not tried again after {times} failed: {told}", is_final=True)
        try:
            server = self._launched or self.launch()
            self.host.wait_until_ready(partial(self._is_ready, server))
            self._try_out(server)
        except BaseException as error:
            self.stop()
            if isinstance(error, LLMPerfError) and self.host.is_ours:
                self._note_failure(error)
            raise
        self._launched, self._connected = None, server
        self.ready_ns = self.clock.now_ns()
        self.recovered_from = self._failed_starts[-1].splitlines()[0] if self._failed_starts else None
        self._failed_starts.clear()

    def _note_failure(self, error: LLMPerfError) -> None:
        """A start that may have failed by chance is tried once more, for the next test that needs the engine."""
        self._failed_starts.append(str(error))
        by_chance = isinstance(error, EngineError) and not (isinstance(error, EngineStartError) and error.is_final)
        self._is_given_up = not by_chance or len(self._failed_starts) >= MOST_STARTS

    def _try_out(self, server: ServerT) -> None:
        """Connect. Where a process of ours does not do what it should, what it says of that is told, too."""
        try:
            self._connect(server)
        except EngineStartError as error:
            if not self.host.is_ours:
                raise
            is_hung = self.host.is_running() and not server.is_answering()
            told = self.host.end_hung() if is_hung else self.host.report()
            raise EngineStartError("\n".join(filter(None, [str(error), told])), is_final=error.is_final) from error

    def launch(self) -> ServerT:
        """Start the server without waiting until it is ready, which `start` then does."""
        self.stop()
        if self.host.is_ours and self._surroundings.before_start is not None:
            self._surroundings.before_start(self.spec)
        self._launched_ns = self.clock.now_ns()
        self._launched = self._reach(self.host.launch())
        return self._launched

    def stop(self) -> None:
        self._launched = self._connected = None
        self.host.stop()

    def check(self) -> None:
        self.host.check()

    def check_answers(self) -> None:
        if self._connected is None or self._connected.is_answering():
            return
        told = self.host.end_hung()
        where = self._connected.address
        self.stop()  # whoever needs it next starts it anew
        msg = f"the server at {where} hangs: it runs, and did not generate one token within {HANGING_S:g} s"
        raise EngineDiedError(f"{msg}; it was ended\n{told}" if told else msg)

    @property
    def is_ours(self) -> bool:
        return self.host.is_ours

    @property
    def server(self) -> ServerT:
        """The connection, made if need be.

        A server that has died is not replaced here, in the middle of a measurement that ought to hear
        of it: only `start` does that.
        """
        if self._connected is None:
            self.start()
        assert self._connected is not None
        return self._connected

    @property
    def url(self) -> str:
        return str(self.server.address)

    @property
    def model(self) -> str:
        return self.server.model

    @property
    def max_model_len(self) -> int | None:
        told = self.server.max_model_len
        return self.spec.max_model_len if told is None and self.is_ours else told  # TensorRT-LLM does not tell

    @property
    def returns_token_ids(self) -> bool:
        return self.server.returns_token_ids

    @property
    def forces_lengths(self) -> bool:
        return self.server.forces_lengths

    @property
    def prompt_overhead(self) -> int:
        return self.server.prompt_overhead

    @property
    def kv_capacity_tokens(self) -> int | None:
        return self.server.cache.capacity_tokens if self.server.cache else None

    def users_that_fit(self, tokens_per_user: int) -> int:
        """Whole sequences in the device's KV cache, each in whole blocks."""
        if tokens_per_user < 1:
            raise ConfigurationError(f"users_that_fit: tokens_per_user must be at least 1, got {tokens_per_user}")
        cache = self.server.cache
        if cache is None or cache.capacities is None:
            msg = f"{self.url} does not say how many tokens its KV cache holds; give the number of users instead"
            raise EngineAnswerError(msg)
        block = cache.block_tokens or 1
        per_user = -(-tokens_per_user // block) * block
        return sum(capacity // per_user for capacity in cache.capacities)

    def connector(self) -> Connector:
        return self.server.connector()

    def cache_counters(self) -> CacheCounters:
        return self.counters()

    def counters(self, *, settled: bool = False) -> CacheCounters:
        """What has been counted so far; `settled`: the server's counters have had time to appear."""
        return self.host.completed(self.server.cache_counters(settled=settled))

    def request_timings(self) -> tuple[EngineTimings, ...]:
        """Only of an engine of ours: what is told is gone for others who might collect it."""
        return self.server.request_timings() if self.is_ours else ()

    def reset_cache(self) -> bool:
        return self.host.reset_cache(self.server)

    def describe(self) -> dict[str, Any]:
        told = self.server.describe() | self.host.describe() | self._started_in()
        doubts = (*told.get("doubts", ()), *contradictions(self.spec, told), *self._restarted())
        return told | ({"doubts": list(dict.fromkeys(doubts))} if doubts else {})

    def _restarted(self) -> Iterator[str]:
        if self.recovered_from is not None:
            yield f"the engine runs since a second start, the first one failed: {self.recovered_from}"

    def _started_in(self) -> dict[str, Any]:
        """How long the last start took, of what we start."""
        if self.ready_ns is None or not self.is_ours:
            return {}
        return {"start_s": round(seconds_between(self._launched_ns, self.ready_ns), 3)}

    @abstractmethod
    def _reach(self, address: Address) -> ServerT:
        """What is asked, once it listens there."""

    def _is_ready(self, server: ServerT) -> bool:
        return server.is_healthy()

    def _connect(self, server: ServerT) -> None:
        server.connect(self._model)


class ServedEngine(StartedEngine[OpenAIServer]):
    """An engine behind the completions protocol, whoever runs it."""

    def _reach(self, address: Address) -> OpenAIServer:
        tokenizer = None if self.spec.prompts is None else self.spec.tokenizer  # else it is the engine's own business
        return OpenAIServer(address, self._surroundings, self.spec.prompts, tokenizer)
