"""What a server of ours holds on this machine, on file for as long as it does.

A guard ends a server whose owner was killed. Where the guard was killed, too, by a container's end or for want of
memory, nobody is left who knows of the server's processes, its folders and its shared memory, but this file. The next
session reads it: see `orphans.py`.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_llmperf.atomic import write
from pytest_llmperf.engines.identity import Identity, members, running
from pytest_llmperf.files import read_bytes

TOKEN_VARIABLE = "LLMPERF_LEASE"
"""In the environment of a server's processes: by its value they are known, whatever group they have moved to."""
_SHARED = Path("/dev/shm")
_LONGEST = 1 << 20
"""Bytes of a lease that is read; ours have a few hundred, and some 50 for each piece of shared memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What one server holds.

    `shared`: names of shared memory that its processes have, with the inode's number; `shared_before`: names that
    were there before the server, so that they are not its own, a model's files say.
    """

    token: str
    owner: Identity
    what: str
    folders: tuple[str, ...] = ()
    guard: Identity | None = None
    server: Identity | None = None
    shared: Mapping[str, int] = field(default_factory=dict)
    shared_before: tuple[str, ...] = ()

    def with_shared_of(self, pids: Iterable[int]) -> Lease:
        """The same with the shared memory that these processes have now."""
        found = {name: inode for name, inode in shared_by(pids).items() if name not in self.shared_before}
        return replace(self, shared={**self.shared, **found})

    def to_json(self) -> dict[str, Any]:
        who = {name: None if one is None else one.to_json() for name, one in self._processes().items()}
        return {
            "token": self.token,
            "what": self.what,
            "folders": self.folders,
            "shared": dict(self.shared),
            "shared_before": self.shared_before,
            **who,
        }

    def _processes(self) -> dict[str, Identity | None]:
        return {"owner": self.owner, "guard": self.guard, "server": self.server}


def read(path: Path) -> Lease | None:
    """A lease on file; None for what is none."""
    try:
        told = json.loads(read_bytes(path, _LONGEST))
        owner = Identity.from_json(told["owner"])
        if owner is None:
            return None
        return Lease(
            token=str(told["token"]),
            owner=owner,
            what=str(told["what"]),
            folders=tuple(map(str, told["folders"])),
            guard=Identity.from_json(told["guard"]),
            server=Identity.from_json(told["server"]),
            shared={str(name): int(inode) for name, inode in told["shared"].items()},
            shared_before=tuple(map(str, told["shared_before"])),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def register() -> Path:
    """The folder of this user's leases, below that for temporary files: every session on the machine finds it."""
    return Path(tempfile.gettempdir(), f"pytest-llmperf-{os.getuid()}")


def is_safe(folder: Path) -> bool:
    """Whether a folder is this user's own and nobody else can write to it."""
    try:
        about = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022


class Holding:
    """The lease of one server that this process starts, kept current.

    What cannot be written is not on file: that keeps no server from running.
    """

    def __init__(self, what: str, folders: Sequence[Path]) -> None:
        """`what`: the server, for people. The lease is on file when this returns."""
        self.token = secrets.token_hex(8)
        self._path = register() / f"{self.token}.json"
        self._lease: Lease | None = None
        owner = Identity.of(os.getpid())
        if owner is not None:
            paths = tuple(str(folder.absolute()) for folder in folders)
            before = tuple(sorted(os.listdir(_SHARED))) if _SHARED.is_dir() else ()
            self._keep(Lease(token=self.token, owner=owner, what=what, folders=paths, shared_before=before))

    def started(self, guard: int, server: int | None) -> None:
        """The processes, once they run."""
        if self._lease is not None:
            whom = None if server is None else Identity.of(server)
            self._keep(replace(self._lease, guard=Identity.of(guard), server=whom))

    def note_shared(self, group: int) -> None:
        """The shared memory of a process group, as it has it now."""
        if self._lease is not None:
            self._keep(self._lease.with_shared_of(members(group)))

    def release(self) -> None:
        """The server is gone: what shared memory it left is removed, and the lease. Idempotent."""
        if self._lease is not None:
            remove_shared(self._lease)
            self._lease = None
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _keep(self, lease: Lease) -> None:
        if lease == self._lease:
            return
        self._lease = lease
        folder = self._path.parent
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if is_safe(folder):
                write(self._path, json.dumps(lease.to_json()))


def shared_by(pids: Iterable[int]) -> dict[str, int]:
    """Names, with inode numbers, of this user's shared memory that processes have mapped or open."""
    found = {}
    for path in {path for pid in pids for path in _open_files(pid) if path.parent == _SHARED}:
        with suppress(OSError):
            about = path.stat()
            if about.st_uid == os.getuid():
                found[path.name] = about.st_ino
    return found


def remove_shared(lease: Lease) -> int:
    """Remove the shared memory of a lease that is still there, and that nobody has; how many pieces that were."""
    left = [name for name, inode in lease.shared.items() if _inode(_SHARED / name) == inode]
    used = shared_by(running()) if left else {}
    gone = [name for name in left if name not in used]
    for name in gone:
        with suppress(OSError):
            (_SHARED / name).unlink()
    return len(gone)


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _open_files(pid: int) -> set[Path]:
    """The files that a process has mapped or open; none of one that does not show them."""
    found = set()
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        found = {Path(line.split(maxsplit=5)[-1]) for line in lines if f" {_SHARED}/" in line}
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(link.readlink())
    return found
