"""What hardware does that spoils a run: one rule each, with the figure that it goes by.

A run whose GPU was throttled is not slow, it is no measurement. Each rule looks at one GPU in one run
and says what it saw, what is allowed and what to do; what was not measured breaks no rule. The name
of a rule is what `--llmperf-tolerate` takes, which makes a doubt of it. The figures are choices: wide
enough for what healthy GPUs do under power management, narrow against the change that a gate looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pytest_llmperf import units
from pytest_llmperf.hardware import Gpu
from pytest_llmperf.readings import GpuSummary, ProcessSeen, TelemetrySummary
from pytest_llmperf.records import CacheCounters

THROTTLED = 0.01
"""Share of a run that may pass under a reason in `_THROTTLING`: ten samples of a hundred seconds at 10 Hz."""
CLOCK_BETWEEN_RUNS = 0.03
"""By how much the mean SM clock of a run's work may differ from the median of the runs before it."""
CLOCK_WITHIN_RUN = 0.10
"""By how much it may differ between the halves of a run, of which one may have more prefill than the other."""
FOREIGN_BYTES = units.GIB
"""Memory that may be taken by nobody knows whom: displays and monitoring agents hold some hundred MiB."""
WORKING = 0.1
"""Utilisation from which on a link is expected at its full generation: it falls back while the GPU idles."""
CARRIED = 0.9
"""Share of what the engine says it moved that links have to have carried: counters are read a moment apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One GPU in one run, and what it is held against."""

    now: GpuSummary
    before: Sequence[GpuSummary] = ()
    """The same GPU in the measurement's earlier runs."""
    gpu: Gpu | None = None
    """What detection found it to be."""
    own: frozenset[int] | None = None
    """The processes of the engine, and ours; None where they are not known."""

    @property
    def name(self) -> str:
        return f"GPU {self.now.gpu}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What a rule found."""

    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.sentence} [{self.rule}]"


def faults(
    telemetry: TelemetrySummary,
    earlier: Sequence[TelemetrySummary] = (),
    gpus: Sequence[Gpu] = (),
    own: frozenset[int] | None = None,
) -> Iterator[Fault]:
    """What spoils a run, by these rules; nothing where nothing was measured.

    `earlier`: the runs of the same measurement before it. `own`: pids of the engine's processes and ours.
    """
    known = {gpu.uuid: gpu for gpu in gpus if gpu.uuid is not None}
    for now in telemetry.gpus:
        sight = Sight(
            now=now,
            before=[gpu for run in earlier for gpu in run.gpus if gpu.gpu == now.gpu],
            gpu=known.get(now.uuid or ""),
            own=own,
        )
        for rule, look in RULES.items():
            for sentence in look(sight):
                yield Fault(rule, f"{sight.name} {sentence}")


def _lost(sight: Sight) -> Iterator[str]:
    if sight.now.lost is not None:
        yield f"went away during the run ({sight.now.lost}); see dmesg for an Xid, and reset or replace it"


_THROTTLING = {
    "hw_slowdown": "by hardware",
    "hw_thermal": "by hardware, for heat",
    "sw_thermal": "by the driver, for heat",
    "thermal": "for heat",
    "hw_power_brake": "by the power brake of the machine",
    "reliability": "for its reliability",
}
"""Reasons that a healthy GPU never gives. Its power cap is none: under long prefill that is how it runs."""


def _throttling(sight: Sight) -> Iterator[str]:
    for reason, how in _THROTTLING.items():
        share = (sight.now.reasons or {}).get(reason, 0.0)
        if share > THROTTLED:
            yield (
                f"was throttled {how} for {units.share(share)} of the run, where {units.share(THROTTLED)} is allowed; "
                "look after cooling and power (nvidia-smi -q -d PERFORMANCE)"
            )


def _clocks(sight: Sight) -> Iterator[str]:
    clock = sight.now.busy_clock
    if clock is None:
        return
    within = _off(clock.second_half, clock.first_half)
    if within > CLOCK_WITHIN_RUN:
        yield (
            f"worked at {clock.first_half:.0f} MHz in the first half of the run and at {clock.second_half:.0f} MHz in "
            f"the second, off by {units.share(within)} where {units.share(CLOCK_WITHIN_RUN)} is allowed; "
            f"{_CLOCK_ADVICE}"
        )
    before = [one.busy_clock.mean for one in sight.before if one.busy_clock is not None]
    between = _off(clock.mean, median(before)) if before else 0.0
    if between > CLOCK_BETWEEN_RUNS:
        yield (
            f"worked at {clock.mean:.0f} MHz, and at {median(before):.0f} MHz in the runs before, off by "
            f"{units.share(between)} where {units.share(CLOCK_BETWEEN_RUNS)} is allowed; {_CLOCK_ADVICE}"
        )


_CLOCK_ADVICE = "warm up longer (warmup_runs), or lock the clocks (nvidia-smi --lock-gpu-clocks)"


def _processes(sight: Sight) -> Iterator[str]:
    seen = sight.now.processes
    if not seen or sight.own is None:
        return
    ours = [one for one in seen if one.pid in sight.own]
    strangers = [one for one in seen if one.pid not in sight.own]
    if not ours or not strangers:  # with none of ours among them the pids are those of another namespace
        return
    yield f"had another's processes on it: {_told(strangers)}; stop them, or give the tests a GPU of their own"


def _told(processes: Sequence[ProcessSeen]) -> str:
    """Pids, each with what it holds where that is known."""
    return ", ".join(
        f"{one.pid}" + ("" if one.memory_bytes is None else f" ({units.size(one.memory_bytes)})") for one in processes
    )


