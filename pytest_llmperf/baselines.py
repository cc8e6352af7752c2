"""Stored results by hardware: `baselines/<hardware key>/NNNN_<name>.json`.

The files are pytest-benchmark's own and lie as its storage lays them, so that `pytest-benchmark
list` and `compare --storage` read them. What pytest-llmperf adds stands under
`extra_info["llmperf"]` of each benchmark and `machine_info["llmperf"]`.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import BaselineError, ConfigurationError
from pytest_llmperf.results import Provenance

SCHEMA_VERSION = 1
# What marks figures that meet only their own kind.
_NOT_MEASURED_HERE = ("simulated", "imported", "published")
_NUMBERED = re.compile(r"(\d{4})_(.+)\.json")
# What pytest-benchmark's storage leaves out of names, and what would make a folder of one.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One metric of one measurement in one file."""

    path: Path
    saved_at: str
    measurement: str
    metric: str
    stored_values: tuple[float, ...]
    """One per run, as pytest-benchmark keeps them: lower is better."""
    comparable: dict[str, Any]
    """What has to be equal for a comparison; see `comparable`."""
    engine_words: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Match:
    """The entry to compare with, and in what the engine differs although it may be compared."""

    entry: Entry
    differences: tuple[str, ...]


def comparable(provenance: Provenance) -> dict[str, Any]:
    """The parts of a measurement's provenance that two results must share to be compared."""
    return {
        "workload": provenance.workload_digest,
        "load": provenance.load,
        "cache": provenance.cache,
        "engine": provenance.engine_kind,
        **({"simulated": True} if provenance.simulated else {}),
        **{f"engine {word}": value for word, value in provenance.engine_identity.items()},
    }


class Baselines:
    """The folder of stored results. Files are read once, when their hardware is first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._loaded: dict[str, list[Entry]] = {}

    def entries(self, hardware_key: str) -> list[Entry]:
        """Everything stored for this hardware, newest file first.

        Raises `BaselineError` naming every file that cannot be used.
        """
        if hardware_key not in self._loaded:
            self._loaded[hardware_key] = self._load(hardware_key)
        return self._loaded[hardware_key]

    def gated_pairs(self, hardware_key: str, tests: Collection[str], metrics: Mapping[str, Collection[str]]) -> int:
        """How many (measurement, metric) pairs of these tests have something stored to compare with.

        `metrics`: test to the metrics that are gated there.
        """
        wanted = set(tests)
        pairs = {
            (entry.measurement, entry.metric)
            for entry in self.entries(hardware_key)
            if (test := _test_of(entry.measurement, wanted)) is not None and entry.metric in metrics[test]
        }
        return len(pairs)

    def find(self, provenance: Provenance, metric: str) -> Match | str:
        """The newest comparable entry, or a sentence on why there is none."""
        wanted = comparable(provenance)
        reason: str | None = None
        for entry in self.entries(provenance.hardware_key):
            if entry.measurement != provenance.measurement or entry.metric != metric:
                continue
            names = dict.fromkeys([*wanted, *(name for name in _NOT_MEASURED_HERE if name in entry.comparable)])
            differing = [name for name in names if entry.comparable.get(name) != wanted.get(name)]
            if not differing:
                return Match(entry, _differences(entry.engine_words, provenance.engine_words))
            what = "; ".join(
                f"{name} was {entry.comparable.get(name)!r}, is {wanted.get(name)!r}" for name in differing
            )
            reason = reason or f"{entry.path.name} is not comparable: {what}"
        if reason is None and self.entries(provenance.hardware_key):
            reason = f"no file for {provenance.hardware_key} in {self.directory} has {metric} of this test"
        return reason or f"nothing is stored for {provenance.hardware_key} in {self.directory}"

    def save(self, name: str, hardware_key: str, document: dict[str, Any]) -> Path:
        """Write a result file under the next number; it appears complete or not at all."""
        folder = self.directory / hardware_key
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False, default=repr) + "\n"
        descriptor, draft = tempfile.mkstemp(dir=folder, prefix=".draft-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(draft, 0o644)
            return _publish(Path(draft), folder, name)
        finally:
            Path(draft).unlink(missing_ok=True)

    def _load(self, hardware_key: str) -> list[Entry]:
        folder = self.directory / hardware_key
        files = sorted((path for path in folder.glob("*.json") if _NUMBERED.fullmatch(path.name)), reverse=True)
        entries: list[Entry] = []
        problems = []
        for path in files:
            try:
                entries += read(path, hardware_key)
            except BaselineError as error:
                problems.append(str(error))
        if problems:
            raise BaselineError("\n".join(problems))
        return entries


def _publish(draft: Path, folder: Path, name: str) -> Path:
    """Give a finished file the next free number; whoever comes second takes the one after."""
    while True:
        numbers = [int(found.group(1)) for path in folder.iterdir() if (found := _NUMBERED.fullmatch(path.name))]
        path = folder / f"{max(numbers, default=0) + 1:04d}_{name}.json"
        try:
            os.link(draft, path)
        except FileExistsError:
            continue
        return path


def check_name(name: str) -> None:
    """Raise `ConfigurationError` unless `name` can be a part of a baseline's file name."""
    if not _NAME.fullmatch(name):
        msg = f"{name!r} cannot name a baseline; use letters, digits and . _ + - only, such as main or 2026-11-21"
        raise ConfigurationError(msg)


