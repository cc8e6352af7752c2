"""Stored results by hardware: `baselines/<hardware key>/NNNN_<name>.json`.

The files lie as pytest-benchmark's storage lays them, so that `pytest-benchmark list` and `compare
--storage` read them. What was stored within hours is one night; a history is what the newest nights say
of a measurement, as long as they may be compared. Accepted changes lie beside them (`acknowledged.py`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmperf import folder_lock
from pytest_llmperf.acknowledged import Acknowledgement, expected, read_acknowledged
from pytest_llmperf.atomic import Draft
from pytest_llmperf.clock import timestamp
from pytest_llmperf.errors import BaselineError, ConfigurationError
from pytest_llmperf.files import nearby
from pytest_llmperf.judged import RATIO_PREFIX, Provenance
from pytest_llmperf.result_file import (
    ResultFile,
    comparable,
    differences,
    encoded,
    moment,
    names_a_folder,
    read,
    unlike,
    unlike_in_words,
)
from pytest_llmperf.result_rows import Entry
from pytest_llmperf.stats import History, NightSpread, shared_spread

NIGHT = timedelta(hours=6)
"""Files that were stored no further apart are of one night; those without a date are of a night each."""
NIGHTS = 30
"""How many nights a history holds at most, unless an option says otherwise."""
_FEW = 3
"""Differences that are named; the others are counted."""
_NUMBERED = re.compile(r"(\d{4,})_(.+)\.json")
# What pytest-benchmark's storage leaves out of names, and what would make a folder of one.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Match:
    """The nights to compare with, newest first, and in what the newest's engine differs although it may be compared."""

    entries: tuple[Entry, ...]
    differences: tuple[str, ...] = ()

    @property
    def newest(self) -> Entry:
        return self.entries[0]

    @cached_property
    def history(self) -> History:
        """Logarithms of the stored values at the level expected now, so that up is worse."""
        return History(
            tuple(tuple(value for one in night for value in _levels(one)) for night in _nights(self.entries))
        )

    @property
    def accepted(self) -> tuple[str, ...]:
        """The accepted changes that the level rests on, one sentence each."""
        return self.newest.accepted

    @property
    def name(self) -> str:
        """`0007_main.json`, or `12 nights up to 0012_main.json`."""
        count = self.history.count
        return self.newest.path.name if len(self.entries) == 1 else f"{count} nights up to {self.newest.path.name}"


