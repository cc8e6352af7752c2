"""All comparisons that share one error rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pytest_llmperf.gate.criterion import ALPHA
from pytest_llmperf.gate.trial import Trial
from pytest_llmperf.stats import POWER, Ranking
from pytest_llmperf.verdicts import Finding, Verdict

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

_Pair = tuple[str, str]
"""A measurement and one of its metrics."""


class Family:
    """Trials by measurement, what was found without one, and what Holm's rule rejects of them all."""

    def __init__(self, planned: int, alpha: float = ALPHA, *, is_screen: bool = False) -> None:
        """`planned`: how many comparisons there can be, counted before measuring.

        `is_screen`: each comparison is held against `alpha` by itself, as another one is to follow.
        """
        self.alpha = alpha
        self.is_screen = is_screen
        self._planned = planned
        self._trials: dict[str, dict[str, Trial]] = {}
        self._fixed: dict[str, list[Finding]] = {}
        self._worse: Ranking[_Pair] = Ranking()
        self._better: Ranking[_Pair] = Ranking()

    @property
    def size(self) -> int:
        """How many comparisons share the error rate."""
        return max(self._planned, len(self._worse))

    @property
    def share(self) -> float:
        """What one comparison has of the error rate at least."""
        return self.alpha if self.is_screen else self.alpha / max(1, self.size)

    def put(self, measurement: str, outcomes: Iterable[Trial | Finding]) -> None:
        """Enter a measurement's comparisons in place of those it had."""
        self.drop(measurement)
        for outcome in outcomes:
            if isinstance(outcome, Finding):
                self._fixed.setdefault(measurement, []).append(outcome)
                continue
            self._trials.setdefault(measurement, {})[outcome.quantity.name] = outcome
            self._worse.add((measurement, outcome.quantity.name), outcome.p_worse)
            self._better.add((measurement, outcome.quantity.name), outcome.p_better)

    def drop(self, measurement: str) -> None:
        """Forget a measurement; harmless for one that is not there."""
        for name in self._trials.pop(measurement, {}):
            self._worse.discard((measurement, name))
            self._better.discard((measurement, name))
        self._fixed.pop(measurement, None)

    def trials(self, measurement: str) -> tuple[Trial, ...]:
        return tuple(self._trials.get(measurement, {}).values())

    def findings(self, measurement: str) -> tuple[Finding, ...]:
        """What can be said of each metric now; more trials of others can only add rejections."""
        worse = self._rejected(self._worse, measurement)
        better = self._rejected(self._better, measurement)
        judged = [
            trial.finding(self.share, worse=name in worse, better=name in better, power=self._power)
            for name, trial in self._trials.get(measurement, {}).items()
        ]
        return (*judged, *self._fixed.get(measurement, ()))

    def is_sharp(self, trial: Trial) -> bool:
        """Whether the change that is asked to show would have been found."""
        return trial.could_see(self.share, self._power) <= math.log1p(trial.criterion.detect)

    @property
    def _power(self) -> float:
        """What is flagged by a screen has to be found twice to be found."""
        return math.sqrt(POWER) if self.is_screen else POWER

    def _rejected(self, ranking: Ranking[_Pair], measurement: str) -> set[str]:
        size = 1 if self.is_screen else self.size
        return {name for found, name in ranking.rejected(size, self.alpha) if found == measurement}


def worst(findings: Iterable[Finding]) -> Verdict:
    """The verdict on a measurement with these findings; nothing to compare is not a pass."""
    return max((finding.verdict for finding in findings), key=_SEVERITY.index, default=Verdict.NO_BASELINE)
