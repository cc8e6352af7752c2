"""The plots of the report. Each draws what its arguments hold and computes no figure that a reader would quote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmperf import units
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.history import Series
from pytest_llmperf.metrics import LABELS
from pytest_llmperf.reports.content import Section, items, number
from pytest_llmperf.reports.html.svg import BAD, BEFORE, MUTED, NOW, THIRD, Plot, Table, drawn
from pytest_llmperf.reports.past import steps_of
from pytest_llmperf.reports.sweeps import Sweep
from pytest_llmperf.timeline import Course, Gauge, Round, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_TICKS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}
_CURVE_POINTS = 60
_DECADES = 15.0
"""From the quickest to the slowest beyond this, a linear axis shows but the slowest."""
_TABLE_ROWS = 40
"""Of a plot with more points the table takes every n-th."""
_ROUNDS = 60
_PAUSE = 0.02
"""Share of the axis that stands between two runs."""
_PANEL_IN = 1.25
_ABSENT = "-"


def distributions(section: Section, name: str) -> Plot | None:
    """TTFT and ITL by the share of requests that were at most as slow; None where neither was measured."""
    shown = [one for one in (section.ttft, "itl") if section.number(one, "p50") is not None or _histogram(section, one)]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        for place, one in enumerate(shown):
            _distribution(figure.add_subplot(1, len(shown), place + 1), section, one, is_first=not place)

    labels = " and ".join(LABELS[one] for one in shown)
    against = f", against {section.before.name}" if section.before is not None else ""
    return drawn(
        draw,
        name=name,
        title=f"{labels}: distribution{against}",
        description=_medians(section, shown),
        height_in=2.5,
        table=_levels_table(section, shown),
    )


def _histogram(section: Section, name: str) -> Histogram | None:
    return None if section.timeline is None else section.timeline.distributions.get(name)


def _medians(section: Section, names: Sequence[str]) -> str:
    parts = []
    for name in names:
        now, before = section.number(name, "p50"), _before(section, name, "p50")
        if now is not None:
            was = "" if before is None else f", baseline {units.seconds(before)}"
            parts.append(f"{LABELS[name]} p50 {units.seconds(now)}{was}")
    return "; ".join(parts)


def _before(section: Section, *path: str) -> float | None:
    return None if section.before is None else number(section.before.figures, *path)


def _distribution(axes: Axes, section: Section, name: str, *, is_first: bool) -> None:
    curve = _histogram(section, name)
    if curve is not None:
        shares = 1 - np.logspace(0, -min(4.0, math.log10(max(curve.count, 10))), _CURVE_POINTS)
        # The first token of a chunk of several shows gaps of nothing, which a logarithm cannot show.
        points = [(value, share) for share in shares if (value := (curve.percentile(float(share)) or 0) / NS_PER_S) > 0]
        axes.plot([x for x, _ in points], [_nines(y) for _, y in points], color=NOW)
    _marks(axes, section.figures, name, {"color": NOW, "marker": "o", "label": "now"}, joined=curve is None)
    if section.before is not None:
        style = {"color": BEFORE, "marker": "D", "markerfacecolor": "none", "label": "baseline"}
        _marks(axes, section.before.figures, name, style, joined=True)
    _wide_enough(axes, section.number(name, "p50"))
    _logarithmic(axes)
    axes.set_title(LABELS[name])
    axes.set_yticks([_nines(share) for share in _TICKS.values()], list(_TICKS))
    axes.set_ylim(0, max(2.3, 1.05 * axes.dataLim.y1))
    if is_first:
        axes.legend(loc="upper left")


def _marks(axes: Axes, figures: Mapping[str, Any], name: str, style: Mapping[str, Any], *, joined: bool) -> None:
    """The stored percentiles; across each, how far it went from run to run."""
    known = {level: value for level in _LEVELS if (value := number(figures, name, level)) is not None and value > 0}
    heights = [_nines(_LEVELS[level]) for level in known]
    axes.plot(list(known.values()), heights, markersize=4.5, linestyle="--" if joined else "none", lw=1.0, **style)
    for level, height in zip(known, heights, strict=True):
        runs = [value for run in items(figures, "runs") if (value := number(run, f"{name}_{level}")) is not None]
        if len(runs) > 1:
            axes.plot([min(runs), max(runs)], [height, height], color=style["color"], lw=3.0, alpha=0.35)


def _wide_enough(axes: Axes, middle: float | None) -> None:
    """At least 10 % to either side, so that a narrow distribution looks narrow."""
    if middle is not None:
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.9 * middle), max(high, 1.1 * middle))


def _nines(share: float) -> float:
    """0 for none, 1 for 90 %, 2 for 99 %: the slow requests are what matters."""
    return -math.log10(max(1 - share, 1e-6))


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: PLC0415 - an extra

    low, high = axes.dataLim.x0, axes.dataLim.x1
    if low > 0 and high / low > _DECADES:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(low / 1.2, high * 1.2)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, units.SECONDS)))


def _tick(value: float, unit: str) -> str:
    """A value on an axis: no more digits than it has."""
    written = units.FORMATS[unit](value) if unit in units.FORMATS else f"{value:,.6g} {unit}".rstrip()
    digits, _, after = written.partition(" ")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits} {after}".rstrip()


def _levels_table(section: Section, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        for level in _LEVELS:
            now, before = section.number(name, level), _before(section, name, level)
            if now is not None or before is not None:
                rows.append((f"{LABELS[name]} {level}", _seconds(before), _seconds(now)))
    return Table(headings=("statistic", "baseline", "now"), rows=tuple(rows))


def _seconds(value: float | None) -> str:
    return _ABSENT if value is None else units.seconds(value)


def rounds(section: Section, name: str) -> Plot | None:
    """TTFT by round, and where the prompts of each came from; None of a single round."""
    now = [(number(one, "ttft", "p50"), number(one, "ttft", "p99")) for one in items(section.figures, "by_round")]
    if len(now) < 2 or not any(p50 is not None for p50, _ in now):
        return None
    stored = items(section.before.figures, "by_round") if section.before is not None else []
    before = [number(one, "ttft", "p50") for one in stored][: len(now)]
    sources = _sources(section.timeline)

    def draw(figure: Figure) -> None:
        if sources:
            above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
            _cache_bars(below, sources)
        else:
            above = below = figure.add_subplot()
        _rounds_lines(above, now, before)
        below.set_xlabel("round")

    return drawn(
        draw,
        name=name,
        title="TTFT by round" + (", with where the prompts came from" if sources else ""),
        description=f"TTFT p50 {_seconds(now[0][0])} at first, {_seconds(now[-1][0])} in the last of {len(now)} rounds",
        height_in=3.0 if sources else 2.3,
        table=_rounds_table(now, before, sources),
    )


def _sources(timeline: Timeline | None) -> dict[int, float]:
    """By round counted from 1, the share of the prompt tokens that a cache held; empty where it is not known."""
    found: Sequence[Round] = () if timeline is None else timeline.rounds
    shares = {
        r.turn + 1: r.cached_tokens / r.prompt_tokens for r in found if r.prompt_tokens and r.cached_tokens is not None
    }
    return shares if len(shares) == len(found) else {}


def _rounds_lines(axes: Axes, now: Sequence[tuple[float | None, float | None]], before: Sequence[float | None]) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an extra

    places = range(1, len(now) + 1)
    size = 3.5 if len(now) <= _ROUNDS else 0.0
    axes.plot(places, _gaps(p99 for _, p99 in now), color=NOW, lw=0.8, alpha=0.5, label="p99 now")
    axes.plot(places, _gaps(p50 for p50, _ in now), color=NOW, marker="o", markersize=size, label="p50 now")
    if any(value is not None for value in before):
        axes.plot(
            range(1, len(before) + 1), _gaps(before), color=BEFORE, marker="D", markersize=size, lw=1.0, linestyle="--",
            markerfacecolor="none", label="p50 baseline",
        )  # fmt: skip
    _from_nothing(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _in_units(axes, units.SECONDS)
    axes.set_title("TTFT")
    axes.legend(loc="best", ncols=3)


def _from_nothing(axes: Axes) -> None:
    """From 0 to a little above the highest value."""
    axes.set_ylim(0, 1.12 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)


def _cache_bars(axes: Axes, shares: Mapping[int, float]) -> None:
    every = max(1, math.ceil(len(shares) / _ROUNDS))
    places = list(shares)[::every]
    cached = [shares[place] for place in places]
    axes.bar(places, cached, color=THIRD, width=0.8 * every, label="from a cache")
    axes.bar(places, [1 - one for one in cached], bottom=cached, color=MUTED, width=0.8 * every, label="computed")
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.set_title("prompt tokens", pad=2)
    axes.legend(loc="lower left", bbox_to_anchor=(0.25, 0.98), ncols=2, borderaxespad=0.0)


def _rounds_table(
    now: Sequence[tuple[float | None, float | None]], before: Sequence[float | None], sources: Mapping[int, float]
) -> Table:
    rows = [
        (
            str(place),
            _seconds(before[place - 1] if place <= len(before) else None),
            _seconds(p50),
            _seconds(p99),
            units.share(sources[place]) if place in sources else _ABSENT,
        )
        for place, (p50, p99) in enumerate(now, start=1)
    ]
    return Table(headings=("round", "p50 baseline", "p50 now", "p99 now", "from a cache"), rows=tuple(_thinned(rows)))


def _thinned(rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    return rows[:: max(1, math.ceil(len(rows) / _TABLE_ROWS))]


def _gaps(values: Iterator[float | None] | Sequence[float | None]) -> list[float]:
    """Not measured is a gap in the line."""
    return [math.nan if value is None else value for value in values]


def _in_units(axes: Axes, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415 - an extra

    axes.yaxis.set_major_locator(MaxNLocator(4, integer=not unit))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))


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
        f"{units.seconds(duration_s)} together; panels: {', '.join(panel.title for panel in panels)}",
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
    """

    def __init__(self, title: str, unit: str, colour: str, lines: Sequence[tuple[Any, Any]]) -> None:
        self.title = title
        self._unit, self._colour, self._lines = unit, colour, lines

    def draw(self, axes: Axes) -> None:
        for times, values in self._lines:
            if len(times) > len(values):
                axes.stairs(values, times, color=self._colour, lw=1.2, baseline=None)
            else:
                axes.plot(times, values, color=self._colour, lw=1.0)
        axes.set_title(self.title, pad=2)
        axes.margins(x=0.01)
        _from_nothing(axes)
        axes.grid(visible=False, axis="x")
        _in_units(axes, self._unit)


