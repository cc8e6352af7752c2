"""A sample and its statistics, of all runs together and of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pytest_llmperf.errors import NoSamplesError


class Statistic(float):
    """A figure over all runs that still knows what each run gives: `runs`."""

    def __new__(cls, value: float, runs: Callable[[], Sequence[float]]) -> Statistic:
        made = super().__new__(cls, value)
        made._runs = runs
        return made

    _runs: Callable[[], Sequence[float]]

    @property
    def runs(self) -> tuple[float, ...]:
        """The same figure of each run by itself, in their order."""
        return tuple(self._runs())


@dataclass(frozen=True, repr=False)
class Sample:
    """Some measurements of one quantity; asking a statistic of none is an error."""

    values: tuple[float, ...]
    of: str
    """What was measured, for the error message."""
    by_run: Callable[[], Sequence[Sample]] | None = field(default=None, compare=False)
    """The same of each run by itself, where that is known."""

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
        return self._statistic(float(np.mean(self._array)), lambda run: run.mean)

    @property
    def gmean(self) -> float:
        """The geometric mean; 0 if a value is 0.

        Where every run sends the same requests, the workload's own spread cancels out of it, which a
        median keeps part of: from run to run it is the least noisy of these statistics.
        """
        with np.errstate(divide="ignore"):
            return self._statistic(float(np.exp(np.log(self._array).mean())), lambda run: run.gmean)

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
        return self._statistic(float(np.quantile(self._array, share)), lambda run: run.quantile(share))

    def _statistic(self, value: float, of: Callable[[Sample], float]) -> float:
        by_run = self.by_run
        return value if by_run is None else Statistic(value, lambda: [of(run) for run in by_run()])

    @cached_property
    def _array(self) -> np.ndarray:
        if not self.values:
            raise NoSamplesError(f"no {self.of} was measured")
        return np.asarray(self.values, np.float64)