def read(path: Path, hardware_key: str) -> Iterator[Entry]:
    """The entries of one file. Raises `BaselineError`, in one sentence, for a file that is not ours."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path} is not readable JSON: {error}") from None
    return iter([_entry(path, document, row) for row in _rows(path, document, hardware_key)])


def _rows(path: Path, document: Any, hardware_key: str) -> list[Any]:
    remedy = "move it away, or save a new one with --llmperf-save-baseline NAME"
    try:
        about = document["machine_info"]["llmperf"]
        version, key, rows = about["schema_version"], about["hardware_key"], document["benchmarks"]
    except (KeyError, TypeError):
        raise BaselineError(f"{path} is not a result of pytest-llmperf: no machine_info.llmperf; {remedy}") from None
    if version != SCHEMA_VERSION:
        msg = f"{path} has schema version {version!r}, this release reads {SCHEMA_VERSION}; {remedy}"
        raise BaselineError(msg)
    if key != hardware_key:
        msg = f"{path} was measured on {key}, but lies in the folder of {hardware_key}; {remedy}"
        raise BaselineError(msg)
    if not isinstance(rows, list):
        raise BaselineError(f"{path}: benchmarks is not a list; {remedy}")
    return rows


def _entry(path: Path, document: dict[str, Any], row: Any) -> Entry:
    try:
        about = row["extra_info"]["llmperf"]
        values = tuple(float(value) for value in row["stats"]["data"])
        entry = Entry(
            path=path,
            saved_at=str(document.get("datetime", "")),
            measurement=about["measurement"],
            metric=about["metric"],
            stored_values=values,
            comparable=dict(about["comparable"]),
            engine_words=dict(about["engine_words"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        name = row.get("fullname", "?") if isinstance(row, dict) else "?"
        msg = f"{path}: the benchmark {name} lacks what pytest-llmperf stores ({type(error).__name__}: {error})"
        raise BaselineError(msg) from None
    if not values or not all(0 < value < math.inf for value in values):
        msg = f"{path}: {about['metric']} of {about['measurement']} holds values that are not positive numbers"
        raise BaselineError(msg)
    return entry


def _test_of(measurement: str, tests: set[str]) -> str | None:
    """The test that a measurement belongs to: itself, or what stands before its name."""
    if measurement in tests:
        return measurement
    test, _, _ = measurement.rpartition("::")
    return test if test in tests else None


# Where an engine is, and the simulated night that it is: not what it is.
_NO_DIFFERENCE = {"url", "executable", "noise_seed"}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """How the engine's words differ, for the reader: `prefix_caching True -> False`."""
    now = json.loads(json.dumps(now, default=repr))  # as a file holds it: tuples have become lists
    words = sorted((set(before) | set(now)) - _NO_DIFFERENCE)
    return tuple(
        f"{word} {before.get(word)!r} -> {now.get(word)!r}" for word in words if before.get(word) != now.get(word)
    )
