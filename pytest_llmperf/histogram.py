"""Counts of durations in bins of constant relative width: bounded memory, however many are added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_SUB_BITS = 5
"""Each power of two is cut into 32 bins: a bin's width is at most 1/32 of its values, 3 %."""


@dataclass(slots=True)
class Histogram:
    """Durations in nanoseconds, whole and not negative; `bins` maps a bin's lower edge to its count."""

    bins: dict[int, int] = field(default_factory=dict)

    def add(self, value_ns: int) -> None:
        """Count one duration; what is negative counts as 0."""
        shift = value_ns.bit_length() - _SUB_BITS - 1
        edge = max(0, value_ns if shift <= 0 else value_ns >> shift << shift)
        self.bins[edge] = self.bins.get(edge, 0) + 1

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
                return edge + _width(edge)
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


def _width(edge: int) -> int:
    """From a bin's lower edge to its largest value."""
    return (1 << max(0, edge.bit_length() - _SUB_BITS - 1)) - 1
