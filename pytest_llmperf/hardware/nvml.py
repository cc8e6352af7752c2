"""The one place that opens NVML, and what it says of each GPU.

`pynvml` is imported here, and only when somebody asks. A call that the binding, the driver or the part
does not offer, or that this user may not make, gives None: one odd answer must not cost the whole GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

from pytest_llmperf.errors import NvmlError, OverdueError
from pytest_llmperf.hardware.gpu import Gpu
from pytest_llmperf.hardware.host import pci_numa_node
from pytest_llmperf.overdue import within

Told = TypeVar("Told")

ANSWERING_S = 60.0
"""How long NVML may take over everything: a driver without persistence loads its firmware first, GPU by GPU."""
DRIVER = "the GPU driver (NVML)"
"""What is waited for, in sentences."""
WHEN_IT_HANGS = "look at dmesg for an Xid, then reset the GPU or reboot"
"""What to do about a driver that does not answer."""
_MIG_ENABLED = 1
_NODE_WORDS = 16
"""Room for 1,024 NUMA nodes, 64 in a word."""
_C2C_LINK_COUNT = 170
# Uninitialised, driver not loaded, driver and library of different versions.
_NO_DRIVER = frozenset({1, 9, 18})
# These, and a GPU that is lost, or has to be reset.
_BROKEN = _NO_DRIVER | {15, 16}
_NOT_SUPPORTED, _INVALID_ARGUMENT = 3, 2
_ATS = 2
"""The addressing mode in which GPU and CPU share page tables: the link between them is coherent."""

# By NVML's codes: what to do where its own words leave that open.
_NO_LIBRARY = 12
_ADVICE: dict[int, str] = {
    4: "see who may read /dev/nvidiactl",
    9: "load the driver's kernel module (modprobe nvidia) and look at dmesg",
    _NO_LIBRARY: "is NVIDIA's driver installed?",
    15: "it fell off the bus: look for an Xid in dmesg, then reset it or reboot",
    18: "the driver was updated under way: reboot, or load its kernel modules again",
    999: "look at dmesg; in a container that once had its GPUs, start it anew",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What NVML says of this machine, before anybody's `CUDA_VISIBLE_DEVICES`."""

    gpus: tuple[Gpu, ...]
    """Slices stand in place of the GPU that they are of; of one in `lost` nothing is known but its number."""
    lost: Mapping[int | None, str]
    """By their numbers, why GPUs cannot be asked: one sentence each."""
    driver: str | None
    cuda: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What is going on on one GPU now. A field is None where the driver does not say."""

    memory_used_bytes: int | None = None
    """By processes, without what the driver keeps for itself."""
    processes: int | None = None
    """Those that compute or draw on it."""


@contextmanager
def session() -> Iterator[ModuleType]:
    """NVML, open: the module `pynvml`, to be called until the context ends.

    Contexts may be nested, as NVML counts them. Raises `NvmlError` where there is no NVML, and for
    NVML's own errors within the context.
    """
    try:
        import pynvml  # noqa: PLC0415 - only where hardware is asked for
    except ImportError:
        raise NvmlError("the package nvidia-ml-py is not installed", has_driver=False) from None
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            with suppress(pynvml.NVMLError):  # all that was asked has been answered
                pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise NvmlError(said(error), has_driver=error.value != _NO_LIBRARY) from error


def said(error: Any, index: int | None = None) -> str:
    """A sentence on an error of `pynvml`: NVML's words, of which GPU, and what to do where we know."""
    where = "" if index is None else f" (GPU {index})"
    advice = _ADVICE.get(error.value)
    return f"NVML: {str(error).removeprefix('NVML ').rstrip('.')}{where}" + ("" if advice is None else f"; {advice}")


def offered(nvml: ModuleType, function: str, *arguments: object, **words: object) -> Any:
    """What the function of that name returns, or None where it is not offered, not allowed, or fails by itself.

    Errors of the whole GPU or driver, such as that of a lost GPU, are raised as `pynvml.NVMLError`.
    """
    value, _ = _asked(nvml, function, *arguments, **words)
    return value


