"""What every trace format is read into: one `Row` per request, its fields checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.files import complaint

S = 1_000_000_000
MS = 1_000_000
MOST_TOKENS = 10_000_000
"""A length beyond this is a mistake in the file, not a request."""
_LATEST = 1e15
"""Dates in ms are below."""
LONGEST_NS = 100 * 366 * 86_400 * S
"""So is a time a century after the first request."""


class Input(Enum):
    """What the input length of a row is the length of."""

    WHOLE = "whole"
    """All of the input, and its blocks say of what: the turn is sent as recorded."""
    TOTAL = "total"
    """All of the input; what the session's turns before it make of it is not sent anew."""
    NEW = "new"
    """What the turn adds to its session."""


class Row(NamedTuple):
    """One request of a trace."""

    line: int
    at_ns: int | None
    """Since any beginning; None: as soon as the turn before it is answered."""
    input_tokens: int
    output_tokens: int
    blocks: Sequence[int] | None = None
    """The numbers of its blocks; None: nothing is known of them."""
    key: object = None
    """What a later turn of its session finds it by."""
    follows: object = None
    """The key of the turn before it; None: it begins a session."""
    input: Input = Input.WHOLE


@dataclass(frozen=True, slots=True)
class Reading:
    """A trace file, opened: iterate `rows` to read it."""

    block_tokens: int
    rows: Iterator[Row]


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one row of a JSONL file. Each method raises `ConfigurationError` naming the line."""

    path: Path
    line: int
    row: Mapping[str, Any]
    expected: str

    def complaint(self, problem: str) -> ConfigurationError:
        """The error on this row."""
        return complaint(self.path, self.line, problem, self.expected)

    def tokens(self, name: str) -> int:
        """A length in tokens."""
        value = self.row.get(name)
        if type(value) is int and 0 <= value <= MOST_TOKENS:
            return value
        raise self.complaint(self._wrong(name, f"a whole number from 0 to {MOST_TOKENS:,}"))

    def time_ns(self, name: str, unit_ns: int, *, optional: bool = False) -> int | None:
        """A time of 0 or more."""
        value = self.row.get(name)
        if value is None and optional:
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LATEST:
            return round(value * unit_ns)
        raise self.complaint(self._wrong(name, "a time of 0 or more"))

    def blocks(self, name: str) -> Sequence[int] | None:
        """The numbers of the input's blocks, if there are any."""
        value = self.row.get(name)
        if value is None:
            return None
        if isinstance(value, list) and all(type(number) is int and 0 <= number < 2**64 for number in value):
            return value
        raise self.complaint(self._wrong(name, "a list of whole numbers from 0"))

    def label(self, name: str) -> str | int | None:
        """What a session is called."""
        value = self.row.get(name)
        if value is None or isinstance(value, (str, int)):
            return value
        raise self.complaint(self._wrong(name, "text or a number"))

    def _wrong(self, name: str, accepted: str) -> str:
        if name not in self.row:
            return f"no {name} among {', '.join(self.row) or 'no fields'}"
        return f"{name} is {str(self.row[name])[:60]!r}, which is not {accepted}"
