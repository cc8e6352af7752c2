"""What a test gets to see of the GPUs: the runs' telemetry taken together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_llmperf import metrics
from pytest_llmperf.readings import GpuSummary
from pytest_llmperf.records import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuResult:
    """All GPUs of the engine over all runs, within the windows; None where something was not measured."""

    joules_per_token: float | None = None
    """GPU energy over output tokens; what is in it: `metrics.joules_per_token`."""
    energy_j: float | None = None
    mean_power_w: float | None = None
    """Of all GPUs together."""
    mean_sm_clock_mhz: float | None = None
    min_sm_clock_mhz: float | None = None
    max_temperature_c: float | None = None
    utilisation: float | None = None
    """Mean share of time in which a kernel ran, over the GPUs."""
    max_memory_bytes: int | None = None
    """The most that was used on one GPU, by whomever."""
    reasons: Mapping[str, float] = field(default_factory=dict)
    """By clock-event reason, the largest share of a run that any GPU spent under it."""
    lost: tuple[str, ...] = ()
    """GPUs that went away, each with NVML's error."""


def gpu_result(runs: Sequence[RunRecord]) -> GpuResult | None:
    """The view of these runs; None where no GPU was sampled."""
    by_run = [run.telemetry.gpus if run.telemetry is not None else () for run in runs]
    gpus = [gpu for run in by_run for gpu in run]
    if not gpus:
        return None
    energy_j = _whole(metrics.energy_j(run) for run in runs)
    tokens = _whole(metrics.output_tokens(run) for run in runs)
    clocks = [gpu.sm_clock_mhz for gpu in gpus if gpu.sm_clock_mhz is not None]
    return GpuResult(
        joules_per_token=energy_j / tokens if energy_j is not None and tokens else None,
        energy_j=energy_j,
        mean_power_w=_mean(_whole(_mean_power(gpu) for gpu in run) for run in by_run),
        mean_sm_clock_mhz=_mean(clock.mean for clock in clocks),
        min_sm_clock_mhz=min((clock.min for clock in clocks), default=None),
        max_temperature_c=_most(gpus, lambda gpu: None if gpu.temperature_c is None else gpu.temperature_c.max),
        utilisation=_mean(gpu.utilisation for gpu in gpus),
        max_memory_bytes=max((gpu.memory_max_bytes for gpu in gpus if gpu.memory_max_bytes is not None), default=None),
        reasons=_worst_reasons(gpus),
        lost=tuple(dict.fromkeys(f"GPU {gpu.gpu}: {gpu.lost}" for gpu in gpus if gpu.lost is not None)),
    )


def _mean_power(gpu: GpuSummary) -> float | None:
    return None if gpu.power_w is None else gpu.power_w.mean


def _worst_reasons(gpus: Sequence[GpuSummary]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for gpu in gpus:
        for name, share in (gpu.reasons or {}).items():
            worst[name] = max(share, worst.get(name, 0.0))
    return worst


def _most(gpus: Sequence[GpuSummary], value: Callable[[GpuSummary], float | None]) -> float | None:
    return max((known for known in map(value, gpus) if known is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _whole(values: Iterable[float | None]) -> float | None:
    """The sum, or None where a part is unknown."""
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)