def _panels(courses: Sequence[Course], places: Sequence[float]) -> Iterator[_Panel]:
    edges = [
        place + np.arange(one.bins + 1) * one.bin_ns / NS_PER_S for one, place in zip(courses, places, strict=True)
    ]
    yield _Panel("requests under way", "", NOW, [(e, c.in_flight) for e, c in zip(edges, courses, strict=True)])
    if all(one.tokens is not None for one in courses):
        rates = [np.array(one.tokens) * NS_PER_S / one.bin_ns for one in courses]
        lines = list(zip(edges, rates, strict=True))
        yield _Panel("output tokens per second", units.TOKENS_PER_SECOND, THIRD, lines)
    if any(value is not None for one in courses for value in one.ttft_p50_s):
        dots = [(e, _gaps(c.ttft_p50_s)) for e, c in zip(edges, courses, strict=True)]
        yield _Panel("TTFT p50 of what began to arrive", units.SECONDS, NOW, dots)
    if any(any(one.failed) for one in courses):
        lines = [(e, np.array(c.failed)) for e, c in zip(edges, courses, strict=True)]
        yield _Panel("failed requests", "", BAD, lines)


def _gauge_panels(timeline: Timeline, places: Sequence[float]) -> Iterator[_Panel]:
    """A panel for each label, with a line for everything that it was taken of."""
    by_label: dict[tuple[str, str], list[Gauge]] = {}
    for gauge in timeline.gauges:
        by_label.setdefault((gauge.label, gauge.unit), []).append(gauge)
    for (label, unit), gauges in by_label.items():
        of = f", {gauges[0].of}" if len(gauges) == 1 else f", {len(gauges)} of them"
        lines = [line for gauge in gauges for line in _within_runs(gauge, timeline.courses, places)]
        yield _Panel(f"{label}{of}", unit, BEFORE, lines)


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
        rate = _ABSENT if tokens is None else units.quantity(tokens / one.duration_s, units.TOKENS_PER_SECOND)
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
    return f"{_tick(min(values), '')} .. {_tick(max(values), gauge.unit)}" if values else _ABSENT


