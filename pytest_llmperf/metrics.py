"""Every metric: its name, its unit, which way is better, and its formula over one run.

A formula returns None where something it needs was not measured. Only requests that were answered
enter; a run with a failed request is invalid as a whole, so that failing fast cannot look fast.
Where the load has a ramp or a tail, the run's window decides what counts: latencies of requests
meant to be sent within it, tokens and answers that arrived within it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from pytest_llmperf.arrivals import UNKNOWN, Arrivals
from pytest_llmperf.clock import NS_PER_S, seconds_between
from pytest_llmperf.records import EngineTimings, RequestRecord, RunRecord
from pytest_llmperf.stats import Sample
from pytest_llmperf.units import JOULES_PER_TOKEN, RATIO, REQUESTS_PER_SECOND, SECONDS, TOKENS_PER_SECOND


def ttft_s(request: RequestRecord) -> float | None:
    """Time to first token: from the send to the first generated token."""
    if request.sent_ns is None or request.first_token_ns is None:
        return None
    return seconds_between(request.sent_ns, request.first_token_ns)


def scheduled_ttft_s(request: RequestRecord) -> float | None:
    """Time to first token from when the load meant to send: a stalled client or server cannot hide its queue."""
    if request.sent_ns is None or request.first_token_ns is None:
        return None
    return seconds_between(request.released_ns, request.first_token_ns)


def e2e_s(request: RequestRecord) -> float | None:
    """End to end: from the send to the last generated token."""
    if request.sent_ns is None or request.last_token_ns is None:
        return None
    return seconds_between(request.sent_ns, request.last_token_ns)


def tpot_s(request: RequestRecord) -> float | None:
    """Time per output token, the first left out: (last - first token) / (output tokens - 1).

    None where all tokens came at once: then no time between tokens was seen.
    """
    tokens, first_ns, last_ns = request.output_tokens, request.first_token_ns, request.last_token_ns
    if tokens is None or tokens < 2 or first_ns is None or last_ns is None or first_ns == last_ns:
        return None
    return seconds_between(first_ns, last_ns) / (tokens - 1)


def itl_s(request: RequestRecord) -> Iterable[float]:
    """Inter-token latency: each gap between two token arrivals; tokens of one chunk arrive together.

    Nothing where the server does not say how many tokens a chunk holds.
    """
    arrivals = columns(request)
    if UNKNOWN in arrivals.tokens or not len(arrivals):
        return ()
    gaps = (np.diff(np.frombuffer(arrivals.at_ns, np.int64)) / NS_PER_S).tolist()
    together = sum(arrivals.tokens) - len(arrivals)
    return gaps if not together else [*(0.0,) * together, *gaps]


def columns(request: RequestRecord) -> Arrivals:
    """A request's arrivals in columns, read back from disk if they are there."""
    arrivals = request.arrivals
    return arrivals if isinstance(arrivals, Arrivals) else Arrivals.of(arrivals)


def _one(formula: Callable[[RequestRecord], float | None], request: RequestRecord) -> Iterator[float]:
    value = formula(request)
    if value is not None:
        yield value


LATENCIES: dict[str, Callable[[RequestRecord], Iterable[float]]] = {
    "ttft": partial(_one, ttft_s),
    "tpot": partial(_one, tpot_s),
    "itl": itl_s,
    "e2e": partial(_one, e2e_s),
    "scheduled_ttft": partial(_one, scheduled_ttft_s),
}
"""What each request contributes to the distribution of that name, in seconds."""

ENGINE_TIMES: dict[str, Callable[[EngineTimings], int | None]] = {
    "queue": lambda timings: timings.queue_ns,
    "prefill": lambda timings: timings.prefill_ns,
    "ttft": lambda timings: timings.ttft_ns,
}
"""What engines tell of a request, nanoseconds. They are no metrics: only some tell, each from a place of its own."""

LABELS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "scheduled_ttft": "scheduled TTFT"}

