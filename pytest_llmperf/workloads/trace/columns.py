"""A trace in memory: a few arrays, whatever its length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_llmperf.workloads.files import complaint
from pytest_llmperf.workloads.trace.reuse import Reuse
from pytest_llmperf.workloads.trace.rows import LONGEST_NS, Input, Row

Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

UNTIMED = -1
"""Stands in `at_ns` for a turn that follows the answer before it."""
_MOST_NUMBER = 2**40
"""Block numbers beyond are numbered anew: times a block's size they would leave 64 bits."""
_INPUTS = (Input.WHOLE, Input.TOTAL, Input.NEW)


@dataclass(frozen=True)
class Columns:
    """The requests of a trace, a session's turns one after another."""

    at_ns: Longs
    new_tokens: Longs
    """The ids that the request sends by itself."""
    total_tokens: Longs
    """The ids of its input."""
    output_tokens: Longs
    continues: Flags
    """Whether its input begins with what its session has exchanged so far."""
    blocks: npt.NDArray[np.uint64]
    blocks_from: Longs
    """Where in `blocks` each request's own begin, and, last, where they end."""
    first: Longs
    """Where each session's turns begin, and, last, where they end."""
    _reuse: dict[int, Reuse] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.at_ns)

    @property
    def sessions(self) -> int:
        """How many there are."""
        return len(self.first) - 1

    @cached_property
    def session_of(self) -> Longs:
        """Each request's session."""
        return np.repeat(np.arange(self.sessions), np.diff(self.first))

    @property
    def _known_ns(self) -> Longs:
        """The times; a turn without has that of the turn before it."""
        known = self.at_ns != UNTIMED
        known[self.first[:-1]] = True
        return self.at_ns[np.maximum.accumulate(np.where(known, np.arange(len(self)), 0))]

    @cached_property
    def hash(self) -> bytes:
        """Equal for equal columns."""
        state = hashlib.sha256()
        for column in (self.at_ns, self.new_tokens, self.output_tokens, self.blocks_from, self.first):
            state.update(column.astype("<i8").tobytes())
        state.update(self.continues.tobytes() + self.blocks.astype("<u8").tobytes())
        return state.digest()

    def reuse(self, block_tokens: int) -> Reuse:
        """What the inputs that are sent whole have in common if their blocks have this size."""
        if block_tokens not in self._reuse:
            self._reuse[block_tokens] = self._reused(block_tokens)
        return self._reuse[block_tokens]

    def _reused(self, block_tokens: int) -> Reuse:
        whole = np.flatnonzero(~self.continues)
        counts = np.diff(self.blocks_from)[whole]
        return Reuse.of(
            blocks=self.blocks[_spans(self.blocks_from[:-1][whole], counts)],
            counts=counts,
            lengths=self.total_tokens[whole],
            times=self._known_ns[whole],
            sessions=self.session_of[whole],
            block_tokens=block_tokens,
        )

    def only(self, keep: Flags) -> Columns:
        """Those requests, times counted from the first of them."""
        kept = np.flatnonzero(keep)
        counts = np.diff(self.blocks_from)[kept]
        at_ns = self.at_ns[kept]
        timed = at_ns != UNTIMED
        at_ns[timed] -= at_ns[timed].min() if timed.any() else 0
        return Columns(
            at_ns=at_ns,
            new_tokens=self.new_tokens[kept],
            total_tokens=self.total_tokens[kept],
            output_tokens=self.output_tokens[kept],
            continues=self.continues[kept],
            blocks=self.blocks[_spans(self.blocks_from[:-1][kept], counts)],
            blocks_from=_edges(counts),
            first=_edges(np.unique(self.session_of[kept], return_counts=True)[1]),
        )


def _longs() -> array[int]:
    return array("q")


@dataclass
class _Raw:
    """What the rows say, in the file's order."""

    line: array[int] = field(default_factory=_longs)
    at_ns: array[int] = field(default_factory=_longs)
    input_tokens: array[int] = field(default_factory=_longs)
    output_tokens: array[int] = field(default_factory=_longs)
    kind: array[int] = field(default_factory=_longs)
    key: array[int] = field(default_factory=_longs)
    follows: array[int] = field(default_factory=_longs)
    blocks: array[int] = field(default_factory=lambda: array("Q"))
    blocks_from: array[int] = field(default_factory=lambda: array("q", [0]))


_NONE = -1


def _read(path: Path, rows: Iterable[Row], block_tokens: int) -> _Raw:
    """All rows. Raises `ConfigurationError` at one that cannot be."""
    raw = _Raw()
    names: dict[object, int] = {None: _NONE}
    kinds = {kind: number for number, kind in enumerate(_INPUTS)}
    base: int | None = None
    for row in rows:
        if row.at_ns is None:
            at_ns = None
        else:
            base = row.at_ns if base is None else base
            at_ns = row.at_ns - base
            if abs(at_ns) > LONGEST_NS:
                raise complaint(path, row.line, "over a hundred years from the first row", "times of one trace")
        blocks = () if row.blocks is None else row.blocks
        _check_blocks(path, row, block_tokens)
        raw.line.append(row.line)
        raw.at_ns.append(_MISSING if at_ns is None else at_ns)
        raw.input_tokens.append(row.input_tokens)
        raw.output_tokens.append(row.output_tokens)
        raw.kind.append(kinds[row.input])
        raw.key.append(names.setdefault(row.key, len(names)))
        raw.follows.append(names.setdefault(row.follows, len(names)))
        raw.blocks.extend(blocks)
        raw.blocks_from.append(len(raw.blocks))
    if not raw.line:
        raise complaint(path, 1, "no request in the file", "one request per row")
    return raw


