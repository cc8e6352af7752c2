"""The content of a report from the results of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pytest_llmperf.judged import Judged, RatioResult
from pytest_llmperf.metrics import Quantity
from pytest_llmperf.reports.accepting import commands
from pytest_llmperf.reports.content import Section
from pytest_llmperf.reports.figures import figures_json, ratio_json
from pytest_llmperf.reports.past import Past, set_beside
from pytest_llmperf.result_file import comparable
from pytest_llmperf.results import PerfResult
from pytest_llmperf.timeline import Gauge, Timeline, timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One result of the session, with what its test says of it."""

    result: Judged
    metrics: Sequence[str]
    """Those that are gated."""
    params: Mapping[str, Any] = field(default_factory=dict)
    gauges: Sequence[Gauge] = ()
    """What was sampled beside its runs."""


def section_of(told: Told, past: Past, baselines: Path) -> Section:
    """The result beside the nights of its hardware; `baselines`: where the session looks for them."""
    result, about = told.result, told.result.provenance
    is_ratio = isinstance(result, RatioResult)
    section = Section(
        name=about.measurement,
        test=about.test,
        hardware_key=about.hardware_key,
        judgement=result.judgement,
        invalid=result.validity.reasons or (result.judgement.reasons if result.judgement is not None else ()),
        doubts=result.doubts,
        values=dict(_values(result, name) for name in told.metrics),
        figures=ratio_json(cast("RatioResult", result)) if is_ratio else figures_json(cast("PerfResult", result)),
        about={
            "workload": about.workload,
            "load": about.load,
            "cache": about.cache,
            "engine": about.engine_kind,
            "model": str(about.engine_identity.get("model") or about.engine_words.get("model") or ""),
        },
        is_open=about.open_load,
        params=told.params,
        accepting=commands(about.measurement, about.hardware_key, result.judgement, baselines),
        timeline=None if is_ratio else _timeline(cast("PerfResult", result), told.gauges),
    )
    return set_beside(section, past, comparable=comparable(about), words=about.engine_words, engine=about.engine)


def _values(result: Judged, metric: str) -> tuple[Quantity, tuple[float, ...]]:
    return result.quantity(metric), tuple(value for value in result.values(metric) if value is not None)


def _timeline(result: PerfResult, gauges: Sequence[Gauge]) -> Timeline:
    windows = {run.index: run.window for run in result.records if run.window is not None}
    requests = (request for run in result.records for request in run.requests)
    return timeline(requests, windows, gauges)
