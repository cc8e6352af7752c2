"""Pure statistics: a sample to a summary, two samples to a comparison, p-values to decisions.

Values to be compared are logarithms of run statistics, turned so that up is worse; an effect `d`
is reported as `exp(d) - 1`. The formulas are those of the two-sample t test with pooled variance
and of Holm (1979); the smallest detectable effect follows from the noncentral t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from scipy import special

from pytest_llmperf.errors import NoSamplesError

POWER = 0.8
"""Probability with which a change of the smallest detectable size is found."""

Name = TypeVar("Name", bound=Hashable)

MANY_RUNS = 200
"""More runs than this are not proposed: lowering the noise is cheaper."""


@dataclass(frozen=True, repr=False)
class Sample:
    """Some measurements of one quantity; asking a statistic of none is an error."""

    values: tuple[float, ...]
    of: str
    """What was measured, for the error message."""

    def __repr__(self) -> str:
        """Short, as it stands in the message of every assertion on a result."""
        if not self.values:
            return f"<{self.of}: not measured>"
        return f"<{self.of}: {self.count} values, mean {self.mean:.4g}, p50 {self.p50:.4g}, p99 {self.p99:.4g}>"

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(self._array))

    @property
    def p50(self) -> float:
        return self.quantile(0.50)

    @property
    def p90(self) -> float:
        return self.quantile(0.90)

    @property
    def p95(self) -> float:
        return self.quantile(0.95)

    @property
    def p99(self) -> float:
        return self.quantile(0.99)

    def quantile(self, share: float) -> float:
        """Linear interpolation between order statistics. Raises `NoSamplesError` of no values."""
        return float(np.quantile(self._array, share))

    @cached_property
    def _array(self) -> np.ndarray:
        if not self.values:
            raise NoSamplesError(f"no {self.of} was measured")
        return np.asarray(self.values, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two samples of log run statistics, compared; up is worse.

    `effect`: mean of the new minus mean of the base. `standard_error` is 0 where all values of both
    arms are equal to their means: then p is 0 or 1 and nothing is estimated.
    """

    base_count: int
    new_count: int
    effect: float
    standard_error: float
    degrees: int

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

    def detectable(self, alpha: float) -> float:
        """The effect that a one-sided test at `alpha` finds with probability `POWER`."""
        return self.standard_error * _noncentrality(alpha, self.degrees)

    def runs_to_detect(self, effect: float, alpha: float) -> int | None:
        """Runs on each side that would find `effect`, the spread being as seen; None beyond `MANY_RUNS`."""
        spread = self.standard_error / math.sqrt(1 / self.base_count + 1 / self.new_count)
        for runs in range(2, MANY_RUNS + 1):
            if spread * math.sqrt(2 / runs) * _noncentrality(alpha, 2 * runs - 2) <= effect:
                return runs
        return None


def pooled_t(base: Sequence[float], new: Sequence[float]) -> Comparison:
    """Compare two samples with one variance for both.

    Raises `NoSamplesError` unless each has at least two values: one has no spread.
    """
    n, m = len(base), len(new)
    if min(n, m) < 2:
        raise NoSamplesError(f"a comparison needs at least 2 runs on each side, got {n} and {m}")
    degrees = n + m - 2
    # Means of equal values differ in their last bit for different counts; measured from one of the
    # values they are exact, so that equal runs have no effect and no spread.
    origin = base[0]
    base, new = [value - origin for value in base], [value - origin for value in new]
    variance = ((n - 1) * float(np.var(base, ddof=1)) + (m - 1) * float(np.var(new, ddof=1))) / degrees
    return Comparison(
        base_count=n,
        new_count=m,
        effect=float(np.mean(new)) - float(np.mean(base)),
        standard_error=math.sqrt(variance * (1 / n + 1 / m)),
        degrees=degrees,
    )


def holm(p_values: Mapping[Name, float], family_size: int, alpha: float) -> set[Name]:
    """The hypotheses that Holm's step-down rejects at family-wise level `alpha`.

    `family_size` may exceed the number of p-values: what is not known yet counts as not rejected,
    so that a later p-value can only add to the rejections, never take one back.
    """
    rejected: set[Name] = set()
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > alpha / max(1, family_size - rank):
            break
        rejected.add(name)
    return rejected


def _upper_quantile(tail: float, degrees: int) -> float:
    return -float(special.stdtrit(degrees, tail))


def _noncentrality(alpha: float, degrees: int) -> float:
    """The noncentrality at which a t test at one-sided `alpha` has the power `POWER`.

    Bisection: the distribution function falls as the noncentrality grows.
    """
    critical = _upper_quantile(alpha, degrees)
    low, high = 0.0, 2 * critical + 10
    for _ in range(60):
        middle = (low + high) / 2
        if special.nctdtr(degrees, middle, critical) > 1 - POWER:
            low = middle
        else:
            high = middle
    return high
