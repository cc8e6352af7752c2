"""Another tool's files as JSON, and their fields: what is missing or impossible is a sentence with its place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import ForeignResultError
from pytest_llmperf.files import MIB, TwiceError, json_of, read_text

_MOST_BYTES = 512 * MIB
"""GuideLLM and AIPerf keep every request, with its text, in one document."""
_SHOWN = 60
_LONGEST = 200
_DEEPEST = 100
# No duration, count or moment of a measurement is larger; sums of many of them are still numbers.
_MOST = 1e18
_REMEDY = "leave the file out, or measure again"
# Fields that are never copied into a result: a secret, or what may hold one. "time_to_first_token" is none.
_SECRET = re.compile(
    r"(.*[_-])?(api[_-]?key|authorization|password|secret|cookies?|headers?)|((access|api|auth|bearer|hf|hub)[_-])?token"
    r"|cli_command",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Source:
    """A file: its one object if it is JSON, one for each line if it is JSONL."""

    path: Path
    objects: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        return self.path.name

    def place(self, number: int) -> str:
        """Where the object of this number stands, for messages."""
        return str(self.path) if len(self.objects) == 1 else f"{self.path}, object {number + 1}"

    def complaint(self, found: str, expected: str) -> ForeignResultError:
        """The error on what was found in this file."""
        return ForeignResultError(f"{self.path}: {found}; expected {expected}")


def load(path: Path) -> Source:
    """Read a file of JSON or JSONL. Raises `ForeignResultError`, in one sentence, for anything else."""
    expected = "the JSON or JSONL that a benchmark wrote"
    try:
        text = read_text(path, _MOST_BYTES, "utf-8-sig")
    except OSError as error:
        raise ForeignResultError(f"{path} cannot be read: {error.strerror or error}; expected {expected}") from None
    except ValueError:
        raise ForeignResultError(f"{path} is not text in UTF-8; expected {expected}") from None
    if not text.strip():
        raise ForeignResultError(f"{path} is empty; expected {expected}")
    try:
        return Source(path, (_object(path, text, str(path)),))
    except json.JSONDecodeError as whole:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not _begins_with_an_object(lines[0][1]):  # no JSONL: the complaint is about the whole
            raise _not_json(path, str(path), whole) from None
    return Source(path, tuple(_line(path, number, line) for number, line in lines))


def _begins_with_an_object(line: str) -> bool:
    try:
        return isinstance(_decoded(line), dict)
    except (ValueError, RecursionError):
        return False


def _line(path: Path, number: int, line: str) -> dict[str, Any]:
    place = f"{path}, line {number}"
    try:
        return _object(path, line, place)
    except json.JSONDecodeError as error:
        raise _not_json(path, place, error) from None


def _not_json(path: Path, place: str, error: json.JSONDecodeError) -> ForeignResultError:
    cut = "; it may have been cut off" if error.pos >= len(error.doc.rstrip()) or "Unterminated" in error.msg else ""
    return ForeignResultError(f"{place} is not JSON ({error.msg}, character {error.pos}){cut}; {_REMEDY}")


def _object(path: Path, text: str, place: str) -> dict[str, Any]:
    """One JSON object. Raises `json.JSONDecodeError` where it is no JSON."""
    too_much = ForeignResultError(f"{place} is no result file: its JSON is too deep or its numbers too long; {_REMEDY}")
    try:
        value = _decoded(text)
    except json.JSONDecodeError:
        raise
    except TwiceError as error:
        raise ForeignResultError(f"{place} is no result file: {error}; {_REMEDY}") from None
    except (ValueError, RecursionError):  # more digits or brackets than Python reads
        raise too_much from None
    if _is_deep(value):
        raise too_much
    if not isinstance(value, dict):
        raise ForeignResultError(f"{place} holds {_shown(value)}; expected a JSON object, as every known tool writes")
    return value


def _decoded(text: str) -> Any:
    return json_of(text)


def _is_deep(value: Any) -> bool:
    """Whether it is nested deeper than anything that recurses over it should have to follow."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of an object of a file, checked when they are asked for.

    `tool`: whose they are; `place`: file and object; `path`: names of the objects around, with dots.
    """

    tool: str
    place: str
    values: Mapping[str, Any]
    path: str = ""

    def complaint(self, name: str, expected: str) -> ForeignResultError:
        """The error on a field."""
        given = f"is {_shown(self.values[name])}" if name in self.values else "is missing"
        return ForeignResultError(
            f"{self.place}: {self.path}{name} of {self.tool} {given}; expected {expected}; {_REMEDY}"
        )

    def within(self, name: str) -> Fields:
        """An object that has to be there."""
        inner = self.values.get(name)
        if not isinstance(inner, dict):
            raise self.complaint(name, "an object")
        return Fields(self.tool, self.place, inner, f"{self.path}{name}.")

    def perhaps_within(self, name: str) -> Fields:
        """An object, or an empty one where there is none."""
        if self.values.get(name) is None:
            return Fields(self.tool, self.place, {}, f"{self.path}{name}.")
        return self.within(name)

    def items(self, name: str) -> Iterator[Fields]:
        """The objects of a list that has to be there."""
        inner = self.values.get(name)
        if not isinstance(inner, list) or not all(isinstance(item, dict) for item in inner):
            raise self.complaint(name, "a list of objects")
        for number, item in enumerate(inner):
            yield Fields(self.tool, self.place, item, f"{self.path}{name}[{number}].")

    def amount(self, name: str) -> float | None:
        """A finite number of at least 0; None where it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST:
            raise self.complaint(name, "a finite number of at least 0")
        return float(value)

    def required(self, name: str) -> float:
        """A finite number of at least 0 that has to be there."""
        value = self.amount(name)
        if value is None:
            raise self.complaint(name, "a finite number of at least 0")
        return value

    def count(self, name: str) -> int | None:
        """A whole number of at least 0, whether written as 3 or as 3.0; None where it is absent."""
        value = self.amount(name)
        if value is not None and value != int(value):
            raise self.complaint(name, "a whole number")
        return None if value is None else int(value)

    def required_count(self, name: str) -> int:
        """A whole number of at least 0 that has to be there."""
        value = self.count(name)
        if value is None:
            raise self.complaint(name, "a whole number of at least 0")
        return value

    def amounts(self, name: str) -> list[float] | None:
        """A list of finite numbers of at least 0; None where it is absent."""
        given = self.values.get(name)
        if given is None:
            return None
        if not isinstance(given, list):
            raise self.complaint(name, "a list of numbers")
        inner = Fields(self.tool, self.place, {f"{name}[{i}]": value for i, value in enumerate(given)}, self.path)
        return [inner.required(each) for each in inner.values]

    def text(self, name: str) -> str | None:
        """A text; None where it is absent or null. Numbers are taken as they are written."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, (str, int, float)):
            return str(value)
        raise self.complaint(name, "a text")


def plain(value: Any) -> Any:
    """A value as it can stand in strict JSON: `inf` and `nan` are texts, secrets are left out."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if not _SECRET.fullmatch(name)}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def printable(text: object) -> str:
    """A text of somebody's file for one line of a terminal."""
    line = " ".join(str(text).split())
    return "".join(letter if letter.isprintable() else "?" for letter in line[:_LONGEST])


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
