"""What the plots share: axes in the package's units, and figures as the cells of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf import units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE_ROWS = 40
"""Of a plot with more points the table takes every n-th."""
ABSENT = "-"


def tick(value: float, unit: str) -> str:
    """A value on an axis: no more digits than it has, and nothing is nothing in any unit."""
    if value == 0:
        return "0"
    written = units.FORMATS[unit](value) if unit in units.FORMATS else f"{value:,.6g} {unit}".rstrip()
    digits, _, after = written.partition(" ")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits} {after}".rstrip()


def in_units(axes: Axes, unit: str) -> None:
    """A few ticks on the vertical axis, each with its unit; of a mere count only whole ones."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415 - an extra

    axes.yaxis.set_major_locator(MaxNLocator(4, integer=not unit))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, unit)))


def legend(axes: Axes, columns: int) -> None:
    """Beside the title, where nothing is drawn."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, borderaxespad=0.0, borderpad=0.2)


def from_nothing(axes: Axes) -> None:
    """From 0 to a little above the highest value."""
    axes.set_ylim(0, 1.12 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)


def gaps(values: Iterator[float | None] | Sequence[float | None]) -> list[float]:
    """Not measured is a gap in the line."""
    return [math.nan if value is None else value for value in values]


def seconds(value: float | None) -> str:
    """A duration in a cell."""
    return ABSENT if value is None else units.seconds(value)


def quantity(value: float | None, unit: str) -> str:
    """A value of one of the base units in a cell."""
    return ABSENT if value is None else units.quantity(value, unit)


def thinned(rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    """So many rows that a table can be read, evenly taken."""
    return rows[:: max(1, math.ceil(len(rows) / TABLE_ROWS))]
