"""What the requests of a trace have in common, as a prefix cache without limits would find it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_llmperf.splitmix import GOLDEN, Words, mixed

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reuse:
    """Per request that sends all of its input by itself, in the order in which they were given."""

    known_tokens: Longs
    """How many leading ids an earlier request began with."""
    known_blocks: Longs
    """How many of its blocks, a last one that is cut counted like the others."""
    shared_tokens: Longs
    """How many leading ids some request of another session begins with, earlier or later."""

    @classmethod
    def of(
        cls, *, blocks: Words, counts: Longs, lengths: Longs, times: Longs, sessions: Longs, block_tokens: int
    ) -> Reuse:
        """From the requests' blocks, one after another. Blocks are the same if all those before them are, too."""
        row = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
        length = np.minimum(block_tokens, lengths[row] - place * block_tokens)
        rank = np.empty(len(counts), np.int64)
        rank[np.argsort(times, kind="stable")] = np.arange(len(counts))
        keys = _prefixes(blocks, place, counts)
        order = np.lexsort((rank[row], keys))
        begins = np.ones(len(blocks), bool)
        begins[1:] = keys[order][1:] != keys[order][:-1]
        known, shared = np.zeros(len(blocks), np.int64), np.zeros(len(blocks), np.int64)
        if len(blocks):
            known[order] = _longest_before(length[order], begins, block_tokens)
            shared[order] = _with_others(sessions[row][order], begins)
        return cls(
            known_tokens=_sums(row, np.minimum(known, length), len(counts)),
            known_blocks=_sums(row, known > 0, len(counts)),
            shared_tokens=_sums(row, shared * length, len(counts)),
        )


def _prefixes(blocks: Words, place: Longs, counts: Longs) -> Words:
    """For each block a word for it and all before it: sums of mixed words, modulo 2**64."""
    with np.errstate(over="ignore"):
        words = _outputs(_outputs(blocks) + place.astype(np.uint64))
        sums = np.cumsum(words, dtype=np.uint64)
        before = np.zeros(len(counts) + 1, np.uint64)
        ends = np.cumsum(counts)
        before[1:][ends > 0] = sums[ends[ends > 0] - 1]
        return sums - np.repeat(before[:-1], counts)


def _outputs(words: Words) -> Words:
    """SplitMix64's output at each of these places."""
    return mixed(words * np.uint64(GOLDEN) + np.uint64(GOLDEN))


def _longest_before(length: Longs, begins: npt.NDArray[np.bool_], most: int) -> Longs:
    """In each run of equal blocks the longest one before each, 0 before the first."""
    run = np.cumsum(begins) * (most + 1)
    longest = np.maximum.accumulate(run + length) - run
    return np.where(begins, 0, np.concatenate([np.zeros(1, np.int64), longest[:-1]]))


def _with_others(session: Longs, begins: npt.NDArray[np.bool_]) -> Longs:
    """1 for the blocks of a run in which there is more than one session."""
    starts = np.flatnonzero(begins)
    several = np.minimum.reduceat(session, starts) != np.maximum.reduceat(session, starts)
    return np.asarray(several[np.cumsum(begins) - 1], np.int64)


def _sums(row: Longs, values: npt.NDArray[np.generic], rows: int) -> Longs:
    return np.bincount(row, weights=values, minlength=rows).astype(np.int64)
