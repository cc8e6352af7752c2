"""How fast a GPU ran while it worked: its SM clock without the moments in which it had nothing to do."""

from __future__ import annotations

from pytest_llmperf.readings import BusyClock, GpuSample

_IDLE = 0x1
"""NVML's clock-event reason of a GPU that has nothing to run and has lowered its clocks therefore."""
_FEWEST = 10
"""Samples of work: at 10 Hz a second. Fewer say nothing about a run."""
_FEWEST_OF_HALF = 3


class BusyFold:
    """Takes one GPU's samples one by one."""

    def __init__(self, span: tuple[int, int]) -> None:
        """`span`: the part of a run that counts, by the samples' clock; its halves are told apart."""
        self._middle_ns = sum(span) / 2
        self._halves: tuple[list[float], list[float]] = ([0, 0.0], [0, 0.0])

    def add(self, sample: GpuSample) -> None:
        """A sample within the span."""
        if sample.sm_clock_mhz is None or not _is_busy(sample):
            return
        half = self._halves[sample.at_ns > self._middle_ns]
        half[0] += 1
        half[1] += sample.sm_clock_mhz

    def found(self) -> BusyClock | None:
        """None where too few samples are known; a half of too few is taken to be like the whole."""
        count, total = (sum(half[index] for half in self._halves) for index in (0, 1))
        if count < _FEWEST:
            return None
        mean = total / count
        first, second = (half[1] / half[0] if half[0] >= _FEWEST_OF_HALF else mean for half in self._halves)
        return BusyClock(mean=mean, first_half=first, second_half=second)


def _is_busy(sample: GpuSample) -> bool:
    """By the reason that the driver gives; by utilisation where it gives none; else every sample counts."""
    if sample.clock_reasons is not None:
        return not sample.clock_reasons & _IDLE
    return sample.utilisation is None or sample.utilisation > 0
