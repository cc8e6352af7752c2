"""Keeping stored nights: result files become nights, those of another folder join, the oldest go.

What cannot be taken is refused before anything is written, with every reason at once. A night that
is there already, by its values, is not stored again: twice the same night would pass for two nights
that do not differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmperf.baselines import Baselines, name_of, number_of
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.files import json_of, read_bytes, read_text
from pytest_llmperf.result_file import (
    MOST_BYTES,
    NO_DAY,
    SCHEMA_VERSION,
    UNKNOWN_KEY,
    ResultFile,
    encoded,
    names_a_folder,
    read,
)
from pytest_llmperf.result_rows import Entry
from pytest_llmperf.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What is to be stored as one file."""

    source: Path
    hardware_key: str
    name: str
    content: bytes
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...] = ()
    """What of the source is not stored, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of a night."""

    night: Night
    path: Path
    """Where it lies now."""
    is_new: bool
    """False where the same night was there already."""


def nights_of(sources: Sequence[Path], name: str, *, accept_regressed: bool = False) -> list[Night]:
    """Result files as nights, one for each hardware that a file holds results of, in the order given.

    Rows whose judgement is REGRESSED are left out unless they are accepted, invalid ones always.
    Raises `BaselineError` naming every file that cannot become a night.
    """
    nights: list[Night] = []
    problems = []
    for source in sources:
        try:
            nights += _split(source, name, accept_regressed=accept_regressed)
        except BaselineError as error:
            problems += str(error).splitlines()
        except ValueError as error:
            problems.append(f"{source} holds numbers that JSON does not know ({error}); measure again")
    if problems:
        raise BaselineError("\n".join(problems))
    return nights


def nights_in(origin: Baselines, only: str | None = None) -> list[Night]:
    """The nights of another folder of baselines as they are, oldest first; `only`: those of that name.

    Raises `BaselineError` naming every file that cannot be used, or where there is none.
    """
    keys = origin.keys()
    if not keys:
        raise BaselineError(
            f"{origin.directory} has no stored result: expected folders by hardware key with files such as "
            "0001_main.json in them"
        )
    nights: list[Night] = []
    problems = []
    for key in keys:
        try:
            files = reversed(origin.files(key))
        except BaselineError as error:
            problems += str(error).splitlines()
            continue
        nights += [_whole(file) for file in files if only in (None, name_of(file.path))]
    if problems:
        raise BaselineError("\n".join(problems))
    if not nights:
        names = sorted({name_of(path) for key in keys for path in origin.paths(key)})
        raise BaselineError(f"{origin.directory} has no night named {only!r}; there are {', '.join(names)}")
    return nights


def stored(nights: Sequence[Night], baselines: Baselines) -> Iterator[Stored]:
    """Store nights under the next numbers, each unless it is there already.

    Raises `BaselineError` naming every file in their folders that cannot be used.
    """
    keys = dict.fromkeys(night.hardware_key for night in nights)
    present = {key: {file.path: _seen(file.entries) for file in baselines.files(key)} for key in keys}
    for night in nights:
        key, seen = night.hardware_key, _seen(night.entries)
        there = present[key]
        with baselines.writing(key, "saving nights") as put:
            there |= {
                file.path: _seen(file.entries) for file in baselines.files(key, known=there)
            }  # of other processes
            known = next((path for path, values in there.items() if values == seen), None)
            path = known or put(night.name, night.content)
        there[path] = seen
        yield Stored(night=night, path=path, is_new=known is None)


def superfluous(baselines: Baselines, hardware_key: str, keep: int) -> list[Path]:
    """The files beyond the newest `keep`, oldest first.

    At least the newest stays: numbers follow the highest, and accepted changes are told by them.
    """
    return sorted(baselines.paths(hardware_key)[max(1, keep) :], key=number_of)


