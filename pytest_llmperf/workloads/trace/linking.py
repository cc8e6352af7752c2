"""A trace's rows put into sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.files import complaint
from pytest_llmperf.workloads.trace.raw import INPUTS, MISSING, NONE, Raw
from pytest_llmperf.workloads.trace.rows import Input

Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def by_time(raw: Raw) -> Longs:
    """The rows by their times; one without goes with the row before it."""
    at_ns = np.array(raw.at_ns, np.int64)
    return np.argsort(at_ns[_known(at_ns)], kind="stable")


def _known(at_ns: Longs) -> Longs:
    """For each place it or, where no time is known, the last one before it that has one."""
    return np.maximum.accumulate(np.where(at_ns == MISSING, 0, np.arange(len(at_ns))))


def linked(path: Path, raw: Raw, order: Longs) -> tuple[Longs, Flags, Longs]:
    """For each row in this order: its session, whether it continues from the history, how long that is.

    A turn whose predecessor is missing or has another successor already, or whose input is shorter than the history,
    is a session of its own.
    """
    count = len(order)
    session, continues, history = np.arange(count), np.zeros(count, bool), np.zeros(count, np.int64)
    at_ns = np.array(raw.at_ns, np.int64)[order]
    if not np.any(np.array(raw.follows, np.int64) != NONE):
        _check_order(path, raw, order, at_ns)
        return session, continues, history
    links = _Links(path, raw)
    for place, row in enumerate(order.tolist()):
        session[place], continues[place], history[place] = links.add(row)
    return session, continues, history


def _check_order(path: Path, raw: Raw, order: Longs, at_ns: Longs) -> None:
    back = np.flatnonzero(np.diff(at_ns[_known(at_ns)]) < 0)
    if len(back):
        before, row = order[back[0]], order[back[0] + 1]
        raise _out_of_order(path, raw.line[row], raw.line[before])


def _out_of_order(path: Path, line: int, before: int) -> ConfigurationError:
    return complaint(path, line, f"earlier than line {before}", "rows in the order of their times (or say sort=True)")


class _Links:
    """Puts rows into sessions, one after another."""

    def __init__(self, path: Path, raw: Raw) -> None:
        self._path = path
        self._raw = raw
        self._rows: dict[int, int] = {}
        """The last row of each key."""
        self._session: dict[int, int] = {}
        """The session of each row that ends one."""
        self._exchanged: dict[int, int] = {}
        self._sessions = 0
        self._last_start: int | None = None

    def add(self, row: int) -> tuple[int, bool, int]:
        """The row's session, whether it continues from the history, how long that is."""
        raw = self._raw
        follows, key, kind = raw.follows[row], raw.key[row], INPUTS[raw.kind[row]]
        before = None if follows == NONE else self._rows.get(follows)
        if before not in self._session:
            before = None
        history = 0 if before is None or kind is Input.WHOLE else self._exchanged[before]
        if kind is Input.TOTAL and raw.input_tokens[row] <= history:
            before, history = None, 0
        if before is None:
            session = self._sessions
            self._sessions += 1
            self._check(row, self._last_start)
            self._last_start = row
        else:
            session = self._session.pop(before)
            self._check(row, before)
        self._session[row] = session
        if key != NONE:
            self._rows[key] = row
        continues = before is not None and kind is not Input.WHOLE
        length = raw.input_tokens[row] + (history if kind is Input.NEW else 0)
        self._exchanged[row] = length + raw.output_tokens[row]
        return session, continues, history

    def _check(self, row: int, before: int | None) -> None:
        raw = self._raw
        if before is not None and MISSING < raw.at_ns[row] < raw.at_ns[before]:
            raise _out_of_order(self._path, raw.line[row], raw.line[before])
