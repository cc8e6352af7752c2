"""The runs over time, and what was sampled beside them, as panels over one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmperf import units
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.reports.content import Section
from pytest_llmperf.reports.html.plots.axis import ABSENT, from_nothing, gaps, in_units, tick
from pytest_llmperf.reports.html.svg import BAD, MUTED, NOW, THIRD, Plot, Table, drawn
from pytest_llmperf.timeline import Course, Gauge, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAUSE = 0.02
"""Share of the axis that stands between two runs."""
_PANEL_IN = 1.25


def course(section: Section, name: str) -> Plot | None:
    """The runs over time, one after another; below them what was sampled in that time. None without records."""
    timeline = section.timeline
    if timeline is None or not timeline.courses:
        return None
    places = _places(timeline.courses)
    panels = [*_panels(timeline.courses, places), *_gauge_panels(timeline, places)]

    def draw(figure: Figure) -> None:
        all_axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
        for axes, panel in zip(all_axes, panels, strict=True):
            panel.draw(axes)
        _mark_runs(all_axes, timeline.courses, places)

    duration_s = sum(one.duration_s for one in timeline.courses)
    return drawn(
        draw,
        name=name,
        title="The runs over time",
        description=f"{units.count(timeline.requests, 'request')} in {units.count(len(timeline.courses), 'run')}, "
        f"{units.seconds(duration_s)} together; from above: {'; '.join(panel.title for panel in panels)}",
        height_in=0.5 + _PANEL_IN * len(panels),
        table=_course_table(timeline),
    )


def _places(courses: Sequence[Course]) -> list[float]:
    """Where each run begins on the common axis, seconds: what lies between runs is cut to a short pause."""
    pause = _PAUSE * sum(one.duration_s for one in courses)
    places, at = [], 0.0
    for one in courses:
        places.append(at)
        at += one.duration_s + pause
    return places


class _Panel:
    """One figure over time.

    `lines`: for each run the times and the values; with one time more than values these are the edges of bins.
    `is_filled`: whether what is below is an amount, so that it is tinted.
    """

    def __init__(
        self, title: str, unit: str, colour: str, lines: Sequence[tuple[Any, Any]], *, is_filled: bool = False
    ) -> None:
        self.title = title
        self._is_filled = is_filled
        self._unit, self._colour, self._lines = unit, colour, lines

    def draw(self, axes: Axes) -> None:
        for times, values in self._lines:
            if len(times) > len(values) and self._is_filled:
                faint = (self._colour, 0.22)
                axes.stairs(values, times, fill=True, facecolor=faint, edgecolor=self._colour, lw=0.7)
            elif len(times) > len(values):
                axes.stairs(values, times, color=self._colour, lw=1.5, baseline=None)
            else:
                axes.plot(times, values, color=self._colour, lw=1.0)
        axes.set_title(self.title, pad=2)
        axes.margins(x=0.01)
        from_nothing(axes)
        axes.grid(visible=False, axis="x")
        in_units(axes, self._unit)
        if not axes.dataLim.y1 > 0:
            axes.set_yticks([0])


def _panels(courses: Sequence[Course], places: Sequence[float]) -> Iterator[_Panel]:
    edges = [
        place + np.arange(one.bins + 1) * one.bin_ns / NS_PER_S for one, place in zip(courses, places, strict=True)
    ]
    yield _Panel(
        "requests under way", "", NOW, [(e, c.in_flight) for e, c in zip(edges, courses, strict=True)], is_filled=True
    )
    if all(one.tokens is not None for one in courses) and any(sum(one.tokens or ()) for one in courses):
        rates = [np.array(one.tokens) * NS_PER_S / one.bin_ns for one in courses]
        lines = list(zip(edges, rates, strict=True))
        yield _Panel("output tokens per second", units.TOKENS_PER_SECOND, THIRD, lines, is_filled=True)
    if any(value is not None for one in courses for value in one.ttft_p50_s):
        dots = [(e, gaps(c.ttft_p50_s)) for e, c in zip(edges, courses, strict=True)]
        yield _Panel("TTFT p50, when the first token arrived", units.SECONDS, NOW, dots)
    if any(any(one.failed) for one in courses):
        lines = [(e, np.array(c.failed)) for e, c in zip(edges, courses, strict=True)]
        yield _Panel("failed requests", "", BAD, lines, is_filled=True)


def _gauge_panels(timeline: Timeline, places: Sequence[float]) -> Iterator[_Panel]:
    """A panel for each label, with a line for everything that it was taken of."""
    by_label: dict[tuple[str, str], list[Gauge]] = {}
    for gauge in timeline.gauges:
        by_label.setdefault((gauge.label, gauge.unit), []).append(gauge)
    for (label, unit), gauges in by_label.items():
        of = " .. ".join(dict.fromkeys((gauges[0].of, gauges[-1].of)))
        lines = [line for gauge in gauges for line in _within_runs(gauge, timeline.courses, places)]
        yield _Panel(f"{label}, {of}", unit, MUTED, lines)


def _within_runs(gauge: Gauge, courses: Sequence[Course], places: Sequence[float]) -> Iterator[tuple[Any, Any]]:
    """What was sampled within each run, no denser than the run's bins."""
    at_ns, values = np.asarray(gauge.at_ns, np.int64), np.asarray(gauge.values, np.float64)
    for one, place in zip(courses, places, strict=True):
        inside = (at_ns >= one.start_ns) & (at_ns <= one.start_ns + one.bins * one.bin_ns)
        every = max(1, math.ceil(int(inside.sum()) / max(one.bins, 1)))
        times = place + (at_ns[inside] - one.start_ns) / NS_PER_S
        yield times[::every], values[inside][::every]


def _mark_runs(all_axes: Sequence[Axes], courses: Sequence[Course], places: Sequence[float]) -> None:
    """A line where a run begins, and its name below."""
    for axes in all_axes:
        for place in places[1:]:
            axes.axvline(place, color=MUTED, lw=0.6, linestyle=":")
    middles = [place + one.duration_s / 2 for place, one in zip(places, courses, strict=True)]
    short = len(courses) > 6
    labels = [str(c.run + 1) if short else f"run {c.run + 1}, {units.seconds(c.duration_s)}" for c in courses]
    all_axes[-1].set_xticks(middles, labels)
    all_axes[-1].tick_params(axis="x", length=0)
    if short:
        all_axes[-1].set_xlabel("run")


def _course_table(timeline: Timeline) -> Table:
    rows = []
    for one in timeline.courses:
        tokens = None if one.tokens is None else sum(one.tokens)
        rate = ABSENT if tokens is None else units.quantity(tokens / one.duration_s, units.TOKENS_PER_SECOND)
        counts = (sum(one.answered), sum(one.failed), max(one.in_flight, default=0))
        sampled = (_range(gauge, one) for gauge in timeline.gauges)
        rows.append((str(one.run + 1), units.seconds(one.duration_s), *map(str, counts), rate, *sampled))
    gauges = (f"{gauge.label}, {gauge.of}" for gauge in timeline.gauges)
    headings = ("run", "shown", "answered", "failed", "under way at most", "output in the time shown", *gauges)
    return Table(headings=headings, rows=tuple(rows))


def _range(gauge: Gauge, one: Course) -> str:
    """From the least to the most that was sampled within a run."""
    end_ns = one.start_ns + one.bins * one.bin_ns
    values = [v for at, v in zip(gauge.at_ns, gauge.values, strict=True) if one.start_ns <= at <= end_ns]
    return f"{tick(min(values), '')} .. {tick(max(values), gauge.unit)}" if values else ABSENT
