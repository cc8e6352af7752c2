"""How far the client's own delays may have reached into a run's figures.

Each request has an earliest and a latest time at which what it shows can have happened: its bytes
left between `sent_ns` and `flushed_ns`, a token came up to `late_ns` before its stamp. A metric of
the extremes bounds the error of the metric. Throughput of a load that waits for answers loses the
time that lies between an answer and the next send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_llmperf import metrics, units
from pytest_llmperf.arrivals import UNKNOWN
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.metrics import STATISTICS, Metric
from pytest_llmperf.records import RequestRecord, RunRecord
from pytest_llmperf.stats import Sample

TOLERATED = 0.05
"""The share of a gated metric that the client's error may reach; a run beyond it is INVALID."""
_OF_DETECT = 0.25
"""The share of a change that is to be detected: an error so small cannot be taken for it."""


def tolerated(detect: float) -> float:
    """What is tolerated where only a change of this share is to be seen: more of a test that looks for a factor."""
    return max(TOLERATED, _OF_DETECT * detect)


_Extremes = tuple[Sequence[float], Sequence[float]]
"""The least and the most that each of a request's true values can be, seconds."""


def error_bounds(wanted: Iterable[Metric], run: RunRecord) -> dict[str, float]:
    """By how much the client may have falsified metrics of this run, in their units; what is unknown is left out."""
    extremes: dict[str, _Three] = {}
    bounds = {}
    for metric in wanted:
        name, _, statistic = metric.name.rpartition("_")
        if name in _EXTREMES and statistic in STATISTICS:
            if name not in extremes:
                extremes[name] = _three(name, run)
            bound = _between(extremes[name], STATISTICS[statistic])
        else:
            value = metric.formula(run) if metric.name in _PACED else None
            bound = None if value is None else value * _waiting_share(run)
        if bound is not None:
            bounds[metric.name] = bound
    return bounds


@dataclass(frozen=True, slots=True)
class Excess:
    """A metric of one run that the client may have falsified by more than is tolerated."""

    metric: Metric
    run: int
    """As records number it, the first is 0; people read of run 1."""
    value: float
    bound: float
    tolerated: float

    def __str__(self) -> str:
        bound = units.quantity(self.bound, self.metric.unit)
        return (
            f"in run {self.run + 1} the client itself may account for {bound} of "
            f"{self.metric.name} {units.quantity(self.value, self.metric.unit)} "
            f"({units.share(self.bound / self.value)}, more than {self.tolerated:.0%}); give it more workers "
            "(--llmperf-workers), processors of its own, or another machine"
        )


def excesses(
    wanted: Sequence[Metric], runs: Sequence[RunRecord], limits: Mapping[str, float] | None = None
) -> Iterator[Excess]:
    """The worst run of each metric, where its bound is beyond what is tolerated.

    `limits`: the tolerated share by a metric's name, where it is not `TOLERATED`.
    """
    for metric in wanted:
        limit = (limits or {}).get(metric.name, TOLERATED)
        found = []
        for run in runs:
            value, bound = metric.formula(run), error_bounds([metric], run).get(metric.name)
            if value and bound is not None and bound > limit * value:
                found.append(Excess(metric, run.index, value, bound, limit))
        if found:
            yield max(found, key=lambda excess: excess.bound / excess.value)


@dataclass(frozen=True, slots=True)
class _Three:
    """The least, the reported and the most of each value."""

    low: Sample
    reported: Sample
    high: tuple[float, ...]
    perhaps: tuple[float, ...]
    """The most of values that were not reported and may have been: whether they count is not known."""


def _three(name: str, run: RunRecord) -> _Three:
    low: list[float] = []
    high: list[float] = []
    perhaps: list[float] = []
    for request in run.counted:
        if request.ok:
            least, most = _EXTREMES[name](request, run)
            low += least
            if name == "tpot" and metrics.tpot_s(request) is None:
                perhaps += most
            else:
                high += most
    return _Three(Sample(tuple(low), name), metrics.run_latency(name, run), tuple(high), tuple(perhaps))


def _between(three: _Three, statistic: Callable[[Sample], float]) -> float | None:
    low, reported = three.low, three.reported
    if not (low.count and reported.count):
        return None
    middle = statistic(reported)
    return max(_most(three, statistic) - middle, middle - statistic(low), 0.0)


