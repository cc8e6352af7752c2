"""The stored nights that a report sets results beside."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import BaselineError, ConfigurationError
from pytest_llmperf.hardware import MOMENTARY
from pytest_llmperf.history import Reading, Series, Step, series_of, stored_files
from pytest_llmperf.reports.content import Before, Section
from pytest_llmperf.result_file import ResultFile, differences, unlike

_VOLATILE = frozenset({"problem", "url", "log", "port", "command", "start_s", "ready_to_first_request_s"})
"""Of what an engine and a machine say of themselves: what tells nothing of either.

A command names the port and the folders of its session; what was asked for in it stands among the engine's words.
"""


@dataclass(frozen=True)
class Past:
    """The nights of one hardware, oldest first."""

    reading: Reading

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """Those that are not over."""
        return tuple(series for series in series_of(self.reading.files) if not series.replaced)

    @property
    def newest(self) -> ResultFile | None:
        return self.reading.files[-1].file if self.reading.files else None

    def file_of(self, against: str | None, measurement: str, comparable: Mapping[str, Any]) -> ResultFile | None:
        """The night that a judgement names; where nothing was judged, the newest that may be compared.

        None where the judgement names no night, as that of two builds measured in turn.
        """
        files = [one.file for one in reversed(self.reading.files)]
        if against is not None:
            named = against.rsplit(" ", 1)[-1]
            files = [file for file in files if file.path.name == named]
        return next((file for file in files if _has(file, measurement, comparable)), None)


NO_PAST = Past(Reading())


def past_of(folder: Path, *, without: Collection[Path] = ()) -> Past:
    """What is stored in the folder of one hardware, such as `baselines/KEY`, the given files left out.

    A folder that is not there or is empty has no past; what cannot be read is told in the reading's problems.
    """
    if not folder.is_dir():
        return NO_PAST
    try:
        reading = stored_files([folder])
    except BaselineError as error:
        return Past(Reading(problems=(str(error),)))
    left = {path.resolve() for path in without}
    return Past(replace(reading, files=tuple(one for one in reading.files if one.file.path.resolve() not in left)))


def set_beside(
    section: Section, past: Past, *, comparable: Mapping[str, Any], words: Mapping[str, Any], engine: Mapping[str, Any]
) -> Section:
    """The section with its baseline's figures, the engine's differences and the nights of its metrics."""
    metrics = {quantity.name for quantity in section.values}
    series = tuple(
        one
        for one in past.series
        if one.measurement == section.name and one.quantity.name in metrics and not unlike(one.comparable, comparable)
    )
    against = section.judgement.against if section.judgement is not None else None
    file = past.file_of(against, section.name, comparable)
    if file is None:
        return replace(section, series=series)
    entry = next(one for one in file.entries if one.measurement == section.name)
    stored_engine = entry.provenance.get("engine")
    account = differences(stored_engine if isinstance(stored_engine, dict) else {}, engine, _VOLATILE)
    differing = dict.fromkeys((*differences(entry.engine_words, words), *account))
    doubts = section.judgement.doubts if section.judgement is not None else ()
    return replace(
        section,
        series=series,
        before=Before(name=file.path.name, figures=file.results.get(section.name, {})),
        differences=tuple(one for one in differing if not any(doubt.endswith(one) for doubt in doubts)),
    )


def environment_differences(past: Past, fingerprint: Mapping[str, Any]) -> tuple[str, ...]:
    """How the machine differs from that of the newest night; nothing where either is not known.

    GPUs are told apart by their place; what is true of several in the same way is said once.
    """
    newest = past.newest
    if newest is None or not newest.fingerprint or not fingerprint:
        return ()
    machine = differences(newest.fingerprint, fingerprint, _VOLATILE | {"gpus"})
    before, now = _gpus(newest.fingerprint), _gpus(fingerprint)
    if len(before) != len(now):
        return (*machine, f"gpus {len(before)} -> {len(now)}")
    places: dict[str, list[str]] = {}
    for place, (one, other) in enumerate(zip(before, now, strict=True)):
        for difference in differences(one, other):
            places.setdefault(difference, []).append(str(place))
    of_gpus = (f"GPU {', '.join(numbers)}: {difference}" for difference, numbers in places.items())
    return (*machine, *of_gpus)


def _gpus(fingerprint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a fingerprint says of each GPU that stays so from one moment to the next."""
    gpus = fingerprint.get("gpus")
    known = [gpu for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, (list, tuple)) else []
    return [{name: value for name, value in gpu.items() if name not in MOMENTARY} for gpu in known]


def steps_problem(past: Past) -> str | None:
    """Why no steps can be looked for, if that is so."""
    try:
        for series in past.series:
            _ = series.steps
    except ConfigurationError as error:
        return str(error)
    return None


def steps_of(series: Series) -> tuple[Step, ...]:
    """The steps, oldest first; none where they cannot be looked for, which `steps_problem` tells."""
    try:
        return series.steps or ()
    except ConfigurationError:
        return ()


def _has(file: ResultFile, measurement: str, comparable: Mapping[str, Any]) -> bool:
    entry = next((one for one in file.entries if one.measurement == measurement), None)
    return entry is not None and not unlike(entry.comparable, comparable)