_MISSING = -(2**62)


def _check_blocks(path: Path, row: Row, size: int) -> None:
    """A row has a number for each block, or for each whole one."""
    if row.blocks is None or len(row.blocks) in (-(-row.input_tokens // size), row.input_tokens // size):
        return
    raise complaint(
        path,
        row.line,
        f"{len(row.blocks)} blocks for {row.input_tokens} tokens",
        f"{-(-row.input_tokens // size)}, as blocks have {size} tokens (or say block_tokens=)",
    )


def load(path: Path, rows: Iterable[Row], block_tokens: int, *, sort: bool) -> Columns:
    """All requests of a file. Raises `ConfigurationError` naming the line that is wrong."""
    raw = _read(path, rows, block_tokens)
    order = _by_time(raw) if sort else np.arange(len(raw.line))
    session, continues, history = _linked(path, raw, order)
    by_session = np.argsort(session, kind="stable")
    order, continues, history = order[by_session], continues[by_session], history[by_session]
    inputs, outputs, at_ns = (
        np.array(column, np.int64)[order] for column in (raw.input_tokens, raw.output_tokens, raw.at_ns)
    )
    more = np.array(raw.kind, np.int64)[order] == _INPUTS.index(Input.NEW)
    blocks_from = np.array(raw.blocks_from, np.int64)
    counts = np.diff(blocks_from)[order]
    return Columns(
        at_ns=np.where(at_ns == _MISSING, UNTIMED, at_ns - _earliest(at_ns)),
        new_tokens=np.where(continues & ~more, inputs - history, inputs),
        total_tokens=np.where(continues & more, inputs + history, inputs),
        output_tokens=outputs,
        continues=continues,
        blocks=_numbers(raw.blocks)[_spans(blocks_from[:-1][order], counts)],
        blocks_from=_edges(counts),
        first=_edges(np.bincount(session)),
    )


def _earliest(at_ns: Longs) -> int:
    timed = at_ns[at_ns != _MISSING]
    return int(timed.min()) if len(timed) else 0


def _by_time(raw: _Raw) -> Longs:
    """The rows by their times; one without goes with the row before it."""
    at_ns = np.array(raw.at_ns, np.int64)
    known = np.maximum.accumulate(np.where(at_ns == _MISSING, 0, np.arange(len(at_ns))))
    return np.argsort(at_ns[known], kind="stable")


def _linked(path: Path, raw: _Raw, order: Longs) -> tuple[Longs, Flags, Longs]:
    """For each row in this order: its session, whether it continues from the history, how long that is.

    A turn whose predecessor is missing or has another successor already, or whose input is shorter than the history,
    is a session of its own.
    """
    count = len(order)
    session, continues, history = np.arange(count), np.zeros(count, bool), np.zeros(count, np.int64)
    at_ns = np.array(raw.at_ns, np.int64)[order]
    if not np.any(np.array(raw.follows, np.int64) != _NONE):
        _check_order(path, raw, order, at_ns)
        return session, continues, history
    links = _Links(path, raw)
    for place, row in enumerate(order.tolist()):
        session[place], continues[place], history[place] = links.add(row)
    return session, continues, history


def _check_order(path: Path, raw: _Raw, order: Longs, at_ns: Longs) -> None:
    back = np.flatnonzero(np.diff(at_ns) < 0)
    if len(back):
        before, row = order[back[0]], order[back[0] + 1]
        raise _out_of_order(path, raw.line[row], raw.line[before])


def _out_of_order(path: Path, line: int, before: int) -> Exception:
    return complaint(path, line, f"earlier than line {before}", "rows in the order of their times (or say sort=True)")


class _Links:
    """Puts rows into sessions, one after another."""

    def __init__(self, path: Path, raw: _Raw) -> None:
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
        follows, key, kind = raw.follows[row], raw.key[row], _INPUTS[raw.kind[row]]
        before = None if follows == _NONE else self._rows.get(follows)
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
        if key != _NONE:
            self._rows[key] = row
        continues = before is not None and kind is not Input.WHOLE
        length = raw.input_tokens[row] + (history if kind is Input.NEW else 0)
        self._exchanged[row] = length + raw.output_tokens[row]
        return session, continues, history

    def _check(self, row: int, before: int | None) -> None:
        raw = self._raw
        if before is not None and _MISSING < raw.at_ns[row] < raw.at_ns[before]:
            raise _out_of_order(self._path, raw.line[row], raw.line[before])


def _numbers(blocks: array[int]) -> npt.NDArray[np.uint64]:
    """The blocks' numbers; where some are too large, others that are equal where they were."""
    given = np.array(blocks, np.uint64)
    if not len(given) or given.max() < _MOST_NUMBER:
        return given
    return np.unique(given, return_inverse=True)[1].astype(np.uint64).reshape(-1)


def _edges(counts: npt.NDArray[np.integer]) -> Longs:
    """Where parts of these sizes begin, and, last, where they end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _spans(starts: Longs, counts: Longs) -> Longs:
    """The places of parts that begin here and have these sizes, one part after another."""
    return np.arange(counts.sum()) + np.repeat(starts - _edges(counts)[:-1], counts)
