"""Which processes are ours: this one, and all that came of it. Linux tells; elsewhere only this one is known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_DEVICES = ("/dev/nvidia", "/dev/dxg")
"""What a process that uses a GPU has open; the second under Windows' Linux."""


@dataclass(frozen=True, slots=True)
class GpuProcesses:
    """Which processes of ours may be on a GPU."""

    pids: frozenset[int]
    """All of ours, as we number them; in a container the driver has other numbers for the same."""
    may_hold_memory: bool
    """Whether one of them, other than this one, has a GPU open, or cannot be looked at."""


def gpu_processes(root: int | None = None, proc: Path = _PROC) -> GpuProcesses:
    """Those of `root`, by default this process, and of all that came of it."""
    root = os.getpid() if root is None else root
    pids = own_processes(root, proc)
    return GpuProcesses(pids, any(_has_gpu_open(proc / str(pid) / "fd") for pid in pids if pid != root))


def _has_gpu_open(descriptors: Path) -> bool:
    try:
        return any(map(_is_gpu, descriptors.iterdir()))
    except FileNotFoundError:  # it has ended
        return False
    except OSError:  # another user's
        return True


def _is_gpu(descriptor: Path) -> bool:
    try:
        return os.readlink(descriptor).startswith(_DEVICES)
    except OSError:  # it has just been closed
        return False


def own_processes(root: int | None = None, proc: Path = _PROC) -> frozenset[int]:
    """The pids of `root`, by default this process, and of its children, theirs, and so on."""
    root = os.getpid() if root is None else root
    children: dict[int, list[int]] = {}
    for pid, parent in _parents(proc):
        children.setdefault(parent, []).append(pid)
    found = {root}
    unseen = [root]
    while unseen:
        for pid in children.get(unseen.pop(), ()):
            if pid not in found:
                found.add(pid)
                unseen.append(pid)
    return frozenset(found)


def _parents(proc: Path) -> Iterator[tuple[int, int]]:
    for folder in proc.glob("[0-9]*"):
        try:
            status = (folder / "stat").read_bytes()
        except OSError:  # it has ended
            continue
        # The name in brackets may hold anything; the state and the parent follow it.
        fields = status.rpartition(b")")[2].split()
        if len(fields) > 1:
            yield int(folder.name), int(fields[1])
