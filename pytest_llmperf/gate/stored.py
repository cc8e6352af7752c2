"""The measurements of one pytest session against what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pytest_llmperf import units
from pytest_llmperf.baselines import Baselines, Match
from pytest_llmperf.gate.advice import INVALID, NO_LEVEL, advice
from pytest_llmperf.gate.clocks import clock_since
from pytest_llmperf.gate.criterion import ALPHA, NIGHT_SPREAD, SCREEN, Criterion
from pytest_llmperf.gate.family import Family, worst
from pytest_llmperf.gate.trial import Base, Trial, tried, typical
from pytest_llmperf.judged import Judged
from pytest_llmperf.metrics import Quantity
from pytest_llmperf.result_file import differences
from pytest_llmperf.stats import KNOWN_NIGHTS, History, Looks, NightSpread, assumed
from pytest_llmperf.verdicts import IN_TURN, Finding, Judgement, Remedy, Verdict

SIMULATED_RESOLUTION = 0.001
"""Simulated runs without noise are all equal, so that the last digit would be significant. No model is that good."""


class Gate:
    """Judges the measurements of one session, each when it is done and all in the end."""

    def __init__(
        self,
        baselines: Baselines,
        family_size: int,
        alpha: float = ALPHA,
        night_spread: float = NIGHT_SPREAD,
        *,
        is_screen: bool = False,
        is_saving: bool = False,
        tolerated: frozenset[str] = frozenset(),
    ) -> None:
        """`family_size`: how many gated metrics can be compared, counted before measuring.

        `night_spread`: standard deviation between nights, a share, until enough are stored to know it.
        `tolerated`: rules on the hardware that are not to spoil a comparison.
        `is_screen`: nothing is called regressed; what seems so is flagged, to be measured again.
        `is_saving`: what may be stored is going to be.
        """
        self._baselines = baselines
        self._family = Family(family_size, SCREEN if is_screen else alpha, is_screen=is_screen)
        self._assumed = assumed(night_spread)
        self._tolerated = tolerated
        self._is_saving = is_saving
        self._results: dict[str, Judged] = {}
        self._matches: dict[str, dict[str, Match]] = {}
        self._bases: dict[str, Judged] = {}
        self._otherwise: dict[str, str] = {}
        """By measurement, why its hardware did not work as it did when the baseline was stored."""
        self._tolerated_of: dict[str, str] = {}
        """The same where that is tolerated."""

    @property
    def family_size(self) -> int:
        """How many comparisons share the error rate."""
        return self._family.size

    def judge(self, result: Judged, criteria: Sequence[Criterion], base: Judged | None = None) -> Judgement:
        """Compare a new measurement and say what can be said now.

        `base`: the same of another build, measured in turn with it; else the stored nights are compared with.
        """
        key = result.provenance.measurement
        self._results[key] = result
        self._matches[key] = {}
        self._bases.pop(key, None)
        if base is not None:
            self._bases[key] = base
        # A build that is invalid ended the other's runs, too, perhaps before its first.
        comparable = result.validity and (base is None or base.validity)
        compared = [self._compared(key, result, one) for one in criteria] if comparable else []
        self._hold_against_clocks(key, result)
        self._family.put(key, [] if key in self._otherwise else compared)
        return self._judgement(key)

    def _hold_against_clocks(self, key: str, result: Judged) -> None:
        """A GPU that works at another clock than when the baseline was stored is not the same hardware."""
        self._otherwise.pop(key, None)
        self._tolerated_of.pop(key, None)
        stored = [match.newest.clock_mhz for match in self._matches[key].values()]
        since = clock_since(stored[0], result.clock_mhz) if stored else None
        if since is not None:
            found = self._tolerated_of if "clocks" in self._tolerated else self._otherwise
            found[key] = since

    def is_clear(self, result: Judged, criteria: Sequence[Criterion], base: Judged | None = None) -> bool:
        """Whether a measurement that could go on has its verdict; else further runs may still change it."""
        key = result.provenance.measurement
        verdict = self.judge(result, criteria, base).verdict
        if verdict in (Verdict.REGRESSED, Verdict.INVALID_RUN):
            return True
        trials = self._family.trials(key)
        if not trials:
            return all(len(result.values(criterion.metric)) >= _UNJUDGED_RUNS for criterion in criteria)
        return all(self._family.is_sharp(trial) and not trial.is_suspect for trial in trials)

    def forget(self, measurement: str) -> None:
        """Drop a measurement that is going to be taken again."""
        self._family.drop(measurement)
        for kept in (self._results, self._matches, self._bases, self._otherwise, self._tolerated_of):
            kept.pop(measurement, None)

    def flagged(self, measurement: str) -> tuple[Criterion, ...]:
        """What a screen has flagged of a measurement."""
        trials = self._family.trials(measurement) if self._family.is_screen else ()
        return tuple(trial.criterion for trial in trials if trial.p_worse <= self._family.alpha)

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

    def _compared(self, key: str, result: Judged, criterion: Criterion) -> Trial | Finding:
        metric = result.quantity(criterion.metric)
        values = result.values(metric.name)
        found = self._found(key, result, metric)
        usable = [value for value in values if value is not None and 0 < value < math.inf]
        if len(usable) < len(values):
            base = None if isinstance(found, str) else found.history.runs
            return unusable(metric, values, base, result.why_absent(metric.name))
        stored = [metric.stored(value) for value in usable]
        if isinstance(found, str):
            now = typical([math.log(value) for value in stored], metric)
            is_other = self._baselines.has(result.provenance, metric.name)
            return Finding(metric=metric, verdict=Verdict.NO_BASELINE, now=now, note=found, is_other=is_other)
        return tried(metric, criterion, found, stored, Looks(result.looks) if len(result.looks) > 1 else None)

    def _found(self, key: str, result: Judged, metric: Quantity) -> Base | str:
        """What to compare with, or a sentence on why there is nothing."""
        about = result.provenance
        resolution = SIMULATED_RESOLUTION if about.simulated else 0.0
        base = self._bases.get(key)
        if base is not None:
            measured = base.values(metric.name)
            values = [metric.stored(value) for value in measured if value]
            if len(values) < len(measured) or not values:
                return f"the base build has no {metric.name} in some run"
            history = History((tuple(map(math.log, values)),))
            return Base(history=history, spread=None, resolution=resolution)
        match = self._baselines.find(about, metric.name)
        if isinstance(match, str):
            return match
        self._matches[key][metric.name] = match
        known = assumed(0.0) if about.simulated else self._baselines.spread(about.hardware_key, metric.name)
        return Base(history=match.history, spread=known or self._assumed, resolution=resolution)

    def _judgement(self, key: str) -> Judgement:
        result, base = self._results[key], self._bases.get(key)
        if not result.validity:
            return invalid(result.validity.reasons)
        if key in self._otherwise:
            return invalid((self._otherwise[key],))
        if base is not None and not base.validity:
            return invalid(tuple(f"the base build: {reason}" for reason in base.validity.reasons))
        findings = self._family.findings(key)
        matches = {match.newest.path: match for match in self._matches[key].values()}
        changed = [difference for match in matches.values() for difference in match.differences]
        accepted = [sentence for match in self._matches[key].values() for sentence in match.accepted]
        against = ", ".join(dict.fromkeys(match.name for match in matches.values()))
        if base is not None:
            # Two builds may differ by where they are, and by nothing else that their words say.
            words = differences(base.provenance.engine_words, result.provenance.engine_words, ignored={"noise_seed"})
            against = f"{IN_TURN} ({'; '.join(words) or 'the same words'})"
        found = judgement(
            [_flag(finding) for finding in findings] if self._family.is_screen else findings,
            against=against or None,
            doubts=(
                *result.doubts,
                *([f"tolerated: {self._tolerated_of[key]}"] if key in self._tolerated_of else []),
                *(f"the engine differs: {difference}" for difference in changed),
                *accepted,
            ),
            in_turn=base is not None,
            is_saving=self._is_saving,
        )
        own = NO_LEVEL if found.verdict is Verdict.NO_BASELINE and not result.is_level else found.advice
        return replace(found, advice="; ".join(filter(None, (own, result.advice))) or None)


_UNJUDGED_RUNS = 5
"""Where there is nothing to compare with, as many as are measured where nobody says how many."""
_CONFIRM = Remedy(otherwise="see that it is measured against the base build, which --llmperf-confirm does at the end")


def _flag(finding: Finding) -> Finding:
    """What a screen may say: neither that a metric regressed nor that it improved has been shown yet."""
    if finding.verdict is Verdict.IMPROVED:
        return replace(finding, verdict=Verdict.PASS)
    if finding.verdict is not Verdict.REGRESSED or finding.p is None:
        return finding
    note = f"flagged, as {SCREEN:.0%} of healthy metrics are; to be measured against the base build"
    return replace(finding, verdict=Verdict.INCONCLUSIVE, note=note, remedy=_CONFIRM)


def confirmed(screened: Judgement, confirmation: Judgement) -> Judgement:
    """A screen's judgement with what was found when the flagged metrics were measured again."""
    again = {finding.metric.name: finding for finding in confirmation.findings}
    if confirmation.verdict is Verdict.INVALID_RUN and not again:
        return replace(screened, doubts=(*screened.doubts, *confirmation.doubts))
    findings = [_again(again[f.metric.name]) if f.metric.name in again else f for f in screened.findings]
    return judgement(
        findings,
        against=f"{screened.against}, then {confirmation.against}",
        doubts=tuple(dict.fromkeys((*screened.doubts, *confirmation.doubts))),
    )


