"""One measurement at a time on one device, whoever measures: other processes, and other users.

A lock is a file in a folder that all users of the machine share, named after the device and held with `flock`, which
the kernel lets go of when its holder ends, in whatever way. What stands in the file is only told to those who wait. A
second file beside it is held, shared, by those: so the holder knows that somebody wants the device.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from pytest_llmperf.atomic import try_lock
from pytest_llmperf.clock import NS_PER_S, Clock, timestamp
from pytest_llmperf.errors import ConfigurationError, DeviceBusyError

FOLDERS = (Path("/run/lock"), Path("/tmp"))
"""Where locks are, the first that there is: the same for all users, whatever their TMPDIR."""
LOOK_S = 0.25
"""How often to look whether a device has become free."""
_TURN_S = 2.0
"""How long to wait for one who wants the device to take it; several looks."""
_MOST_BYTES = 4096
_EVERYBODY = 0o666


def default_folder() -> Path:
    """The first of `FOLDERS` that can be written to."""
    return next((folder for folder in FOLDERS if os.access(folder, os.W_OK | os.X_OK)), FOLDERS[-1])


@dataclass(slots=True)
class _Held:
    """An open file that carries a lock of ours."""

    path: Path
    descriptor: int

    def close(self) -> None:
        os.close(self.descriptor)  # which lets go


class DeviceLocks:
    """The devices that this process may measure on at the moment."""

    def __init__(self, folder: Path, *, clock: Clock, wait_s: float, told: Callable[[str], None]) -> None:
        """`wait_s`: how long to wait for one device; `told` is told for whom."""
        self._folder = folder
        self._clock = clock
        self._wait_s = wait_s
        self._told = told
        self._held: dict[str, _Held] = {}

    @property
    def held(self) -> frozenset[str]:
        return frozenset(self._held)

    def hold(self, devices: Iterable[str]) -> None:
        """Hold these devices, too, waiting for each that somebody else holds.

        Raises `DeviceBusyError` naming the holder if that takes too long, `ConfigurationError` if the folder cannot
        be used.
        """
        for device in sorted(set(devices) - set(self._held)):  # everybody in the same order
            self._held[device] = self._acquired(device)

    def is_wanted(self) -> bool:
        """Whether another process waits for a device that is held here."""
        return any(self._is_waited_for(device) for device in self._held)

    def let_go(self) -> None:
        """Give up all devices; who has waited for one gets it before this process can hold it again."""
        wanted = [device for device in self._held if self._is_waited_for(device)]
        held, self._held = self._held, {}
        for one in held.values():
            one.close()
        until_ns = self._clock.now_ns() + int(_TURN_S * NS_PER_S)
        while self._clock.now_ns() < until_ns and any(map(self._is_still_free, wanted)):
            self._clock.sleep(LOOK_S / 2)

    def _acquired(self, device: str) -> _Held:
        path = self._path(device, "lock")
        held = self._tried(path)
        if held is not None:
            return held
        queue = _opened(self._path(device, "queue"))
        try:
            fcntl.flock(queue, fcntl.LOCK_SH)
            return self._waited(device, path)
        finally:
            os.close(queue)

    def _waited(self, device: str, path: Path) -> _Held:
        until_ns = self._clock.now_ns() + int(self._wait_s * NS_PER_S)
        while self._clock.now_ns() < until_ns:
            self._told(f"waiting for {device}: {_owner(path)}")
            self._clock.sleep(LOOK_S)
            held = self._tried(path)
            if held is not None:
                return held
        raise DeviceBusyError(
            f"{device} was not free within {self._wait_s:g} s: {_owner(path)}; end that, wait for longer "
            f"(--llmperf-lock-wait SECONDS), or measure on another device; the lock is {path}"
        )

    def _tried(self, path: Path) -> _Held | None:
        """The lock, if nobody has it."""
        with ExitStack() as closing:
            descriptor = _opened(path)
            closing.callback(os.close, descriptor)
            if not _is_locked(descriptor, path, fcntl.LOCK_EX) or not _is_in_place(descriptor, path):
                return None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _about_us(), 0)
            closing.pop_all()
        return _Held(path, descriptor)

    def _is_waited_for(self, device: str) -> bool:
        path = self._path(device, "queue")
        queue = _opened(path)
        try:
            return not _is_locked(queue, path, fcntl.LOCK_EX)
        finally:
            os.close(queue)

    def _is_still_free(self, device: str) -> bool:
        """Whether those who wait for it have not taken it yet."""
        path = self._path(device, "lock")
        descriptor = _opened(path)
        try:
            return self._is_waited_for(device) and _is_locked(descriptor, path, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def _path(self, device: str, kind: str) -> Path:
        return self._folder / f"pytest-llmperf-{re.sub(r'[^A-Za-z0-9.-]+', '-', device)}.{kind}"


def _opened(path: Path) -> int:
    """A file that every user may lock; made if it is not there. Raises `ConfigurationError`."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with suppress(FileNotFoundError):
            return os.open(path, flags)  # without O_CREAT, which sticky folders refuse for files of others
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, _EVERYBODY)
        except FileExistsError:
            return os.open(path, flags)
        os.fchmod(descriptor, _EVERYBODY)  # whatever the umask
    except OSError as error:
        raise ConfigurationError(
            f"the lock {path} cannot be opened ({error.strerror}), without which two sessions could measure on one "
            "device at a time; have it removed, or name a folder that all who measure here can write to "
            "(--llmperf-locks DIR)"
        ) from None
    return descriptor


def _is_locked(descriptor: int, path: Path, how: int) -> bool:
    """Whether the lock could be had at once. Raises `ConfigurationError` where there are no locks."""
    is_ours = try_lock(descriptor, how)
    if is_ours is None:
        raise ConfigurationError(
            f"the file system of {path.parent} has no locks, without which two sessions could measure on one device at "
            "a time; name a folder on a local disk that all who measure here can write to (--llmperf-locks DIR)"
        )
    return is_ours


def _is_in_place(descriptor: int, path: Path) -> bool:
    """Whether the file is still the one that others will find; a cleaner of old files may have removed it."""
    try:
        there = path.stat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _about_us() -> bytes:
    about = {
        "pid": os.getpid(),
        "user": _user(),
        "folder": str(Path.cwd()),
        "since": f"{timestamp():%Y-%m-%d %H:%M:%S}",
    }
    return orjson.dumps(about)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in containers
        return str(os.getuid())


def _owner(path: Path) -> str:
    """Who holds it, in words. Anybody can have written there, so it is neither trusted nor long."""
    try:
        with path.open("rb") as stream:
            about = orjson.loads(stream.read(_MOST_BYTES))
        said = f"process {about['pid']} of {about['user']} measures on it in {about['folder']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "somebody measures on it"
    return "".join(letter if letter.isprintable() else "?" for letter in said)