def _most(three: _Three, statistic: Callable[[Sample], float]) -> float:
    """The most that a statistic can have been. Of what was perhaps there, what lies above it raises it further."""
    most = statistic(Sample(three.high, three.reported.of))
    while three.perhaps:
        above = tuple(value for value in three.perhaps if value > most)
        raised = statistic(Sample((*three.high, *above), three.reported.of))
        if raised <= most:
            break
        most = raised
    return most


def _ttft(request: RequestRecord, run: RunRecord) -> _Extremes:
    del run
    if request.sent_ns is None or not len(request.arrivals):
        return (), ()
    first = request.arrivals[0]
    low_ns, high_ns = first.at_ns - first.late_ns - _left_ns(request), first.at_ns - request.sent_ns
    return (max(0, low_ns) / NS_PER_S,), (high_ns / NS_PER_S,)


def _scheduled_ttft(request: RequestRecord, run: RunRecord) -> _Extremes:
    """A perfect client would have sent the request when it was due, and got everything by so much earlier."""
    if request.sent_ns is None or not len(request.arrivals):
        return (), ()
    first = request.arrivals[0]
    high_ns = first.at_ns - request.released_ns
    low_ns = high_ns - first.late_ns - max(0, _left_ns(request) - run.due_ns(request))
    return (max(0, low_ns) / NS_PER_S,), (high_ns / NS_PER_S,)


def _e2e(request: RequestRecord, run: RunRecord) -> _Extremes:
    del run
    if request.sent_ns is None or not len(request.arrivals):
        return (), ()
    last = request.arrivals[-1]
    low_ns, high_ns = last.at_ns - last.late_ns - _left_ns(request), last.at_ns - request.sent_ns
    return (max(0, low_ns) / NS_PER_S,), (high_ns / NS_PER_S,)


def _tpot(request: RequestRecord, run: RunRecord) -> _Extremes:
    """Also of a request whose tokens were all read at once: they may have come one by one."""
    del run
    tokens, arrivals = request.output_tokens, request.arrivals
    if tokens is None or tokens < 2 or not len(arrivals):
        return (), ()
    first, last, gaps = arrivals[0], arrivals[-1], tokens - 1
    if first.at_ns == last.at_ns and not first.late_ns:
        return (), ()
    low_ns, high_ns = last.at_ns - last.late_ns - first.at_ns, last.at_ns - first.at_ns + first.late_ns
    return (max(0, low_ns) / gaps / NS_PER_S,), (high_ns / gaps / NS_PER_S,)


def _itl(request: RequestRecord, run: RunRecord) -> _Extremes:
    del run
    arrivals = metrics.columns(request)
    if UNKNOWN in arrivals.tokens or not len(arrivals):
        return (), ()
    gaps, late = np.diff(np.frombuffer(arrivals.at_ns, np.int64)), np.asarray(arrivals.late_ns, np.int64)
    low = (np.maximum(gaps - late[1:], 0) / NS_PER_S).tolist()
    high = ((gaps + late[:-1]) / NS_PER_S).tolist()
    for tokens, late_ns in zip(arrivals.tokens, arrivals.late_ns, strict=True):
        if tokens > 1:
            low += (0.0,) * (tokens - 1)
            high += (late_ns / NS_PER_S,) * (tokens - 1)
    return low, high


def _left_ns(request: RequestRecord) -> int:
    """When the whole request had been handed to the kernel, as far as that was seen."""
    sent_ns = request.sent_ns or 0
    return sent_ns if request.flushed_ns is None else max(sent_ns, request.flushed_ns)


_EXTREMES: dict[str, Callable[[RequestRecord, RunRecord], _Extremes]] = {
    "ttft": _ttft,
    "scheduled_ttft": _scheduled_ttft,
    "tpot": _tpot,
    "itl": _itl,
    "e2e": _e2e,
}

_PACED = ("duration", "request_throughput", "output_throughput", "total_throughput")


def _waiting_share(run: RunRecord) -> float:
    """The share of the requests' time that passed between being due and being sent."""
    waited_ns = spent_ns = 0
    for request in run.counted:
        if request.sent_ns is not None:
            due_ns = run.due_ns(request)
            waited_ns += max(0, request.sent_ns - due_ns)
            spent_ns += max(0, request.end_ns - due_ns)
    return waited_ns / spent_ns if spent_ns else 0.0
