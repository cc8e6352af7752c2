"""GuideLLM's `benchmarks.json`: every benchmark of a sweep is a run by itself; seconds, but where a name says ms.

Facts read in GuideLLM 0.8.1: its time_per_output_token contains the first token and is no TPOT; its
inter_token_latency is one value per request, (last - first token) / (tokens - 1), and the distribution counts each
by its tokens; percentiles are values that occurred; request_latency ends with the response, not with the last
token. So figures are computed from the single requests where all of them are in the file. Of 12 answers its
requests_per_second counted 11 (measured); answers are divided by the duration instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pytest_llmperf.foreign.runs import MS, ForeignRun, failures, known, of_requests, one_length, stated
from pytest_llmperf.foreign.sending import ALL_AT_ONCE
from pytest_llmperf.foreign.source import Fields, Source, plain, printable

_VERSION = 2
_STRATEGY_IS_NOT = {"worker_count"}
# Their targeted_start is a moment of a schedule; that of others moves with the answers.
_SCHEDULED = ("constant", "poisson", "trace")

_COMMON = {
    "itl": "inter_token_latency_ms, the mean only: of all gaps, as it counts each request by its tokens",
    "duration": "duration of the measured window",
    "request_throughput": "request_totals.successful / duration; its requests_per_second may leave out the last answer",
    "output_throughput": "output_tokens_per_second, the mean: output tokens / duration",
    "total_throughput": "tokens_per_second, the mean: input and output tokens / duration",
}
DEFINITIONS_OF_REQUESTS = {
    **_COMMON,
    "ttft": "first_token_iteration - request_start of each request: from the headers' send, connecting left out",
    "tpot": "(last - first token iteration) / (output tokens - 1) of each request",
    "e2e": "last_token_iteration - request_start of each request",
    "scheduled_ttft": "first_token_iteration - targeted_start of each request",
}
DEFINITIONS_OF_SUMMARIES = {
    **_COMMON,
    "ttft": "time_to_first_token_ms: from the headers' send; percentiles are values that occurred",
    "tpot": "inter_token_latency_ms, where all answers have as many tokens; percentiles are values that occurred",
}


class GuideLLM:
    """GuideLLM."""

    title = "GuideLLM"
    wrote = "benchmarks.json"

    def recognises(self, document: Mapping[str, Any]) -> bool:
        metadata = document.get("metadata")
        return "benchmarks" in document and isinstance(metadata, dict) and "guidellm_version" in metadata

    def read(self, sources: Sequence[Source]) -> Iterable[ForeignRun]:
        return chain.from_iterable(_runs(source) for source in sources)


def _runs(source: Source) -> Iterator[ForeignRun]:
    document = Fields(GuideLLM.title, str(source.path), source.objects[0])
    metadata = document.within("metadata")
    if metadata.values.get("version") != _VERSION:
        raise metadata.complaint("version", f"{_VERSION}, the form of GuideLLM 0.8")
    benchmarks = list(document.items("benchmarks"))
    if not benchmarks:
        raise document.complaint("benchmarks", "at least one benchmark")
    specification = document.perhaps_within("config").perhaps_within("spec")
    for benchmark in benchmarks:
        yield _run(source, benchmark, specification, metadata.text("guidellm_version"))


def _run(source: Source, benchmark: Fields, specification: Fields, version: str | None) -> ForeignRun:
    metrics = benchmark.within("metrics")
    totals = metrics.within("request_totals")
    answered = totals.required_count("successful")
    if not answered:
        raise totals.complaint("successful", "at least one answered request, as there are no figures of none")
    failed = sum(totals.count(name) or 0 for name in ("errored", "incomplete"))
    strategy = benchmark.within("config").within("strategy")
    words, is_open = _load(strategy)
    requests = _requests(benchmark, answered, scheduled=strategy.values.get("type_") in _SCHEDULED)
    backend = specification.perhaps_within("backend")
    tokens, duration = _distribution(metrics, "output_token_count").amount("total_sum"), benchmark.required("duration")
    return ForeignRun(
        tool="guidellm",
        tool_version=version,
        file=source.name,
        configuration=plain(
            {
                "strategy": {k: v for k, v in strategy.values.items() if k not in _STRATEGY_IS_NOT},
                "data": specification.values.get("data"),
                "constraints": specification.values.get("constraints"),
                "seed": specification.values.get("seed"),
                **{name: backend.values.get(name) for name in ("kind", "model", "request_format", "extras")},
                "output_tokens_each": None if tokens is None else one_length(int(tokens), answered),
            }
        ),
        load=words,
        open_load=is_open,
        model=backend.text("model"),
        engine_words=plain({name: backend.values[name] for name in ("request_format",) if backend.values.get(name)}),
        values={
            **(_summaries(metrics) if requests is None else requests),
            **known(
                itl_mean=_ms(_distribution(metrics, "inter_token_latency_ms").amount("mean")),
                duration=duration,
                request_throughput=answered / duration if duration else None,
                output_throughput=_distribution(metrics, "output_tokens_per_second").amount("mean"),
                total_throughput=_distribution(metrics, "tokens_per_second").amount("mean"),
            ),
        },
        definitions=DEFINITIONS_OF_SUMMARIES if requests is None else DEFINITIONS_OF_REQUESTS,
        answered=answered,
        failed=failed,
        output_tokens=None if tokens is None else int(tokens),
        measured_at=benchmark.text("end_time"),
        apart={
            **_stated(metrics, "e2e_to_end_of_response", "request_latency", 1.0),
            **_stated(metrics, "tpot_with_first_token", "time_per_output_token_ms", MS),
        },
        doubts=(*failures(answered, failed), *_warnings(benchmark), *_without_requests(metrics, requests)),
        original=_original(benchmark),
    )


def _distribution(metrics: Fields, name: str) -> Fields:
    """Of the answered requests."""
    return metrics.perhaps_within(name).perhaps_within("successful")


def _ms(value: float | None) -> float | None:
    return None if value is None else value * MS


def _stated(metrics: Fields, name: str, theirs: str, scale: float) -> dict[str, float]:
    summary = _distribution(metrics, theirs)
    percentiles = summary.perhaps_within("percentiles")
    return stated(
        name,
        lambda statistic: summary.amount("mean") if statistic == "mean" else percentiles.amount(statistic),
        scale,
    )


def _requests(benchmark: Fields, answered: int, *, scheduled: bool) -> dict[str, float] | None:
    """The latencies of single requests; None where the file does not hold all that count, or none was streamed.

    Samples of them, and windows that leave some out, are not what the summaries are of.
    """
    lists = benchmark.perhaps_within("requests")
    if not isinstance(lists.values.get("successful"), list):
        return None
    rows = [_times(row, scheduled=scheduled) for row in lists.items("successful")]
    if len(rows) != answered or None in rows:
        return None
    times = [row for row in rows if row is not None]
    meant = [row.first_s - row.meant_s for row in times if row.meant_s is not None]
    return {
        **of_requests("ttft", [row.first_s - row.start_s for row in times]),
        **of_requests("tpot", [row.tpot_s for row in times if row.tpot_s is not None]),
        **of_requests("e2e", [row.last_s - row.start_s for row in times]),
        **(of_requests("scheduled_ttft", meant) if len(meant) == answered else {}),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """Moments of one request, seconds of the day's clock."""

    meant_s: float | None
    """When the schedule meant it to be sent; None without one."""
    start_s: float
    first_s: float
    last_s: float
    tokens: int

    @property
    def tpot_s(self) -> float | None:
        return (
            (self.last_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 and self.last_s > self.first_s else None
        )


def _times(row: Fields, *, scheduled: bool) -> _Times | None:
    """None for an answer that was not streamed."""
    timings = row.within("info").within("timings")
    if timings.values.get("first_token_iteration") is None:
        return None
    times = _Times(
        meant_s=timings.amount("targeted_start") if scheduled else None,
        start_s=timings.required("request_start"),
        first_s=timings.required("first_token_iteration"),
        last_s=timings.required("last_token_iteration"),
        tokens=row.required_count("output_tokens"),
    )
    if not times.start_s < times.first_s <= times.last_s:
        raise timings.complaint("first_token_iteration", "a time after request_start and not after the last token's")
    if times.meant_s is not None and not times.meant_s < times.first_s:
        raise timings.complaint("targeted_start", "a time before the first token's")
    return times


def _summaries(metrics: Fields) -> dict[str, float]:
    """Where the requests are not all there; TPOT only if counting requests by their tokens changes nothing."""
    same_length = _distribution(metrics, "output_token_count").amount("std_dev") == 0
    return {
        **_stated(metrics, "ttft", "time_to_first_token_ms", MS),
        **(_stated(metrics, "tpot", "inter_token_latency_ms", MS) if same_length else {}),
    }


def _without_requests(metrics: Fields, requests: Mapping[str, float] | None) -> Iterator[str]:
    if requests is None and _distribution(metrics, "output_token_count").amount("std_dev") != 0:
        yield "no TPOT: the file does not hold all requests, and its summary counts them by their tokens"


def _load(strategy: Fields) -> tuple[str, bool]:
    kind = strategy.text("type_")
    if kind == "synchronous":
        return "closed_loop(1)", False
    if kind == "concurrent":
        return f"closed_loop({strategy.required_count('streams')})", False
    limit = strategy.count("max_concurrency")
    limited = "" if limit is None else f", at most {limit} open"
    if kind == "throughput":
        return f"{ALL_AT_ONCE}{limited}", True
    if kind in ("constant", "poisson"):
        return f"{kind}({strategy.required('rate'):g}){limited}", True
    return printable(kind), True


def _warnings(benchmark: Fields) -> Iterator[str]:
    """What GuideLLM says against its own run."""
    if benchmark.values.get("warnings") is not None:
        for warning in benchmark.items("warnings"):
            yield f"GuideLLM: {printable(warning.text('message'))}"


def _original(benchmark: Fields) -> dict[str, Any]:
    """Without the single requests, and without what never was."""
    original: dict[str, Any] = plain({name: value for name, value in benchmark.values.items() if name != "requests"})
    configuration = original.get("config")
    if isinstance(configuration, dict):
        configuration.pop("environment", None)
        if isinstance(configuration.get("backend"), dict):
            configuration["backend"].pop("target", None)
    metrics = original.get("metrics")
    if isinstance(metrics, dict):
        original["metrics"] = {name: _answered_only(value) for name, value in metrics.items()}
    return original


def _answered_only(distribution: Any) -> Any:
    """GuideLLM writes a distribution of zeros where there are no requests of a kind."""
    if not isinstance(distribution, dict):
        return distribution
    return {
        kind: value
        for kind, value in distribution.items()
        if not (kind in ("errored", "incomplete", "total") and isinstance(value, dict))
    }