STATISTICS: dict[str, Callable[[Sample], float]] = {
    "mean": lambda sample: sample.mean,
    "gmean": lambda sample: sample.gmean,
    "p50": lambda sample: sample.p50,
    "p90": lambda sample: sample.p90,
    "p95": lambda sample: sample.p95,
    "p99": lambda sample: sample.p99,
}


def latency(name: str, requests: Iterable[RequestRecord]) -> Sample:
    """The distribution `name` over the answered requests, seconds."""
    values = tuple(value for request in requests if request.ok for value in LATENCIES[name](request))
    return Sample(values, of=LABELS[name])


def engine_time(name: str, timings: Iterable[EngineTimings]) -> Sample:
    """What the engine says that this took, where it says so, seconds."""
    told = map(ENGINE_TIMES[name], timings)
    return Sample(tuple(value_ns / NS_PER_S for value_ns in told if value_ns is not None), of=f"the engine's {name}")


def run_latency(name: str, run: RunRecord) -> Sample:
    """The distribution `name` over the requests of a run that count, seconds."""
    if name not in run.derived:
        run.derived[name] = latency(name, run.counted)
    sample: Sample = run.derived[name]
    return sample


def duration_s(run: RunRecord) -> float | None:
    """The length of the window; without one, from the first send to the last answer's end."""
    ends = span(run)
    return None if ends is None else seconds_between(*ends)


def output_tokens(run: RunRecord) -> int | None:
    """Generated tokens, with a window those that arrived within it; None where the server does not count them."""
    if output_tokens not in run.derived:
        run.derived[output_tokens] = _total(_tokens_within(run))
    total: int | None = run.derived[output_tokens]
    return total


def _tokens_within(run: RunRecord) -> Iterator[int | None]:
    if not _is_cut(run):
        yield from (request.output_tokens for request in run.requests if request.ok)
        return
    start_ns, end_ns = span(run) or (0, 0)
    for request in run.requests:
        if not request.ok:
            continue
        arrivals = columns(request)
        first, last = bisect_left(arrivals.at_ns, start_ns), bisect_right(arrivals.at_ns, end_ns)
        inside = arrivals.tokens[first:last]
        yield None if UNKNOWN in inside else sum(inside)


def answered(run: RunRecord) -> int:
    """Answered requests, with a window those that ended within it."""
    return len(list(_within(run, lambda request: request.end_ns)))


def input_tokens(run: RunRecord) -> int | None:
    """Input tokens of the answered requests, as they were sent; with a window, where the first token is within."""
    return _total(request.input_tokens for request in _within(run, lambda request: request.first_token_ns))


def span(run: RunRecord) -> tuple[int, int] | None:
    """Begin and end of what counts, by the run's clock; None where nothing was sent."""
    sent = [request.sent_ns for request in run.requests if request.sent_ns is not None]
    if not sent:
        return None
    window = run.window
    start_ns = min(sent) if window is None or window.start_ns <= run.start_ns else window.start_ns
    if window is not None and window.end_ns is not None:
        return start_ns, max(start_ns, window.end_ns)
    return start_ns, max(start_ns, *(request.end_ns for request in run.requests))


def _is_cut(run: RunRecord) -> bool:
    window = run.window
    return window is not None and (window.start_ns > run.start_ns or window.end_ns is not None)


def _within(run: RunRecord, moment: Callable[[RequestRecord], int | None]) -> Iterator[RequestRecord]:
    """The answered requests of which some moment lies within the window."""
    start_ns, end_ns = span(run) or (0, 0)
    for request in run.requests:
        at_ns = moment(request)
        if request.ok and (not _is_cut(run) or (at_ns is not None and start_ns <= at_ns <= end_ns)):
            yield request


_Number = TypeVar("_Number", int, float)


def _total(counts: Iterable[_Number | None]) -> _Number | None:
    known = list(counts)
    return None if not known or None in known else sum(count for count in known if count is not None)


def _rate(amount: float | None, per: float | None) -> float | None:
    return amount / per if amount is not None and per else None


def output_throughput(run: RunRecord) -> float | None:
    """Generated tokens per second."""
    return _rate(output_tokens(run), duration_s(run))


