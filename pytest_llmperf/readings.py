"""What the sensors of a machine said beside a run: samples, and what they come to.

A field is None where it was not measured: not offered by the driver or the part, not permitted, or
not read at that moment. Counters are as the driver keeps them, since it was loaded; a summary has
what they gained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

CLOCK_REASONS: dict[int, str] = {
    0x1: "gpu_idle",
    0x2: "application_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Why the clocks are what they are: the bits of NVML's clock-event reasons."""


def reasons_in(bits: int) -> Iterator[str]:
    """The names of the bits that are set; one that has none yet is called by its number, `bit_11`."""
    for number in range(bits.bit_length()):
        if bits & 1 << number:
            yield CLOCK_REASONS.get(1 << number, f"bit_{number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one moment."""

    at_ns: int
    """By the monotonic clock that requests are stamped with."""
    gpu: int
    """Its number among the GPUs that this process may see."""
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_w: float | None = None
    """Of the GPU alone, at this moment where the driver offers that, else its last second's average."""
    energy_j: float | None = None
    """Counter."""
    temperature_c: int | None = None
    utilisation: float | None = None
    """Share of the driver's own last window (1/6 to 1 s) in which a kernel ran."""
    memory_used_bytes: int | None = None
    clock_reasons: int | None = None
    """NVML's bits as they are: `CLOCK_REASONS`."""
    throttled_ns: Mapping[str, int] | None = None
    """Counters: time under each clock-event reason that the driver counts."""
    pcie_tx_bytes: int | None = None
    """Counter, as all link bytes are: the driver's, or since sampling began where it gives only rates."""
    pcie_rx_bytes: int | None = None
    nvlink_tx_bytes: int | None = None
    nvlink_rx_bytes: int | None = None
    c2c_tx_bytes: int | None = None
    c2c_rx_bytes: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    ecc: Mapping[str, int] | None = None
    """Counters: errors and remapped rows by kind."""
    processes: Mapping[int, int | None] | None = None
    """Memory in bytes of each compute process, by the pid that the host knows it by; None where that is withheld."""


LINK_BYTES = ("pcie_tx_bytes", "pcie_rx_bytes", "nvlink_tx_bytes", "nvlink_rx_bytes", "c2c_tx_bytes", "c2c_rx_bytes")
"""The fields of samples and summaries that say what a link carried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSample:
    """The machine around the GPUs at one moment."""

    at_ns: int
    cpu_share: float | None = None
    """Share of all processors' time that was used since the sample before."""
    memory_available_bytes: int | None = None
    swap_used_bytes: int | None = None
    cpu_pressure: float | None = None
    """Share of the last ten seconds in which a task waited for a processor (PSI, some avg10)."""
    memory_pressure: float | None = None
    io_pressure: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """An error that the driver reported of a GPU."""

    at_ns: int
    """When it was asked for, up to a second after it was reported."""
    gpu: int
    """As in `GpuSample`."""
    code: int
    """NVIDIA's number of it: 79 is a GPU that has fallen off the bus."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Values over a run."""

    mean: float
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class Course:
    """A value that drifts: how it was at a run's beginning and end, and at most."""

    first: float
    last: float
    max: float


@dataclass(frozen=True, slots=True)
class BusyClock:
    """The SM clock of a GPU in the samples in which it had work: over a run, and over its halves by time. MHz."""

    mean: float
    first_half: float
    second_half: float


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A compute process that was on the GPU in some sample of the run."""

    pid: int
    """As the host knows it; inside a container it names nobody."""
    memory_bytes: int | None
    """The most that it held; None where the driver does not say."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What others than this session's processes hold of one GPU's memory."""

    memory_bytes: int
    processes: tuple[ProcessSeen, ...] = ()
    """Those of them that the driver lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSummary:
    """One GPU over the part of a run that counts."""

    gpu: int
    """Its number among the GPUs that this process may see; the UUID tells it from all others."""
    uuid: str | None = None
    name: str | None = None
    samples: int
    duration_s: float
    """Between the first and the last sample within the run."""
    sm_clock_mhz: Spread | None = None
    busy_clock: BusyClock | None = None
    memory_clock_mhz: Spread | None = None
    power_w: Spread | None = None
    temperature_c: Course | None = None
    utilisation: float | None = None
    """Mean share."""
    taken: Taken | None = None
    """By others, just before the engine was started; None for an engine that is not ours, and where it is not known."""
    memory_before_bytes: int | None = None
    """Used when the measurement began, by whomever."""
    memory_max_bytes: int | None = None
    energy_j: float | None = None
    """Of the whole run; None unless samples reach both its ends."""
    energy_from: str | None = None
    """`counter`: the driver's own; `power`: its samples integrated, where there is no counter."""
    clock_reasons: int | None = None
    """All bits that were seen in some sample."""
    reasons: Mapping[str, float] | None = None
    """Share of the time under each clock-event reason: by the driver's counters where it has them, else of samples."""
    counted_reasons: tuple[str, ...] = ()
    """Which of these are by counters, and so have no gaps between samples."""
    pcie_tx_bytes: int | None = None
    """Sent in the whole run, as are the others, also outside the part that counts."""
    pcie_rx_bytes: int | None = None
    nvlink_tx_bytes: int | None = None
    nvlink_rx_bytes: int | None = None
    c2c_tx_bytes: int | None = None
    c2c_rx_bytes: int | None = None
    pcie_generation: int | None = None
    """The highest seen: an idle link falls back."""
    pcie_width: int | None = None
    ecc: Mapping[str, int] | None = None
    """New errors and remapped rows by kind; 0 where there were none."""
    xids: tuple[int, ...] | None = None
    """Errors that the driver reported since the run before, by NVIDIA's numbers, in their order."""
    processes: tuple[ProcessSeen, ...] | None = None
    lost: str | None = None
    """NVML's error with which the GPU went away; None if it stayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSummary:
    """The machine around the GPUs over the part of a run that counts."""

    samples: int
    cpu_share: Spread | None = None
    memory_available_min_bytes: int | None = None
    swap_used_max_bytes: int | None = None
    cpu_pressure_max: float | None = None
    memory_pressure_max: float | None = None
    io_pressure_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySummary:
    """What was sampled beside one run."""

    gpus: tuple[GpuSummary, ...] = ()
    host: HostSummary | None = None
    rate_hz: float
    """As asked; `samples` and `duration_s` of a GPU say what came of it."""
    cost_share: float | None = None
    """CPU seconds of the sampling per second: the share of one core that it took."""
    problems: tuple[str, ...] = field(default=())
    """Why something is missing: one sentence each."""
    advice: str | None = None
    """What to do about that, whatever was measured; None where nothing has to be done."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what was not measured is left out."""
        found: dict[str, Any] = _known(asdict(self))
        return found


def working_clock(runs: Iterable[TelemetrySummary | None]) -> float | None:
    """Mean SM clock of all GPUs in all runs while they had work, MHz; None where it is known of none."""
    clocks = [gpu.busy_clock.mean for run in runs if run is not None for gpu in run.gpus if gpu.busy_clock is not None]
    return sum(clocks) / len(clocks) if clocks else None


def telemetry_from(value: object) -> TelemetrySummary | None:
    """The inverse of `to_json`; None for anything else, so that files without it, or with another form, can be read."""
    try:
        return _summary(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _known(one) for name, one in value.items() if one is not None}
    if isinstance(value, (tuple, list)):
        return [_known(one) for one in value]
    return value


def _summary(value: Any) -> TelemetrySummary:
    host = value.get("host")
    return TelemetrySummary(
        **{
            **value,
            "gpus": tuple(map(_gpu, value.get("gpus", ()))),
            "host": None if host is None else HostSummary(**_with(host, {"cpu_share": Spread})),
            "problems": tuple(value.get("problems", ())),
        }
    )


_GPU_PARTS: dict[str, type] = {
    "sm_clock_mhz": Spread,
    "busy_clock": BusyClock,
    "memory_clock_mhz": Spread,
    "power_w": Spread,
    "temperature_c": Course,
}


def _gpu(value: Any) -> GpuSummary:
    fields = _with(value, _GPU_PARTS)
    fields["counted_reasons"] = tuple(fields.get("counted_reasons", ()))
    if "xids" in fields:
        fields["xids"] = tuple(fields["xids"])
    if "processes" in fields:
        fields["processes"] = _processes(fields["processes"])
    if "taken" in fields:
        held = fields["taken"]
        fields["taken"] = Taken(held["memory_bytes"], _processes(held.get("processes", ())))
    return GpuSummary(**fields)


def _processes(value: Any) -> tuple[ProcessSeen, ...]:
    return tuple(ProcessSeen(pid=one["pid"], memory_bytes=one.get("memory_bytes")) for one in value)


def _with(value: Any, parts: Mapping[str, type]) -> dict[str, Any]:
    return {name: parts[name](**one) if name in parts else one for name, one in value.items()}
