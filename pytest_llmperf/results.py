"""What a test gets to see of a measurement.

Every figure is computed from the records when it is asked for; one that was not measured is None,
and a statistic of no samples raises `NoSamplesError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

from pytest_llmperf import metrics, selfcheck
from pytest_llmperf.ceiling import Ceiling
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.gpu_result import GpuResult, gpu_result
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.judged import Judged, Provenance, Validity
from pytest_llmperf.readings import working_clock
from pytest_llmperf.records import CacheCounters, ClientStats, EngineTimings, RequestRecord, RunRecord
from pytest_llmperf.stats import Sample, Statistic


@dataclass(frozen=True)
class Latencies:
    """Latency distributions of some requests, seconds."""

    requests: tuple[RequestRecord, ...]

    def _of(self, name: str) -> Sample:
        whole = metrics.latency(name, self.requests)
        return replace(whole, by_run=lambda: [metrics.latency(name, run) for run in self._runs])

    @cached_property
    def _runs(self) -> tuple[tuple[RequestRecord, ...], ...]:
        found: dict[int, list[RequestRecord]] = {}
        for request in self.requests:
            found.setdefault(request.run, []).append(request)
        return tuple(tuple(found[run]) for run in sorted(found))

    @cached_property
    def ttft(self) -> Sample:
        return self._of("ttft")

    @cached_property
    def scheduled_ttft(self) -> Sample:
        return self._of("scheduled_ttft")

    @cached_property
    def tpot(self) -> Sample:
        return self._of("tpot")

    @cached_property
    def itl(self) -> Sample:
        return self._of("itl")

    @cached_property
    def e2e(self) -> Sample:
        return self._of("e2e")


@dataclass(frozen=True)
class EngineTimes:
    """How the engine itself timed the answered requests, seconds; nothing where it does not say. Never judged."""

    told: tuple[EngineTimings, ...]

    @cached_property
    def queue(self) -> Sample:
        """From the scheduler's queue to the first schedule."""
        return metrics.engine_time("queue", self.told)

    @cached_property
    def prefill(self) -> Sample:
        """From there to the first token, as the engine's core made it."""
        return metrics.engine_time("prefill", self.told)

    @cached_property
    def ttft(self) -> Sample:
        """From the engine's front end back to it."""
        return metrics.engine_time("ttft", self.told)


@dataclass(frozen=True, slots=True)
class CacheResult:
    """Where prompt tokens came from, by the engine's own counters; None where it does not say."""

    @classmethod
    def of(cls, counters: CacheCounters) -> CacheResult:
        """What counters of one or several runs come to."""
        return cls(
            hit_rate=counters.hit_rate,
            offloaded_bytes=counters.offloaded_bytes,
            restored_bytes=counters.restored_bytes,
            tiers=counters.tokens_by_tier,
            preemptions=counters.preemptions,
            replicas=tuple(cls.of(replica) for replica in counters.replicas) or None,
        )

    hit_rate: float | None
    """Share of the prompt tokens that any tier served."""
    offloaded_bytes: int | None
    restored_bytes: int | None
    tiers: dict[str, int] | None
    """Prompt tokens by source: gpu, host, disk, external, recomputed."""
    preemptions: int | None
    replicas: tuple[CacheResult, ...] | None = None
    """The same of each engine behind a router; None where there is but one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResult:
    """How far the client's own delays may have reached into the figures; durations in seconds."""

    lag_p99_s: float | None = None
    """How long the event loop was away from its sockets."""
    unread_p99_s: float | None = None
    """How long the oldest of what was read at a time had been there, by the kernel's stamps."""
    sent_late_p99_s: float | None = None
    """From the moment at which a request was due to its send."""
    connect_p50_s: float | None = None
    """Making a connection; no request's latency contains it."""
    cpu_share: float | None = None
    """CPU seconds per second, of the worker that used most."""
    workers: int | None = None
    stamps: str | None = None
    """Where arrival times come from: kernel, or read where some were taken when the read returned."""
    resent: int = 0
    """Requests sent again because the server closed an idle connection in that moment."""
    error_bounds: Mapping[str, float] = field(default_factory=dict)
    """By how much the client may have falsified a metric at most, in its unit: the worst run."""
    clock_offsets_s: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of clients on other machines: how far their clock is ahead, and the error of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What the load meant to send and what was sent, requests per second within the windows."""

    offered: float | None
    achieved: float | None
    shed: int
    """Turns that the load meant to send and dropped."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the answered requests, all together."""

    asked: int
    """As they were to be."""
    served: int | None
    """As the server counted them; None where it does not say of each request."""


