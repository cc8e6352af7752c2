"""How fast a GPU ran while it worked: its SM clock without the moments in which it had nothing to do."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.readings import BusyClock, GpuSample

_IDLE = 0x1
"""NVML's clock-event reason of a GPU that has nothing to run and has lowered its clocks therefore."""
_FEWEST = 10
"""Samples of work: at 10 Hz a second. Fewer say nothing about a run."""


def busy_clock(samples: Sequence[GpuSample]) -> BusyClock | None:
    """The SM clock of one GPU's samples in which it worked; None where too few are known."""
    known = [(one.at_ns, one.sm_clock_mhz) for one in samples if one.sm_clock_mhz is not None and _is_busy(one)]
    if len(known) < _FEWEST:
        return None
    middle_ns = (known[0][0] + known[-1][0]) / 2
    clocks = [clock for _, clock in known]
    first = [clock for at_ns, clock in known if at_ns <= middle_ns]
    second = [clock for at_ns, clock in known if at_ns > middle_ns]
    return BusyClock(mean=_mean(clocks), first_half=_mean(first), second_half=_mean(second or first))


def _is_busy(sample: GpuSample) -> bool:
    """By the reason that the driver gives; by utilisation where it gives none; else every sample counts."""
    if sample.clock_reasons is not None:
        return not sample.clock_reasons & _IDLE
    return sample.utilisation is None or sample.utilisation > 0


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
