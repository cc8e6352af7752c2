"""What NVML, or else the operating system, says about this machine; and machines that somebody names instead."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_llmperf.errors import ConfigurationError, NvmlError
from pytest_llmperf.hardware import nvml
from pytest_llmperf.hardware.gpu import Gpu, slug
from pytest_llmperf.hardware.host import cpu_count, cpu_model
from pytest_llmperf.hardware.parts import BY_KEY, PARTS, Part, part_named
from pytest_llmperf.hardware.visible import ORDER, VARIABLE, select
from pytest_llmperf.units import MIB

_SIMULATED = "sim:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machine that a measurement belongs to.

    `gpus` are those that CUDA would use here, each with the UUID by which NVML opens it. `problem`
    says why no GPU was found; it is None where there is one. `driver_fails`: there is a driver, and it did not say
    what there is. `notes` are sentences on GPUs that are
    there and not used. `declared` is set where a user named the hardware instead of letting it be
    found, `simulated` where it is the embedded engine's.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    cpu: str | None = None
    cpus: int | None = None
    problem: str | None = None
    driver_fails: bool = False
    notes: tuple[str, ...] = ()
    declared: bool = False
    simulated: bool = False
    part: str | None = None
    """The simulated part's name."""
    key: str = field(default="")

    def describe(self, asked: Sequence[str] = ()) -> str:
        """One line for people: `1 x NVIDIA H200 (140 GiB)`, or why there is no GPU.

        `asked`: fields of `Gpu` that matter to who reads it, such as `compute_capability`.
        """
        if not self.gpus:
            return f"no GPU ({self.problem})" if self.problem else "no GPU"
        names = [gpu.describe(asked) for gpu in self.gpus]
        return ("simulated " if self.simulated else "") + ", ".join(
            f"{names.count(name)} x {name}" for name in dict.fromkeys(names)
        )

    def fingerprint(self) -> dict[str, Any]:
        """Everything known, for the result file; what is not known is left out."""
        known = asdict(self)
        known["gpus"] = [{k: v for k, v in gpu.items() if v is not None} for gpu in known["gpus"]]
        for name in ("simulated", "notes", "driver_fails"):
            if not known[name]:
                del known[name]
        return {name: value for name, value in known.items() if value is not None}


def detect(timeout_s: float = nvml.ANSWERING_S) -> Hardware:
    """Ask NVML, for up to `timeout_s`, and the operating system.

    Never raises: what cannot be had is said in `problem`.
    """
    cpu, cpus = cpu_model(), cpu_count()
    without = f"CPU-{slug(cpu)}-{cpus}-cores"
    try:
        found = nvml.look(timeout_s)
    except NvmlError as error:
        return Hardware(cpu=cpu, cpus=cpus, problem=str(error), driver_fails=error.has_driver, key=without)
    chosen = select(found.gpus, os.environ.get(VARIABLE), os.environ.get(ORDER))
    problem, notes = None, chosen.notes
    lost = [found.lost[gpu.index] for gpu in chosen.gpus if gpu.index in found.lost]
    if lost:
        remedy = [f"or leave it out with {VARIABLE}"] if len(lost) < len(chosen.gpus) else []
        return Hardware(cpu=cpu, cpus=cpus, problem="; ".join((*lost, *remedy)), driver_fails=True, key=without)
    if not chosen.gpus:
        problem, notes = "; ".join(notes) or "NVML lists no device that this process may use", ()
    return Hardware(
        gpus=chosen.gpus,
        driver=found.driver,
        cuda=found.cuda,
        cpu=cpu,
        cpus=cpus,
        problem=problem,
        notes=notes,
        key=_gpu_key(chosen.gpus) if chosen.gpus else without,
    )


def declared(key: str) -> Hardware:
    """Hardware that the user named, such as `2x-NVIDIA-H100-80GB-HBM3` behind a URL.

    `sim:PART` names a simulated part, with a count as in `sim:4x-h100`. Raises `ConfigurationError`
    for a key that no known part has.
    """
    if key.startswith(_SIMULATED):
        return simulated(*_counted(key.removeprefix(_SIMULATED)))
    count, name = _counted(key)
    part = BY_KEY.get(name)
    if part is None:
        known = ", ".join(part.key for part in PARTS)
        msg = (
            f"unknown hardware key {key!r}; accepted: one of {known}, with a count in front as in 2x-NVIDIA-H200, "
            "or sim:PART for a simulated one, as in sim:gh200"
        )
        raise ConfigurationError(msg)
    gpus = (_declared_gpu(part),) * count
    return Hardware(gpus=gpus, declared=True, key=_gpu_key(gpus))


def simulated_part(key: str | None) -> str | None:
    """The part that a key such as `sim:gh200` or `sim:4x-h100` names; None if it names no simulated one."""
    if key is None or not key.startswith(_SIMULATED):
        return None
    return _counted(key.removeprefix(_SIMULATED))[1]


def simulated(count: int, name: str) -> Hardware:
    """So many simulated parts of that name. Raises `ConfigurationError` for an unknown one."""
    part = part_named(name)
    counted = part.name if count == 1 else f"{count}x-{part.name}"
    return Hardware(
        gpus=(_declared_gpu(part),) * count, declared=True, simulated=True, part=part.name, key=f"sim-{counted}"
    )


def _counted(key: str) -> tuple[int, str]:
    """The number in front of a key, 1 without one, and the rest."""
    counted = re.match(r"([1-9][0-9]{0,3})x-", key)
    return (int(counted.group(1)), key[counted.end() :]) if counted else (1, key)


def _declared_gpu(part: Part) -> Gpu:
    return Gpu(
        name=part.nvml_names[0],
        memory_bytes=part.memory_mib * MIB,
        compute_capability=part.compute_capability,
        nvlink_c2c=part.nvlink_c2c,
    )


def remote(host: str) -> Hardware:
    """The unknown machine behind a URL: results from it are kept apart by host name."""
    return Hardware(problem=f"the server runs on {host}", key=f"remote-{slug(host)}")


def _gpu_key(gpus: tuple[Gpu, ...]) -> str:
    """Keys with their counts, in an order that does not depend on the slots."""
    keys = sorted(gpu.key for gpu in gpus)
    counted = [(keys.count(key), key) for key in dict.fromkeys(keys)]
    return "+".join(key if count == 1 else f"{count}x-{key}" for count, key in counted)
