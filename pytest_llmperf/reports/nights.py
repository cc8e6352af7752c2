"""Stored nights as plain text: what is there, at which level, and what is not known of it yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_llmperf import units
from pytest_llmperf.baselines import Baselines, Match
from pytest_llmperf.gate.trial import typical
from pytest_llmperf.reports.text import table
from pytest_llmperf.result_file import ResultFile
from pytest_llmperf.result_rows import Entry
from pytest_llmperf.stats import KNOWN_NIGHTS

_ABSENT = "-"
_DAY = len("2026-12-31")


def overview(baselines: Baselines, hardware_keys: Iterable[str]) -> Iterator[str]:
    """One line per hardware. Raises `BaselineError` for files that cannot be used."""
    rows = [_overview_row(key, baselines.files(key)) for key in hardware_keys]
    if rows:
        yield from table([("hardware key", "results", "nights", "newest", "date", "tests", "metrics"), *rows])


def _overview_row(hardware_key: str, files: Sequence[ResultFile]) -> tuple[str, ...]:
    entries = [entry for file in files for entry in file.entries]
    kinds = sorted({"simulated" if entry.simulated else "measured" for entry in entries})
    counted = (str(len(files)), files[0].path.name, _day(files[0]))
    return hardware_key, " and ".join(kinds) or _ABSENT, *counted, _tests(entries), _metrics(entries)


def nights(baselines: Baselines, hardware_key: str) -> Iterator[str]:
    """One line per stored file, newest first. Raises `BaselineError` for files that cannot be used."""
    rows = [
        (file.path.name, _day(file), _tests(file.entries), _metrics(file.entries))
        for file in baselines.files(hardware_key)
    ]
    yield from table([("night", "date", "tests", "metrics"), *rows])


def _day(file: ResultFile) -> str:
    """When it was measured; simulated results have no date."""
    is_measured = any(not entry.simulated for entry in file.entries)
    return (file.saved_at[:_DAY] if is_measured else "") or _ABSENT


def _tests(entries: Iterable[Entry]) -> str:
    return str(len({entry.measurement for entry in entries}))


def _metrics(entries: Iterable[Entry]) -> str:
    return ", ".join(dict.fromkeys(entry.metric for entry in entries)) or _ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """One metric of one measurement, over the nights that may be compared with its newest."""

    measurement: str
    match: Match
    spread: float | None
    """Deviation between nights, shared by all tests of the metric; None: not known."""
    most_nights: int
    """How many nights the test has that has most of this metric."""

    @property
    def metric(self) -> str:
        return self.match.newest.metric

    def row(self) -> tuple[str, ...]:
        quantity, history = self.match.newest.quantity, self.match.history
        runs = math.sqrt(history.within_squares / history.within_degrees) if history.within_degrees else None
        return (
            quantity.name,
            units.quantity(typical([history.level], quantity), quantity.unit),
            str(history.count),
            str(len(history.runs)),
            _ABSENT if self.spread is None else units.share(self.spread),
            _ABSENT if runs is None else units.share(runs),
            self.match.newest.path.name,
        )

    def missing(self) -> Iterator[str]:
        """Which of its numbers are missing, and why."""
        if self.match.newest.simulated:
            yield "simulated nights are taken not to differ"
        elif self.spread is None:
            missing = KNOWN_NIGHTS - self.most_nights
            needed = f"{units.count(missing, 'more night')} of at least 2 runs" if missing > 0 else "2 runs of a night"
            yield f"by how much nights differ is not known yet; that takes {needed}"
        if not self.match.history.within_degrees:
            yield "by how much runs differ is not known; no night has 2 of them"


def _notes(found: Sequence[_Level]) -> Iterator[str]:
    """What is missing, each once with its metrics, and what is accepted."""
    said: dict[str, list[str]] = {}
    for level in found:
        for sentence in level.missing():
            said.setdefault(sentence, []).append(level.metric)
    for sentence, metrics in said.items():
        yield f"{', '.join(metrics)}: {sentence}"
    for level in found:
        yield from level.match.accepted


_LEVEL_HEADINGS = ("metric", "level", "nights", "runs", "nights differ", "runs differ", "newest")


def levels(
    baselines: Baselines, hardware_key: str, *, is_asked: Callable[[str], bool], metrics: Sequence[str]
) -> Iterator[str]:
    """Of each measurement that is asked for, the level of each of these metrics, at what is expected now.

    Raises `BaselineError` for files that cannot be used.
    """
    found: dict[str, list[_Level]] = {}
    for metric in metrics:
        for level in _levels(baselines, hardware_key, metric):
            if is_asked(level.measurement):
                found.setdefault(level.measurement, []).append(level)
    for measurement in sorted(found):
        yield measurement
        yield from (f"  {line}" for line in table([_LEVEL_HEADINGS, *(level.row() for level in found[measurement])]))
        yield from (f"  {note}" for note in _notes(found[measurement]))


def _levels(baselines: Baselines, hardware_key: str, metric: str) -> Iterator[_Level]:
    matches = baselines.newest(hardware_key, metric)
    known = baselines.spread(hardware_key, metric)
    most_nights = max(match.history.count for match in matches.values())
    for measurement, match in matches.items():
        spread = None if known is None or match.newest.simulated else known.deviation
        yield _Level(measurement=measurement, match=match, spread=spread, most_nights=most_nights)