class Baselines:
    """The folder of stored results. Files are read once, when their hardware is first asked for."""

    def __init__(self, directory: Path, nights: int = NIGHTS, today: date | None = None) -> None:
        """`nights`: how many files a history holds at most; `today`: by which accepted changes expire."""
        self.directory = directory
        self.nights = nights
        self.today = today or timestamp().date()
        self._loaded: dict[str, list[Entry]] = {}
        self._matches: dict[tuple[str, str], dict[str, list[Entry]]] = {}
        self._spreads: dict[tuple[str, str], NightSpread | None] = {}
        self._answers: dict[tuple[str, str, str], tuple[dict[str, Any], dict[str, Any], Match | str]] = {}

    def keys(self) -> list[str]:
        """The hardware of which something is stored."""
        folders = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(folder.name for folder in folders if self.paths(folder.name))

    def entries(self, hardware_key: str) -> list[Entry]:
        """Everything stored for this hardware, newest file first.

        Raises `BaselineError` naming every file that cannot be used.
        """
        if hardware_key not in self._loaded:
            self._loaded[hardware_key] = [entry for file in self.files(hardware_key) for entry in file.entries]
        return self._loaded[hardware_key]

    def files(self, hardware_key: str, known: Collection[Path] = ()) -> list[ResultFile]:
        """The stored files of this hardware, newest first, with the shifts that accepted changes ask for.

        `known`: those that are left out.
        Raises `BaselineError` naming every one that is unusable.
        """
        found: list[ResultFile] = []
        problems = []
        accepted: tuple[Acknowledgement, ...] = ()
        try:
            accepted = read_acknowledged(self.directory / hardware_key)
        except BaselineError as error:
            problems.append(str(error))
        for path in (path for path in self.paths(hardware_key) if path not in known):
            try:
                found.append(self._expected(_placed(read(path), hardware_key), accepted))
            except BaselineError as error:
                problems.append(str(error))
        if problems:
            raise BaselineError("\n".join(problems))
        return found

    def paths(self, hardware_key: str) -> list[Path]:
        """The numbered files of this hardware, newest first."""
        folder = self.directory / hardware_key
        numbered = [path for path in folder.glob("*.json") if _NUMBERED.fullmatch(path.name)]
        return sorted(numbered, key=number_of, reverse=True)

    def gated_pairs(self, hardware_key: str, tests: Collection[str], metrics: Mapping[str, Collection[str]]) -> int:
        """How many (measurement, metric) pairs of these tests have something stored to compare with.

        `metrics`: test to the metrics that are gated there.
        """
        wanted = set(tests)
        pairs = {
            (entry.measurement, entry.metric)
            for entry in self.entries(hardware_key)
            if (test := _test_of(entry.measurement, wanted)) is not None
            and (entry.metric in metrics[test] or entry.metric.startswith(RATIO_PREFIX))
        }
        return len(pairs)

    def find(self, provenance: Provenance, metric: str) -> Match | str:
        """The newest comparable nights, or a sentence on why there are none."""
        asked = (provenance.hardware_key, metric, provenance.measurement)
        wanted = comparable(provenance)
        known = self._answers.get(asked)
        if known is None or known[0] != wanted or known[1] != provenance.engine_words:
            known = (wanted, provenance.engine_words, self._found(provenance, metric, wanted))
            self._answers[asked] = known
        return known[2]

    def _found(self, provenance: Provenance, metric: str, wanted: Mapping[str, Any]) -> Match | str:
        key = provenance.hardware_key
        stored = self._of(key, metric).get(provenance.measurement, [])
        entries = tuple(entry for entry in stored if not unlike(entry.comparable, wanted))[: self.nights]
        if entries:
            return Match(entries, differences(entries[0].engine_words, provenance.engine_words))
        if stored:
            nearest = min(stored, key=lambda entry: len(unlike(entry.comparable, wanted)))
            return f"{nearest.path.name} is not comparable: {_few(_unlike(nearest, wanted, provenance))}"
        return self._missing(provenance, metric)

    def has(self, provenance: Provenance, metric: str) -> bool:
        """Whether this metric of the test is stored for its hardware, be it of another workload or engine."""
        return provenance.measurement in self._of(provenance.hardware_key, metric)

    def _missing(self, provenance: Provenance, metric: str) -> str:
        """A sentence on why nothing of this is stored; the same for all metrics of a test that is not stored at all."""
        key = provenance.hardware_key
        entries = self.entries(key)
        if any(entry.measurement == provenance.measurement for entry in entries):
            return f"no file for {key} in {self.shown} has {metric} of this test"
        if entries:
            return f"no file for {key} in {self.shown} has this test"
        keys = self.keys()
        others = difflib.get_close_matches(key, keys, n=max(1, len(keys)), cutoff=0)
        elsewhere = f", only for {_few(others, ', ')}" if others else ""
        return f"nothing is stored for {key} in {self.shown}{elsewhere}"

    @property
    def shown(self) -> str:
        """The folder for people."""
        return nearby(self.directory)

    def spread(self, hardware_key: str, metric: str) -> NightSpread | None:
        """How much nights differ there in this metric, from all tests that are stored; None if not known yet.

        It does not depend on what is measured tonight.
        """
        key = (hardware_key, metric)
        if key not in self._spreads:
            matches = self.newest(hardware_key, metric).values()
            self._spreads[key] = shared_spread([match.history for match in matches])
        return self._spreads[key]

    def newest(self, hardware_key: str, metric: str) -> dict[str, Match]:
        """By measurement, the newest night that has this metric and those that may be compared with it."""
        stored = self._of(hardware_key, metric)
        return {measurement: Match(_alike(entries)[: self.nights]) for measurement, entries in stored.items()}

    def newest_tests(self, hardware_key: str) -> set[str]:
        """The node ids of the tests that the newest file holds."""
        entries = self.entries(hardware_key)
        return {entry.test for entry in entries if entry.path == entries[0].path}

    def next_number(self, hardware_key: str) -> int:
        """What the next file of this hardware is called."""
        return _next_number(self.directory / hardware_key)

    def save(self, name: str, hardware_key: str, document: Mapping[str, Any]) -> Path:
        """Write a result file under the next number; it appears complete or not at all."""
        return self.put(name, hardware_key, encoded(document))

    def put(self, name: str, hardware_key: str, content: bytes) -> Path:
        """Store a file's content as it is under the next number; it appears complete or not at all."""
        with self.writing(hardware_key, "saving a baseline") as put:
            return put(name, content)

    @contextmanager
    def writing(self, hardware_key: str, purpose: str) -> Iterator[Callable[[str, bytes], Path]]:
        """Be the only one who changes what is stored of this hardware; gives what stores a file, as `put` does.

        Raises `OSError`, a `TimeoutError` where another process does not let go, and `BaselineError` for a key that
        would lead elsewhere.
        """
        if not names_a_folder(hardware_key):
            raise BaselineError(f"the hardware key {hardware_key!r} cannot name a folder of {self.directory}")
        folder = self.directory / hardware_key
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock.held(folder, purpose):
            yield lambda name, content: _publish(content, folder, name)

    def _expected(self, file: ResultFile, accepted: Collection[Acknowledgement]) -> ResultFile:
        if not accepted:
            return file
        night = number_of(file.path)
        return replace(file, entries=tuple(expected(entry, night, accepted, self.today) for entry in file.entries))

    def _of(self, hardware_key: str, metric: str) -> dict[str, list[Entry]]:
        """The entries of one metric by measurement, newest first."""
        key = (hardware_key, metric)
        if key not in self._matches:
            found: dict[str, list[Entry]] = {}
            for entry in self.entries(hardware_key):
                if entry.metric == metric:
                    found.setdefault(entry.measurement, []).append(entry)
            self._matches[key] = found
        return self._matches[key]


