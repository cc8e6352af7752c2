"""Published beside simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure. `published`: a number, or a range's two ends; `tolerance`: the share that it may be missed by."""

    what: str
    published: float | tuple[float, float]
    simulated: float
    tolerance: float = 0.0
    shown: Callable[[float], str] = "{:.3g}".format

    @property
    def deviation(self) -> float:
        """By what share the simulated figure lies beyond the published one, or beyond its range."""
        low, high = self._range
        if low <= self.simulated <= high:
            return 0.0
        near = low if self.simulated < low else high
        return self.simulated / near - 1

    @property
    def _range(self) -> tuple[float, float]:
        return self.published if isinstance(self.published, tuple) else (self.published, self.published)

    def cells(self) -> tuple[str, ...]:
        low, high = self._range
        published = self.shown(low) if low == high else f"{self.shown(low)} to {self.shown(high)}"
        if high == float("inf"):
            published = f"more than {self.shown(low)}"
        off = "in range" if not self.deviation and low != high else f"{round(100 * self.deviation):+d} %"
        allowed = "exactly" if not self.tolerance else f"{100 * self.tolerance:.0f} %"
        met = "yes" if abs(self.deviation) <= self.tolerance + 1e-9 else "**no**"
        return self.what, published, self.shown(self.simulated), off, allowed, met


HEADER = ("figure", "published", "simulated", "deviation", "allowed", "met")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def comparison(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    return table(HEADER, [row.cells() for row in rows])
