"""The measurements of one pytest session against what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_llmperf import units
from pytest_llmperf.baselines import Baselines, Match
from pytest_llmperf.gate.criterion import ALPHA, NIGHT_SPREAD, Criterion
from pytest_llmperf.gate.family import Family, worst
from pytest_llmperf.gate.trial import Base, Trial, tried, typical
from pytest_llmperf.metrics import METRICS, Quantity
from pytest_llmperf.results import PerfResult
from pytest_llmperf.stats import KNOWN_NIGHTS, NightSpread, assumed
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

SIMULATED_RESOLUTION = 0.001
"""Simulated runs without noise are all equal, so that the last digit would be significant. No model is that good."""


class Gate:
    """Judges the measurements of one session, each when it is done and all in the end."""

    def __init__(
        self, baselines: Baselines, family_size: int, alpha: float = ALPHA, night_spread: float = NIGHT_SPREAD
    ) -> None:
        """`family_size`: how many gated metrics have a baseline, counted before measuring.

        `night_spread`: standard deviation between nights, a share, until enough are stored to know it.
        """
        self.alpha = alpha
        self._baselines = baselines
        self._family = Family(family_size, alpha)
        self._assumed = assumed(night_spread)
        self._results: dict[str, PerfResult] = {}
        self._matches: dict[str, dict[str, Match]] = {}

    @property
    def family_size(self) -> int:
        """How many comparisons share the error rate."""
        return self._family.size

    def judge(self, result: PerfResult, criteria: Sequence[Criterion]) -> Judgement:
        """Compare a new measurement and say what can be said now."""
        key = result.provenance.measurement
        self._results[key] = result
        self._matches[key] = {}
        compared = [self._compared(key, result, criterion) for criterion in criteria] if result.validity else []
        self._family.put(key, compared)
        return self._judgement(key)

    def forget(self, measurement: str) -> None:
        """Drop a measurement that is going to be taken again."""
        self._family.drop(measurement)
        for kept in (self._results, self._matches):
            kept.pop(measurement, None)

    def review(self) -> dict[str, Judgement]:
        """The judgements now that all is known; only more rejections can have been added."""
        return {key: self._judgement(key) for key in self._results}

    def spreads(self) -> Iterator[str]:
        """How much nights differ in what was compared; metrics of which the same is known together."""
        told: dict[tuple[str, str], int] = {}
        for key, matches in self._matches.items():
            about = self._results[key].provenance
            for metric, match in matches.items():
                if not about.simulated:
                    pair = (about.hardware_key, metric)
                    told[pair] = max(told.get(pair, 0), match.history.count)
        said: dict[str, list[str]] = {}
        for (hardware_key, metric), nights in told.items():
            sentence = _spread_in_words(self._baselines.spread(hardware_key, metric), self._assumed, nights)
            said.setdefault(sentence, []).append(metric)
        for sentence, metrics in said.items():
            yield f"{', '.join(dict.fromkeys(metrics))}: {sentence}"

    def _compared(self, key: str, result: PerfResult, criterion: Criterion) -> Trial | Finding:
        metric = METRICS[criterion.metric]
        values = result.value(metric)
        found = self._baselines.find(result.provenance, metric.name)
        usable = [value for value in values if value is not None and 0 < value < math.inf]
        if len(usable) < len(values):
            return unusable(metric, values, None if isinstance(found, str) else found.history.runs)
        stored = [metric.stored(value) for value in usable]
        if isinstance(found, str):
            now = typical([math.log(value) for value in stored], metric)
            return Finding(metric=metric, verdict=Verdict.NO_BASELINE, now=now, note=found)
        self._matches[key][metric.name] = found
        return tried(metric, criterion, self._base(found, result, metric.name), stored)

    def _base(self, match: Match, result: PerfResult, metric: str) -> Base:
        simulated = result.provenance.simulated
        spread = assumed(0.0) if simulated else self._baselines.spread(result.provenance.hardware_key, metric)
        return Base(
            name=match.name,
            history=match.history,
            spread=spread or self._assumed,
            resolution=SIMULATED_RESOLUTION if simulated else 0.0,
        )

    def _judgement(self, key: str) -> Judgement:
        result = self._results[key]
        if not result.validity:
            return invalid(result.validity.reasons)
        findings = self._family.findings(key)
        matches = {match.newest.path: match for match in self._matches[key].values()}
        return judgement(
            findings,
            against=", ".join(dict.fromkeys(match.name for match in matches.values())) or None,
            doubts=(*result.doubts, *(f"the engine differs: {d}" for m in matches.values() for d in m.differences)),
        )


def _spread_in_words(known: NightSpread | None, taken: NightSpread, nights: int) -> str:
    if known is not None:
        return f"nights differ by {units.share(known.deviation)} ({known.nights} stored nights)"
    missing = KNOWN_NIGHTS - nights
    more = f"{missing} more of at least 2 runs are needed" if missing > 0 else "with at least 2 runs each it would be"
    return (
        f"nights are taken to differ by {units.share(taken.deviation)} (--llmperf-night-spread); "
        f"that is not known from {units.count(nights, 'stored night')}, {more}"
    )


def judgement(findings: Sequence[Finding], *, against: str | None, doubts: tuple[str, ...]) -> Judgement:
    """The verdict on a measurement with these findings, and what to do about it."""
    verdict = worst(findings)
    return Judgement(
        verdict=verdict, findings=tuple(findings), against=against, doubts=doubts, advice=_ADVICE.get(verdict)
    )


def invalid(reasons: tuple[str, ...]) -> Judgement:
    """The verdict on a measurement that may not be believed."""
    advice = "nothing was compared; mend what is named above and measure again"
    return Judgement(verdict=Verdict.INVALID_RUN, doubts=reasons, advice=advice)


_ADVICE = {
    Verdict.REGRESSED: (
        "look for the change that caused it; if it is accepted, store the new level with "
        "--llmperf-gate off --llmperf-save-baseline NAME"
    ),
    Verdict.NO_BASELINE: "store this level with --llmperf-save-baseline NAME",
    Verdict.INCONCLUSIVE: "raise --llmperf-runs, or say with llm_gate(detect=...) how large a change has to show",
}


def unusable(metric: Quantity, values: Sequence[float | None], base: Sequence[float] | None) -> Finding:
    """What can be said where a logarithm cannot be taken of every run's value; `base`: logarithms."""
    if metric.higher_is_better and base is not None and all(value == 0 for value in values):
        level = typical(base, metric)
        note = "has fallen to 0 in every run"
        return Finding(metric=metric, verdict=Verdict.REGRESSED, baseline=level, now=0.0, change=-1.0, note=note)
    measured = sum(value is not None for value in values)
    note = f"measured in {measured} of {len(values)} runs, so it cannot be judged"
    if measured == len(values):
        note = "is 0 in some runs, which cannot be compared by its ratio"
    return Finding(metric=metric, verdict=Verdict.INVALID_RUN, note=note)