def total_throughput(run: RunRecord) -> float | None:
    """Input and generated tokens per second."""
    inputs, outputs = input_tokens(run), output_tokens(run)
    return None if inputs is None or outputs is None else _rate(inputs + outputs, duration_s(run))


def request_throughput(run: RunRecord) -> float | None:
    """Answered requests per second."""
    return _rate(answered(run), duration_s(run))


def cache_hit_rate(run: RunRecord) -> float | None:
    """Share of the prompt tokens that came from any cache tier, by the engine's counters."""
    return run.cache.hit_rate


def energy_j(run: RunRecord) -> float | None:
    """What the sampled GPUs took within the window, joules; None unless it is known of each of them."""
    gpus = () if run.telemetry is None else run.telemetry.gpus
    return _total(gpu.energy_j for gpu in gpus)


def joules_per_token(run: RunRecord) -> float | None:
    """GPU energy of the window over the output tokens that arrived within it.

    The energy is of all GPUs that the engine may use, whole boards: also of prefill, of idling between
    requests, and of whatever else ran on them. Processors, memory, fans of the machine and, on a Grace
    superchip, its CPU are not in it.
    """
    return _rate(energy_j(run), output_tokens(run))


def why_no_energy(run: RunRecord) -> str:
    """Why a run has no joules per token: one sentence, with what to do."""
    if run.telemetry is None:
        return (
            "nothing was sampled, as --llmperf-telemetry is off, or the engine is simulated or not on this machine; "
            "switch it on, or gate another metric"
        )
    gpus = run.telemetry.gpus
    if not gpus:
        problems = "; ".join(run.telemetry.problems)
        return problems or "the engine uses no GPU of this machine; see pytest-llmperf doctor, or gate another metric"
    silent = ", ".join(str(gpu.gpu) for gpu in gpus if gpu.energy_j is None)
    if silent:
        return (
            f"GPU {silent} told neither energy nor power over the whole run, as a MIG slice or a lost GPU does not; "
            "gate another metric, or use whole GPUs"
        )
    return "no output token was counted within the run"


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a number is: its name, its unit, and which way is better."""

    name: str
    unit: str
    higher_is_better: bool

    def stored(self, value: float) -> float:
        """As pytest-benchmark keeps it, where lower is always better: throughput is seconds per token.

        Its own inverse.
        """
        return 1 / value if self.higher_is_better else value


@dataclass(frozen=True, slots=True)
class Metric(Quantity):
    """One number of a run."""

    formula: Callable[[RunRecord], float | None]
    why_absent: Callable[[RunRecord], str] | None = None
    """Why a run has none; None where nothing can be said of that."""


def _latency_statistic(name: str, statistic: str, run: RunRecord) -> float | None:
    sample = run_latency(name, run)
    return STATISTICS[statistic](sample) if sample.count else None


_ALL = (
    *(
        Metric(f"{name}_{statistic}", SECONDS, False, partial(_latency_statistic, name, statistic))
        for name in LATENCIES
        for statistic in STATISTICS
    ),
    Metric("duration", SECONDS, False, duration_s),
    Metric("request_throughput", REQUESTS_PER_SECOND, True, request_throughput),
    Metric("output_throughput", TOKENS_PER_SECOND, True, output_throughput),
    Metric("total_throughput", TOKENS_PER_SECOND, True, total_throughput),
    Metric("cache_hit_rate", RATIO, True, cache_hit_rate),
    Metric("joules_per_token", JOULES_PER_TOKEN, False, joules_per_token, why_no_energy),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}

_MEDIANS = {False: "ttft_p50", True: "scheduled_ttft_p50"}


def gated_by_default(*, open_load: bool) -> tuple[str, ...]:
    """What is judged unless marks say otherwise.

    Medians and throughput: p99 of 500 requests is 3.6 times noisier than p50 from run to run. Under
    an open load TTFT counts from when the load meant to send.
    """
    return (_MEDIANS[open_load], "tpot_p50", "output_throughput")
