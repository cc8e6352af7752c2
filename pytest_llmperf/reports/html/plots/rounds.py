"""TTFT from round to round of the conversations, and where their prompts came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf import units
from pytest_llmperf.reports.content import Section, items, number
from pytest_llmperf.reports.html.plots.axis import ABSENT, from_nothing, gaps, in_units, legend, seconds, thinned
from pytest_llmperf.reports.html.svg import BEFORE, MUTED, NOW, THIRD, Plot, Table, drawn
from pytest_llmperf.timeline import Round, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROUNDS = 60
"""Of more, the single ones are not marked."""


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
        description=f"TTFT p50 {seconds(now[0][0])} at first, {seconds(now[-1][0])} in the last of {len(now)} rounds",
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
    axes.plot(places, gaps(p99 for _, p99 in now), color=NOW, lw=0.8, alpha=0.5, label="p99 now")
    axes.plot(places, gaps(p50 for p50, _ in now), color=NOW, marker="o", markersize=size, label="p50 now")
    if any(value is not None for value in before):
        axes.plot(
            range(1, len(before) + 1), gaps(before), color=BEFORE, marker="D", markersize=size, lw=1.0, linestyle="--",
            markerfacecolor="none", label="p50 baseline",
        )  # fmt: skip
    from_nothing(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    in_units(axes, units.SECONDS)
    axes.set_title("TTFT")
    legend(axes, columns=3)


def _cache_bars(axes: Axes, shares: Mapping[int, float]) -> None:
    every = max(1, math.ceil(len(shares) / _ROUNDS))
    places = list(shares)[::every]
    cached = [shares[place] for place in places]
    axes.bar(places, cached, color=THIRD, width=0.8 * every, label="from a cache")
    rest = [1 - one for one in cached]
    axes.bar(places, rest, bottom=cached, color=MUTED, alpha=0.35, width=0.8 * every, label="computed")
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.set_title("prompt tokens", pad=2)
    legend(axes, columns=2)


def _rounds_table(
    now: Sequence[tuple[float | None, float | None]], before: Sequence[float | None], sources: Mapping[int, float]
) -> Table:
    rows = [
        (
            str(place),
            seconds(before[place - 1] if place <= len(before) else None),
            seconds(p50),
            seconds(p99),
            units.share(sources[place]) if place in sources else ABSENT,
        )
        for place, (p50, p99) in enumerate(now, start=1)
    ]
    return Table(headings=("round", "p50 baseline", "p50 now", "p99 now", "from a cache"), rows=tuple(thinned(rows)))
