"""An engine without a process: answers are made up in virtual time, exactly as scripted."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.clock import NS_PER_S, VirtualClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines.base import Answer, Generation
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.records import CacheCounters, ClientStats, Failure
from pytest_llmperf.session import Setting

BLOCK = 16
NOISE = (0.0, 0.001, -0.001, 0.002, -0.002)
"""By how much the TTFT of one run is off, run by run."""


def in_virtual_time(config, clock):
    """Have a session under test live by this clock; for its `pytest_configure`. Returns what else can be patched by."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    patch.setattr("pytest_llmperf.lifecycle.RealClock", lambda: clock)
    return patch


def setting(folder, clock, **words):
    """What a measurement by this clock has around it, its records in `folder`; `words` are `Setting`'s own."""
    given = {"test": "test_it.py::test_it", "hardware_key": "NVIDIA-TEST", "progress": no_progress}
    return Setting(**{**given, "clock": clock, "record_dir": folder, "team": LocalTeam(clock), **words})


def no_progress(step, detail="", done=None):
    """For those who do not care what is going on."""


@dataclass
class Script:
    """How the engine behaves, and the client in front of it. Times in seconds."""

    ttft_s: Callable[[int, int], float] = lambda computed, number: 0.010 + computed * 1e-5
    """From the tokens that had to be computed and the request's number."""
    itl_s: float = 0.002
    fail: Callable[[int], Failure | None] = lambda number: None
    token_ids: bool = True
    prefix_caching: bool = True
    late_s: float = 0.0
    """Each token may have arrived by as much earlier, without the client having seen it."""
    send_s: float = 0.0
    """What handing over a request takes of the client's time."""
    read_s: float = 0.0
    """What making sense of an answer takes of the client's time."""


@dataclass
class VirtualEngine:
    """Implements the `Engine` protocol."""

    script: Script = field(default_factory=Script)
    clock: VirtualClock = field(default_factory=VirtualClock)
    spec: EngineSpec = field(default_factory=lambda: EngineSpec(kind="vllm", model="virtual"))
    is_ours: bool = True
    is_simulated: bool = False
    forces_lengths: bool = True
    prompt_overhead: int = 0
    model: str = "virtual"
    url: str = "http://virtual"
    max_model_len: int | None = 20_000
    ready_ns: int | None = None
    kv_capacity_tokens: int | None = 100_000
    resettable: bool = True
    concurrent: bool = False
    """Whether requests are served side by side; else one after another, each as soon as it is sent."""
    dies_after: int | None = None
    """The request, by number, after which `check` raises."""

    def __post_init__(self) -> None:
        self.started = 0
        self.stopped = 0
        self.sent: list[Generation] = []
        self.cached: set[tuple[int, ...]] = set()
        self.counters = {"queried": 0, "hit": 0}
        self.channels: list[VirtualChannel] = []

    @property
    def returns_token_ids(self) -> bool:
        return self.script.token_ids

    def users_that_fit(self, tokens_per_user: int) -> int:
        return (self.kv_capacity_tokens or 0) // tokens_per_user

    def start(self) -> None:
        self.started += 1

    def request_timings(self) -> tuple:
        return ()

    def stop(self) -> None:
        self.stopped += 1

    def check(self) -> None:
        from pytest_llmperf.errors import EngineDiedError

        if self.dies_after is not None and len(self.sent) > self.dies_after:
            raise EngineDiedError("the server has ended: killed by SIGKILL\nlast lines of log:\n  | boom")

    def check_answers(self) -> None:
        pass

    def connector(self) -> VirtualConnector:
        return VirtualConnector(self)

    def open_channel(self) -> VirtualChannel:
        """What the connector opens."""
        return ConcurrentChannel(self) if self.concurrent else VirtualChannel(self)

    def finished(self, answer: Answer) -> Answer:
        """The answer as it is told; for engines that tell less or something else."""
        return answer

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


