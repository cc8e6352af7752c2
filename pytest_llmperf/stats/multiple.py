"""Many comparisons at once: Holm's step-down rule (1979)."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Ranking(Generic[Name]):
    """P-values in order, kept so while they come and go: looking costs no more than what is rejected.

    Names have an order among themselves, which decides between equal p-values.
    """

    def __init__(self) -> None:
        self._ranked: list[tuple[float, Any]] = []
        self._p_values: dict[Name, float] = {}

    def __len__(self) -> int:
        return len(self._ranked)

    def add(self, name: Name, p: float) -> None:
        """Enter a p-value; one that the name had before is replaced."""
        self.discard(name)
        self._p_values[name] = p
        bisect.insort(self._ranked, (p, name))

    def discard(self, name: Name) -> None:
        """Forget a name; harmless for one that is not there."""
        if name in self._p_values:
            del self._ranked[bisect.bisect_left(self._ranked, (self._p_values.pop(name), name))]

    def rejected(self, family_size: int, alpha: float) -> Iterator[Name]:
        """The hypotheses that Holm's step-down rejects at family-wise level `alpha`.

        `family_size` may exceed the number of p-values: what is not known yet counts as not rejected,
        so that a later p-value can only add to the rejections, never take one back.
        """
        for rank, (p, name) in enumerate(self._ranked):
            if p > alpha / max(1, family_size - rank):
                return
            yield name


def holm(p_values: Mapping[Name, float], family_size: int, alpha: float) -> set[Name]:
    """What `Ranking.rejected` gives for p-values that are all known."""
    ranking: Ranking[Name] = Ranking()
    for name, p in p_values.items():
        ranking.add(name, p)
    return set(ranking.rejected(family_size, alpha))
