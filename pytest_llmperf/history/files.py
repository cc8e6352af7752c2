"""Result files in the order in which they were measured: those of folders, or those that git remembers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from pytest_llmperf.acknowledged import FILE_NAME
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.history.series import StoredFile
from pytest_llmperf.result_file import moment, parsed, read

_NUMBER = re.compile(r"(\d{4,})_.+\.json")
# What a simulation writes in place of a date: it owes nothing to the day on which it ran.
_NO_DAY = datetime(1970, 1, 1, tzinfo=timezone.utc)
_HEADER = re.compile(r"commit ([0-9a-f]{40,64}) (\d+)")
_SHORT = 10
"""Digits of a commit that people are shown."""
_Given = TypeVar("_Given")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read, oldest first, and what could not be."""

    files: tuple[StoredFile, ...] = ()
    problems: tuple[str, ...] = ()
    """One sentence for each file that cannot be used."""


_SHOWN = 40
"""Characters of what stands in place of a date."""


def stored_files(paths: Sequence[Path]) -> Reading:
    """Result files and those in folders, ordered by their dates; by their numbers where one of a folder has no date.

    A folder without result files of its own may hold folders of them, such as `baselines`. Raises
    `BaselineError` where there is no file, or their order cannot be known.
    """
    reading = _attempted(dict.fromkeys(path for given in paths for path in _files_of(given)), _placed_by_date)
    return Reading(files=tuple(_ordered(reading.files)), problems=reading.problems)


def committed_files(folder: Path, revisions: str) -> Reading:
    """The result files that commits of a range brought to a folder or changed there, oldest commit first.

    Dates and commits are git's. `revisions`: what `git log` takes, such as `HEAD` or `v1..main`. Raises
    `BaselineError` where git fails or the range has no such file.
    """
    if not folder.is_dir():
        raise BaselineError(f"{folder} is no folder; with --git give the one that git has result files of")
    found = list(_blobs(folder, revisions))
    if not found:
        raise BaselineError(f"no commit of {revisions} brought a result file (*.json) to {folder}; try --git HEAD")
    return _attempted(found, lambda blob: _from_git(folder, blob))


def _attempted(things: Iterable[_Given], make: Callable[[_Given], StoredFile]) -> Reading:
    files, problems = [], []
    for thing in things:
        try:
            files.append(make(thing))
        except BaselineError as error:
            problems.append(str(error))
    return Reading(files=tuple(files), problems=tuple(problems))


def _files_of(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise BaselineError(f"{given} is not there; give a folder of result files, such as baselines, or the files")
    found = _json_in(given, "*.json") or _json_in(given, "*/*.json")
    if not found:
        raise BaselineError(
            f"{given} has no result file: expected files such as 0001_main.json in it; "
            "pytest --llmperf-save-baseline NAME writes one a night"
        )
    return found


def _json_in(folder: Path, pattern: str) -> list[Path]:
    """Result files; what was accepted lies beside them and is none."""
    return sorted(path for path in folder.glob(pattern) if path.name != FILE_NAME)


def _placed_by_date(path: Path) -> StoredFile:
    file = read(path)
    return StoredFile(file=file, at=moment(file.saved_at), commit=file.commit)


def _number(path: Path) -> int | None:
    found = _NUMBER.fullmatch(path.name)
    return None if found is None else int(found.group(1))


def _ordered(files: Sequence[StoredFile]) -> list[StoredFile]:
    if all(one.at is not None for one in files):
        return _by_date(files)
    folders: dict[Path, list[StoredFile]] = {}
    for one in files:
        folders.setdefault(one.file.path.parent, []).append(one)
    return [
        one
        for group in folders.values()
        for one in (_by_date(group) if all(one.at is not None for one in group) else _by_number(group))
    ]


def _by_date(files: Iterable[StoredFile]) -> list[StoredFile]:
    return sorted(files, key=lambda one: (one.at or _NO_DAY, _number(one.file.path) or 0, one.file.path))


def _by_number(files: Sequence[StoredFile]) -> list[StoredFile]:
    """Of one folder. Raises `BaselineError` for a file whose name has none."""
    numbered = []
    for one in files:
        number = _number(one.file.path)
        if number is None:
            dateless = next(file.file for file in files if file.at is None)
            raise BaselineError(
                f"{one.file.path} cannot be put in order: its name has no number, and {dateless.path.name} has no date "
                f"({dateless.saved_at[:_SHOWN]!r}); name the files 0001_NAME.json and so on"
            )
        numbered.append((number, one))
    return [one for _, one in sorted(numbered, key=lambda pair: pair[0])]


@dataclass(frozen=True, slots=True)
class _Blob:
    commit: str
    at: datetime
    path: str

    @property
    def name(self) -> str:
        return f"{self.commit}:{self.path}"


def _blobs(folder: Path, revisions: str) -> Iterator[_Blob]:
    """What each commit added or changed, oldest first; a file that was only moved is no new night."""
    order = ("--reverse", "--topo-order", "--find-renames", "--diff-filter=AM")
    form = ("-z", "--name-only", "--format=commit %H %ct")
    text = _git(folder, "log", *order, *form, "--end-of-options", *revisions.split(), "--", "*.json")
    commit, at, paths = "", _NO_DAY, list[str]()
    for word in (*(part.strip("\n") for part in text.split("\0")), "commit"):
        header = _HEADER.fullmatch(word)
        if header is None and word != "commit":
            paths += [word] if word else []
            continue
        yield from (
            _Blob(commit, at, path) for path in sorted(paths, key=lambda path: (_number(Path(path)) or 0, path))
        )
        paths = []
        if header is not None:
            commit, at = header.group(1), datetime.fromtimestamp(int(header.group(2)), timezone.utc)


_GIT_S = 120.0
"""How long one git command may take: a log of a large repository on a cold disk takes seconds."""


def _from_git(folder: Path, blob: _Blob) -> StoredFile:
    text = _git(folder, "show", "--end-of-options", blob.name)
    try:
        file = parsed(Path(blob.path), text)
    except BaselineError as error:
        raise BaselineError(f"{blob.commit[:_SHORT]}:{error}") from None
    return StoredFile(file=file, at=blob.at, commit=blob.commit, blob=blob.name)


def _git(folder: Path, *arguments: str) -> str:
    """What git prints. Raises `BaselineError` with its complaint."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=False,
            text=True,
            encoding="utf-8",
            timeout=_GIT_S,
        )
    except subprocess.TimeoutExpired:
        raise BaselineError(
            f"git {arguments[0]} in {folder} had not ended after {_GIT_S:g} s; see whether it ends when called by hand"
        ) from None
    except FileNotFoundError:
        raise BaselineError("git is not installed; without --git the files of a folder are read as they lie") from None
    except UnicodeDecodeError:
        raise BaselineError(f"{arguments[-1]} in the git history of {folder} is not text") from None
    if done.returncode:
        complaint = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise BaselineError(f"git {arguments[0]} in {folder}: {complaint}")
    return done.stdout
