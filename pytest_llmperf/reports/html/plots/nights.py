"""The stored nights of the gated metrics, and the steps in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_llmperf import units
from pytest_llmperf.history import Series
from pytest_llmperf.reports.content import Section, typical
from pytest_llmperf.reports.html.plots.axis import TABLE_ROWS, in_units
from pytest_llmperf.reports.html.svg import BAD, BEFORE, NOW, Plot, Table, drawn
from pytest_llmperf.reports.past import steps_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def nights(section: Section, name: str) -> Plot | None:
    """The stored nights of each gated metric, the steps in them, and this measurement; None of a single night."""
    shown = [series for series in section.series if len(series.nights) > 1]
    if not shown:
        return None
    now = {quantity.name: typical(values) for quantity, values in section.values.items() if values}

    def draw(figure: Figure) -> None:
        columns = min(3, len(shown))
        for place, series in enumerate(shown):
            axes = figure.add_subplot(math.ceil(len(shown) / columns), columns, place + 1)
            _series(axes, series, now.get(series.quantity.name))

    steps = units.count(sum(len(steps_of(series)) for series in shown), "step")
    return drawn(
        draw,
        name=name,
        title="Stored nights",
        description=f"{len(shown[0].nights)} nights; {steps} in {units.count(len(shown), 'metric')}. "
        "Dots are nights, lines their level, dotted where it steps; the diamond is this measurement.",
        height_in=1.9 * math.ceil(len(shown) / 3),
        gap=0.45,
        table=_nights_table(shown),
    )


def _series(axes: Axes, series: Series, now: float | None) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an extra

    values = [series.value(level) for level in series.levels]
    axes.plot(range(1, len(values) + 1), values, "o", color=BEFORE, markersize=2.5)
    steps = steps_of(series)
    for step in steps:
        axes.axvline(step.at + 0.5, color=BAD if step.is_worse else NOW, lw=0.9, linestyle=":")
    edges = [0, *(step.at for step in steps), len(values)]
    levels = [steps[0].before, *(step.after for step in steps)] if steps else [math.fsum(series.levels) / len(values)]
    for start, end, level in zip(edges[:-1], edges[1:], levels, strict=True):
        axes.plot([start + 1, end], [series.value(level)] * 2, color=BEFORE, lw=1.2)
    if now is not None:
        axes.plot([len(values) + 1], [now], "D", color=NOW, markersize=4.5)
    axes.set_title(series.quantity.name)
    shown = values if now is None else [*values, now]
    low, high = min(shown), max(shown)
    margin = max(0.1 * high, high - low) / 2 or 1.0
    axes.set_ylim(max(0.0, low - margin), high + margin)
    axes.set_xlim(0.5, len(values) + 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("night")
    in_units(axes, series.quantity.unit)


def _nights_table(shown: Sequence[Series]) -> Table:
    rows = []
    for series in shown:
        starts = {step.at: units.change(series.change(step)) for step in steps_of(series)}
        for place, night in list(enumerate(series.nights))[-TABLE_ROWS:]:
            level = units.quantity(series.value(night.level), series.quantity.unit)
            rows.append((series.quantity.name, night.path.name, level, starts.get(place, "")))
    return Table(headings=("metric", "night", "level", "step"), rows=tuple(rows))
