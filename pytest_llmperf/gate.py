"""The only place that decides.

Runs are the sample. Each gated metric's log run values are compared with the stored ones by the
pooled t test; Holm's step-down over all gated metrics of the pytest session bounds the probability
that a healthy build fails anywhere. The family's size is fixed before anything is measured, so
that a verdict given when a test ends can only be sharpened by what the session measures later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmperf.baselines import Baselines, Match
from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.results import PerfResult
from pytest_llmperf.stats import Comparison, holm, pooled_t
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

ALPHA = 0.01
"""Family-wise probability of failing a healthy build in one session."""
DETECT = 0.10
"""The slowdown that a PASS must have been able to see, unless `llm_gate(detect=...)` says otherwise."""


_Pair = tuple[str, str]
"""A measurement and one of its metrics."""

# A measurement's verdict is the last of these that any of its metrics has: a regression that was
# shown is not hidden by another metric that could not be judged.
_SEVERITY = (
    Verdict.PASS,
    Verdict.IMPROVED,
    Verdict.NO_BASELINE,
    Verdict.INCONCLUSIVE,
    Verdict.INVALID_RUN,
    Verdict.REGRESSED,
)


_SIMULATED_RESOLUTION = 0.001
"""Simulated runs without noise are all equal, so that the last digit would be significant. No model is that good."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """What is asked of one metric, as shares: 0.1 is 10 %.

    `detect`: PASS means that a change for the worse of that size would have been found.
    `min_effect`: a change is REGRESSED or IMPROVED only if it is shown to be larger than this;
    for what is known to differ from one server start, or one night, to the next.
    """

    metric: str
    detect: float = DETECT
    min_effect: float = 0.0


@dataclass(frozen=True, slots=True)
class _Test:
    """One comparison that can turn the session red."""

    criterion: Criterion
    match: Match
    comparison: Comparison
    baseline: float
    now: float
    resolution: float
    """The smallest effect that means anything, whatever is asked."""


class Gate:
    """Judges the measurements of one pytest session against what is stored."""

    def __init__(self, baselines: Baselines, family_size: int, alpha: float = ALPHA) -> None:
        """`family_size`: how many gated metrics have a baseline, counted before measuring."""
        self.alpha = alpha
        self._baselines = baselines
        self._planned = family_size
        self._tests: dict[str, dict[str, _Test]] = {}
        self._fixed: dict[str, list[Finding]] = {}
        self._results: dict[str, PerfResult] = {}

    @property
    def family_size(self) -> int:
        """How many comparisons share the error rate."""
        return max(self._planned, sum(len(tests) for tests in self._tests.values()))

    def judge(self, result: PerfResult, criteria: Sequence[Criterion]) -> Judgement:
        """Compare a new measurement and say what can be said now."""
        key = result.provenance.measurement
        self._results[key] = result
        self._tests[key], self._fixed[key] = {}, []
        if result.validity:
            for criterion in criteria:
                self._compare(key, result, criterion)
        return self._judgement(key)

    def forget(self, measurement: str) -> None:
        """Drop a measurement that is going to be taken again."""
        for kept in (self._results, self._tests, self._fixed):
            kept.pop(measurement, None)

    def review(self) -> dict[str, Judgement]:
        """The judgements now that all is known; only more rejections can have been added."""
        return {key: self._judgement(key) for key in self._results}

    def _compare(self, key: str, result: PerfResult, criterion: Criterion) -> None:
        metric = METRICS[criterion.metric]
        values = result.value(metric)
        found = self._baselines.find(result.provenance, metric.name)
        usable = [value for value in values if value is not None and 0 < value < math.inf]
        if len(usable) < len(values):
            self._fixed[key].append(_unusable(metric, values, found))
            return
        now = _typical([metric.stored(value) for value in usable], metric)
        if isinstance(found, str):
            self._fixed[key].append(Finding(metric=metric, verdict=Verdict.NO_BASELINE, now=now, note=found))
            return
        stored = found.entry.stored_values
        baseline = _typical(stored, metric)
        if min(len(stored), len(usable)) < 2:
            note = "one run on a side has no spread to compare with; use --llmperf-runs 2 or more, better 5"
            finding = Finding(metric=metric, verdict=Verdict.INCONCLUSIVE, baseline=baseline, now=now, note=note)
            self._fixed[key].append(finding)
            return
        comparison = pooled_t([math.log(v) for v in stored], [math.log(metric.stored(v)) for v in usable])
        self._tests[key][metric.name] = _Test(
            criterion, found, comparison, baseline, now, _SIMULATED_RESOLUTION if result.provenance.simulated else 0.0
        )

    def _judgement(self, key: str) -> Judgement:
        result = self._results[key]
        if not result.validity:
            advice = "nothing was compared; mend what is named above and measure again"
            return Judgement(verdict=Verdict.INVALID_RUN, doubts=result.validity.reasons, advice=advice)
        worse, better = self._rejected()
        tests = self._tests[key]
        findings = [
            self._finding(test, worse=(key, name) in worse, better=(key, name) in better)
            for name, test in tests.items()
        ]
        findings += self._fixed[key]
        # Nothing to compare is not a pass.
        verdict = max((finding.verdict for finding in findings), key=_SEVERITY.index, default=Verdict.NO_BASELINE)
        matches = {test.match.entry.path: test.match for test in tests.values()}
        return Judgement(
            verdict=verdict,
            findings=tuple(findings),
            against=", ".join(path.name for path in matches) or None,
            doubts=(*result.doubts, *(f"the engine differs: {d}" for m in matches.values() for d in m.differences)),
            advice=_ADVICE.get(verdict),
        )

    def _rejected(self) -> tuple[set[_Pair], set[_Pair]]:
        """Which (measurement, metric) pairs are worse, and which better, family-wise."""
        tests = {(key, name): test for key, group in self._tests.items() for name, test in group.items()}
        size = self.family_size
        worse = {k: test.comparison.p_worse(_margin(test)) for k, test in tests.items()}
        better = {k: test.comparison.p_better(_margin(test)) for k, test in tests.items()}
        return holm(worse, size, self.alpha), holm(better, size, self.alpha)

    def _finding(self, test: _Test, *, worse: bool, better: bool) -> Finding:
        metric, comparison = METRICS[test.criterion.metric], test.comparison
        share = self.alpha / self.family_size
        margin = _margin(test)
        detectable = margin + comparison.detectable(share)
        wanted = math.log1p(test.criterion.detect)
        verdict, note = Verdict.PASS, None
        if worse:
            verdict = Verdict.REGRESSED
        elif better:
            verdict = Verdict.IMPROVED
        elif detectable > wanted:
            verdict = Verdict.INCONCLUSIVE
            runs = comparison.runs_to_detect(wanted - margin, share)
            note = f"could not have seen {test.criterion.detect:.0%}; " + (
                f"at this noise that takes {runs} runs, here and in the baseline"
                if runs is not None
                else "at this noise no sensible number of runs can"
            )
        low, high = sorted(_own_change(metric, d) for d in comparison.interval(share))
        return Finding(
            metric=metric,
            verdict=verdict,
            baseline=test.baseline,
            now=test.now,
            change=_own_change(metric, comparison.effect),
            interval=(low, high),
            p=comparison.p_worse(margin),
            detectable=_own_change(metric, detectable),
            base_runs=comparison.base_count,
            new_runs=comparison.new_count,
            note=note,
        )


_ADVICE = {
    Verdict.REGRESSED: (
        "look for the change that caused it; if it is accepted, store the new level with "
        "--llmperf-gate off --llmperf-save-baseline NAME"
    ),
    Verdict.NO_BASELINE: "store this level with --llmperf-save-baseline NAME",
    Verdict.INCONCLUSIVE: "raise --llmperf-runs, or say with llm_gate(detect=...) how large a change has to show",
}


def _unusable(metric: Metric, values: Sequence[float | None], found: Match | str) -> Finding:
    """What can be said where a logarithm cannot be taken of every run's value."""
    if metric.higher_is_better and not isinstance(found, str) and all(value == 0 for value in values):
        baseline = _typical(found.entry.stored_values, metric)
        note = "has fallen to 0 in every run"
        return Finding(metric=metric, verdict=Verdict.REGRESSED, baseline=baseline, now=0.0, change=-1.0, note=note)
    measured = sum(value is not None for value in values)
    note = f"measured in {measured} of {len(values)} runs, so it cannot be judged"
    if measured == len(values):
        note = "is 0 in some runs, which cannot be compared by its ratio"
    return Finding(metric=metric, verdict=Verdict.INVALID_RUN, note=note)


def _margin(test: _Test) -> float:
    """The smallest effect that matters, on the log scale."""
    return math.log1p(max(test.criterion.min_effect, test.resolution))


def _typical(stored: Sequence[float], metric: Metric) -> float:
    """The geometric mean of stored values, in the metric's own unit: what the log test compares."""
    return metric.stored(math.exp(sum(map(math.log, stored)) / len(stored)))


def _own_change(metric: Metric, effect: float) -> float:
    """An effect on the log scale (up is worse) as a relative change of the metric itself."""
    try:
        return math.expm1(-effect if metric.higher_is_better else effect)
    except OverflowError:
        return math.inf
