"""Whether the GPUs worked as they did when a baseline was stored: another clock is other hardware."""

from __future__ import annotations

from pytest_llmperf import units

ALLOWED = 0.05
"""By how much mean SM clocks may differ: half of the change that the gate looks for."""


def clock_since(before_mhz: float | None, now_mhz: float | None) -> str | None:
    """Why a measurement may not be held against a stored one, where clocks differ; None where it may, or nobody knows.

    Mean SM clocks of all runs and GPUs while they had work.
    """
    if not before_mhz or not now_mhz:
        return None
    off = abs(now_mhz / before_mhz - 1)
    if off <= ALLOWED:
        return None
    return (
        f"the GPUs worked at {now_mhz:.0f} MHz and at {before_mhz:.0f} MHz when the baseline was stored, off by "
        f"{units.share(off)} where {units.share(ALLOWED)} is allowed; see power limit, application clocks and cooling "
        "(pytest-llmperf doctor), and if it is to stay so, store a new level with --llmperf-tolerate clocks [clocks]"
    )
