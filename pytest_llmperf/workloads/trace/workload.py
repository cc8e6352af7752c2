"""Recorded traffic: the times, lengths and shared prefixes of a trace file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.base import Ids, Session, TokenSource, Turn
from pytest_llmperf.workloads.trace.columns import UNTIMED, Columns
from pytest_llmperf.workloads.trace.reuse import Reuse

_NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """See `trace`."""

    path: str
    format: str
    block_tokens: int
    """How many tokens one of the trace's block numbers stands for."""
    left_out: int
    """Requests that are in the file, but too long, or without input or output, or continue from such a one."""
    seed: int
    token_ids: range
    columns: Columns = field(repr=False)
    namespace: str = ""

    name = "trace"

    @cached_property
    def digest(self) -> str:
        """A hash over the trace's columns, the seed and `token_ids`, of which the ids are a function.

        Other workloads hash their ids themselves; for the 145 million of the Mooncake conversation trace that would
        take seconds.
        """
        start, stop = self.token_ids.start, self.token_ids.stop
        words = f"pytest-llmperf trace 1\0{self.seed}\0{start}\0{stop}\0{self.block_tokens}\0"
        return hashlib.sha256(words.encode() + self.columns.hash).hexdigest()[:16]

    def within(self, namespace: str) -> Trace:
        return replace(self, namespace=namespace)

    @property
    def requests(self) -> int:
        """How many requests there are, all turns counted."""
        return len(self.columns)

    @property
    def sessions(self) -> int:
        """How many sessions they belong to."""
        return self.columns.sessions

    @property
    def duration_s(self) -> float:
        """From the first request to the last, as recorded."""
        return max(0, int(self.columns.at_ns.max())) / 1e9

    @property
    def mean_input_tokens(self) -> float:
        """Of the whole inputs, histories included."""
        return float(self.columns.total_tokens.mean())

    @property
    def mean_output_tokens(self) -> float:
        """Of the outputs that are asked for."""
        return float(self.columns.output_tokens.mean())

    def infinite_cache_hit_rate(self, block_tokens: int | None = None) -> float:
        """What share of the input a prefix cache without limits would hold when each request arrives, as sent.

        In blocks of `block_tokens`, of which only whole ones are held, by tokens. None: in the trace's own blocks, by
        their number, a last one that is cut counted like the others, as figures on traces are usually given. A
        request's blocks are held from its time on; a history, its answers included, except for the last token, whose
        keys and values nobody has computed.
        """
        if block_tokens is not None and block_tokens < 1:
            raise ConfigurationError(f"infinite_cache_hit_rate: block_tokens must be at least 1, got {block_tokens!r}")
        columns, size = self.columns, block_tokens or self.block_tokens
        known = columns.total_tokens - columns.new_tokens - 1
        known[~columns.continues] = self._reuse.known_tokens
        blocks = known // size
        if block_tokens is not None:
            return float(blocks.sum() * size / columns.total_tokens.sum())
        blocks[~columns.continues] = self._reuse.known_blocks
        return float(blocks.sum() / (-(-columns.total_tokens // size)).sum())

    @property
    def _reuse(self) -> Reuse:
        return self.columns.reuse(self.block_tokens)

    def __iter__(self) -> Iterator[Session]:
        source = TokenSource(self.seed, self.namespace, self.token_ids)
        columns = self.columns
        shared = np.zeros(len(columns), np.int64)
        shared[~columns.continues] = self._reuse.shared_tokens
        for begin, end in zip(columns.first[:-1].tolist(), columns.first[1:].tolist(), strict=True):
            turns = tuple(self._turn(source, number) for number in range(begin, end))
            yield Session(turns=turns, shared_tokens=int(shared[begin]))

    def _turn(self, source: TokenSource, number: int) -> Turn:
        columns = self.columns
        at_ns = int(columns.at_ns[number])
        return Turn(
            prefix=None if columns.continues[number] else _NOTHING,
            new_ids=self._ids(source, number),
            output_tokens=int(columns.output_tokens[number]),
            at_s=None if at_ns == UNTIMED else at_ns / 1e9,
        )

    def _ids(self, source: TokenSource, number: int) -> Ids:
        columns, wanted = self.columns, int(self.columns.new_tokens[number])
        blocks = columns.blocks[columns.blocks_from[number] : columns.blocks_from[number + 1]]
        ids = source.blocks(blocks, self.block_tokens)[:wanted]
        missing = wanted - len(ids)
        return np.concatenate([ids, source.draw(f"request {number}", missing)]) if missing else ids
