"""Throughput and TTFT over the load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmperf import units
from pytest_llmperf.reports.html.plots.axis import from_nothing, gaps, in_units, legend, quantity, seconds
from pytest_llmperf.reports.html.svg import INK, NOW, THIRD, Plot, Table, drawn
from pytest_llmperf.reports.sweeps import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sweep(found: Sweep, name: str) -> Plot:
    """Throughput and TTFT over the load, with the knee where one was seen."""
    loads = [point.load for point in found.points]
    knee = found.knee
    label = "offered load, req/s" if found.is_rate else found.parameter

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(loads, gaps([p.output_throughput for p in found.points]), color=THIRD, marker="o", markersize=4)
        left.set_title("output throughput")
        in_units(left, units.TOKENS_PER_SECOND)
        right.plot(loads, gaps([p.ttft_p50 for p in found.points]), color=NOW, marker="o", markersize=4, label="p50")
        right.plot(loads, gaps([p.ttft_p99 for p in found.points]), color=NOW, lw=0.8, alpha=0.6, label="p99")
        right.set_title("TTFT")
        legend(right, columns=2)
        in_units(right, units.SECONDS)
        for axes in (left, right):
            axes.set_xlabel(label)
            from_nothing(axes)
            if knee is not None:
                axes.axvline(loads[knee], color=INK, lw=1.0, linestyle="--")
        if knee is not None:
            left.annotate("knee", (loads[knee], 0), (4, 6), textcoords="offset points", fontsize=8)

    at = "no knee was seen" if knee is None else f"the knee is at {_load(found, knee)}"
    return drawn(
        draw,
        name=name,
        title=f"Throughput over {'the offered load' if found.is_rate else found.parameter}",
        description=f"{len(loads)} loads; {at}",
        height_in=2.5,
        table=_sweep_table(found, label),
    )


def _load(found: Sweep, place: int) -> str:
    load = found.points[place].load
    return units.quantity(load, units.REQUESTS_PER_SECOND) if found.is_rate else f"{load:g} {found.parameter}"


def _sweep_table(found: Sweep, label: str) -> Table:
    rows = [
        (
            f"{point.load:.4g}{' (knee)' if place == found.knee else ''}",
            quantity(point.output_throughput, units.TOKENS_PER_SECOND),
            quantity(point.request_throughput, units.REQUESTS_PER_SECOND),
            seconds(point.ttft_p50),
            seconds(point.ttft_p99),
        )
        for place, point in enumerate(found.points)
    ]
    headings = (label, "output throughput", "request throughput", "TTFT p50", "TTFT p99")
    return Table(headings=headings, rows=tuple(rows))
