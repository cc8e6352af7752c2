"""Token ids as blocks that are known by their whole prefix.

A block's name is a hash over all tokens up to its end, so that equal names mean equal prefixes.
Everything is arithmetic modulo 2**64 on whole arrays: hashing 10,000 tokens takes some 50 us.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.splitmix import GOLDEN, mixed

Hashes = npt.NDArray[np.uint64]
"""One name per full block."""
Ids = npt.NDArray[np.int32]

_MASK = 2**64 - 1


def _stream(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """The first outputs of SplitMix64 from this state."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return mixed(steps + np.uint64(seed & _MASK))


_WEIGHTS: dict[int, npt.NDArray[np.uint64]] = {}
_POSITIONS = np.empty(0, np.uint64)


def _positions(count: int) -> npt.NDArray[np.uint64]:
    """An odd factor per position, so that a block's place counts."""
    global _POSITIONS  # noqa: PLW0603 - a table that grows
    if len(_POSITIONS) < count:
        _POSITIONS = _stream(1, max(4096, 2 * count)) | np.uint64(1)
    return _POSITIONS[:count]


def as_ids(token_ids: Sequence[int] | Ids) -> Ids:
    """Token ids in an array, without a copy where they are in one."""
    return np.asarray(token_ids, np.int32)


def block_hashes(token_ids: Ids, size: int) -> Hashes:
    """The names of the full blocks of `size` tokens."""
    blocks = len(token_ids) // size
    weights = _WEIGHTS.setdefault(size, _stream(2, size) | np.uint64(1))
    table = token_ids[: blocks * size].astype(np.uint64).reshape(blocks, size) + np.uint64(1)
    contents = mixed((table * weights).sum(axis=1, dtype=np.uint64))
    named: Hashes = np.cumsum(contents * _positions(blocks), dtype=np.uint64)
    return named


def prompt_name(prompt: Ids, hashes: Hashes, size: int) -> int:
    """A number that hangs on all of a prompt: on its full blocks and on what is behind them."""
    name = int(hashes[-1]) if len(hashes) else 0
    for token_id in prompt[len(hashes) * size :].tolist():
        name = (name * 31 + token_id + 1) & _MASK
    return name ^ len(prompt)


def answer_ids(prompt: Ids, hashes: Hashes, size: int, count: int) -> Ids:
    """What the simulated model says to a prompt: ordinary ids, the same for the same prompt."""
    drawn = _stream(prompt_name(prompt, hashes, size), count) % np.uint64(len(TOKEN_IDS))
    return (drawn + np.uint64(TOKEN_IDS.start)).astype(np.int32)
