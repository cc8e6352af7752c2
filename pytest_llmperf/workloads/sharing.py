"""What prompts have in common, and what keeps those of two runs apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pytest_llmperf.workloads.base import Ids, TokenSource

_MARK_BITS = 64


def run_mark(namespace: str, token_ids: range) -> Ids:
    """Ids to begin every prompt of a run with, where the rest of it is given and the same in all runs.

    There are as many for each namespace. Two namespaces have the same ones with a probability of 2**-64.
    """
    bits = len(token_ids).bit_length() - 1
    return TokenSource(0, namespace, token_ids).draw("run", -(-_MARK_BITS // bits))


def common(one: Ids, other: Ids) -> int:
    """With how many ids both begin."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def shared_with_others(sequences: Sequence[Ids]) -> list[int]:
    """With how many of its ids another sequence begins, too; for each of them."""
    # Bytes in this order sort as the ids do, and the longest common beginning is that of neighbours.
    order = sorted(range(len(sequences)), key=lambda number: sequences[number].astype(">i4").tobytes())
    shared = [0] * len(sequences)
    for one, other in pairwise(order):
        length = common(sequences[one], sequences[other])
        shared[one] = max(shared[one], length)
        shared[other] = max(shared[other], length)
    return shared
