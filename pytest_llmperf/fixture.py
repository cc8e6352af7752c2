"""What the fixture `llm_perf` gives to a test."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.errors import (
    ConfigurationError,
    InconclusiveWarning,
    NoBaselineWarning,
    NotMeasuredWarning,
    RegressionWarning,
)
from pytest_llmperf.lifecycle import Lifecycle
from pytest_llmperf.option_values import GateMode
from pytest_llmperf.reports import text
from pytest_llmperf.request import checked_request
from pytest_llmperf.verdicts import Verdict

if TYPE_CHECKING:
    from pytest_llmperf.engines import Engine
    from pytest_llmperf.judged import Judged
    from pytest_llmperf.load import Load
    from pytest_llmperf.results import PerfResult
    from pytest_llmperf.workloads import Workload


class LLMPerf:
    """What the fixture `llm_perf` gives to a test."""

    def __init__(self, lifecycle: Lifecycle, item: pytest.Item) -> None:
        self._lifecycle = lifecycle
        self._item = item

    def __call__(
        self,
        engine: Engine,
        workload: Workload,
        *,
        load: Load | None = None,
        runs: int | str | None = None,
        warmup_runs: int | None = None,
        cache: str = "as_is",
        prefill_context: bool = False,
        slo: Mapping[str, float] | None = None,
        name: str | None = None,
    ) -> PerfResult:
        """Run the workload on the engine and return what was measured.

        `load` defaults to `round_robin()`; `runs` and `warmup_runs` to the options. `cache` is the
        state that each run begins with: "as_is", "cold", "primed" (each session's context sent
        once, unmeasured; the same as `prefill_context=True`) or "evicted" (primed, then flooded).
        `slo` gives limits in seconds by "ttft", "tpot", "itl", "e2e", for `goodput`. `name` tells
        several measurements of one test apart.

        The result is recorded when this returns; its verdict becomes the test's outcome. Raises
        `ConfigurationError` for what cannot be measured and `EngineError` if the engine fails.
        """
        __tracebackhide__ = True
        options, suite = self._lifecycle.options, self._lifecycle.suite
        if not hasattr(engine, "connector"):
            raise ConfigurationError(f"llm_perf: expected an engine such as the fixture llm_engine, got {engine!r}")
        request = checked_request(
            workload,
            load=load,
            runs=(options.runs if runs is None else runs) if suite.recording else 1,
            warmup_runs=(options.warmup_runs if warmup_runs is None else warmup_runs) if suite.recording else 0,
            cache=cache,
            prefill_context=prefill_context,
            slo=slo,
            name=name,
        )
        result = suite.measure(self._item.nodeid, engine, request)
        if suite.recording:
            self._lifecycle.measured(self._item, result, suite.measured[-1].criteria)
        _warn(result, options.gate, recording=suite.recording)
        return result

    def ratio(self, name: str, over: float, under: float, *, higher_is_better: bool = True) -> float:
        """Record one figure over another, and judge it like a metric; returns `over / under`.

        Both are statistics of this test's results, such as `cold.ttft.p50` and `warm.ttft.p50`, of
        which each run gives one ratio: ratios stay steady where absolute figures move with the machine.
        A plain number counts as a single run's. `higher_is_better`: for what is judged; a gain is.
        Raises `ConfigurationError` for what is no ratio, or was recorded before.
        """
        __tracebackhide__ = True
        suite = self._lifecycle.suite
        result = suite.ratio(self._item.nodeid, name, over, under, higher_is_better=higher_is_better)
        if suite.recording:
            self._lifecycle.measured(self._item, result, suite.measured[-1].criteria)
        _warn(result, self._lifecycle.options.gate, recording=suite.recording)
        return over / under


def _warn(result: Judged, mode: GateMode, *, recording: bool) -> None:
    """Say, as a warning, what keeps a green test from meaning that all is well."""
    name = result.provenance.measurement
    if not recording:
        reason = "pytest-benchmark is disabled (--benchmark-disable)"
        warnings.warn(NotMeasuredWarning(f"{name} ran once, unrecorded and unjudged: {reason}"), stacklevel=3)
    if result.judgement is None:
        return
    notes = [finding.note for finding in result.judgement.findings if finding.note]
    message = f"{result.verdict} {name}: {'; '.join(dict.fromkeys(notes))}"
    if result.verdict is Verdict.NO_BASELINE and mode is not GateMode.STRICT:
        warnings.warn(NoBaselineWarning(message), stacklevel=3)
    elif result.verdict is Verdict.INCONCLUSIVE and mode is not GateMode.STRICT:
        warnings.warn(InconclusiveWarning(message), stacklevel=3)
    elif result.verdict is Verdict.REGRESSED and mode is GateMode.WARN:
        warnings.warn(RegressionWarning(text.verdict_line(result)), stacklevel=3)