def _memory(sight: Sight) -> Iterator[str]:
    """What others held before the engine was started; then what is used beyond the processes that the driver lists.

    Where it lists none, nothing can be said of the latter.
    """
    taken = sight.now.taken
    if taken is not None and taken.memory_bytes > FOREIGN_BYTES:
        whose = f" by process {_told(taken.processes)}" if taken.processes else " by processes that are not shown here"
        yield (
            f"had {units.size(taken.memory_bytes)} of its memory taken{whose} when the engine was started, where "
            f"{units.size(FOREIGN_BYTES)} is allowed, so that it had less for its KV cache; stop what nvidia-smi shows "
            "on the host, or give the tests a GPU of their own"
        )
        return
    used, seen = sight.now.memory_before_bytes, sight.now.processes
    if used is None or not seen or any(one.memory_bytes is None for one in seen):
        return
    unknown = used - sum(one.memory_bytes or 0 for one in seen)
    if unknown > FOREIGN_BYTES:
        yield (
            f"has {units.size(unknown)} of its memory taken by no process that is to be seen, where "
            f"{units.size(FOREIGN_BYTES)} is allowed; look for containers and zombies that hold it (nvidia-smi)"
        )


def _link(sight: Sight) -> Iterator[str]:
    gpu, now = sight.gpu, sight.now
    if gpu is None or gpu.nvlink_c2c:  # there the host's memory is not behind PCIe
        return
    if now.pcie_width is not None and gpu.pcie_width_max is not None and now.pcie_width < gpu.pcie_width_max:
        yield f"has {now.pcie_width} PCIe lanes of {gpu.pcie_width_max}; reseat it, or look at the riser and the slot"
    is_working = now.utilisation is not None and now.utilisation >= WORKING
    generation, most = now.pcie_generation, gpu.pcie_generation_max
    if is_working and generation is not None and most is not None and generation < most:
        yield f"has a PCIe link of generation {generation} under load and can have {most}; see the slot and the BIOS"


_ECC = {
    "uncorrected": "uncorrected memory errors",
    "rows_remapped_uncorrected": "rows remapped after uncorrected errors",
    "row_remap_pending": "rows that wait to be remapped",
    "row_remap_failed": "rows that could not be remapped",
}


def _ecc(sight: Sight) -> Iterator[str]:
    new = {what: (sight.now.ecc or {}).get(name, 0) for name, what in _ECC.items()}
    found = ", ".join(f"{count} {what}" for what, count in new.items() if count > 0)
    if found:
        yield f"reports, new in this run: {found}; reset it, and replace it if that comes again"


def _xids(sight: Sight) -> Iterator[str]:
    if sight.now.xids:
        told = ", ".join(map(str, sorted(set(sight.now.xids))))
        yield f"reported an error during the run (Xid {told}); see dmesg, and NVIDIA's list of Xids for what it means"


RULES: Mapping[str, Callable[[Sight], Iterator[str]]] = {
    "lost": _lost,
    "throttling": _throttling,
    "clocks": _clocks,
    "processes": _processes,
    "memory": _memory,
    "link": _link,
    "ecc": _ecc,
    "xid": _xids,
}
"""By the name under which a rule can be tolerated."""

TOLERABLE = (*RULES, "temperature", "offload")
"""What `--llmperf-tolerate` takes: these, that of `settle`, and that of `unmoved`."""


def unmoved(telemetry: TelemetrySummary, cache: CacheCounters, gpus: Sequence[Gpu]) -> Fault | None:
    """An engine that says it moved KV cache between GPU and host, over links that did not carry it.

    `gpus`: what detection found them to be. Nothing is said where one of them is not known, or its link is not counted.
    """
    claimed = [count for count in (cache.offloaded_bytes, cache.restored_bytes) if count is not None]
    known = {gpu.uuid: gpu for gpu in gpus if gpu.uuid is not None}
    ways = [_way_to_host(known.get(one.uuid or "")) for one in telemetry.gpus]
    carried = [_carried(one, way) for one, way in zip(telemetry.gpus, ways, strict=True)]
    counted = [count for count in carried if count is not None]
    if not claimed or not counted or len(counted) < len(carried) or sum(counted) >= CARRIED * sum(claimed):
        return None
    names = " and ".join(dict.fromkeys(_LINK_NAMES[way] for way in ways if way is not None))
    return Fault(
        "offload",
        f"the engine says that it moved {units.size(sum(claimed))} of KV cache between GPU and host, but {names} "
        f"carried {units.size(sum(counted))}; look at what its counters mean, or where its outer tier is",
    )


_LINK_NAMES = {"c2c": "NVLink-C2C", "pcie": "PCIe"}


def _way_to_host(gpu: Gpu | None) -> str | None:
    """Over which link the host's memory is reached; None where that is not known."""
    if gpu is None:
        return None
    is_coherent = gpu.nvlink_c2c
    if is_coherent is None and gpu.part is not None:
        is_coherent = gpu.part.nvlink_c2c
    return None if is_coherent is None else "c2c" if is_coherent else "pcie"


def _carried(gpu: GpuSummary, way: str | None) -> int | None:
    """Bytes over that link, both ways."""
    sent, received = (getattr(gpu, f"{way}_{direction}_bytes", None) for direction in ("tx", "rx"))
    return None if sent is None or received is None else sent + received


def _off(now: float, before: float) -> float:
    return abs(now / before - 1) if before else 0.0