def _again(finding: Finding) -> Finding:
    """A finding that says by what it was settled."""
    runs = "" if finding.base_runs is None else f" ({finding.base_runs} + {finding.new_runs} runs)"
    note = f"flagged by the stored nights, settled in turn with the base build{runs}"
    return replace(finding, note=note if finding.note is None else f"{note}: {finding.note}")


def _spread_in_words(known: NightSpread | None, taken: NightSpread, nights: int) -> str:
    if known is not None:
        return f"nights differ by {units.share(known.deviation)} ({known.nights} stored nights)"
    missing = KNOWN_NIGHTS - nights
    more = f"{missing} more of at least 2 runs are needed" if missing > 0 else "with at least 2 runs each it would be"
    return (
        f"nights are taken to differ by {units.share(taken.deviation)} (--llmperf-night-spread); "
        f"that is not known from {units.count(nights, 'stored night')}, {more}"
    )


def judgement(
    findings: Sequence[Finding],
    *,
    against: str | None,
    doubts: tuple[str, ...],
    in_turn: bool = False,
    is_saving: bool = False,
) -> Judgement:
    """The verdict on a measurement with these findings, and what to do about it; see `advice`."""
    verdict = worst(findings)
    what = advice(findings, verdict, in_turn=in_turn, is_saving=is_saving)
    return Judgement(verdict=verdict, findings=tuple(findings), against=against, doubts=doubts, advice=what)


def invalid(reasons: tuple[str, ...]) -> Judgement:
    """The verdict on a measurement that may not be believed."""
    return Judgement(verdict=Verdict.INVALID_RUN, doubts=reasons, advice=INVALID)


def unusable(
    metric: Quantity, values: Sequence[float | None], base: Sequence[float] | None, why_absent: str | None = None
) -> Finding:
    """What can be said where a logarithm cannot be taken of every run's value.

    `base`: logarithms. `why_absent`: why a run has no value, where that is known.
    """
    if metric.higher_is_better and base is not None and all(value == 0 for value in values):
        level = typical(base, metric)
        note = "has fallen to 0 in every run"
        return Finding(metric=metric, verdict=Verdict.REGRESSED, baseline=level, now=0.0, change=-1.0, note=note)
    measured = sum(value is not None for value in values)
    why = "" if why_absent is None else f": {why_absent}"
    note = f"measured in {measured} of {len(values)} runs, so it cannot be judged{why}"
    if measured == len(values):
        note = "is 0 in some runs, which cannot be compared by its ratio"
    return Finding(metric=metric, verdict=Verdict.INVALID_RUN, note=note)
