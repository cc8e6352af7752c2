"""One writer at a time in a folder, over all processes of the machine.

The lock is the kernel's, so it ends with its holder, however that ends; the file that carries it says who
holds it, and is gone with it.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pytest_llmperf.atomic import try_lock
from pytest_llmperf.clock import Clock, RealClock, seconds_between

NAME = ".lock"
PATIENCE_S = 60.0
"""How long is waited for another writer: storing a night takes well under a second."""
_LOOK_S = 0.02


@contextmanager
def held(folder: Path, purpose: str, *, patience_s: float = PATIENCE_S, clock: Clock | None = None) -> Iterator[None]:
    """Hold the folder's lock; `purpose` is what others are told that it is held for.

    Raises `TimeoutError`, naming the holder, after `patience_s`, and `OSError` where no file can be made.
    On a file system without locks nothing is held: whoever writes there still never overwrites.
    """
    descriptor = _acquired(folder / NAME, purpose, patience_s, clock or RealClock())
    try:
        yield
    finally:
        if descriptor is not None:
            (folder / NAME).unlink(missing_ok=True)  # while it is held: who waits sees that this one is gone
            os.close(descriptor)


def _acquired(path: Path, purpose: str, patience_s: float, clock: Clock) -> int | None:
    began_ns = clock.now_ns()
    while True:
        with ExitStack() as closing:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            closing.callback(os.close, descriptor)
            is_ours = try_lock(descriptor)
            if is_ours is None:
                return None
            if is_ours and os.fstat(descriptor).st_nlink:  # else who held it has removed the file
                _sign(descriptor, purpose)
                closing.pop_all()
                return descriptor
            if not is_ours and seconds_between(began_ns, clock.now_ns()) >= patience_s:
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"waited {patience_s:g} s for the lock of {_holder(descriptor)}; end that, or try again later",
                    str(path),
                )
        clock.sleep(_LOOK_S)


def _sign(descriptor: int, purpose: str) -> None:
    with suppress(OSError):  # on a full disk it stays unsaid who holds it
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}, {purpose}\n".encode())


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 400, 0).decode(errors="replace").strip() or "another process"
