"""Which process it is: a pid is given again, a pid with its start time is not. Linux tells; elsewhere nobody does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
# Fields of /proc/PID/stat, counted from the state, which follows the command in parentheses.
_STATE, _GROUP, _SESSION, _START = 0, 2, 3, 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, of all that this machine has ever run.

    `start`: in clock ticks after the boot. `namespace`: of pids; elsewhere the pid is another process's.
    """

    pid: int
    start: int
    boot: str
    namespace: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Of a process that runs; None if it does not, or nobody tells here."""
        fields = _stat(pid)
        if fields is None or fields[_STATE] == "Z":
            return None
        try:
            boot, namespace = _BOOT_ID.read_text().strip(), os.readlink(_NAMESPACE)
        except OSError:
            return None
        return cls(pid=pid, start=int(fields[_START]), boot=boot, namespace=namespace)

    @classmethod
    def from_json(cls, value: Any) -> Identity | None:
        """The inverse of `to_json`; None for anything else."""
        try:
            found = cls(**value)
        except TypeError:
            return None
        whole = isinstance(found.pid, int) and isinstance(found.start, int)
        return found if whole and isinstance(found.boot, str) and isinstance(found.namespace, str) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def is_alive(self) -> bool:
        """Whether it runs. What cannot be seen from here, in a container say, is taken to run: nobody touches it."""
        here = Identity.of(os.getpid())
        if here is None:
            return True
        if here.boot != self.boot:
            return False
        return here.namespace != self.namespace or Identity.of(self.pid) == self


def running() -> Iterator[int]:
    """The pids of this user's processes, zombies left out; none where nobody tells."""
    for name in os.listdir(_PROC) if _PROC.is_dir() else ():
        if name.isdecimal():
            try:
                is_own = (_PROC / name).stat().st_uid == os.getuid()
            except OSError:  # it has ended
                continue
            fields = _stat(int(name)) if is_own else None
            if fields is not None and fields[_STATE] != "Z":
                yield int(name)


def members(group: int) -> list[int]:
    """The processes of a group that leads a session of its own."""
    found = []
    for pid in running():
        fields = _stat(pid)
        if fields is not None and int(fields[_GROUP]) == int(fields[_SESSION]) == group:
            found.append(pid)
    return found


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
