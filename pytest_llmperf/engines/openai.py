"""The engine kind `openai`: somebody else's server at a URL, which we neither start nor stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.spec import COMMON_WORDS, EngineSpec
from pytest_llmperf.engines.started import ServedEngine
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.records import CacheCounters

WORDS = COMMON_WORDS | {"url", "prompts", "tokenizer"}
_SAID = (
    "dtype", "kv_cache_dtype", "prefix_caching", "kv_offload_gib", "max_model_len", "tensor_parallel", "args", "env",
)  # fmt: skip
"""Words about how a server was started."""
REQUIRED = {"url": "give url=... in the mark or --llmperf-url URL"}


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` for words that do not go together."""
    if spec.tokenizer is not None and spec.prompts is None:
        raise ConfigurationError(
            f"openai: tokenizer={spec.tokenizer!r} is for prompts sent as texts; give prompts='text' or 'chat', too, "
            "or leave it out: token ids need none"
        )


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """An engine at `spec.url`, not yet connected."""
    assert spec.url is not None, "REQUIRED has been checked"
    return ForeignEngine(spec, ForeignHost(Address.parse(spec.url), surroundings), spec.model, surroundings)


class ForeignEngine(ServedEngine):
    """A server of which the test says what it is, and only some of that can be seen."""

    def describe(self) -> dict[str, Any]:
        told = super().describe()
        unseen = [word for word in _SAID if getattr(self.spec, word) not in (None, ()) and word not in told]
        if not unseen:
            return told
        doubt = (
            f"{', '.join(unseen)}: as the test says; the server at {self.url} was not started here and does not tell "
            "whether it is so"
        )
        return {**told, "unverified": unseen, "doubts": [*told.get("doubts", ()), doubt]}


class ForeignHost:
    """A server that somebody else runs: all we know is where."""

    is_ours = False

    def __init__(self, address: Address, surroundings: Surroundings) -> None:
        self._address = address
        self._progress = surroundings.progress

    def launch(self) -> Address:
        self._progress(f"connecting to {self._address}")
        return self._address

    def wait_until_ready(self, is_healthy: Callable[[], bool]) -> None:
        """Not every server has `/health`; connecting shows whether it can be used."""

    def is_running(self) -> bool:
        return True  # if not, its answers will say so

    def check(self) -> None:
        """Nothing of ours runs: a dead server shows in the answers."""

    def end_hung(self) -> str:
        """It is not ours to end."""
        return ""

    def report(self) -> str:
        """Its log is somebody else's, too."""
        return ""

    def stop(self) -> None:
        """Nothing of ours runs."""

    def reset_cache(self, server: OpenAIServer) -> bool:
        del server
        return False  # emptying the cache of a server that is not ours may hurt others on it

    def completed(self, counters: CacheCounters) -> CacheCounters:
        return counters

    def describe(self) -> dict[str, Any]:
        return {"url": str(self._address)}
