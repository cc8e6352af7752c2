"""What sessions that were killed have left on this machine, and its removal.

Only what a lease names, of an owner that runs no more: never what belongs to a living session or to another user.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pytest_llmperf import units
from pytest_llmperf.atomic import try_lock
from pytest_llmperf.clock import NS_PER_S, Clock
from pytest_llmperf.engines.identity import Identity, members, running
from pytest_llmperf.engines.lease import TOKEN_VARIABLE, Lease, is_safe, read, register, remove_shared
from pytest_llmperf.engines.process import GRACE_S, Progress

_POLL_S = 0.05
_GUARD_S = 3 * GRACE_S
"""A guard that still runs ends its server itself, in so much time at most."""


def clear_up(clock: Clock, progress: Progress) -> list[str]:
    """Remove what killed sessions have left; one sentence on each that had left something.

    Where another session does so at this moment, it is left to that one.
    """
    folder = register()
    if not is_safe(folder):
        return []
    with _alone(folder) as is_alone:
        if not is_alone:
            return []
        return [said for path in sorted(folder.glob("*.json")) if (said := _cleared(path, clock, progress))]


def _cleared(path: Path, clock: Clock, progress: Progress) -> str | None:
    """Clear up after one lease; None where there was nothing to do, or nothing that may be done."""
    lease = read(path)
    if lease is None or lease.owner.is_alive():
        return None
    _leave_to_guard(lease, clock, progress)
    found = _survivors(lease)
    lease = lease.with_shared_of(found)
    left = _end(lease, clock, progress)
    if left:
        return f"{_whose(lease)} left processes that cannot be ended: {', '.join(map(str, left))}"
    removed = remove_shared(lease)
    folders = [folder for folder in lease.folders if _removed(Path(folder))]
    with suppress(OSError):
        path.unlink()
    did = [
        *([f"ended {len(found)} process{'es' if len(found) > 1 else ''}"] if found else []),
        *([f"removed {', '.join(folders)}"] if folders else []),
        *([f"removed {units.count(removed, 'piece')} of shared memory"] if removed else []),
    ]
    return f"cleared up after {_whose(lease)}: {', '.join(did)}" if did else None


def _whose(lease: Lease) -> str:
    return f"a session that was killed (pid {lease.owner.pid}; {lease.what})"


def _leave_to_guard(lease: Lease, clock: Clock, progress: Progress) -> None:
    until_ns = clock.now_ns() + int(_GUARD_S * NS_PER_S)
    while lease.guard is not None and lease.guard.is_alive() and clock.now_ns() < until_ns:
        progress("waiting for the end of what a killed session has left", lease.what)
        clock.sleep(_POLL_S)


def _end(lease: Lease, clock: Clock, progress: Progress) -> list[int]:
    """End the processes of a lease, politely at first; returns those that do not end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until_ns = clock.now_ns() + int(GRACE_S * NS_PER_S)
        for pid in _survivors(lease):
            with suppress(OSError):
                os.kill(pid, number)
        while _survivors(lease) and clock.now_ns() < until_ns:
            progress("ending what a killed session has left", lease.what)
            clock.sleep(_POLL_S)
    return _survivors(lease)


def _survivors(lease: Lease) -> list[int]:
    """Its processes that still run: those of the server's group, and those that have its token."""
    here = Identity.of(os.getpid())
    if here is None or (here.boot, here.namespace) != (lease.owner.boot, lease.owner.namespace):
        return []
    return sorted({*_group(lease.server), *_marked(lease.token)} - {os.getpid()})


def _group(server: Identity | None) -> Iterable[int]:
    """A number is no process's as long as a group has it: the group is the server's unless its leader is another."""
    if server is None:
        return ()
    leader = Identity.of(server.pid)
    return members(server.pid) if leader in (None, server) else ()


def _marked(token: str) -> Iterator[int]:
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    for pid in running():
        with suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


def _removed(folder: Path) -> bool:
    """Whether a folder was there, was this user's, and is gone."""
    try:
        is_own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    except OSError:
        return False
    if is_own:
        shutil.rmtree(folder, ignore_errors=True)
    return is_own and not folder.exists()


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else clears up at this moment; no where that cannot be told."""
    with ExitStack() as closing:
        is_alone = False
        with suppress(OSError):
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            closing.callback(os.close, descriptor)
            is_alone = try_lock(descriptor) is True
        yield is_alone
