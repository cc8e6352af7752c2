"""Tonight against stored nights: how much nights differ, and what that leaves to be seen.

A night is one session on one machine. Runs of a night share what that night was like: the node,
the driver, the neighbours. So tonight's mean differs from the mean of `H` stored nights by chance
with the variance

    nights * (1 + 1/H)  +  runs * (1/R + a/H),      a = mean over the stored nights of 1/(their runs)

where `nights` is the variance between nights, `runs` that between the runs of one night, and `R`
tonight's number of runs. The variance between nights is estimated from the stored nights alone, and
it is shared by all tests of one metric: what makes a night slow seldom does so to one test only. A
single test's own estimate has `H - 1` degrees of freedom, which is what makes comparing with few
nights so blind; sharing it over `m` tests gives up to `m` times as many, fewer the more the tests
rise and fall together. `docs/gate.md` has the error and power of this rule, by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pytest_llmperf.errors import NoSamplesError
from pytest_llmperf.stats.comparison import Comparison, mean, pooled_t, squares

KNOWN_NIGHTS = 6
"""Stored nights from which the spread between nights is estimated; with 3 the error rate was up to 5 times too high."""
_MANY = 1e6
"""Degrees of freedom where nothing is uncertain."""
_ALIKE = 0.3
"""Correlation between tests' runs of one night, where nights do not differ: common causes within a session."""
_FEW = 4.0
"""Independent tests that a shared estimate counts for at least, however much its tests rise and fall together.

Where they do, the correction for many tests errs on the safe side by more than this does on the other.
"""


@dataclass(frozen=True)
class History:
    """The runs of some stored nights of one metric of one measurement, logarithms, newest night first."""

    nights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.nights or not all(self.nights):
            raise NoSamplesError("a history needs at least one night, and each night at least one run")

    @property
    def count(self) -> int:
        """How many nights."""
        return len(self.nights)

    @cached_property
    def runs(self) -> tuple[float, ...]:
        """All runs, whichever night they are of."""
        return tuple(run for night in self.nights for run in night)

    @cached_property
    def _means(self) -> tuple[float, ...]:
        origin = self.nights[0][0]
        return tuple(origin + mean(night, origin) for night in self.nights)

    @property
    def level(self) -> float:
        """The mean of the nights' means."""
        return self._means[0] + mean(self._means, self._means[0])

    @cached_property
    def between(self) -> float:
        """The variance of the nights' means, which holds `a` times that of the runs."""
        return squares(self._means) / (self.count - 1)

    @property
    def within_degrees(self) -> int:
        return len(self.runs) - self.count

    @cached_property
    def within_squares(self) -> float:
        """Squared distances of the runs from their night's mean."""
        return sum(map(squares, self.nights))

    @cached_property
    def shares(self) -> float:
        """`a`: the mean over the nights of 1/(their runs)."""
        return sum(1 / len(night) for night in self.nights) / self.count


@dataclass(frozen=True, slots=True)
class NightSpread:
    """The variance between nights of a log run statistic."""

    variance: float
    degrees: float = _MANY
    """Of freedom of `variance` together with what the runs add to it; without meaning where it is assumed."""
    nights: int = 0
    """How many nights it was estimated from; 0: it is assumed."""

    @property
    def deviation(self) -> float:
        return math.sqrt(self.variance)


def assumed(deviation: float) -> NightSpread:
    """The spread that is taken where too few nights are stored to know it."""
    return NightSpread(deviation**2)


def shared_spread(histories: Sequence[History]) -> NightSpread | None:
    """The spread between nights of one metric, from all tests that have stored it often enough.

    None with fewer than `KNOWN_NIGHTS` nights everywhere, or where no night has two runs: then its
    runs' own spread cannot be told apart from it.
    """
    known = [history for history in histories if history.count >= KNOWN_NIGHTS and history.within_degrees > 0]
    if not known:
        return None
    tests = len(known)
    runs = [history.shares * history.within_squares / history.within_degrees for history in known]
    own = sum(runs) / tests
    variance = max(0.0, sum(h.between for h in known) / tests - own)
    degrees = sum(history.count - 1 for history in known) / tests
    return NightSpread(variance, degrees * _independent(tests, variance, own), min(h.count for h in known))


def _independent(tests: int, nights: float, runs: float) -> float:
    """For how many independent tests a shared estimate counts.

    With correlation `r` between any two, the mean of `m` variances is as certain as that of
    `m / (1 + (m - 1) r^2)` independent ones. What differs between nights is taken to be common to all.
    """
    total = nights + runs
    alike = (nights + _ALIKE * runs) / total if total else 1.0
    return min(tests, max(min(_FEW, math.sqrt(tests)), tests / (1 + (tests - 1) * alike**2)))


def against_nights(history: History, new: Sequence[float], spread: NightSpread) -> Comparison:
    """Compare tonight's runs with stored nights, given how much nights differ.

    Where they do not, this is the pooled t test over all runs. Raises `NoSamplesError` if neither
    side has two runs in one night, or tonight has no run.
    """
    if spread.variance == 0 and min(len(history.runs), len(new)) >= 2:
        comparison = pooled_t(history.runs, new)
        return comparison if history.count == 1 else _settled(comparison, history)
    degrees = history.within_degrees + len(new) - 1
    if not new or degrees < 1:
        raise NoSamplesError(f"a comparison needs at least 2 runs in one night, got {len(new)} tonight")
    runs = (history.within_squares + squares(new)) / degrees
    weight = 1 / len(new) + history.shares / history.count
    nights = spread.variance * (1 + 1 / history.count)
    variance = nights + runs * weight
    origin = history.runs[0]
    return Comparison(
        base_count=len(history.runs),
        new_count=len(new),
        effect=mean(new, origin) - (history.level - origin),
        standard_error=math.sqrt(variance),
        degrees=_degrees(variance, (_estimated(spread, history, runs), spread.degrees), (runs * weight, degrees)),
        run_variance=runs,
        floor=nights + runs * history.shares / history.count,
    )


def _settled(comparison: Comparison, history: History) -> Comparison:
    """A pooled comparison with nights that are over: only tonight can be run again."""
    return replace(comparison, floor=comparison.run_variance / len(history.runs))


def _estimated(spread: NightSpread, history: History, runs: float) -> float:
    """What of the effect's variance rests on the estimate of the spread: nights' means hold some of their runs."""
    if spread.nights == 0:
        return 0.0
    return (1 + 1 / history.count) * (spread.variance + history.shares * runs)


def _degrees(variance: float, *parts: tuple[float, float]) -> float:
    """Satterthwaite: degrees of freedom of a sum of estimated variances."""
    uncertain = sum(part**2 / degrees for part, degrees in parts)
    return variance**2 / uncertain if uncertain else _MANY
