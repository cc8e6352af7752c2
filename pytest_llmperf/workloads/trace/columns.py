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

from pytest_llmperf.workloads.trace.linking import Flags, Longs, by_time, linked
from pytest_llmperf.workloads.trace.raw import INPUTS, MISSING, read
from pytest_llmperf.workloads.trace.reuse import Reuse
from pytest_llmperf.workloads.trace.rows import Input, Row

UNTIMED = -1
"""Stands in `at_ns` for a turn that follows the answer before it."""
_MOST_NUMBER = 2**40
"""Block numbers beyond are numbered anew: times a block's size they would leave 64 bits."""


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


def load(path: Path, rows: Iterable[Row], block_tokens: int, *, sort: bool) -> Columns:
    """All requests of a file. Raises `ConfigurationError` naming the line that is wrong."""
    raw = read(path, rows, block_tokens)
    order = by_time(raw) if sort else np.arange(len(raw.line))
    session, continues, history = linked(path, raw, order)
    by_session = np.argsort(session, kind="stable")
    order, continues, history = order[by_session], continues[by_session], history[by_session]
    inputs, outputs, at_ns = (
        np.array(column, np.int64)[order] for column in (raw.input_tokens, raw.output_tokens, raw.at_ns)
    )
    more = np.array(raw.kind, np.int64)[order] == INPUTS.index(Input.NEW)
    blocks_from = np.array(raw.blocks_from, np.int64)
    counts = np.diff(blocks_from)[order]
    return Columns(
        at_ns=np.where(at_ns == MISSING, UNTIMED, at_ns - _earliest(at_ns)),
        new_tokens=np.where(continues & ~more, inputs - history, inputs),
        total_tokens=np.where(continues & more, inputs + history, inputs),
        output_tokens=outputs,
        continues=continues,
        blocks=_numbers(raw.blocks)[_spans(blocks_from[:-1][order], counts)],
        blocks_from=_edges(counts),
        first=_edges(np.bincount(session)),
    )


def _earliest(at_ns: Longs) -> int:
    timed = at_ns[at_ns != MISSING]
    return int(timed.min()) if len(timed) else 0


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
