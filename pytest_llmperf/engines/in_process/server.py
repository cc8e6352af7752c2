"""An engine in a worker process, behind what every engine that is started offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.engines.base import Answer, Generation, Surroundings
from pytest_llmperf.engines.in_process.channel import InProcessChannel, InProcessConnector, InProcessReply, asked
from pytest_llmperf.engines.server import (
    CONTROL_TIMEOUT_S,
    HANGING_S,
    PROBE_IDS,
    PROBE_OUTPUT_TOKENS,
    PROBE_TIMEOUT_S,
    UNKNOWN_LEN,
    described,
)
from pytest_llmperf.engines.server_metrics import SETTLE_S, CacheConfig, Metrics, tensorrt_llm_cache
from pytest_llmperf.engines.started import StartedEngine
from pytest_llmperf.engines.wording import settled
from pytest_llmperf.errors import EngineAnswerError, EngineStartError
from pytest_llmperf.records import CacheCounters, EngineTimings


class InProcessServer:
    """The worker process that holds the engine, asked over loopback; see `worker.py`."""

    forces_lengths = True

    def __init__(self, address: Address, surroundings: Surroundings, prompts: str | None) -> None:
        self.address = address
        self.model = ""
        self.max_model_len: int | None = None
        self.returns_token_ids = prompts is None
        self.prompt_lengths = "ids"
        self.cache: CacheConfig | None = None
        self._surroundings = surroundings
        self._connector = InProcessConnector(
            address=address, limits=surroundings.limits, text=prompts == "text", wording=None
        )

    @property
    def prompt_overhead(self) -> int:
        return 0 if self._connector.wording is None else self._connector.wording.overhead

    def is_healthy(self) -> bool:
        """Whether the engine is loaded: until then the worker refuses connections."""
        try:
            return isinstance(self._ask("about"), dict)
        except EngineAnswerError:
            return False

    def is_answering(self) -> bool:
        """Whether it generates, if only an error."""
        generation = Generation(PROBE_IDS, 1, return_token_ids=False)
        try:
            answer = self._answer(lambda channel: channel.encode(generation), HANGING_S)
        except OSError:
            return False
        return answer.failure is None or answer.failure.kind != "timeout"

    def connect(self, model: str | None) -> None:
        """Have it generate, and find out what it tells."""
        self.model = model or ""
        generation = Generation(PROBE_IDS, PROBE_OUTPUT_TOKENS, return_token_ids=True)
        answer = self._answer(lambda channel: channel.encode(generation))
        if answer.failure is not None:
            raise EngineStartError(f"the engine was loaded and does not generate: {answer.failure.detail}")
        about = self._ask("about")
        self.max_model_len = about.get("max_model_len")
        metrics = self._metrics()
        told = tensorrt_llm_cache(about.get("iterations"))
        self.cache = told if metrics is None else metrics.cache_config()
        if self._connector.text:
            room = self.max_model_len or UNKNOWN_LEN
            self.prompt_lengths, wording = settled({"engine tokenizer": self._count}, self._used, room)
            self._connector = replace(self._connector, wording=wording)

    def connector(self) -> InProcessConnector:
        return self._connector

    def cache_counters(self, *, settled: bool = False) -> CacheCounters:
        """What the engine has counted, once that has had time to appear."""
        metrics = self._metrics()
        if metrics is None:
            return CacheCounters()
        if not settled:
            self._surroundings.clock.sleep(SETTLE_S)
        metrics = self._metrics()
        return CacheCounters() if metrics is None else metrics.counters()

    def request_timings(self) -> tuple[EngineTimings, ...]:
        """Each answer has its own."""
        return ()

    def reset(self) -> bool:
        """Ask once for an empty cache, outer tiers included."""
        return self._ask("reset") is True

    def describe(self) -> dict[str, Any]:
        return described(self, in_process=True)

    def _ask(self, what: str, **words: Any) -> Any:
        return asked(self.address, what, CONTROL_TIMEOUT_S, **words)

    def _metrics(self) -> Metrics | None:
        """A reading; None where the engine has none in this form."""
        text = self._ask("metrics")
        return Metrics(text) if isinstance(text, str) else None

    def _count(self, text: str) -> int | None:
        count = self._ask("count", text=text)
        return count if isinstance(count, int) else None

    def _used(self, text: str) -> int | None:
        """How many tokens a prompt with this text had, once it has been served."""
        return self._answer(lambda channel: channel.encode_text(text, 1)).prompt_tokens

    def _answer(
        self, encode: Callable[[InProcessChannel], tuple[dict[str, Any], bytes]], longest_s: float = PROBE_TIMEOUT_S
    ) -> Answer:
        """What comes of one request; every request ends within the limits of its connector."""
        limits = self._surroundings.limits
        limits = replace(limits, silence_s=min(longest_s, limits.silence_s))
        channel = replace(self._connector, limits=limits).open(self._surroundings.clock)
        try:
            channel.send(0, encode(channel))
            replies: Sequence[InProcessReply] = ()
            while not replies:
                channel.poll(1.0)
                replies = channel.ended()
            return replies[0].read()
        finally:
            channel.close()


class InProcessEngine(StartedEngine[InProcessServer]):
    """An engine that is used through its Python interface, in a process of its own."""

    @property
    def url(self) -> str:
        """It has no URL; this says what it is in messages."""
        return f"in-process:{self.spec.kind}"

    def describe(self) -> dict[str, Any]:
        told = super().describe()
        _, _, version = str(told.get("package", "")).partition(" ")
        return {"version": version, **told} if version else told

    def _reach(self, address: Address) -> InProcessServer:
        return InProcessServer(address, self._surroundings, self.spec.prompts)
