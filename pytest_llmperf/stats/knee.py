"""Where more load stops bringing more throughput."""

from __future__ import annotations

from collections.abc import Sequence

FEWEST_LOADS = 3
"""Fewer points make no curve."""
_KEPT = 0.9
"""Of the throughput for each unit of load, that of the lowest load being all of it."""


def knee(loads: Sequence[float], throughputs: Sequence[float]) -> int | None:
    """The place of the last load that still brings what loads below it do: 90 % of the throughput for each unit.

    `loads` are positive and rise. None of fewer than three; where throughput follows the load to the end, since
    the knee then lies beyond; and where the second load already brings no more, as no rise was seen.
    """
    if len(loads) < FEWEST_LOADS:
        return None
    first = throughputs[0] / loads[0]
    keeps = [throughput / load >= _KEPT * first for load, throughput in zip(loads, throughputs, strict=True)]
    if all(keeps):
        return None
    last = keeps.index(False) - 1
    return last or None