def noisy_engine(clock, slow=1.0, slow_decode=1.0, requests=8):
    """An engine whose runs, of so many requests, differ by `NOISE`."""

    def ttft_s(computed, number):
        return (0.010 + computed * 1e-5) * slow * (1 + NOISE[number // requests % len(NOISE)])

    return VirtualEngine(Script(ttft_s=ttft_s, itl_s=0.002 * slow_decode), clock=clock)


@dataclass
class VirtualConnector:
    engine: VirtualEngine

    def open(self, clock: object) -> VirtualChannel:
        assert clock is self.engine.clock
        self.engine.channels.append(self.engine.open_channel())
        return self.engine.channels[-1]


@dataclass(order=True)
class VirtualReply:
    """An answer that is known already, and what happens when it is read."""

    end_ns: int
    tag: int
    answer: Answer = field(compare=False)
    on_read: Callable[[], None] = field(compare=False, default=lambda: None)

    @property
    def pieces(self) -> int:
        return len(self.answer.arrivals)

    def read(self) -> Answer:
        self.on_read()
        return self.answer


class VirtualChannel:
    """Serves requests one after another in the order in which they were sent."""

    def __init__(self, engine: VirtualEngine) -> None:
        self.stats = ClientStats()
        self.did: list[tuple[str, int]] = []
        """What was asked of it: `("encode", tokens)`, `("send", tag)`, `("read", tag)`."""
        self.closed = False
        self.opened = 0
        self._engine = engine
        self._replies: list[VirtualReply] = []

    def open(self, connections: int) -> None:
        self.opened = connections

    def encode(self, generation: Generation) -> Generation:
        self.did.append(("encode", len(generation.token_ids)))
        return generation

    def send(self, tag: int, generation: Generation) -> None:
        engine, script = self._engine, self._engine.script
        self.did.append(("send", tag))
        number = len(engine.sent)
        engine.sent.append(generation)
        sent_ns = engine.clock.now_ns()
        engine.clock.sleep(script.send_s)
        flushed_ns = engine.clock.now_ns()
        failure = script.fail(number)
        if failure is not None:
            self._end(Answer(tag=tag, sent_ns=sent_ns, flushed_ns=flushed_ns, end_ns=flushed_ns, failure=failure))
            return
        cached = engine.serve(generation.token_ids)
        first_ns = flushed_ns + round(script.ttft_s(len(generation.token_ids) - cached, number) * NS_PER_S)
        late_ns = round(script.late_s * NS_PER_S)
        arrivals = tuple(
            Arrival(first_ns + round(script.itl_s * index * NS_PER_S), 1, late_ns)
            for index in range(generation.output_tokens)
        )
        self._end(
            Answer(
                tag=tag,
                sent_ns=sent_ns,
                flushed_ns=flushed_ns,
                end_ns=arrivals[-1].at_ns,
                arrivals=arrivals,
                token_ids=tuple(range(generation.output_tokens)) if script.token_ids else None,
                prompt_tokens=len(generation.token_ids),
                output_tokens=generation.output_tokens,
                cached_tokens=cached,
            )
        )

    def poll(self, timeout_s: float) -> bool:
        if not self._replies:
            self._engine.clock.sleep(timeout_s)
        return bool(self._replies)

    def ended(self) -> Sequence[VirtualReply]:
        replies, self._replies = self._replies, []
        return replies

    def close(self) -> None:
        self.closed = True

    def _end(self, answer: Answer) -> None:
        """Let the answer take its time."""
        self._wait_until(answer.end_ns)
        self._replies.append(self._reply(answer))

    def _reply(self, answer: Answer) -> VirtualReply:
        def on_read() -> None:
            self.did.append(("read", answer.tag))
            self._engine.clock.sleep(self._engine.script.read_s)

        return VirtualReply(answer.end_ns, answer.tag, self._engine.finished(answer), on_read)

    def _wait_until(self, at_ns: int) -> None:
        self._engine.clock.sleep((at_ns - self._engine.clock.now_ns()) / NS_PER_S)


class ConcurrentChannel(VirtualChannel):
    """Serves all requests side by side; waiting for them moves the clock to the next end."""

    def __init__(self, engine: VirtualEngine) -> None:
        super().__init__(engine)
        self._coming: list[VirtualReply] = []

    def poll(self, timeout_s: float) -> bool:
        until_ns = self._engine.clock.now_ns() + max(0, round(timeout_s * NS_PER_S))
        self._wait_until(min(until_ns, self._coming[0].end_ns) if self._coming else until_ns)
        now_ns = self._engine.clock.now_ns()
        while self._coming and self._coming[0].end_ns <= now_ns:
            self._replies.append(heapq.heappop(self._coming))
        return bool(self._replies)

    def _end(self, answer: Answer) -> None:
        heapq.heappush(self._coming, self._reply(answer))


__all__ = [
    "BLOCK",
    "NS_PER_S",
    "ConcurrentChannel",
    "Script",
    "VirtualChannel",
    "VirtualConnector",
    "VirtualEngine",
    "VirtualReply",
    "in_virtual_time",
    "noisy_engine",
    "setting",
]
