"""Reading files of conversations and traces: every complaint names the file, the line and what was expected."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.files import lines, open_regular

_SHOWN = 60
_LONGEST = 400


def complaint(path: Path, line: int, problem: str, expected: str) -> ConfigurationError:
    """The error on one line of a file."""
    return ConfigurationError(f"{path}, line {line}: {short(problem)}; expected {expected}")


def short(problem: str) -> str:
    """What a file has made a complaint say, bounded, and on one line."""
    cut = problem if len(problem) <= _LONGEST else f"{problem[: _LONGEST - 1]}…"
    return cut if cut.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in cut)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with something in them, by their number from 1. Raises `ConfigurationError`."""
    try:
        with open_regular(path) as stream:
            for number, raw in enumerate(lines(path, stream), start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise complaint(path, number, f"byte {error.start} is not UTF-8", "a file in UTF-8") from None
                if text:
                    yield number, text
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}; give the path of a file") from None


def json_lines(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, by the numbers of their lines. `expected`: what one should be, for the reader."""
    for number, text in text_lines(path):
        try:
            row = orjson.loads(text)
        except ValueError:
            raise complaint(path, number, f"no JSON: {text[:_SHOWN]!r}", expected) from None
        if not isinstance(row, dict):
            raise complaint(path, number, f"no JSON object: {text[:_SHOWN]!r}", expected)
        yield number, row


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The rows of a CSV file that has at least these columns, by the numbers of their lines."""
    found = text_lines(path)
    wanted = ", ".join(columns)
    header = next(found, None)
    if header is None:
        raise complaint(path, 1, "nothing in the file", f"a header with {wanted}")
    names = _values(path, *header)
    missing = [name for name in columns if name not in names]
    if missing:
        raise complaint(path, header[0], f"no column {', '.join(missing)} in {names}", f"the columns {wanted}")
    for number, text in found:
        values = _values(path, number, text)
        if len(values) != len(names):
            raise complaint(path, number, f"{len(values)} values", f"{len(names)}, as the header has columns")
        yield number, dict(zip(names, values, strict=True))


def _values(path: Path, number: int, text: str) -> list[str]:
    try:
        return next(csv.reader([text]))
    except csv.Error as error:
        raise complaint(path, number, f"no CSV ({error})", "values between commas") from None