def sweep(found: Sweep, name: str) -> Plot:
    """Throughput and TTFT over the load, with the knee where one was seen."""
    loads = [point.load for point in found.points]
    knee = found.knee
    label = "offered load, req/s" if found.is_rate else found.parameter

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(loads, _gaps([p.output_throughput for p in found.points]), color=THIRD, marker="o", markersize=4)
        left.set_title("output throughput")
        _in_units(left, units.TOKENS_PER_SECOND)
        right.plot(loads, _gaps([p.ttft_p50 for p in found.points]), color=NOW, marker="o", markersize=4, label="p50")
        right.plot(loads, _gaps([p.ttft_p99 for p in found.points]), color=NOW, lw=0.8, alpha=0.6, label="p99")
        right.set_title("TTFT")
        right.legend(loc="upper left")
        _in_units(right, units.SECONDS)
        for axes in (left, right):
            axes.set_xlabel(label)
            _from_nothing(axes)
            if knee is not None:
                axes.axvline(loads[knee], color=BAD, lw=1.0, linestyle="--")
        if knee is not None:
            left.annotate("knee", (loads[knee], 0), (4, 6), textcoords="offset points", color=BAD, fontsize=8)

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
            _quantity(point.output_throughput, units.TOKENS_PER_SECOND),
            _quantity(point.request_throughput, units.REQUESTS_PER_SECOND),
            _seconds(point.ttft_p50),
            _seconds(point.ttft_p99),
        )
        for place, point in enumerate(found.points)
    ]
    headings = (label, "output throughput", "request throughput", "TTFT p50", "TTFT p99")
    return Table(headings=headings, rows=tuple(rows))


