"""How long the requests took: the share of them that were at most as slow, now and at the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmperf import units
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.metrics import LABELS
from pytest_llmperf.reports.content import Section, items, number
from pytest_llmperf.reports.html.plots.axis import legend, seconds, tick
from pytest_llmperf.reports.html.svg import BEFORE, NOW, Plot, Table, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_TICKS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}
_CURVE_POINTS = 60
_DECADES = 15.0
"""From the quickest to the slowest beyond this, a linear axis shows but the slowest."""


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
        title=f"Distribution of {labels}{against}",
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
    bars = any(len(items(figures, "runs")) > 1 for figures in (section.figures, _stored(section)))
    return f"{'; '.join(parts)}{'. A bar is how far a percentile went from run to run.' if bars else ''}"


def _stored(section: Section) -> Mapping[str, Any]:
    return {} if section.before is None else section.before.figures


def _before(section: Section, *path: str) -> float | None:
    return number(_stored(section), *path)


def _distribution(axes: Axes, section: Section, name: str, *, is_first: bool) -> None:
    curve = _histogram(section, name)
    if curve is not None:
        shares = 1 - np.logspace(0, -min(4.0, math.log10(max(curve.count, 10))), _CURVE_POINTS)
        # The first token of a chunk of several shows gaps of nothing, which a logarithm cannot show.
        points = [(value, share) for share in shares if (value := (curve.percentile(float(share)) or 0) / NS_PER_S) > 0]
        axes.plot([x for x, _ in points], [_nines(y) for _, y in points], color=NOW)
    style = {"color": NOW, "marker": "o", "label": "now"}
    _marks(axes, section.figures, name, style, joined=curve is None)
    if section.before is not None:
        style = {"color": BEFORE, "marker": "D", "markerfacecolor": "none", "label": "baseline"}
        _marks(axes, section.before.figures, name, style, joined=True)
    _wide_enough(axes, section.number(name, "p50"))
    _logarithmic(axes)
    axes.set_title(LABELS[name])
    axes.set_yticks([_nines(share) for share in _TICKS.values()], list(_TICKS))
    axes.set_ylim(0, max(2.3, 1.05 * axes.dataLim.y1))
    if is_first:
        legend(axes, columns=2)
        axes.set_ylabel("share of requests")


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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, units.SECONDS)))


def _levels_table(section: Section, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        for level in _LEVELS:
            now, before = section.number(name, level), _before(section, name, level)
            if now is not None or before is not None:
                rows.append((f"{LABELS[name]} {level}", seconds(before), seconds(now)))
    return Table(headings=("statistic", "baseline", "now"), rows=tuple(rows))
