"""Files of many JSON objects, one array or one object a line, read one object at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.files import LONGEST_LINE, MIB, open_regular
from pytest_llmperf.workloads.files import complaint, json_lines, short

_CHUNK = 1 << 20
_SHOWN = 60
_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_ATOM = 16
"""No word, number or escape that is cut by the end of what was read is reported further away from it."""


def complaint_at(path: Path, place: str, problem: str, expected: str) -> ConfigurationError:
    """The error on one element of a file. `place`: "element 3", "line 7"."""
    return ConfigurationError(f"{path}, {place}: {short(problem)}; expected {expected}")


def elements(path: Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its place: "element 3" of a JSON array, "line 3" of a JSONL file.

    An array of any size takes the memory of its largest element. `expected`: what an object should
    be, for the reader. Raises `ConfigurationError`.
    """
    try:
        with open_regular(path) as stream:
            text = _Text(path, stream)
            if text.next() == "[":
                yield from _array(path, text, expected)
                return
            if not text.next():
                raise complaint(path, 1, "nothing in the file", expected)
    except (OSError, ValueError) as error:  # a ValueError: a path with a null byte in it
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{path} cannot be read: {reason}; give the path of a file") from None
    for number, row in json_lines(path, expected):
        yield f"line {number}", row


def _array(path: Path, text: _Text, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text.take()
    number = 0
    while number or text.next() != "]":
        number += 1
        place = f"element {number}"
        text.next()
        yield place, _object(path, place, text, expected)
        separator = text.next()
        if separator == "]":
            break
        if separator != ",":
            problem = f"{text.ahead()!r} behind it" if separator else "the file ends behind it"
            raise complaint_at(path, place, problem, "a comma or the end of the array, ]")
        text.take()
    text.take()
    if text.next():
        raise complaint_at(path, f"element {number}", f"{text.ahead()!r} behind the array", "nothing more")


def _object(path: Path, place: str, text: _Text, expected: str) -> dict[str, Any]:
    try:
        value = text.value()
    except json.JSONDecodeError as error:
        problem = "the file ends within it" if _is_cut(error) else f"no JSON: {error.doc[error.pos :][:_SHOWN]!r}"
        raise complaint_at(path, place, problem, expected) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise complaint_at(path, place, f"JSON that cannot be read ({error})", expected) from None
    if not isinstance(value, dict):
        raise complaint_at(path, place, f"no JSON object: {str(value)[:_SHOWN]!r}", expected)
    return value


def _is_cut(error: json.JSONDecodeError, slack: int = 0) -> bool:
    """Whether the text ends before the value does, rather than being wrong."""
    return error.msg.startswith("Unterminated string") or error.pos + slack >= len(error.doc)


class _Text:
    """A file in UTF-8, of which a part is in memory."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._undecoded = b""
        self._lines = 1
        self._ended = False
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()
        self._more()
        self._text = self._text.removeprefix("\ufeff")

    def next(self) -> str:
        """The next character that is no space, which is not taken; nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = self._at if match is None else match.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self) -> None:
        """Go on behind the next character."""
        self._at += 1

    def ahead(self) -> str:
        """What comes next, to be shown."""
        return self._text[self._at :][:_SHOWN]

    def value(self) -> object:
        """Take the JSON value that begins here. Raises `ValueError`, `RecursionError`."""
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not _is_cut(error, _LONGEST_ATOM):
                    raise
                self._more()
            else:
                return value

    def _more(self) -> None:
        """Read on, at least as much as is there, so that a long value is not tried too often."""
        self._text, self._at = self._text[self._at :], 0
        if len(self._text) > LONGEST_LINE:
            problem = f"more than {LONGEST_LINE // MIB} MiB without an end"
            raise complaint(self._path, self._lines, problem, "objects of a size that can be read")
        raw = self._stream.read(max(_CHUNK, len(self._text)))
        self._ended = not raw
        self._undecoded += raw
        try:
            text, used = codecs.utf_8_decode(self._undecoded, "strict", self._ended)
        except UnicodeDecodeError as error:
            before = self._undecoded[: error.start]
            byte = error.start - before.rfind(b"\n") - 1
            line = self._lines + before.count(b"\n")
            raise complaint(self._path, line, f"byte {byte} is not UTF-8", "a file in UTF-8") from None
        self._lines += self._undecoded[:used].count(b"\n")
        self._undecoded = self._undecoded[used:]
        self._text += text
