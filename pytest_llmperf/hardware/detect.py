"""What NVML, or else the operating system, says about this machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware.parts import BY_KEY, BY_NVML_NAME, PARTS, Part, part_named
from pytest_llmperf.units import GIB, MIB, size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_SIMULATED = "sim:"
# NVML's name of a MIG-enabled GPU stays that of the whole part.
_MIG_ENABLED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. A field is None where the driver does not say."""

    name: str
    memory_bytes: int | None = None
    uuid: str | None = None
    compute_capability: tuple[int, int] | None = None
    nvlink_c2c: bool | None = None
    mig: bool | None = None

    @property
    def part(self) -> Part | None:
        """The known part that this is; None for an unknown one and for a slice of one."""
        return None if self.mig else BY_NVML_NAME.get(self.name)

    @property
    def key(self) -> str:
        """The normalised name under which baselines are kept."""
        part = BY_NVML_NAME.get(self.name)
        key = part.key if part else _slug(self.name)
        if part is None and self.memory_bytes is not None:
            key += f"-{round(self.memory_bytes / GIB)}GiB"
        return f"{key}-MIG" if self.mig else key

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f" ({size(self.memory_bytes)})"
        return f"{self.name}{memory}{', MIG enabled' if self.mig else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machine that a measurement belongs to.

    `problem` says why no GPU was found; it is None where there is one. `declared` is set where a
    user named the hardware instead of letting it be found, `simulated` where it is the embedded
    engine's.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    cpu: str | None = None
    cpus: int | None = None
    problem: str | None = None
    declared: bool = False
    simulated: bool = False
    part: str | None = None
    """The simulated part's name."""
    key: str = field(default="")

    def describe(self) -> str:
        """One line for people: `1 x NVIDIA H200 (140 GiB)`, or why there is no GPU."""
        if not self.gpus:
            return f"no GPU ({self.problem})" if self.problem else "no GPU"
        names = [str(gpu) for gpu in self.gpus]
        return ("simulated " if self.simulated else "") + ", ".join(
            f"{names.count(name)} x {name}" for name in dict.fromkeys(names)
        )

    def fingerprint(self) -> dict[str, Any]:
        """Everything known, for the result file; what is not known is left out."""
        known = asdict(self)
        known["gpus"] = [{k: v for k, v in gpu.items() if v is not None} for gpu in known["gpus"]]
        if not self.simulated:
            del known["simulated"]
        return {name: value for name, value in known.items() if value is not None}


def detect() -> Hardware:
    """Ask NVML and the operating system. Never raises: what cannot be had is said in `problem`."""
    gpus, driver, cuda, problem = _ask_nvml()
    cpu, cpus = _cpu_model(), _cpu_count()
    key = _gpu_key(gpus) if gpus else f"CPU-{_slug(cpu)}-{cpus}-cores"
    return Hardware(gpus=gpus, driver=driver, cuda=cuda, cpu=cpu, cpus=cpus, problem=problem, key=key)


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
    return Hardware(problem=f"the server runs on {host}", key=f"remote-{_slug(host)}")


def _gpu_key(gpus: tuple[Gpu, ...]) -> str:
    keys = [gpu.key for gpu in gpus]
    counted = [(keys.count(key), key) for key in dict.fromkeys(keys)]
    return "+".join(key if count == 1 else f"{count}x-{key}" for count, key in counted)


def _slug(name: str) -> str:
    plain = re.sub(r"\((R|TM|C)\)|\bCPU\b|@.*", " ", name)
    return re.sub(r"[^A-Za-z0-9.]+", "-", plain).strip("-")


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def _cpu_count() -> int:
    """Processors that this process may be scheduled on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _ask_nvml() -> tuple[tuple[Gpu, ...], str | None, str | None, str | None]:
    try:
        import pynvml  # noqa: PLC0415 - only where hardware is asked for
    except ImportError:
        return (), None, None, "the package nvidia-ml-py is not installed"
    try:
        with _session(pynvml):
            gpus = tuple(_gpu(pynvml, handle) for handle in _handles(pynvml))
            driver = _offered(pynvml, pynvml.nvmlSystemGetDriverVersion)
            version = _offered(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
    except pynvml.NVMLError as error:
        return (), None, None, f"NVML: {error}"
    cuda = None if version is None else f"{version // 1000}.{version % 1000 // 10}"
    return gpus, driver, cuda, None if gpus else "NVML lists no device that this process may use"


@contextmanager
def _session(nvml: ModuleType) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _handles(nvml: ModuleType) -> list[object]:
    """The devices that this process may use; NVML counts those that a container withholds, too."""
    found = [_offered(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(nvml.nvmlDeviceGetCount())]
    return [handle for handle in found if handle is not None]


def _gpu(nvml: ModuleType, handle: object) -> Gpu:
    memory = _offered(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    mig = _offered(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=None if memory is None else memory.total,
        uuid=_offered(nvml, nvml.nvmlDeviceGetUUID, handle),
        compute_capability=_offered(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle),
        nvlink_c2c=_c2c(nvml, handle),
        mig=None if mig is None else mig[0] == _MIG_ENABLED,
    )


def _c2c(nvml: ModuleType, handle: object) -> bool | None:
    """Whether NVLink-C2C joins GPU and CPU; a part that does not support the question has none."""
    call = getattr(nvml, "nvmlDeviceGetC2cModeInfoV", None)  # absent from bindings before 12.550
    if call is None:
        return None
    try:
        return bool(call(handle).isC2cEnabled)
    except nvml.NVMLError_NotSupported:
        return False
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None


def _offered(nvml: ModuleType, call: Callable[..., Any], *arguments: object) -> Any:
    """What the call returns, or None where this driver or part does not offer it."""
    try:
        return call(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None
