"""What others hold of the GPUs' memory just before an engine of ours is started: it then gets less for its KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pytest_llmperf.clock import NS_PER_S, Clock
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.readings import GpuSample, ProcessSeen, Taken
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.plan import sensors
from pytest_llmperf.telemetry.processes import GpuProcesses, gpu_processes
from pytest_llmperf.telemetry.spoiled import FOREIGN_BYTES

RELEASE_S = 10.0
"""How long memory is waited for: a driver takes a moment to free what a process that has just ended held."""
_EVERY_S = 0.25


class Beforehand:
    """Looks at the GPUs of each engine just before it is started, and remembers what was there."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[EngineSpec, dict[int, Taken]] = {}

    def look(self, spec: EngineSpec, gpus: Sequence[GpuAddress]) -> None:
        """Take down what is held on the GPUs of this engine, which does not run yet.

        Waits a while for what is too much to go away. Where the driver does not answer, nothing is known.
        """
        end_ns = self._clock.now_ns() + round(RELEASE_S * NS_PER_S)
        with sensors(gpus) as opened:
            while True:
                read = (gpu.read(self._clock.now_ns(), everything=True) for gpu in opened.gpus)
                samples = [sample for sample in read if sample is not None]
                found = taken(samples, gpu_processes())
                is_free = all(one.memory_bytes <= FOREIGN_BYTES for one in found.values())
                if is_free or self._clock.now_ns() >= end_ns:
                    break
                self._clock.sleep(_EVERY_S)
        self._seen[spec] = found

    def of(self, spec: EngineSpec) -> Mapping[int, Taken]:
        """What was there before the last start of this engine, by the GPUs' numbers, as far as that is known."""
        return self._seen.get(spec, {})


def taken(samples: Iterable[GpuSample], ours: GpuProcesses) -> dict[int, Taken]:
    """By GPU, what is held there by others; a GPU of which that cannot be told is left out."""
    found = {}
    for sample in samples:
        listed = sample.processes or {}
        own = _own_bytes(listed, ours)
        if sample.memory_used_bytes is not None and own is not None:
            others = tuple(ProcessSeen(pid, memory) for pid, memory in sorted(listed.items()) if pid not in ours.pids)
            found[sample.gpu] = Taken(max(0, sample.memory_used_bytes - own), others)
    return found


def _own_bytes(listed: Mapping[int, int | None], ours: GpuProcesses) -> int | None:
    """What our own processes hold; None where theirs cannot be told from others'."""
    own = [memory for pid, memory in listed.items() if pid in ours.pids]
    if not own and ours.may_hold_memory:  # in a container the driver lists other numbers, or nobody
        return None
    return None if None in own else sum(memory for memory in own if memory is not None)
