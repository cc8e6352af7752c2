"""Nights of stored results as series: one per hardware, test and metric, as long as they may be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmperf.history.steps import FEWEST_NIGHTS, Step, noise, steps_in
from pytest_llmperf.metrics import Quantity
from pytest_llmperf.result_file import ResultFile, unlike, unlike_in_words
from pytest_llmperf.result_rows import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A result file and its place in time."""

    file: ResultFile
    at: datetime | None
    """None: it says no date, as those of simulations do."""
    commit: str | None
    """What was measured, or, read from git, what brought the file."""
    blob: str | None = None
    """Its name in git, `COMMIT:PATH`, where it was read from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One metric of one test in one file."""

    stored: StoredFile
    entry: Entry

    @property
    def path(self) -> Path:
        return self.stored.file.path

    @property
    def at(self) -> datetime | None:
        return self.stored.at

    @property
    def commit(self) -> str | None:
        return self.stored.commit

    @property
    def engine_version(self) -> str | None:
        """What the engine called itself; None where it does not say."""
        engine = self.entry.provenance.get("engine")
        version = engine.get("version") if isinstance(engine, Mapping) else None
        return version if isinstance(version, str) else None

    @property
    def level(self) -> float:
        """The mean of the logarithms of its runs as they are stored, so that up is worse."""
        values = self.entry.stored_values
        return math.fsum(map(math.log, values)) / len(values)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Comparable nights of one metric of one test on one hardware, oldest first."""

    hardware_key: str
    nights: tuple[Night, ...]
    replaced: tuple[str, ...] = field(default=())
    """What differs in the series that came after it; empty for the current one."""

    @property
    def measurement(self) -> str:
        """The test's node id, with the measurement's name if it has one."""
        return self.newest.entry.measurement

    @property
    def test(self) -> str:
        """The node id alone."""
        test = self.newest.entry.provenance.get("test")
        return test if isinstance(test, str) else self.measurement

    @property
    def quantity(self) -> Quantity:
        return self.newest.entry.quantity

    @property
    def comparable(self) -> Mapping[str, Any]:
        return self.newest.entry.comparable

    @property
    def newest(self) -> Night:
        return self.nights[-1]

    @cached_property
    def levels(self) -> tuple[float, ...]:
        return tuple(night.level for night in self.nights)

    @cached_property
    def steps(self) -> tuple[Step, ...] | None:
        """Oldest first; None where there are too few nights to tell. Raises as `steps_in` does."""
        return steps_in(self.levels) if len(self.nights) >= FEWEST_NIGHTS else None

    @property
    def noise(self) -> float | None:
        """From night to night, as a share; None where there are too few nights to tell."""
        return noise(self.levels) if len(self.nights) >= FEWEST_NIGHTS else None

    @property
    def level(self) -> float:
        """Now: that of all nights since the last step."""
        return self.steps[-1].after if self.steps else math.fsum(self.levels) / len(self.levels)

    def value(self, level: float) -> float:
        """A level in the metric's own unit."""
        return self.quantity.stored(math.exp(level))

    def change(self, step: Step) -> float:
        """A step as a relative change of the metric itself."""
        return self.value(step.after) / self.value(step.before) - 1


def series_of(
    files: Sequence[StoredFile], *, test: str | None = None, metrics: frozenset[str] | None = None
) -> list[Series]:
    """The series of these files, which are oldest first.

    A night goes to the first series that it may be compared with, so that one night with another
    workload cuts nothing. `test`: text that a measurement's name has to have. Those of one test
    stand together, in the order in which they began.
    """
    begun: dict[tuple[str, str, str], list[list[Night]]] = {}
    for stored in files:
        for entry in stored.file.entries:
            if (test is None or test in entry.measurement) and (metrics is None or entry.metric in metrics):
                key = (stored.file.hardware_key, entry.measurement, entry.metric)
                _add(Night(stored=stored, entry=entry), begun.setdefault(key, []))
    found = [series for (key, _, _), groups in begun.items() for series in _series(key, groups)]
    places = {name: place for place, name in enumerate(dict.fromkeys((s.hardware_key, s.measurement) for s in found))}
    return sorted(found, key=lambda one: places[one.hardware_key, one.measurement])


def _add(night: Night, groups: list[list[Night]]) -> None:
    for nights in reversed(groups):
        if not unlike(nights[-1].entry.comparable, night.entry.comparable):
            nights.append(night)
            return
    groups.append([night])


def _replaced(last: Entry, now: Entry) -> tuple[str, ...]:
    return tuple(unlike_in_words(last.comparable, now.comparable, last.provenance, now.provenance))


def _series(hardware_key: str, groups: Iterable[list[Night]]) -> list[Series]:
    *older, current = groups
    now = current[-1].entry
    return [
        *(
            Series(hardware_key=hardware_key, nights=tuple(nights), replaced=_replaced(nights[-1].entry, now))
            for nights in older
        ),
        Series(hardware_key=hardware_key, nights=tuple(current)),
    ]
