"""Waiting until GPUs hold still: a run that starts on a GPU still hot from the last one starts elsewhere.

Between runs a GPU cools and lowers its clocks. Each run begins where that has come to rest, so that all
begin alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from pytest_llmperf.clock import NS_PER_S, Clock
from pytest_llmperf.readings import GpuSample
from pytest_llmperf.telemetry.spoiled import Fault

LOOK_S = 1.0
"""For how long they have to hold still."""
_EVERY_S = 0.25
LIMIT_S = 30.0
"""How long they are waited for: some time constants of a heat sink."""
STEADY_C = 1
"""By how many degrees temperatures may differ in that time: sensors tell whole ones."""
STEADY_CLOCK = 0.02
"""By how much SM clocks may."""


def settle(read: Callable[[], Sequence[GpuSample]], clock: Clock, limit_s: float = LIMIT_S) -> Fault | None:
    """Wait until temperature and SM clock of all GPUs hold still; what moved, if they never did.

    `read`: one sample of each GPU that is there. Without one there is nothing to wait for.
    """
    end_ns = clock.now_ns() + int(limit_s * NS_PER_S)
    seen: deque[Sequence[GpuSample]] = deque(maxlen=1 + round(LOOK_S / _EVERY_S))
    while True:
        samples = read()
        if not samples:
            return None
        seen.append(samples)
        moving = _moving([sample for look in seen for sample in look]) if len(seen) == seen.maxlen else None
        if moving == "":
            return None
        if clock.now_ns() >= end_ns:
            return Fault("temperature", f"{moving or 'the GPUs'} after {limit_s:g} s of waiting; {_ADVICE}")
        clock.sleep(_EVERY_S)


_ADVICE = "look for what else runs on the machine, and at its cooling"


def _moving(samples: Sequence[GpuSample]) -> str:
    """What did not hold still; nothing if all did."""
    found = []
    for gpu in dict.fromkeys(sample.gpu for sample in samples):
        own = [sample for sample in samples if sample.gpu == gpu]
        degrees = [sample.temperature_c for sample in own if sample.temperature_c is not None]
        if degrees and max(degrees) - min(degrees) > STEADY_C:
            found.append(
                f"the temperature of GPU {gpu} still went from {degrees[0]} to {degrees[-1]} C in {LOOK_S:g} s"
            )
        clocks = [sample.sm_clock_mhz for sample in own if sample.sm_clock_mhz is not None]
        if clocks and max(clocks) - min(clocks) > STEADY_CLOCK * max(clocks):
            found.append(
                f"the clock of GPU {gpu} still was between {min(clocks)} and {max(clocks)} MHz in {LOOK_S:g} s"
            )
    return ", and ".join(found)
