"""Engines that are started here: a host that runs them, and what holds for all that answer as servers do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from pytest_llmperf.client import Address
from pytest_llmperf.clock import seconds_between
from pytest_llmperf.engines.base import Connector, Surroundings
from pytest_llmperf.engines.server import HANGING_S, OpenAIServer, Server
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import (
    ConfigurationError,
    EngineAnswerError,
    EngineDiedError,
    EngineError,
    EngineStartError,
    LLMPerfError,
)
from pytest_llmperf.records import CacheCounters, EngineTimings

MOST_STARTS = 2
"""So many in a row may fail before an engine is given up: what was chance seldom comes twice, and a start is dear."""
_TOLD = ("prefix_caching", "max_model_len")
"""Words of which engines say what became of them."""
_QUOTED_LINES = 5
"""Of a log, where the same failure is told again."""


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
