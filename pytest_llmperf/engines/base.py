"""The contract between an engine and the rest of the house.

An engine is described by an `EngineSpec`, started on first need, and driven through a `Channel`,
which sends generation requests and hands back answers as timed arrivals of tokens. What an engine
cannot tell is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.client import Limits
from pytest_llmperf.clock import Clock
from pytest_llmperf.engines.process import Progress
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.records import CacheCounters, ClientStats, EngineTimings, Failure, Remark

TOKEN_IDS = range(1000, 2048)
"""Token ids that are ordinary tokens in every vocabulary we know of.

Special ids lie below 1000 (Mistral's Tekken keeps its first 1000 for control tokens) or at the
vocabulary's end, and the smallest model, `tiny-llama`, has 2048.
"""


@dataclass(frozen=True, slots=True)
class Generation:
    """One request: exact input ids and the number of tokens to generate."""

    token_ids: Sequence[int] | npt.NDArray[np.int32]
    output_tokens: int
    return_token_ids: bool
    """Whether the generated ids are needed, because a later turn continues from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one request. Counts are the server's; None where it does not say.

    For the times see `RequestRecord`.
    """

    tag: int
    sent_ns: int
    end_ns: int
    flushed_ns: int | None = None
    connect_ns: int | None = None
    arrivals: Sequence[Arrival] = ()
    token_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    timings: EngineTimings | None = None
    replica: int | None = None
    failure: Failure | None = None
    remarks: tuple[Remark, ...] = ()


class Reply(Protocol):
    """A request that has ended. What came back is read when there is time for it."""

    @property
    def tag(self) -> int:
        """The number that it was sent with."""
        ...

    @property
    def end_ns(self) -> int:
        """When its last byte had arrived."""
        ...

    @property
    def pieces(self) -> int:
        """How much there is to read: a few microseconds each."""
        ...

    def read(self) -> Answer:
        """Make sense of what came back."""
        ...


class Channel(Protocol):
    """A way into a running engine, for one driver at a time."""

    stats: ClientStats
    """What it saw of its own delays."""

    def open(self, connections: int) -> None:
        """Prepare for so many requests at a time."""
        ...

    def encode(self, generation: Generation) -> Any:
        """A request in the form that `send` takes, so that this can be done ahead."""
        ...

    def send(self, tag: int, request: Any) -> None:
        """Send one encoded request. What goes wrong is in its answer."""
        ...

    def poll(self, timeout_s: float) -> int:
        """Receive what is there, waiting for something up to `timeout_s`; from how many sockets there was some."""
        ...

    def ended(self) -> Sequence[Reply]:
        """The requests that have ended since this was last asked."""
        ...

    def close(self) -> None:
        """Let go of every connection."""
        ...


class Connector(Protocol):
    """Opens channels into a running engine, also in another process if it can be pickled."""

    def open(self, clock: Clock) -> Channel:
        """A new channel, whose times are those of `clock`."""
        ...


class Engine(Protocol):
    """An inference server, ours or somebody else's.

    Nothing is started or connected before it is needed: each attribute but `spec`, `clock`,
    `is_ours` and `is_simulated` starts the engine, and may raise `EngineError`.
    """

    spec: EngineSpec

    @property
    def clock(self) -> Clock:
        """Whose time its answers are told in."""
        ...

    @property
    def is_simulated(self) -> bool:
        """Whether its figures are computed and not measured; then it is driven in this process, by its clock."""
        ...

    @property
    def is_ours(self) -> bool:
        """Whether we started it: then nobody else's requests, of today or before, fill its cache."""
        ...

    @property
    def url(self) -> str:
        """The server's base URL, without a path."""
        ...

    @property
    def model(self) -> str:
        """The model's name, as requests give it."""
        ...

    @property
    def max_model_len(self) -> int | None:
        """The longest sequence, input and output together, in tokens."""
        ...

    @property
    def kv_capacity_tokens(self) -> int | None:
        """Tokens of KV cache on the device, over all sequences."""
        ...

    @property
    def returns_token_ids(self) -> bool:
        """Whether answers carry token ids, without which no session can be continued exactly."""
        ...

    @property
    def forces_lengths(self) -> bool:
        """Whether answers go on to the length asked for, past where the model would end them."""
        ...

    @property
    def prompt_overhead(self) -> int:
        """Tokens that every prompt has whatever its ids, so that none can be shorter; 0 where ids are sent."""
        ...

    @property
    def ready_ns(self) -> int | None:
        """When it was last ready for requests, on `clock`; None before that, and where there is nothing to wait for."""
        ...

    def users_that_fit(self, tokens_per_user: int) -> int:
        """How many sequences of that length the device's KV cache holds at once.

        Raises `EngineAnswerError` where the engine does not tell its capacity.
        """
        ...

    def start(self) -> None:
        """Start or connect, and return when the engine has answered a request. Idempotent."""
        ...

    def stop(self) -> None:
        """Stop or disconnect; nothing of ours is left running. Idempotent."""
        ...

    def check(self) -> None:
        """Raise `EngineDiedError` if a process of ours has ended."""
        ...

    def check_answers(self) -> None:
        """Raise `EngineDiedError` if it generates no more, after a request had gone unanswered for too long.

        A process of ours is then ended, and the error has its stacks; the next `start` starts it anew.
        """
        ...

    def connector(self) -> Connector:
        """What opens a channel for each run."""
        ...

    def cache_counters(self) -> CacheCounters:
        """What the engine has counted so far."""
        ...

    def request_timings(self) -> tuple[EngineTimings, ...]:
        """How the engine has timed requests since this was last asked, where it tells that apart from the answers."""
        ...

    def reset_cache(self) -> bool:
        """Empty the prefix cache, outer tiers included. False where the engine offers no way."""
        ...

    def describe(self) -> dict[str, Any]:
        """Version, arguments and whatever else the result should carry about the engine."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an engine needs to know of the session that it runs in."""

    clock: Clock
    log_dir: Path
    cache_dir: Path
    """Where locally generated models are kept."""
    start_timeout_s: float
    limits: Limits
    """How long a server may take over a request."""
    api_key: str | None = field(repr=False)
    progress: Progress
    before_start: Callable[[EngineSpec], None] | None = None
    """Told of an engine of ours just before its processes are started; it may take its time."""