class Figures:
    """The figures of some runs taken together."""

    def __init__(self, records: Sequence[RunRecord], slo: Mapping[str, float] | None = None) -> None:
        self.records = tuple(records)
        self.slo = slo
        self._latencies = Latencies(tuple(request for run in records for request in run.counted))

    @property
    def ttft(self) -> Sample:
        """Time to first token."""
        return self._latencies.ttft

    @property
    def scheduled_ttft(self) -> Sample:
        """Time to first token, from when the load meant to send."""
        return self._latencies.scheduled_ttft

    @property
    def tpot(self) -> Sample:
        """Time per output token, the first left out."""
        return self._latencies.tpot

    @property
    def itl(self) -> Sample:
        """Gaps between token arrivals."""
        return self._latencies.itl

    @property
    def e2e(self) -> Sample:
        """From the send to the last token."""
        return self._latencies.e2e

    @property
    def by_round(self) -> tuple[Latencies, ...]:
        """The latencies of each round (turn number) by itself."""
        requests = self._latencies.requests
        rounds = 1 + max((request.turn for request in requests), default=-1)
        if rounds == 1:
            return (self._latencies,)
        return tuple(Latencies(tuple(r for r in requests if r.turn == number)) for number in range(rounds))

    @property
    def engine_times(self) -> EngineTimes:
        """Queue, prefill and TTFT as the engine tells them."""
        with_answers = (r.timings for r in self._latencies.requests if r.ok and r.timings is not None)
        apart = (timings for run in self.records for timings in run.timings)
        return EngineTimes((*with_answers, *apart))

    @property
    def by_replica(self) -> tuple[Latencies, ...]:
        """The latencies of what each engine behind a router answered; nothing where no answer says whose it is."""
        requests = self._latencies.requests
        replicas = 1 + max((request.replica for request in requests if request.replica is not None), default=-1)
        return tuple(Latencies(tuple(r for r in requests if r.replica == number)) for number in range(replicas))

    @property
    def later_rounds(self) -> Latencies:
        """The latencies of all rounds but the first together: those that can find something of their own again."""
        return Latencies(tuple(request for request in self._latencies.requests if request.turn))

    @property
    def requests(self) -> int:
        """Requests that should have been answered."""
        return len(self._latencies.requests)

    @property
    def input_tokens(self) -> Tokens:
        """Tokens of the prompts."""
        return _tokens([(r.input_tokens, r.prompt_tokens) for r in self._latencies.requests if r.ok])

    @property
    def output_tokens(self) -> Tokens:
        """Tokens of the answers."""
        return _tokens([(r.output_tokens_asked, r.output_tokens) for r in self._latencies.requests if r.ok])

    @property
    def errors(self) -> dict[str, int]:
        """Requests without an answer, by kind; also those outside the windows."""
        return dict(Counter(r.failure.kind for run in self.records for r in run.requests if r.failure is not None))

    @property
    def remarks(self) -> dict[str, int]:
        """What was odd about answers that stand, by kind."""
        return dict(Counter(remark.kind for run in self.records for r in run.requests for remark in r.remarks))

    @property
    def duration_s(self) -> float | None:
        """Measured time, the runs added up."""
        return self._overall("duration", _sum([metrics.duration_s(run) for run in self.records]))

    @property
    def request_throughput(self) -> float | None:
        """Answered requests per second."""
        rate = self._per_second(sum(metrics.answered(run) for run in self.records))
        return self._overall("request_throughput", rate)

    @property
    def output_throughput(self) -> float | None:
        """Generated tokens per second."""
        rate = self._per_second(_sum([metrics.output_tokens(run) for run in self.records]))
        return self._overall("output_throughput", rate)

    @property
    def total_throughput(self) -> float | None:
        """Input and generated tokens per second."""
        counts = [count(run) for run in self.records for count in (metrics.input_tokens, metrics.output_tokens)]
        return self._overall("total_throughput", self._per_second(_sum(counts)))

    @property
    def goodput(self) -> float | None:
        """Requests per second that met every limit of `slo`.

        None where none was given, or where a latency that it limits was not measured.
        """
        if self.slo is None:
            return None
        met = [_meets(request, self.slo) for request in self._latencies.requests]
        return self._per_second(_sum(met))

    @property
    def cache(self) -> CacheResult:
        """Where prompt tokens came from."""
        if not self.records:
            return CacheResult(None, None, None, None, None)
        return CacheResult.of(reduce(CacheCounters.plus, (run.cache for run in self.records)))

    @property
    def load(self) -> LoadResult:
        """Offered and achieved load."""
        return LoadResult(
            offered=_rate([[r.released_ns for r in run.counted] for run in self.records]),
            achieved=_rate([[r.sent_ns for r in run.counted if r.sent_ns is not None] for run in self.records]),
            shed=sum(run.shed for run in self.records),
        )

    @property
    def client(self) -> ClientResult:
        """The client's own delays."""
        stats = ClientStats()
        for run in self.records:
            stats.merge(run.client)
        late = Histogram()
        for run in self.records:
            for request in run.counted:
                if request.sent_ns is not None:
                    late.add(max(0, request.sent_ns - run.due_ns(request)))
        return ClientResult(
            lag_p99_s=_seconds(stats.away.percentile(0.99)),
            unread_p99_s=_seconds(stats.unread.percentile(0.99)),
            sent_late_p99_s=_seconds(late.percentile(0.99)),
            connect_p50_s=_seconds(stats.connects.percentile(0.5)),
            cpu_share=max(stats.cpu_shares, default=None),
            workers=max((len(run.client.cpu_shares) for run in self.records), default=0) or None,
            stamps=("read" if stats.unstamped else "kernel") if stats.away.count else None,
            resent=stats.resent,
            error_bounds=self._error_bounds(),
            clock_offsets_s={
                node: (offset / NS_PER_S, error / NS_PER_S) for node, (offset, error) in stats.clock_offsets_ns.items()
            },
        )

    @property
    def clock_mhz(self) -> float | None:
        """At which the GPUs worked; None where that was not sampled."""
        return working_clock(run.telemetry for run in self.records)

    @property
    def gpu(self) -> GpuResult | None:
        """What the GPUs did meanwhile; None where none was sampled."""
        return gpu_result(self.records)

    def _error_bounds(self) -> dict[str, float]:
        bounds: dict[str, float] = {}
        for run in self.records:
            for name, bound in selfcheck.error_bounds(metrics.METRICS.values(), run).items():
                bounds[name] = max(bound, bounds.get(name, 0.0))
        return bounds

    def value(self, metric: metrics.Metric) -> list[float | None]:
        """The metric of each run, in their order."""
        return [metric.formula(run) for run in self.records]

    def why_absent(self, name: str) -> str | None:
        """Why the first run without that metric has none; None where every run has it, or nobody knows."""
        metric = metrics.METRICS[name]
        without = next((run for run in self.records if metric.formula(run) is None), None)
        return None if without is None or metric.why_absent is None else metric.why_absent(without)

    def _overall(self, name: str, value: float | None) -> float | None:
        """A figure over all runs, with those of each run at hand."""
        if value is None:
            return None
        return Statistic(value, lambda: [run for run in self.value(metrics.METRICS[name]) if run is not None])

    def _per_second(self, amount: float | None) -> float | None:
        seconds = self.duration_s
        return amount / seconds if amount is not None and seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Runs that an earlier session has measured, which was cut short. `runs`: their numbers, the first is 0."""

    session: str
    runs: tuple[int, ...]
    began_before_s: float | None
    """How long before the session that they count for; None where that is not known."""


class PerfResult(Figures, Judged):
    """The result of one `llm_perf` call.

    `runs`: the figures of each run by itself. `ceiling`: shares of what the hardware allows; None
    where that is not known. `resumed`: which of the runs an earlier session has measured.
    """

    def __init__(
        self,
        records: Sequence[RunRecord],
        *,
        provenance: Provenance,
        validity: Validity,
        slo: Mapping[str, float] | None = None,
        doubts: tuple[str, ...] = (),
        looks: tuple[int, ...] = (),
        resumed: tuple[Resumed, ...] = (),
    ) -> None:
        """`looks`: see `Judged`."""
        Figures.__init__(self, records, slo)
        Judged.__init__(self, provenance, validity, doubts, looks)
        self.ceiling: Ceiling | None = None
        self.resumed = resumed

    def __len__(self) -> int:
        return len(self.records)

    def values(self, name: str) -> list[float | None]:
        return self.value(metrics.METRICS[name])

    @property
    def runs(self) -> tuple[Figures, ...]:
        return tuple(Figures([record], self.slo) for record in self.records)

    @property
    def is_open(self) -> bool:
        """Whether the load sends without waiting for answers; then TTFT from the schedule is what counts."""
        return self.provenance.open_load

    @property
    def workload_digest(self) -> str:
        return self.provenance.workload_digest


def _rate(moments_ns: Sequence[Sequence[int]]) -> float | None:
    """Events per second, from the gaps between the first and the last one of each run."""
    span_ns = sum(max(run) - min(run) for run in moments_ns if run)
    return sum(len(run) - 1 for run in moments_ns if run) * NS_PER_S / span_ns if span_ns else None


def _tokens(lengths: Sequence[tuple[int, int | None]]) -> Tokens:
    served = [real for _, real in lengths if real is not None]
    return Tokens(
        asked=sum(asked for asked, _ in lengths),
        served=sum(served) if served and len(served) == len(lengths) else None,
    )


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / NS_PER_S


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum, or None where nothing is there or a part is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _meets(request: RequestRecord, slo: Mapping[str, float]) -> bool | None:
    """Whether every limit holds, None if that is not known; one that does not apply does.

    A single token has no gaps: TPOT and ITL do not apply to it.
    """
    if not request.ok:
        return False
    measured = {name: tuple(metrics.LATENCIES[name](request)) for name in slo}
    if any(max(values) > slo[name] for name, values in measured.items() if values):
        return False
    unknown = [name for name, values in measured.items() if not values]
    if unknown and not (request.output_tokens == 1 and set(unknown) <= {"tpot", "itl"}):
        return None
    return True
