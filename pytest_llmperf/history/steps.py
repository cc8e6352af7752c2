"""Where the level of a series steps.

Levels are logarithms, one per night, oldest first; up is worse. The steps are those of the
segmentation that minimises

    the squared distances of the nights from their segment's mean  +  6 s^2 ln(n)  for each step,

n being the number of nights and s the noise from night to night. PELT (Killick, Fearnhead, Eckley,
JASA 2012) finds it exactly; `ruptures` computes it. docs/history.md has the rates of false and of
missed steps, by simulation (`benchmarks/history/rates.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pytest_llmperf.errors import ConfigurationError

FEWEST_NIGHTS = 5
"""Below this there is nothing to tell a step from noise by."""
SEGMENT = 2
"""Nights that a level must hold: one slow night is an accident."""
_PENALTY = 6.0
"""Of one step, in units of s^2 ln(n). On series of 30 healthy nights 2 raises alarms in 10 %, 4 in 1.3, 6 in 0.2 %."""
_FEW = 4.0
"""The noise is raised by the share `_FEW`/n: the median of few differences is often far too small."""
_FINEST = 0.0005
"""Noise is taken to be at least this, so that the last digit of simulated nights, which are all equal, is no step."""
_NORMAL = 1.4826
"""From the median of absolute values to the standard deviation."""


@dataclass(frozen=True, slots=True)
class Step:
    """The level went from one to another."""

    at: int
    """The first night of the new level, counted from 0; the last one of the old is the night before."""
    before: float
    after: float
    undone_at: int | None = None
    """The first night of a later level that lies more than half of the way back; None: none does."""

    @property
    def is_worse(self) -> bool:
        return self.after > self.before


def noise(levels: Sequence[float]) -> float:
    """Standard deviation from night to night, of at least three nights: from the median of their differences.

    Differences, because a step spoils one of them and not the rest.
    """
    differences = np.abs(np.diff(np.asarray(levels, dtype=np.float64)))
    spread = _NORMAL * float(np.median(differences)) / math.sqrt(2)
    return max(_FINEST, spread * (1 + _FEW / len(levels)))


def steps_in(levels: Sequence[float]) -> tuple[Step, ...]:
    """The steps, oldest first; none of fewer than `FEWEST_NIGHTS`.

    Raises `ConfigurationError` where ruptures is not installed.
    """
    if len(levels) < FEWEST_NIGHTS:
        return ()
    edges = [0, *_cuts(levels), len(levels)]
    segments = [math.fsum(levels[start:end]) / (end - start) for start, end in pairwise(edges)]
    return tuple(
        Step(edges[index], segments[index - 1], segments[index], _undone_at(index, edges, segments))
        for index in range(1, len(segments))
    )


def _cuts(levels: Sequence[float]) -> list[int]:
    values = np.asarray(levels, dtype=np.float64)
    scaled = ((values - np.median(values)) / noise(levels)).reshape(-1, 1)
    # The cost of the linear kernel is the squared distance; Pelt(model="l2") gives the same, a hundred times slower.
    search = _ruptures().KernelCPD(kernel="linear", min_size=SEGMENT).fit(scaled)
    *found, _end = search.predict(pen=_PENALTY * math.log(len(levels)))
    return [int(cut) for cut in found]


def _ruptures() -> Any:
    try:
        import ruptures  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            "finding steps needs the ruptures library: pip install 'pytest-llmperf[history]'; it has no release for "
            "Python 3.14, where an older Python may read the same files"
        ) from None
    return ruptures


def _undone_at(index: int, edges: Sequence[int], segments: Sequence[float]) -> int | None:
    before, after = segments[index - 1], segments[index]
    later = range(index + 1, len(segments))
    return next((edges[k] for k in later if (segments[k] - before) / (after - before) < 0.5), None)