def _unlike(stored: Entry, wanted: Mapping[str, Any], now: Provenance) -> list[str]:
    about = {"workload": now.workload, "workload_words": now.workload_words}
    return unlike_in_words(stored.comparable, wanted, stored.provenance, about)


def _few(named: Sequence[str], separator: str = "; ") -> str:
    """The first of them, and how many more there are."""
    more = len(named) - _FEW
    return separator.join(named[:_FEW]) + (f"{separator}and {more} more" if more > 0 else "")


def _levels(entry: Entry) -> list[float]:
    return [math.log(value) + entry.shift for value in entry.stored_values]


def _nights(entries: Iterable[Entry]) -> list[list[Entry]]:
    """What was stored within a few hours is one night, in however many files: it had one night's luck."""
    nights: list[list[Entry]] = []
    for entry in entries:
        saved = moment(entry.saved_at)
        newest = moment(nights[-1][0].saved_at) if nights else None
        if saved is not None and newest is not None and abs(newest - saved) <= NIGHT:
            nights[-1].append(entry)
        else:
            nights.append([entry])
    return nights


def number_of(path: Path) -> int:
    """The number that a stored file's name begins with."""
    return int(_parts(path)[0])


def name_of(path: Path) -> str:
    """The name that a stored file was saved under: `main` of `0001_main.json`."""
    return _parts(path)[1]


def _parts(path: Path) -> tuple[str, str]:
    found = _NUMBERED.fullmatch(path.name)
    assert found is not None, f"{path} is not a stored file"
    return found.group(1), found.group(2)


def _next_number(folder: Path) -> int:
    names = folder.iterdir() if folder.is_dir() else ()
    return max((number_of(path) for path in names if _NUMBERED.fullmatch(path.name)), default=0) + 1


def _alike(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Those that may be compared with the newest."""
    newest, *older = entries
    return (newest, *(entry for entry in older if not unlike(entry.comparable, newest.comparable)))


def _placed(file: ResultFile, hardware_key: str) -> ResultFile:
    remedy = "move it away, or save a new one with --llmperf-save-baseline NAME"
    if not file.is_ours:
        msg = f"{file.path} is not a result of pytest-llmperf: no machine_info.llmperf; {remedy}"
        raise BaselineError(msg)
    if file.hardware_key != hardware_key:
        msg = f"{file.path} was measured on {file.hardware_key}, but lies in the folder of {hardware_key}; {remedy}"
        raise BaselineError(msg)
    return file


def _publish(content: bytes, folder: Path, name: str) -> Path:
    """Store a file under the next number; where no lock could be had, whoever comes second takes the one after."""
    with Draft(folder) as draft:
        draft.stream.write(content)
        while True:
            path = folder / f"{_next_number(folder):04d}_{name}.json"
            try:
                draft.publish(path)
            except FileExistsError:
                continue
            return path


def check_name(name: str) -> None:
    """Raise `ConfigurationError` unless `name` can be a part of a baseline's file name."""
    if not _NAME.fullmatch(name):
        msg = f"{name!r} cannot name a baseline; use letters, digits and . _ + - only, such as main or 2026-11-21"
        raise ConfigurationError(msg)


def _test_of(measurement: str, tests: set[str]) -> str | None:
    """The test that a measurement belongs to: itself, or what stands before its name."""
    if measurement in tests:
        return measurement
    test, _, _ = measurement.rpartition("::")
    return test if test in tests else None
