"""The figures of a result as JSON, under the names that tests use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pytest_llmperf.judged import RatioResult
from pytest_llmperf.metrics import ENGINE_TIMES, LATENCIES, METRICS, STATISTICS
from pytest_llmperf.results import CacheResult, Figures, Latencies, PerfResult
from pytest_llmperf.stats import Sample


def result_json(result: PerfResult) -> dict[str, Any]:
    """A whole result: what it is of, and its figures."""
    about = {"simulated": True} if result.provenance.simulated else {}
    return {**about, "provenance": asdict(result.provenance), **figures_json(result)}


def ratio_json(result: RatioResult) -> dict[str, Any]:
    """What there is to a ratio beside its stored values."""
    return {"runs": [{result.name: value} for value in result.ratios], "doubts": list(result.doubts)}


def figures_json(result: PerfResult) -> dict[str, Any]:
    """The figures under the names that tests know; what was not measured is left out."""
    return _known(
        {
            **_latencies_json(result),
            **{name: _plain(getattr(result, name)) for name in _SCALARS},
            "requests": result.requests,
            "input_tokens": _known(asdict(result.input_tokens)),
            "output_tokens": _known(asdict(result.output_tokens)),
            "errors": result.errors,
            "remarks": result.remarks,
            "by_round": [_known(_latencies_json(one)) for one in result.by_round],
            "engine_times": _engine_times_json(result),
            "cache": _cache_json(result.cache),
            "load": _known(asdict(result.load)),
            "ceiling": None if result.ceiling is None else _known(asdict(result.ceiling)),
            "client": _known(asdict(result.client)),
            "gpu": None if result.gpu is None else _known(asdict(result.gpu)),
            "telemetry": _telemetry_json(result),
            "runs": [_run_json(run) for run in result.runs],
            "resumed": [_known(asdict(one)) for one in result.resumed] or None,
            "validity": list(result.validity.reasons),
            "doubts": list(result.doubts),
        }
    )


def _cache_json(cache: CacheResult) -> dict[str, Any]:
    """Where prompt tokens came from, and that of each replica where there are several."""
    replicas = None if cache.replicas is None else [_cache_json(replica) for replica in cache.replicas]
    return _known({**asdict(cache), "replicas": replicas})


_SCALARS = ("duration_s", "request_throughput", "output_throughput", "total_throughput", "goodput")


def _latencies_json(source: Figures | Latencies) -> dict[str, Any]:
    return {name: _sample_json(getattr(source, name)) for name in LATENCIES}


def _engine_times_json(result: PerfResult) -> dict[str, Any] | None:
    return _known({name: _sample_json(getattr(result.engine_times, name)) for name in ENGINE_TIMES}) or None


def _sample_json(sample: Sample) -> dict[str, Any] | None:
    if not sample.count:
        return None
    return {"count": sample.count, **{name: float(statistic(sample)) for name, statistic in STATISTICS.items()}}


def _plain(value: float | None) -> float | None:
    """The number alone, which every writer of JSON knows."""
    return None if value is None else float(value)


def _run_json(run: Figures) -> dict[str, Any]:
    return _known({metric.name: run.value(metric)[0] for metric in METRICS.values()})


def _telemetry_json(result: PerfResult) -> list[dict[str, Any]] | None:
    """One of each run, empty where none was taken; None if of no run."""
    taken = [run.telemetry for run in result.records]
    return [{} if one is None else one.to_json() for one in taken] if any(taken) else None


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
