"""When the tokens of one answer arrived: in 20 bytes a token while they come, in some 12 when they are kept."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np

UNKNOWN = -1
"""Stands for an unknown number of tokens in a column."""
_WIDTHS = tuple((code, 1 << 8 * array(code).itemsize - 1) for code in "bhiq")


@dataclass(frozen=True, slots=True)
class Arrival:
    """Generated tokens that became readable together.

    `at_ns`: when they had arrived, by the kernel's stamp where there is one, on the record's
    monotonic clock. `tokens`: how many, or None where the server does not say how many a chunk
    holds. `late_ns`: they may have arrived by as much earlier, without the client having seen it.
    """

    at_ns: int
    tokens: int | None
    late_ns: int = 0


class Arrivals(Sequence[Arrival]):
    """Arrivals in columns: `at_ns`, `tokens` (`UNKNOWN` where not known) and `late_ns`."""

    __slots__ = ("at_ns", "late_ns", "tokens")

    def __init__(self, at_ns: Iterable[int] = (), tokens: Iterable[int] = (), late_ns: Iterable[int] = ()) -> None:
        self.at_ns = array("q", at_ns)
        self.tokens = array("i", tokens)
        self.late_ns = array("q", late_ns)

    @classmethod
    def of(cls, arrivals: Iterable[Arrival]) -> Arrivals:
        """The same in columns."""
        columns = cls()
        for arrival in arrivals:
            columns.append(arrival.at_ns, arrival.tokens, arrival.late_ns)
        return columns

    def append(self, at_ns: int, tokens: int | None, late_ns: int) -> None:
        """Add one arrival at the end."""
        self.at_ns.append(at_ns)
        self.tokens.append(UNKNOWN if tokens is None else tokens)
        self.late_ns.append(late_ns)

    def keep(self) -> None:
        """No more will come: take no more room than it needs. The columns hold the same, and may be shared."""
        self.at_ns = self.at_ns[:]  # without the room to grow
        self.tokens = _shared(*_narrow(self.tokens))
        self.late_ns = array(*_narrow(self.late_ns))

    @overload
    def __getitem__(self, index: int) -> Arrival: ...
    @overload
    def __getitem__(self, index: slice) -> Arrivals: ...
    def __getitem__(self, index: int | slice) -> Arrival | Arrivals:
        if isinstance(index, slice):
            return Arrivals(self.at_ns[index], self.tokens[index], self.late_ns[index])
        tokens = self.tokens[index]
        return Arrival(self.at_ns[index], None if tokens == UNKNOWN else tokens, self.late_ns[index])

    def __len__(self) -> int:
        return len(self.at_ns)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Arrivals.of({list(self)!r})"

    def to_json(self) -> dict[str, Any]:
        """The columns; `late_ns` only where something was late."""
        columns = {"at_ns": self.at_ns.tolist(), "tokens": self.tokens.tolist()}
        return columns | ({"late_ns": self.late_ns.tolist()} if any(self.late_ns) else {})

    @classmethod
    def from_json(cls, columns: dict[str, Any]) -> Arrivals:
        """Read back what `to_json` gave."""
        at_ns = columns["at_ns"]
        return cls(at_ns, columns["tokens"], columns.get("late_ns") or [0] * len(at_ns))


def _narrow(column: array[int]) -> tuple[str, bytes]:
    """The narrowest type of array that holds a column, and its content in that."""
    values = np.asarray(column)
    lowest, highest = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    code = next(code for code, beyond in _WIDTHS if -beyond <= lowest and highest < beyond)
    return code, values.astype(code).tobytes()


@lru_cache(maxsize=256)
def _shared(code: str, content: bytes) -> array[int]:
    """Answers of one token a chunk and one length, which most are, have one column for all of them."""
    return array(code, content)
