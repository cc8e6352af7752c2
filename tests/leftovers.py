"""What a started engine holds on this machine, and what of it is still there when it should be gone."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pytest_llmperf.client import Address
from pytest_llmperf.engines.lease import register

_SHARED = "/dev/shm/"


@dataclass
class Held:
    """Processes, shared memory and the port of one engine, as seen while it runs."""

    address: Address
    pids: set[int] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)

    @classmethod
    def by(cls, process, address: Address) -> Held:
        """Of a `ServerProcess` with all that it has started."""
        held = cls(address)
        for one in psutil.Process(process._guard.pid).children(recursive=True):
            held.pids.add(one.pid)
            held.shared |= mapped(one.pid)
        return held

    def left(self, temporary: Path) -> list[str]:
        """What is still there. `temporary`: the folder that it had for temporary files."""
        found = [f"process {pid}" for pid in self.pids if psutil.pid_exists(pid)]
        found += [path for path in self.shared if Path(path).exists()]
        found += [str(path) for path in temporary.iterdir() if path != register() or any(path.iterdir())]
        try:
            socket.create_connection((self.address.host, self.address.port)).close()
        except ConnectionRefusedError:
            return found
        return [*found, f"port {self.address.port}"]


def mapped(pid: int) -> set[str]:
    """Files of shared memory that a process has mapped and that still have a name."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if _SHARED in line}
    opened = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    return {path for path in paths | opened if path.startswith(_SHARED) and not path.endswith("(deleted)")}
