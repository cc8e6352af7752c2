"""Counts of durations in bins of constant relative width: bounded memory, however many are added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_SUB_BITS = 5
"""Each power of two is cut into 32 bins: a bin's width is at most 1/32 of its values, 3 %."""


@dataclass(slots=True)
class Histogram:
    """Durations in nanoseconds, whole and not negative; `bins` maps a bin's lower edge to its count.

    Each power of two is cut into 2^`sub_bits` bins; histograms that are merged agree in it.
    """

    bins: dict[int, int] = field(default_factory=dict)
    sub_bits: int = _SUB_BITS

    def add(self, value_ns: int) -> None:
        """Count one duration; what is negative counts as 0."""
        shift = value_ns.bit_length() - self.sub_bits - 1
        edge = max(0, value_ns if shift <= 0 else value_ns >> shift << shift)
        self.bins[edge] = self.bins.get(edge, 0) + 1

    def add_all(self, values_ns: npt.NDArray[np.int64]) -> None:
        """Count many at once; the same as `add` of each."""
        values = np.maximum(values_ns, 0)
        lengths = np.frexp(values.astype(np.float64))[1]  # exact below 2^53 ns, 104 days
        shifts = np.maximum(lengths.astype(np.int64) - self.sub_bits - 1, 0)
        edges, counts = np.unique(values >> shifts << shifts, return_counts=True)
        for edge, count in zip(edges.tolist(), counts.tolist(), strict=True):
            self.bins[edge] = self.bins.get(edge, 0) + count

    def merge(self, other: Histogram) -> None:
        """Add all that another one has counted."""
        for edge, count in other.bins.items():
            self.bins[edge] = self.bins.get(edge, 0) + count

    @property
    def count(self) -> int:
        return sum(self.bins.values())

    def percentile(self, share: float) -> int | None:
        """The upper edge of the bin that holds the given share of the values; None of nothing."""
        wanted, seen = share * self.count, 0
        for edge, count in self._sorted():
            seen += count
            if seen >= wanted:
                return edge + self._width(edge)
        return None

    def to_json(self) -> dict[str, int]:
        """Lower edge to count."""
        return {str(edge): count for edge, count in self._sorted()}

    @classmethod
    def from_json(cls, bins: Mapping[str, int]) -> Histogram:
        """Read back what `to_json` gave."""
        return cls({int(edge): count for edge, count in bins.items()})

    def _sorted(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self.bins.items()))

    def _width(self, edge: int) -> int:
        """From a bin's lower edge to its largest value."""
        return (1 << max(0, edge.bit_length() - self.sub_bits - 1)) - 1
