"""Which processes are ours: this one, and all that came of it. Linux tells; elsewhere only this one is known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


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
