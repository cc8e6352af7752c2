"""Looking at a comparison while it is being measured, without raising its error rate.

Group-sequential boundaries after Lan and DeMets (1983): by the share `t` of the planned runs a part
of the error rate may have been spent, here `alpha t^3` (Kim and DeMets 1987). Early looks cost little
and only large changes end them; the form of O'Brien and Fleming is so stingy at the small error rates
of many metrics that no look but the last would ever end a measurement. The levels are those of a
comparison whose whole error is tonight's runs: what a baseline or a night adds to each look alike
makes looks more alike, which can only lower the probability of any false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_llmperf.errors import ConfigurationError

_POINTS = 201
_REACH = 8.0
"""Standard deviations beyond which nothing is integrated: 1e-15 of the mass."""
_ALPHAS = np.logspace(-12, math.log10(0.5), 30)


@dataclass(frozen=True, slots=True)
class Looks:
    """After how many runs a comparison is looked at, the last being all that may be spent."""

    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.runs or self.runs[0] < 1 or any(a >= b for a, b in zip(self.runs, self.runs[1:], strict=False)):
            raise ConfigurationError(f"looks have to come after more and more runs, got {self.runs}")

    def number(self, runs: int) -> int:
        """Which look it is after so many runs, from 0: the last one that they reach, or the first."""
        reached = [number for number, wanted in enumerate(self.runs) if wanted <= runs]
        return reached[-1] if reached else 0

    def level(self, runs: int, alpha: float) -> float:
        """The p-value that a look after so many runs may call significant, of an error rate `alpha` in all."""
        known = self._table(self.number(runs))
        return float(np.exp(np.interp(math.log(alpha), np.log(_ALPHAS), known)))

    def overall(self, runs: int, p: float) -> float:
        """The error rate in all at which this look's p-value would just be significant."""
        if p <= 0:
            return 0.0
        known = self._table(self.number(runs))
        if math.log(p) > known[-1]:
            return 1.0
        return float(np.exp(np.interp(math.log(p), known, np.log(_ALPHAS))))

    def _table(self, number: int) -> npt.NDArray[np.float64]:
        """Logarithms of one look's levels, for the error rates of `_ALPHAS`."""
        return _tables(self.runs)[:, number]


Spending = Callable[[float, float], float]
"""How much of an error rate may have been used by a share of the runs: `spending(share, alpha)`."""


def cubic(share: float, alpha: float) -> float:
    """Kim and DeMets' power family with exponent 3."""
    return alpha * share**3


def obrien_fleming(share: float, alpha: float) -> float:
    """Lan and DeMets' form of O'Brien and Fleming's boundary, one-sided; the one that tables are published of."""
    return float(2 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(share)))


def levels(fractions: Sequence[float], alpha: float, spending: Spending = cubic) -> tuple[float, ...]:
    """The one-sided p-value that each look may call significant; `fractions`: shares of the runs, the last 1.

    Solved look by look from the joint distribution of a sum with independent increments.
    """
    found = []
    spent, before = 0.0, 0.0
    points: npt.NDArray[np.float64] = np.zeros(1)
    mass: npt.NDArray[np.float64] = np.ones(1)
    for fraction in fractions:
        may = spending(fraction, alpha)
        step = math.sqrt(fraction - before)
        bound = _bound(points, mass, step, may - spent)
        found.append(float(special.ndtr(-bound / math.sqrt(fraction))))
        points, mass = _survivors(points, mass, step, bound, _REACH * math.sqrt(fraction))
        spent, before = may, fraction
    return tuple(found)


def _bound(points: npt.NDArray[np.float64], mass: npt.NDArray[np.float64], step: float, wanted: float) -> float:
    """Where the sum's upper tail, over all that went on so far, has the wanted probability."""
    low, high = -_REACH, 2 * _REACH
    for _ in range(80):
        middle = (low + high) / 2
        if float(mass @ special.ndtr((points - middle) / step)) > wanted:
            low = middle
        else:
            high = middle
    return high


def _survivors(
    points: npt.NDArray[np.float64], mass: npt.NDArray[np.float64], step: float, bound: float, reach: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The sum's distribution below the bound: points and their probabilities, by Simpson's rule."""
    grid = np.linspace(-reach, min(bound, reach), _POINTS)
    weights = np.ones(_POINTS)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    density = np.exp(-(((grid[:, None] - points) / step) ** 2) / 2) @ mass / (step * math.sqrt(2 * math.pi))
    return grid, density * weights * (grid[1] - grid[0]) / 3


@lru_cache(maxsize=64)
def _tables(runs: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Logarithms of levels, `[alpha, look]`."""
    fractions = [number / runs[-1] for number in runs]
    with np.errstate(divide="ignore"):
        found: npt.NDArray[np.float64] = np.log([levels(fractions, float(alpha)) for alpha in _ALPHAS])
    return np.maximum(found, -700.0)