def _asked(nvml: ModuleType, function: str, *arguments: object, **words: object) -> tuple[Any, int | None]:
    """What the function returns, or None and NVML's code, which is None where the binding lacks the function."""
    call = getattr(nvml, function, None)
    if call is None:
        return None, None
    try:
        return call(*arguments, **words), nvml.NVML_SUCCESS
    except nvml.NVMLError as error:
        if error.value in _BROKEN:
            raise
        return None, error.value
    except getattr(nvml, "NVMLLibraryMismatchError", ()):  # for a name whose newest form the driver lacks
        return None, None


def look(timeout_s: float = ANSWERING_S) -> Findings:
    """Everything that NVML says of the GPUs that it shows us.

    Raises `NvmlError`, also where the driver does not answer within `timeout_s`.
    """
    return _within(timeout_s, _look)


def _look() -> Findings:
    with session() as nvml:
        lost: dict[int | None, str] = {}
        gpus = [gpu for index in range(nvml.nvmlDeviceGetCount()) for gpu in _device(nvml, index, lost)]
        driver = offered(nvml, "nvmlSystemGetDriverVersion")
        number = offered(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    cuda = None if number is None else f"{number // 1000}.{number % 1000 // 10}"
    return Findings(gpus=tuple(gpus), lost=lost, driver=driver, cuda=cuda)


def uses(uuids: Sequence[str], timeout_s: float = ANSWERING_S) -> dict[str, Use]:
    """What is going on now, by UUID of GPUs or slices. Raises `NvmlError`, as `look` does."""
    return _within(timeout_s, lambda: _uses(uuids))


def _uses(uuids: Sequence[str]) -> dict[str, Use]:
    with session() as nvml:
        return {uuid: _use(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)) for uuid in uuids}


def _within(timeout_s: float, call: Callable[[], Told]) -> Told:
    try:
        return within(timeout_s, DRIVER, call)
    except OverdueError as error:
        raise NvmlError(f"{error}; {WHEN_IT_HANGS}") from None


def _device(nvml: ModuleType, index: int, lost: dict[int | None, str]) -> Iterator[Gpu]:
    """The GPU of this number, or its slices; nothing where a container withholds it, which NVML counts too.

    One that fails by itself is noted as `lost`: the others may be all that is asked for.
    """
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = _gpu(nvml, handle, index)
        yield from (_slices(nvml, handle, gpu) if gpu.mig else ()) or [gpu]
    except nvml.NVMLError_NoPermission:
        return
    except nvml.NVMLError as error:
        if error.value in _NO_DRIVER:
            raise
        lost[index] = said(error, index)
        yield Gpu(name="", index=index)


