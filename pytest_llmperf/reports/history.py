"""Series of nights and their steps: a table of 80 columns, and JSON for those who draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_llmperf import units
from pytest_llmperf.history import Night, Series, Step

SCHEMA_VERSION = 1
_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 24
"""Nights of a line of bars: the newest."""
_SPAN = math.log(1.1)
"""From the lowest bar to the highest at least this, so that noise looks flat."""
_HEADINGS = ("metric", "nights", "level now", f"newest {_SHOWN} nights", "last step")
_METRIC, _NIGHTS, _LEVEL = 18, 6, 12
_SHORT = 10
"""Digits of a commit."""


def table(found: Sequence[Series]) -> Iterator[str]:
    """The series, by hardware and test; below each metric its steps, numbered for `--step`."""
    heading = None
    for series in found:
        if heading != (series.hardware_key, series.measurement):
            if heading is not None:
                yield ""
            heading = (series.hardware_key, series.measurement)
            yield f"{series.measurement} on {series.hardware_key}"
            yield _row(*_HEADINGS)
        yield _series_row(series)
        yield from (f"    {line}" for line in _details(series))


def _series_row(series: Series) -> str:
    level = units.quantity(series.value(series.level), series.quantity.unit)
    return _row(series.quantity.name, str(len(series.nights)), level, _bars(series), _last(series))


def _row(metric: str, nights: str, level: str, bars: str, last: str) -> str:
    cells = (metric.ljust(_METRIC), nights.rjust(_NIGHTS), level.rjust(_LEVEL), bars.ljust(_SHOWN), last)
    return f"  {cells[0]} {cells[1]} {cells[2]}  {cells[3]}  {cells[4]}".rstrip()


def _bars(series: Series) -> str:
    """The metric itself, so that up is more; nothing for a single night."""
    if len(series.nights) < 2:
        return ""
    sign = -1 if series.quantity.higher_is_better else 1
    shown = [sign * level for level in series.levels[-_SHOWN:]]
    low, high = min(shown), max(shown)
    bottom = low if high - low >= _SPAN else (low + high - _SPAN) / 2
    scale = (len(_BARS) - 1) / max(high - low, _SPAN)
    return "".join(_BARS[round((level - bottom) * scale)] for level in shown)


def _last(series: Series) -> str:
    if series.steps is None:
        return "too few"
    return units.change(series.change(series.steps[-1])) if series.steps else "none"


def _details(series: Series) -> Iterator[str]:
    """The steps, oldest first; of a series that is over, what came in its place."""
    for number, step in enumerate(series.steps or (), start=1):
        before, after = (units.quantity(series.value(x), series.quantity.unit) for x in (step.before, step.after))
        direction = "worse" if step.is_worse else "better"
        yield f"{number}: {before} -> {after}, {units.change(series.change(step))}, {direction}"
        last, first = series.nights[step.at - 1], series.nights[step.at]
        yield f"   between {_when(last)} and {_when(first)}"
        yield from (f"   {line}" for line in (*_between(last, first), *_undone(series, step)))
    if series.replaced:
        yield f"over since {_when(series.newest)}: {'; '.join(series.replaced)}"


def _undone(series: Series, step: Step) -> Iterator[str]:
    if step.undone_at is not None:
        yield f"{'recovered' if step.is_worse else 'lost again'} by {_when(series.nights[step.undone_at])}"


def _when(night: Night) -> str:
    """`2026-11-03 (0012_main.json)`."""
    name = night.path.name
    return name if night.at is None else f"{night.at:%Y-%m-%d} ({name})"


def _between(last: Night, first: Night) -> Iterator[str]:
    """What is known to have changed: commits and the engine's version."""
    if last.commit is not None and first.commit is not None:
        same = last.commit == first.commit
        yield (
            f"commit {last.commit[:_SHORT]} of both"
            if same
            else (f"commits {last.commit[:_SHORT]}..{first.commit[:_SHORT]}")
        )
    if last.engine_version != first.engine_version:
        yield f"engine {last.engine_version or '?'} -> {first.engine_version or '?'}"


def history_json(found: Sequence[Series], problems: Sequence[str]) -> dict[str, Any]:
    """Series and steps; what is not known is left out. Values are in the metric's own unit."""
    return {
        "schema_version": SCHEMA_VERSION,
        "series": [_series_json(series) for series in found],
        "left_out": list(problems),
    }


def _series_json(series: Series) -> dict[str, Any]:
    quantity = series.quantity
    return _known(
        {
            "hardware_key": series.hardware_key,
            "test": series.test,
            "measurement": series.measurement,
            "metric": quantity.name,
            "unit": quantity.unit,
            "higher_is_better": quantity.higher_is_better,
            "comparable": dict(series.comparable),
            "replaced": list(series.replaced) or None,
            "noise": series.noise,
            "level": series.value(series.level),
            "nights": [_night_json(series, night) for night in series.nights],
            "steps": None if series.steps is None else [_step_json(series, step) for step in series.steps],
        }
    )


def _night_json(series: Series, night: Night) -> dict[str, Any]:
    return _known(
        {
            "file": str(night.path),
            "date": None if night.at is None else night.at.isoformat(),
            "commit": night.commit,
            "dirty": True if night.stored.blob is None and night.stored.file.is_dirty else None,
            "engine_version": night.engine_version,
            "value": series.value(night.level),
            "runs": [series.quantity.stored(value) for value in night.entry.stored_values],
        }
    )


def _step_json(series: Series, step: Step) -> dict[str, Any]:
    """`at` and `undone_at` count the series' nights from 0."""
    return _known(
        {
            "at": step.at,
            "before": series.value(step.before),
            "after": series.value(step.after),
            "change": series.change(step),
            "worse": step.is_worse,
            "undone_at": step.undone_at,
        }
    )


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
