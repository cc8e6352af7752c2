"""The machine around the GPUs: its processor, and how it is set."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_PROCESSORS = Path("/sys/devices/system/cpu")
_MEMORY = Path("/proc/meminfo")


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
    return Host(governors=tuple(filter(None, governors)), swap_used_bytes=_swap_used(_text(memory)))


def cpu_model() -> str:
    """What the processor calls itself; Arm's often name no model, and are known by their architecture."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def cpu_count() -> int:
    """Processors that this process may be scheduled on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _swap_used(text: str) -> int | None:
    found = dict(re.findall(r"^(SwapTotal|SwapFree):\s*(\d+) kB$", text, re.MULTILINE))
    return (int(found["SwapTotal"]) - int(found["SwapFree"])) * _KIB if len(found) == 2 else None


def _text(path: Path) -> str:
    """Empty where there is no such file or it may not be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
