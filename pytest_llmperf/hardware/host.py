"""The machine around the GPUs: its processor, and how it is set."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_PROCESSORS = Path("/sys/devices/system/cpu")
_MEMORY = Path("/proc/meminfo")
_DEVICES = Path("/sys/bus/pci/devices")
_MEMINFO = re.compile(r"^(\w+):\s*(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """How the machine is set. A field is None or empty where the operating system does not say."""

    governors: tuple[str, ...] = ()
    """The CPU frequency governor of each processor."""
    swap_used_bytes: int | None = None


def read_host(processors: Path = _PROCESSORS, memory: Path = _MEMORY) -> Host:
    """This machine, from the folder and the file in which Linux says it."""
    files = sorted(processors.glob("cpu[0-9]*/cpufreq/scaling_governor"))
    governors = (_text(path).strip() for path in files)
    return Host(governors=tuple(filter(None, governors)), swap_used_bytes=swap_used(meminfo(_text(memory))))


def cpu_model() -> str:
    """What the processor calls itself; Arm's often name no model, and are known by their architecture."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def cpu_count() -> int:
    """Processors that this process may be scheduled on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def pci_numa_node(bus_id: str) -> int | None:
    """The memory node that the kernel puts a PCI device near, by NVML's name of its place (`00000000:01:00.0`).

    None where the machine has but one node, or the kernel does not say.
    """
    domain, _, place = bus_id.lower().partition(":")
    node = _text(_DEVICES / f"{domain[-4:]}:{place}" / "numa_node").strip()
    return int(node) if node.isdecimal() else None  # -1 is the kernel's word for none


def meminfo(text: str) -> dict[str, int]:
    """What a text in the form of `/proc/meminfo` says, in bytes by the kernel's names."""
    return {name: int(number) * _KIB for name, number in _MEMINFO.findall(text)}


def swap_used(memory: Mapping[str, int]) -> int | None:
    """Of what `meminfo` has found; None where the kernel does not say."""
    total, free = memory.get("SwapTotal"), memory.get("SwapFree")
    return None if total is None or free is None else total - free


def _text(path: Path) -> str:
    """Empty where there is no such file or it may not be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
