"""Rows of what happened; every number of a result can be computed again from them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import reduce
from typing import Any

from pytest_llmperf.arrivals import Arrival, Arrivals
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.readings import TelemetrySummary


class Phase(str, Enum):
    """Why a request was sent; only `MEASURED` ones enter a result."""

    WARMUP = "warmup"
    PREPARE = "prepare"
    MEASURED = "measured"


ABANDONED = "abandoned"
"""The kind of failure of a turn that was never sent, because one before it failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer. `kind` is counted, `detail` is one example for the reader."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something odd about an answer that stands all the same: its kind is counted, one example kept."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimings:
    """How an engine itself timed one request, nanoseconds; None where it does not say.

    Readings of its own clock, which is never compared with the client's.
    """

    queue_ns: int | None = None
    """From its arrival in the scheduler's queue to when it was first scheduled."""
    prefill_ns: int | None = None
    """From then to the first token, as the engine's core made it."""
    ttft_ns: int | None = None
    """From its arrival in the engine's front end to the first token there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request of one run; times are readings of one monotonic clock, in nanoseconds."""

    run: int
    phase: Phase
    session: int
    turn: int
    released_ns: int
    """When the load meant it to be sent: its place in the schedule, or the end of the answer it waited for."""
    sent_ns: int | None
    """Just before the first byte was handed to the kernel; None if it never was."""
    flushed_ns: int | None = None
    """Just after the last byte was; None where there is no such moment."""
    connect_ns: int | None = None
    """How long making a connection for it took, before it was sent; None where one was open."""
    end_ns: int
    arrivals: Sequence[Arrival]
    new_tokens: int
    """Tokens that this turn added to its session, as asked."""
    input_tokens: int
    """Tokens that were sent."""
    output_tokens_asked: int
    prompt_tokens: int | None = None
    """Input tokens as the server counted them."""
    output_tokens: int | None = None
    """Generated tokens, by the server's token ids or usage."""
    cached_tokens: int | None = None
    """Input tokens that the server took from a cache, all tiers together."""
    timings: EngineTimings | None = None
    """What the engine says that it took; None where it says nothing."""
    replica: int | None = None
    """Which of several engines behind a router answered, the first is 0; None where that is not told."""
    failure: Failure | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def first_token_ns(self) -> int | None:
        return self._arrival_ns(0)

    @property
    def last_token_ns(self) -> int | None:
        return self._arrival_ns(-1)

    def _arrival_ns(self, index: int) -> int | None:
        arrivals = self.arrivals
        if not len(arrivals):
            return None
        return arrivals.at_ns[index] if isinstance(arrivals, Arrivals) else arrivals[index].at_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCounters:
    """What an engine has counted since it started; a field is None where it does not say.

    Subtracting two readings gives what happened between them.
    """

    queried_tokens: int | None = None
    """Prompt tokens looked up in the prefix cache."""
    hit_tokens: int | None = None
    """Prompt tokens served from any tier."""
    tokens_by_tier: dict[str, int] | None = None
    """Prompt tokens by where they came from: gpu, host, disk, external, recomputed."""
    offloaded_bytes: int | None = None
    """KV bytes moved from the device outwards."""
    restored_bytes: int | None = None
    """KV bytes moved back to the device."""
    preemptions: int | None = None
    replicas: tuple[CacheCounters, ...] = ()
    """Of each engine behind a router, whose sums these are; empty where there is but one."""

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that came from any cache tier.

        Of the tokens looked up; with prefix caching off none are, and what counts is that all
        prompt tokens were computed.
        """
        if self.hit_tokens is not None and self.queried_tokens:
            return self.hit_tokens / self.queried_tokens
        tiers = self.tokens_by_tier or {}
        total = sum(tiers.values())
        return 1 - tiers["recomputed"] / total if total and "recomputed" in tiers else None

    def plus(self, other: CacheCounters) -> CacheCounters:
        """Both added up; what one of them does not say is not known of the sum."""
        return _combined(self, other, operator.add)

    def since(self, before: CacheCounters) -> CacheCounters:
        """The counts between `before` and this reading."""
        return _combined(self, before, operator.sub)


def _combined(mine: CacheCounters, other: CacheCounters, combine: Callable[[int, int], int]) -> CacheCounters:
    """Count by count; replica by replica, where both have the same ones."""

    def both(one: int | None, another: int | None) -> int | None:
        return None if one is None or another is None else combine(one, another)

    tiers = None
    if mine.tokens_by_tier is not None and other.tokens_by_tier is not None:
        names = [*mine.tokens_by_tier, *(tier for tier in other.tokens_by_tier if tier not in mine.tokens_by_tier)]
        tiers = {t: combine(mine.tokens_by_tier.get(t, 0), other.tokens_by_tier.get(t, 0)) for t in names}
    pairs = list(zip(mine.replicas, other.replicas, strict=False))
    alike = len(mine.replicas) == len(other.replicas)
    return CacheCounters(
        queried_tokens=both(mine.queried_tokens, other.queried_tokens),
        hit_tokens=both(mine.hit_tokens, other.hit_tokens),
        tokens_by_tier=tiers,
        offloaded_bytes=both(mine.offloaded_bytes, other.offloaded_bytes),
        restored_bytes=both(mine.restored_bytes, other.restored_bytes),
        preemptions=both(mine.preemptions, other.preemptions),
        replicas=tuple(_combined(one, another, combine) for one, another in pairs) if alike else (),
    )


def added(replicas: Sequence[CacheCounters]) -> CacheCounters:
    """The counters of engines behind one router, added up and kept."""
    return replace(reduce(CacheCounters.plus, replicas), replicas=tuple(replicas))


@dataclass(slots=True, kw_only=True)
class ClientStats:
    """What the client saw of its own delays in one run; added to while it lasts. Durations in nanoseconds."""

    away: Histogram = field(default_factory=Histogram)
    """Per wake-up, for how long the event loop had been away from its sockets."""
    unread: Histogram = field(default_factory=Histogram)
    """Per wake-up, for how long the oldest of what was read had been there, by the kernel's stamps."""
    connects: Histogram = field(default_factory=Histogram)
    """Per connection, how long making it took."""
    unstamped: int = 0
    """Reads without a stamp of the kernel: the time at which they returned stands for it."""
    clock_steps: int = 0
    """How often the wall clock was set."""
    resent: int = 0
    """Requests sent again because the server had closed an idle connection in that moment."""
    retransmitted: int = 0
    """TCP segments that this machine sent again, those that ask for a connection included."""
    out_of_order: int = 0
    """TCP segments that came after later ones: what lay between them was lost on the way, or overtaken."""
    disturbed_connections: int = 0
    """Connections with any of either."""
    cpu_shares: list[float] = field(default_factory=list)
    """Per worker, CPU seconds per second of the run."""
    clock_offsets_ns: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Per other machine, how far its monotonic clock is ahead, and the error of that."""

    def merge(self, other: ClientStats) -> None:
        """Add what another client of the same run saw."""
        self.away.merge(other.away)
        self.unread.merge(other.unread)
        self.connects.merge(other.connects)
        self.unstamped += other.unstamped
        self.clock_steps += other.clock_steps
        self.resent += other.resent
        self.retransmitted += other.retransmitted
        self.out_of_order += other.out_of_order
        self.disturbed_connections += other.disturbed_connections
        self.cpu_shares += other.cpu_shares
        self.clock_offsets_ns |= other.clock_offsets_ns


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run that counts: the load's ramp before it and its tail after it are cut off.

    `end_ns` is None where the run has no tail.
    """

    start_ns: int
    end_ns: int | None = None

    def has(self, request: RequestRecord) -> bool:
        """Whether the load meant to send the request within it."""
        return self.start_ns <= request.released_ns and (self.end_ns is None or request.released_ns <= self.end_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One pass of the whole workload: the unit of evidence.

    `window`: None where the whole run counts. `shed`: turns that the load meant to send and dropped.
    `telemetry`: None where none was taken.
    """

    index: int
    phase: Phase
    start_ns: int
    end_ns: int
    requests: tuple[RequestRecord, ...]
    window: Window | None = None
    shed: int = 0
    cache: CacheCounters = field(default_factory=CacheCounters)
    client: ClientStats = field(default_factory=ClientStats)
    telemetry: TelemetrySummary | None = None
    timings: tuple[EngineTimings, ...] = ()
    """How the engine timed requests of which it does not say which they are."""
    session: str | None = None
    """The earlier session that it was measured in; None: this one."""
    derived: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What has been computed from these rows, so that it is computed once."""

    @property
    def counted(self) -> tuple[RequestRecord, ...]:
        """The requests within the window."""
        window = self.window
        return self.requests if window is None else tuple(filter(window.has, self.requests))

    def due_ns(self, request: RequestRecord) -> int:
        """When a perfect client would have sent one of these: as meant, or once the answer before it had come."""
        if not request.turn:
            return request.released_ns
        if "ends" not in self.derived:
            self.derived["ends"] = {(r.session, r.turn): r.end_ns for r in self.requests}
        before_ns: int = self.derived["ends"].get((request.session, request.turn - 1), request.released_ns)
        return max(request.released_ns, before_ns)
