"""An engine without a process: answers are made up in virtual time, exactly as scripted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_llmperf.clock import NS_PER_S, VirtualClock
from pytest_llmperf.engines.base import Answer, EngineSpec, Generation
from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.records import CacheCounters, ClientStats, Failure

BLOCK = 16


@dataclass
class Script:
    """How the engine behaves. Times in seconds."""

    ttft_s: Callable[[int, int], float] = lambda computed, number: 0.010 + computed * 1e-5
    """From the tokens that had to be computed and the request's number."""
    itl_s: float = 0.002
    fail: Callable[[int], Failure | None] = lambda number: None
    token_ids: bool = True
    prefix_caching: bool = True


@dataclass
class VirtualEngine:
    """Implements the `Engine` protocol; one request is served at a time."""

    script: Script = field(default_factory=Script)
    clock: VirtualClock = field(default_factory=VirtualClock)
    spec: EngineSpec = field(default_factory=lambda: EngineSpec(kind="vllm", model="virtual"))
    is_ours: bool = True
    model: str = "virtual"
    url: str = "http://virtual"
    max_model_len: int | None = 20_000
    kv_capacity_tokens: int | None = 100_000
    resettable: bool = True
    dies_after: int | None = None
    """The request, by number, after which `check` raises."""

    def __post_init__(self) -> None:
        self.started = 0
        self.stopped = 0
        self.sent: list[Generation] = []
        self.cached: set[tuple[int, ...]] = set()
        self.counters = {"queried": 0, "hit": 0}

    @property
    def returns_token_ids(self) -> bool:
        return self.script.token_ids

    def users_that_fit(self, tokens_per_user: int) -> int:
        return (self.kv_capacity_tokens or 0) // tokens_per_user

    def start(self) -> None:
        self.started += 1

    def stop(self) -> None:
        self.stopped += 1

    def check(self) -> None:
        from pytest_llmperf.errors import EngineDiedError

        if self.dies_after is not None and len(self.sent) > self.dies_after:
            raise EngineDiedError("the server has ended: killed by SIGKILL\nlast lines of log:\n  | boom")

    def connector(self) -> VirtualConnector:
        return VirtualConnector(self)

    def cache_counters(self) -> CacheCounters:
        queried, hit = self.counters["queried"], self.counters["hit"]
        return CacheCounters(
            queried_tokens=queried, hit_tokens=hit, tokens_by_tier={"recomputed": queried - hit, "gpu": hit}
        )

    def reset_cache(self) -> bool:
        if self.resettable:
            self.cached.clear()
        return self.resettable

    def describe(self) -> dict[str, Any]:
        return {"model": self.model, "version": "virtual"}

    def serve(self, ids: Sequence[int]) -> int:
        """Cached tokens of a prompt, in whole blocks; the prompt is cached afterwards."""
        hit = 0
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            block = tuple(ids[:end])
            if block in self.cached and hit == end - BLOCK and self.script.prefix_caching and end < len(ids):
                hit = end
            self.cached.add(block)
        self.counters["queried"] += len(ids)
        self.counters["hit"] += hit
        return hit


@dataclass
class VirtualConnector:
    engine: VirtualEngine

    def open(self, clock: object) -> VirtualChannel:
        assert clock is self.engine.clock
        return VirtualChannel(self.engine)


@dataclass
class VirtualReply:
    """An answer that is known already."""

    answer: Answer
    on_read: Callable[[], None] = lambda: None

    @property
    def tag(self) -> int:
        return self.answer.tag

    @property
    def end_ns(self) -> int:
        return self.answer.end_ns

    def read(self) -> Answer:
        self.on_read()
        return self.answer


class VirtualChannel:
    """Serves requests one after another in the order in which they were sent."""

    def __init__(self, engine: VirtualEngine) -> None:
        self.stats = ClientStats()
        self._engine = engine
        self._answers: list[Answer] = []
        self.closed = False
        self.opened = 0

    def open(self, connections: int) -> None:
        self.opened = connections

    def encode(self, generation: Generation) -> Generation:
        return generation

    def send(self, tag: int, generation: Generation) -> None:
        engine, script = self._engine, self._engine.script
        number = len(engine.sent)
        engine.sent.append(generation)
        sent_ns = engine.clock.now_ns()
        failure = script.fail(number)
        if failure is not None:
            self._answers.append(Answer(tag=tag, sent_ns=sent_ns, end_ns=sent_ns, failure=failure))
            return
        cached = engine.serve(generation.token_ids)
        engine.clock.sleep(script.ttft_s(len(generation.token_ids) - cached, number))
        arrivals = []
        for index in range(generation.output_tokens):
            if index:
                engine.clock.sleep(script.itl_s)
            arrivals.append(Arrival(engine.clock.now_ns(), 1))
        self._answers.append(
            Answer(
                tag=tag,
                sent_ns=sent_ns,
                end_ns=engine.clock.now_ns(),
                arrivals=tuple(arrivals),
                token_ids=tuple(range(generation.output_tokens)) if script.token_ids else None,
                prompt_tokens=len(generation.token_ids),
                output_tokens=generation.output_tokens,
                cached_tokens=cached,
            )
        )

    def poll(self, timeout_s: float) -> bool:
        if not self._answers:
            self._engine.clock.sleep(timeout_s)
        return bool(self._answers)

    def ended(self) -> Sequence[VirtualReply]:
        answers, self._answers = self._answers, []
        return [VirtualReply(answer) for answer in answers]

    def close(self) -> None:
        self.closed = True


__all__ = ["BLOCK", "NS_PER_S", "Script", "VirtualChannel", "VirtualConnector", "VirtualEngine", "VirtualReply"]
