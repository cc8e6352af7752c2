"""What a process takes from the machine while it works: resident memory, processor time, open files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a process. `cpu_s`: since its start."""

    resident_bytes: int
    cpu_s: float
    open_files: int


def look(pid: int) -> Reading:
    """Raises `OSError` if it has ended."""
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text(encoding="ascii").split()[1])
    # The name in brackets may hold blanks; user and system time are the 12th and 13th field after it.
    fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return Reading(pages * _PAGE, (int(fields[11]) + int(fields[12])) / _TICK, len(os.listdir(folder / "fd")))