def _quantity(value: float | None, unit: str) -> str:
    return _ABSENT if value is None else units.quantity(value, unit)


def history(section: Section, name: str) -> Plot | None:
    """The stored nights of each gated metric, the steps in them, and this measurement; None of a single night."""
    shown = [series for series in section.series if len(series.nights) > 1]
    if not shown:
        return None
    now = {quantity.name: typical(values) for quantity, values in section.values.items() if values}

    def draw(figure: Figure) -> None:
        columns = min(3, len(shown))
        for place, series in enumerate(shown):
            axes = figure.add_subplot(math.ceil(len(shown) / columns), columns, place + 1)
            _nights(axes, series, now.get(series.quantity.name))

    steps = units.count(sum(len(steps_of(series)) for series in shown), "step")
    return drawn(
        draw,
        name=name,
        title="Stored nights",
        description=f"{len(shown[0].nights)} nights; {steps} in {units.count(len(shown), 'metric')}",
        height_in=1.9 * math.ceil(len(shown) / 3),
        gap=0.45,
        table=_nights_table(shown),
    )


def typical(values: Sequence[float]) -> float:
    """As the level of a night: the geometric mean, which is 0 where a value is, such as a hit rate."""
    if min(values) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _nights(axes: Axes, series: Series, now: float | None) -> None:
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
    low, high = min([*values, now or values[0]]), max([*values, now or values[0]])
    margin = max(0.1 * high, high - low) / 2
    axes.set_ylim(max(0.0, low - margin), high + margin)
    axes.set_xlim(0, len(values) + 2)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("night")
    _in_units(axes, series.quantity.unit)


def _nights_table(shown: Sequence[Series]) -> Table:
    rows = []
    for series in shown:
        starts = {step.at: units.change(series.change(step)) for step in steps_of(series)}
        for place, night in list(enumerate(series.nights))[-_TABLE_ROWS:]:
            level = units.quantity(series.value(night.level), series.quantity.unit)
            rows.append((series.quantity.name, night.path.name, level, starts.get(place, "")))
    return Table(headings=("metric", "night", "level", "step"), rows=tuple(rows))
