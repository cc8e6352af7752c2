"""Two samples of runs compared.

The formulas are those of the two-sample t test with pooled variance; the smallest detectable effect
follows from the noncentral t distribution.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy import special

from pytest_llmperf.errors import NoSamplesError

POWER = 0.8
"""Probability with which a change of the smallest detectable size is found."""
MANY_RUNS = 200
"""More runs than this are not proposed: lowering the noise is cheaper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two samples of log run statistics, compared; up is worse.

    `effect`: mean of the new minus mean of the base. `standard_error` is 0 where all values of both
    arms are equal to their means: then p is 0 or 1 and nothing is estimated. `degrees`: of freedom
    of that error, not always whole.
    """

    base_count: int
    new_count: int
    effect: float
    standard_error: float
    degrees: float
    run_variance: float
    """Of one run around its night's level."""
    floor: float | None = None
    """The part of the error's variance that no further run of tonight lowers; None: both sides can be run again."""

    def p_worse(self, margin: float = 0.0) -> float:
        """One-sided: how often so large a rise would be seen if it were no more than `margin`."""
        return self._p(self.effect - margin)

    def p_better(self, margin: float = 0.0) -> float:
        """One-sided, for a fall."""
        return self._p(-self.effect - margin)

    def _p(self, excess: float) -> float:
        if self.standard_error == 0:
            return 0.0 if excess > 0 else 1.0
        return float(special.stdtr(self.degrees, -excess / self.standard_error))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Two-sided interval of the effect at level `1 - alpha`."""
        reach = _upper_quantile(alpha / 2, self.degrees) * self.standard_error
        return self.effect - reach, self.effect + reach

    def detectable(self, alpha: float, power: float = POWER) -> float:
        """The effect that a one-sided test at `alpha` finds with probability `power`."""
        return self.standard_error * _noncentrality(alpha, _coarse(self.degrees), power)

    def runs_to_detect(self, effect: float, alpha: float) -> int | None:
        """Runs that would find `effect`, the spread being as seen; None beyond `MANY_RUNS`.

        On each side, where the base can be run again; else of the new side alone.
        """
        runs = range(2, MANY_RUNS + 1)
        fewest = bisect.bisect_left(runs, True, key=lambda number: self._finds(effect, alpha, number))
        return runs[fewest] if fewest < len(runs) else None

    def _finds(self, effect: float, alpha: float, runs: int) -> bool:
        """Whether so many runs would find the effect; more always do if fewer would."""
        variance, degrees = self._with(runs)
        return math.sqrt(variance) * _noncentrality(alpha, _coarse(degrees)) <= effect

    def _with(self, runs: int) -> tuple[float, float]:
        """Variance and degrees of freedom of the effect with so many runs."""
        if self.floor is None:
            return self.run_variance * 2 / runs, 2 * runs - 2
        return self.floor + self.run_variance / runs, self.degrees


def pooled_t(base: Sequence[float], new: Sequence[float]) -> Comparison:
    """Compare two samples with one variance for both.

    Raises `NoSamplesError` unless each has at least two values: one has no spread.
    """
    n, m = len(base), len(new)
    if min(n, m) < 2:
        raise NoSamplesError(f"a comparison needs at least 2 runs on each side, got {n} and {m}")
    degrees = n + m - 2
    variance = (squares(base) + squares(new)) / degrees
    return Comparison(
        base_count=n,
        new_count=m,
        effect=mean(new, base[0]) - mean(base, base[0]),
        standard_error=math.sqrt(variance * (1 / n + 1 / m)),
        degrees=degrees,
        run_variance=variance,
    )


def mean(values: Sequence[float], origin: float = 0.0) -> float:
    """The mean, measured from `origin`.

    Means of equal values differ in their last bit for different counts; measured from one of the
    values they are exact, so that equal runs have no effect and no spread.
    """
    return sum(value - origin for value in values) / len(values)


def squares(values: Sequence[float]) -> float:
    """The sum of squared distances from the mean; exactly 0 for equal values."""
    middle = mean(values, values[0])
    return sum((value - values[0] - middle) ** 2 for value in values)


def _coarse(degrees: float) -> float:
    """Degrees of freedom to three digits, rounded down, so that one solution serves many comparisons."""
    step = 10.0 ** (math.floor(math.log10(degrees)) - 2)
    return math.floor(degrees / step + 1e-9) * step


@lru_cache(maxsize=4096)
def _upper_quantile(tail: float, degrees: float) -> float:
    return -float(special.stdtrit(degrees, tail))


@lru_cache(maxsize=4096)
def _noncentrality(alpha: float, degrees: float, power: float = POWER) -> float:
    """The noncentrality at which a t test at one-sided `alpha` has this power.

    Bisection: the distribution function falls as the noncentrality grows.
    """
    critical = _upper_quantile(alpha, degrees)
    low, high = 0.0, 2 * critical + 10
    for _ in range(60):
        middle = (low + high) / 2
        if special.nctdtr(degrees, middle, critical) > 1 - power:
            low = middle
        else:
            high = middle
    return high
