"""One comparison of one metric: what it is made of, and what can be said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmperf import units
from pytest_llmperf.errors import NoSamplesError
from pytest_llmperf.gate.criterion import SCREEN, Criterion
from pytest_llmperf.metrics import Quantity
from pytest_llmperf.stats import POWER, Comparison, History, Looks, NightSpread, against_nights, pooled_t
from pytest_llmperf.verdicts import Finding, Remedy, Verdict

_BETTER_RUNS = 5
"""As many as are measured where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a metric is compared with: logarithms of stored values, so that up is worse."""

    history: History
    spread: NightSpread | None
    """How much nights differ; None: it was measured interleaved with the new values, so that they do not count."""
    resolution: float = 0.0
    """The smallest effect that means anything, whatever is asked."""

    def compared(self, new: Sequence[float]) -> Comparison:
        """Raises `NoSamplesError` where there are too few runs to compare."""
        if self.spread is None:
            return pooled_t(self.history.runs, new)
        return against_nights(self.history, new, self.spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One comparison that can turn a verdict red."""

    quantity: Quantity
    criterion: Criterion
    base: Base
    comparison: Comparison
    now: float
    looks: Looks | None = None
    """Where it was looked at more than once while it was measured."""

    @property
    def margin(self) -> float:
        """The smallest effect that matters, on the log scale."""
        return math.log1p(max(self.criterion.min_effect, self.base.resolution))

    @property
    def p_worse(self) -> float:
        """One-sided, the same at whichever look."""
        return self._overall(self.comparison.p_worse(self.margin))

    @property
    def is_suspect(self) -> bool:
        """Whether this look by itself would be rare in a healthy build, though not rare enough to judge by."""
        return self.comparison.p_worse(self.margin) <= SCREEN

    @property
    def p_better(self) -> float:
        return self._overall(self.comparison.p_better(self.margin))

    def _overall(self, p: float) -> float:
        return p if self.looks is None else self.looks.overall(self.comparison.new_count, p)

    def _level(self, share: float) -> float:
        """What this look may spend of a share of the error rate."""
        return share if self.looks is None else self.looks.level(self.comparison.new_count, share)

    def could_see(self, share: float, power: float) -> float:
        """The change for the worse, on the log scale, that would have been found at this share of the error rate."""
        return self.margin + self.comparison.detectable(self._level(share), power)

    def finding(self, share: float, *, worse: bool, better: bool, power: float = POWER) -> Finding:
        """What is said of it; `worse` and `better`: what the whole family's error rate lets be called so."""
        detectable = self.could_see(share, power)
        verdict, note, remedy = Verdict.PASS, None, None
        if worse:
            verdict = Verdict.REGRESSED
        elif better:
            verdict = Verdict.IMPROVED
        elif detectable > math.log1p(self.criterion.detect):
            verdict, (note, remedy) = Verdict.INCONCLUSIVE, self._remedy(share)
        comparison = self.comparison
        low, high = sorted(own_change(self.quantity, d) for d in comparison.interval(self._level(share)))
        return Finding(
            metric=self.quantity,
            verdict=verdict,
            baseline=typical(self.base.history.runs, self.quantity),
            now=self.now,
            change=own_change(self.quantity, comparison.effect),
            interval=(low, high),
            p=self.p_worse,
            detectable=own_change(self.quantity, detectable),
            base_runs=comparison.base_count,
            new_runs=comparison.new_count,
            note=note,
            remedy=remedy,
        )

    def _remedy(self, share: float) -> tuple[str, Remedy]:
        """How what the criterion asks could be seen, in words and for the advice."""
        runs = self.comparison.runs_to_detect(math.log1p(self.criterion.detect) - self.margin, self._level(share))
        sentence = f"could not have seen {100 * self.criterion.detect:.2g}%; "
        if runs is not None and self.comparison.floor is None:
            is_stored = self.base.spread is not None
            where = "here and in the baseline" if is_stored else "of each build"
            return f"{sentence}at this noise that takes {runs} runs, {where}", Remedy(runs=runs, of_base=is_stored)
        if runs is not None:
            return f"{sentence}at this noise that takes {runs} runs tonight", Remedy(runs=runs)
        spread = self.base.spread
        if spread is not None and spread.variance > 0:
            differ = f"{'differ' if spread.nights else 'may differ'} by {units.share(spread.deviation)}"
            note = f"{sentence}nights {differ}, so only a comparison on the same night would: pytest-llmperf ab"
            return note, Remedy(otherwise="compare the two builds on one night with pytest-llmperf ab")
        quieter = "lower the noise: pytest-llmperf doctor says what to change about the machine"
        return f"{sentence}at this noise no sensible number of runs can", Remedy(otherwise=quieter)


def tried(
    quantity: Quantity, criterion: Criterion, base: Base, stored: Sequence[float], looks: Looks | None = None
) -> Trial | Finding:
    """Compare new stored values, all positive; a finding where there are too few runs to."""
    new = [math.log(value) for value in stored]
    now = typical(new, quantity)
    try:
        comparison = base.compared(new)
    except NoSamplesError as error:
        each_has_one = len(base.history.runs) == len(new) == 1
        reason = "one run each has no spread to compare with" if each_has_one else str(error)
        note = f"{reason}; use --llmperf-runs 2 or more, better {_BETTER_RUNS}"
        return Finding(
            metric=quantity,
            verdict=Verdict.INCONCLUSIVE,
            baseline=typical(base.history.runs, quantity),
            now=now,
            note=note,
            remedy=Remedy(runs=_BETTER_RUNS, or_less=False),
        )
    return Trial(quantity=quantity, criterion=criterion, base=base, comparison=comparison, now=now, looks=looks)


def typical(logarithms: Sequence[float], quantity: Quantity) -> float:
    """The geometric mean of stored values, in the metric's own unit: what the log test compares."""
    return quantity.stored(math.exp(sum(logarithms) / len(logarithms)))


def own_change(quantity: Quantity, effect: float) -> float:
    """An effect on the log scale (up is worse) as a relative change of the metric itself."""
    try:
        return math.expm1(-effect if quantity.higher_is_better else effect)
    except OverflowError:
        return math.inf