def _gpu(nvml: ModuleType, handle: object, index: int) -> Gpu:
    """All that NVML says of one GPU."""
    memory = offered(nvml, "nvmlDeviceGetMemoryInfo", handle)
    mig = offered(nvml, "nvmlDeviceGetMigMode", handle)
    ecc = offered(nvml, "nvmlDeviceGetEccMode", handle) or (None, None)
    pci = offered(nvml, "nvmlDeviceGetPciInfo", handle)
    links = nvlinks_up(nvml, handle)
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=None if memory is None else memory.total,
        uuid=offered(nvml, "nvmlDeviceGetUUID", handle),
        compute_capability=offered(nvml, "nvmlDeviceGetCudaComputeCapability", handle),
        nvlink_c2c=nvlink_c2c(nvml, handle),
        mig=None if mig is None else mig[0] == _MIG_ENABLED,
        index=index,
        pci_bus_id=None if pci is None else pci.busId,
        pci_device_id=None if pci is None else f"{pci.pciDeviceId:08X}",
        pci_subsystem_id=None if pci is None else f"{pci.pciSubSystemId:08X}",
        pcie_generation=offered(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
        pcie_generation_max=offered(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_generation_gpu_max=offered(nvml, "nvmlDeviceGetGpuMaxPcieLinkGeneration", handle),
        pcie_width=offered(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle),
        pcie_width_max=offered(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        nvlinks=None if links is None else len(links),
        nvlink_version=offered(nvml, "nvmlDeviceGetNvLinkVersion", handle, links[0]) if links else None,
        ecc=_flag(ecc[0]),
        ecc_pending=_flag(ecc[1]),
        persistence=_flag(offered(nvml, "nvmlDeviceGetPersistenceMode", handle)),
        power_limit_w=_watts(offered(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)),
        power_limit_default_w=_watts(offered(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle)),
        sm_clock_max_mhz=offered(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        memory_clock_max_mhz=offered(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM),
        numa_node=_numa_node(nvml, handle, pci),
    )


def _slices(nvml: ModuleType, handle: object, gpu: Gpu) -> list[Gpu]:
    """The slices of a GPU that this process may see; indices that are free are not found."""
    indices = range(offered(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    found = (offered(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index) for index in indices)
    return [_slice(nvml, slice_handle, gpu) for slice_handle in found if slice_handle is not None]


def _slice(nvml: ModuleType, handle: object, gpu: Gpu) -> Gpu:
    """What is a slice's own, and for the rest its GPU's, but for the links, which slices may not use."""
    memory = offered(nvml, "nvmlDeviceGetMemoryInfo", handle)
    return replace(
        gpu,
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=None if memory is None else memory.total,
        uuid=offered(nvml, "nvmlDeviceGetUUID", handle),
        gpu_uuid=gpu.uuid or f"index {gpu.index}",
        gpu_instance=offered(nvml, "nvmlDeviceGetGpuInstanceId", handle),
        compute_instance=offered(nvml, "nvmlDeviceGetComputeInstanceId", handle),
        nvlinks=None if gpu.nvlinks is None else 0,
        nvlink_version=None,
    )


def nvlinks_up(nvml: ModuleType, handle: object) -> list[int] | None:
    """Numbers of the NVLinks that are up; none on a part that does not support the question, None if nobody says."""
    up = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        state, code = _asked(nvml, "nvmlDeviceGetNvLinkState", handle, link)
        if code in (_NOT_SUPPORTED, _INVALID_ARGUMENT):
            break  # links are numbered from 0, and a part has fewer than the binding knows
        if state is None:
            return None
        if state:
            up.append(link)
    return up


def nvlink_c2c(nvml: ModuleType, handle: object) -> bool | None:
    """Whether NVLink-C2C joins GPU and CPU; a part that does not support the question has none.

    Asked by name first, and where that gives no answer by what only such a part has.
    """
    mode, code = _asked(nvml, "nvmlDeviceGetC2cModeInfoV", handle)  # absent from bindings before 12.550
    if mode is not None:
        return bool(mode.isC2cEnabled)
    links = _field(nvml, handle, _C2C_LINK_COUNT)
    if links or offered(nvml, "nvmlDeviceGetAddressingMode", handle) == _ATS:
        return True
    return False if code == _NOT_SUPPORTED or links is not None else None


def _field(nvml: ModuleType, handle: object, field: int) -> int | None:
    """A 32-bit field's value; each field has a code of its own."""
    values = offered(nvml, "nvmlDeviceGetFieldValues", handle, [field])
    if values is None or values[0].nvmlReturn != nvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal)


def _numa_node(nvml: ModuleType, handle: object, pci: Any) -> int | None:
    """The lowest of the host's memory nodes near the GPU; the kernel's word where NVML gives none."""
    arguments = (handle, _NODE_WORDS, getattr(nvml, "NVML_AFFINITY_SCOPE_NODE", 0))
    words = offered(nvml, "nvmlDeviceGetMemoryAffinity", *arguments)
    mask: int = sum(word << (64 * number) for number, word in enumerate(words or ()))
    if mask:
        return (mask & -mask).bit_length() - 1
    return None if pci is None else pci_numa_node(pci.busId)


_KINDS = ("Compute", "Graphics")
"""Of processes: each is asked for by itself."""


def _processes(nvml: ModuleType, function: str, handle: object) -> list[Any] | None:
    """What the newest form of the function that driver and binding have returns."""
    for form in ("_v3", "_v2"):
        found: list[Any] | None = offered(nvml, f"{function}{form}", handle)
        if found is not None:
            return found
    return None


def _use(nvml: ModuleType, handle: object) -> Use:
    memory = offered(nvml, "nvmlDeviceGetMemoryInfo", handle, version=nvml.nvmlMemory_v2)
    compute, graphics = (_processes(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle) for kind in _KINDS)
    is_told = compute is not None or graphics is not None
    pids = {process.pid for process in [*(compute or ()), *(graphics or ())]}
    return Use(
        memory_used_bytes=None if memory is None else memory.used,
        processes=len(pids) if is_told else None,
    )


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