def _seen(entries: Iterable[Entry]) -> frozenset[str]:
    """What the gate sees of a night. No two nights of real runs have it in common."""
    return frozenset(
        json.dumps([e.measurement, e.metric, e.stored_values, e.comparable, e.engine_words], sort_keys=True)
        for e in entries
    )


def _whole(file: ResultFile) -> Night:
    return Night(
        source=file.path,
        hardware_key=file.hardware_key,
        name=name_of(file.path),
        content=read_bytes(file.path, MOST_BYTES),
        entries=file.entries,
    )


def _split(source: Path, name: str, *, accept_regressed: bool) -> Iterator[Night]:
    """One night for each hardware that the file has results of: a simulated engine brings its own."""
    file = read(source)
    if not file.is_ours:
        raise BaselineError(
            f"{source} is not a result of pytest-llmperf: no machine_info.llmperf; save one with "
            "--benchmark-json FILE or --llmperf-save-baseline NAME"
        )
    if not file.entries:
        raise BaselineError(f"{source} has no measurement in it; nothing of it can be stored")
    document = json_of(read_text(source, MOST_BYTES))  # what lies behind the entries, row by row
    unfit = (Verdict.INVALID_RUN,) if accept_regressed else (Verdict.REGRESSED, Verdict.INVALID_RUN)
    good: dict[str, list[tuple[Any, Entry]]] = {}
    left_out = []
    regressed = False
    for row, entry in zip(document["benchmarks"], file.entries, strict=True):
        verdict = _verdict(row)
        if not _about(row):
            left_out.append(f"{entry.measurement} is not of pytest-llmperf")
        elif verdict in unfit:
            left_out.append(f"{entry.metric} of {entry.measurement} is {verdict}")
            regressed |= verdict == Verdict.REGRESSED
        else:
            good.setdefault(_key(file, row), []).append((row, entry))
    if not good:
        remedy = "; --accept-regressed stores what regressed as well" if regressed else ""
        raise BaselineError(f"{source} has nothing that may be stored: {'; '.join(left_out)}{remedy}")
    for place, (key, found) in enumerate(good.items()):
        yield Night(
            source=source,
            hardware_key=key,
            name=name,
            content=encoded(_document(document, file, key, [row for row, _ in found])),
            entries=tuple(entry for _, entry in found),
            left_out=() if place else tuple(left_out),
        )


def _about(row: Any) -> Mapping[str, Any]:
    """What a row says in our own words; nothing where another plugin wrote it."""
    about: Mapping[str, Any] = row.get("extra_info", {}).get("llmperf", {})
    return about


def _key(file: ResultFile, row: Any) -> str:
    """The hardware that a row was measured on. Raises `BaselineError` where it is not known."""
    provenance = _about(row).get("provenance")
    key = provenance.get("hardware_key") if isinstance(provenance, dict) else None
    known = key if isinstance(key, str) else file.hardware_key
    if known == UNKNOWN_KEY:
        raise BaselineError(f"{file.path} does not say what hardware it was measured on; measure again")
    if not names_a_folder(known):
        raise BaselineError(f"{file.path} says that it was measured on {known!r}, which cannot name a folder")
    return known


def _verdict(row: Any) -> object:
    """That of the measurement that a row is of; None where nothing was judged."""
    judgement = _about(row).get("judgement")
    return judgement.get("verdict") if isinstance(judgement, dict) else None


def _document(document: Mapping[str, Any], file: ResultFile, key: str, rows: Sequence[Any]) -> dict[str, Any]:
    """The file with these rows; what it says of the machine is left out where they are of another one."""
    kept = {**document, "benchmarks": list(rows)}
    if key == file.hardware_key:
        return kept
    about = {"llmperf": {"schema_version": SCHEMA_VERSION, "hardware_key": key}}
    if all(_about(row)["comparable"].get("simulated") for row in rows):
        return {**kept, "machine_info": about, "commit_info": {}, "datetime": NO_DAY}
    return {**kept, "machine_info": about}
