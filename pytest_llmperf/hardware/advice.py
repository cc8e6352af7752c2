"""What about this machine makes measurements worse than they could be, and what to do about it.

A rule looks at one GPU, or at the host, and returns a sentence or None; what it does not know it does
not speak of. Rules only read what others have found, so that they can be held against made-up machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeAlias

from pytest_llmperf.hardware.detect import Hardware
from pytest_llmperf.hardware.gpu import Gpu
from pytest_llmperf.hardware.host import Host
from pytest_llmperf.hardware.nvml import Use
from pytest_llmperf.units import GIB, MIB, count, size

_MEMORY_IN_USE = GIB // 2
"""A driver's own contexts stay below this."""
_SWAP_IN_USE = 64 * MIB
_WATT = 1.0
"""Limits are set in whole watts."""
_IDS = "{ids}"
"""In a rule's sentence: the numbers of the GPUs that it holds for, as nvidia-smi takes them."""

GpuRule: TypeAlias = Callable[[Gpu, Use], "str | None"]
HostRule: TypeAlias = Callable[[Host], "str | None"]


def advise(hardware: Hardware, host: Host, uses: Mapping[str, Use]) -> list[str]:
    """A sentence for each thing to be done, the GPUs' first; empty where nothing is.

    `uses`: what goes on on each GPU, by UUID, where that could be asked.
    """
    found: dict[str, list[int | None]] = {}
    for gpu in hardware.gpus:
        for rule in GPU_RULES:
            sentence = rule(gpu, uses.get(gpu.uuid or "", Use()))
            if sentence is not None and gpu.index not in found.setdefault(sentence, []):
                found[sentence].append(gpu.index)
    hosts = (rule(host) for rule in HOST_RULES)
    return [
        *hardware.notes,
        *(_addressed(sentence, indices) for sentence, indices in found.items()),
        *(sentence for sentence in hosts if sentence is not None),
    ]


def _addressed(sentence: str, indices: list[int | None]) -> str:
    ids = ",".join(str(index) for index in indices if index is not None)
    return f"GPU{'s' if len(indices) > 1 else ''} {ids}: {sentence.replace(_IDS, ids)}"


def persistence_off(gpu: Gpu, _: Use) -> str | None:
    """Persistence mode is off."""
    if gpu.persistence is not False:
        return None
    return f"persistence mode is off, so each first use waits for the driver; sudo nvidia-smi -i {_IDS} -pm 1"


def power_limited(gpu: Gpu, _: Use) -> str | None:
    """The enforced power limit is below the default."""
    limit, default = gpu.power_limit_w, gpu.power_limit_default_w
    if limit is None or default is None or limit > default - _WATT:
        return None
    return f"its power limit is {limit:g} W, {default:g} W by default; sudo nvidia-smi -i {_IDS} -pl {default:g}"


def narrow_link(gpu: Gpu, _: Use) -> str | None:
    """The PCIe link has fewer lanes than GPU and slot could have."""
    width, most = gpu.pcie_width, gpu.pcie_width_max
    if width is None or most is None or width >= most:
        return None
    return f"its PCIe link has {width} of {most} lanes; reseat it, or find out what shares the slot"


def c2c_down(gpu: Gpu, _: Use) -> str | None:
    """NVLink-C2C is down, on a part that has it."""
    if gpu.nvlink_c2c is not False or gpu.part is None or not gpu.part.nvlink_c2c:
        return None
    return (
        "its NVLink-C2C to the CPU is down, so that KV offload goes another, slower way; see nvidia-smi c2c -s "
        f"-i {_IDS} and dmesg, then reset the machine or update its firmware"
    )


def slow_link(gpu: Gpu, _: Use) -> str | None:
    """The PCIe generation is below its maximum, which only counts under load."""
    generation, most = gpu.pcie_generation, gpu.pcie_generation_max
    if generation is None or most is None or generation >= most:
        return None
    return (
        f"its PCIe link is at generation {generation} of {most}, which is normal while idle; look again under load: "
        f"nvidia-smi -i {_IDS} --query-gpu=pcie.link.gen.current --format=csv"
    )


def slow_slot(gpu: Gpu, _: Use) -> str | None:
    """The slot offers a lower PCIe generation than the GPU."""
    slot, own = gpu.pcie_generation_max, gpu.pcie_generation_gpu_max
    if slot is None or own is None or slot >= own:
        return None
    return f"its slot offers PCIe generation {slot}, it could do {own}; try another slot, or the firmware's settings"


def in_use(gpu: Gpu, use: Use) -> str | None:
    """Processes are on the GPU, or its memory is taken."""
    # Inside a container the processes of others are not listed, and their memory is counted.
    is_filled = use.memory_used_bytes is not None and use.memory_used_bytes >= _MEMORY_IN_USE
    if not use.processes and not is_filled:
        return None
    processes = "processes that are not shown here" if not use.processes else f"{use.processes} processes"
    memory = f", {size(use.memory_used_bytes)} of its memory taken" if is_filled and use.memory_used_bytes else ""
    return f"in use: {'1 process' if use.processes == 1 else processes}{memory}; stop what nvidia-smi shows on the host"


def ecc_off(gpu: Gpu, _: Use) -> str | None:
    """ECC is off, on a part that is not sold like that."""
    if gpu.ecc is not False or gpu.ecc_pending or (gpu.part is not None and gpu.part.geforce):
        return None
    return f"ECC is off, unlike on most servers; sudo nvidia-smi -i {_IDS} -e 1, and reboot"


def ecc_pending(gpu: Gpu, _: Use) -> str | None:
    """ECC changes at the next reboot."""
    if gpu.ecc is None or gpu.ecc_pending is None or gpu.ecc is gpu.ecc_pending:
        return None
    return f"ECC goes {'on' if gpu.ecc_pending else 'off'} at the next reboot; reboot before a baseline is stored"


def mig_on(gpu: Gpu, _: Use) -> str | None:
    """MIG is on."""
    if not gpu.mig:
        return None
    if gpu.gpu_uuid is None:
        return f"MIG is on, with no slice to use; make one (nvidia-smi mig), or sudo nvidia-smi -i {_IDS} -mig 0"
    return (
        f"MIG is on: a process uses one slice, and slices of one GPU share its power and its link; sudo nvidia-smi -i "
        f"{_IDS} -mig 0 gives the whole"
    )


def slow_governor(host: Host) -> str | None:
    """A CPU frequency governor is not `performance`."""
    others = Counter(governor for governor in host.governors if governor != "performance")
    if not others:
        return None
    name, number = others.most_common(1)[0]
    return (
        f"the CPU frequency governor is {name} on {number} of {count(len(host.governors), 'processor')}; "
        "sudo cpupower frequency-set -g performance"
    )


def swapping(host: Host) -> str | None:
    """Swap is in use."""
    used = host.swap_used_bytes
    if used is None or used < _SWAP_IN_USE:
        return None
    return f"{size(used)} of swap is in use; stop what needs the memory, then sudo swapoff -a && sudo swapon -a"


GPU_RULES: tuple[GpuRule, ...] = (
    in_use,
    persistence_off,
    power_limited,
    c2c_down,
    narrow_link,
    slow_link,
    slow_slot,
    ecc_off,
    ecc_pending,
    mig_on,
)
HOST_RULES: tuple[HostRule, ...] = (slow_governor, swapping)
