"""The one place that writes files which are whole or not there, and that asks the kernel for a lock on one.

A draft in the same folder is written, flushed to the disk and renamed, and so is the folder's entry. Drafts
that a killed process has left are ignored by every reader and removed by the next writer in that folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pytest_llmperf.units import MIB

PREFIX = ".draft-"
"""What names of drafts begin with."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
# A folder that may be written to and not read, and file systems that cannot flush one.
_NO_FOLDER_SYNC = frozenset({errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EBADF})
_LEFT_AFTER_S = 60.0
"""A draft so much older than a new one, by the file system's own clock, may be a dead writer's.

Its lock tells whether it is. The age is for file systems that are shared by machines and keep locks to each.
"""
_PROBE_BYTES = 4096

_REMEDIES: dict[int, str] = {
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "remove what is not needed of yours, or name a place without this quota",
    errno.EROFS: "mount it so that it can be written to, or name another place",
    errno.EACCES: "name another place, or get leave to write there",
    errno.EPERM: "name another place, or get leave to write there",
    errno.ENOENT: "make the folder, or name another place",
    errno.EIO: "the device is failing: see dmesg, and name another place",
}


def write(path: Path, content: bytes | str) -> None:
    """Write a file, complete or not at all. Raises `OSError`; what stood there before is then still there."""
    with writing(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """As `write`, for content that comes bit by bit; an error within the context leaves no file, too."""
    if _is_device(path):
        with path.open("wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))  # a link stays one
    with Draft(target.parent) as draft:
        if target.exists():
            os.chmod(draft.path, target.stat().st_mode & 0o7777)
        yield draft.stream
        draft.replace(target)


class Draft:
    """A file in the making, under a name of its own; gone at the end unless it was given its real one."""

    def __init__(self, folder: Path) -> None:
        """Raises `OSError` where no file can be made."""
        while True:
            self.path = folder / f"{PREFIX}{secrets.token_hex(8)}"
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self.stream: IO[bytes] = os.fdopen(descriptor, "wb")
            if try_lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
                break
            self.stream.close()  # a sweeper took it for a leftover before it was locked
        _sweep(folder, os.fstat(descriptor).st_mtime)

    def replace(self, path: Path) -> None:
        """Give it its real name, whatever stands there."""
        self._finish()
        os.replace(self.path, path)
        sync_folder(path.parent)

    def publish(self, path: Path) -> None:
        """Give it its real name. Raises `FileExistsError` if that is taken."""
        self._finish()
        try:
            os.link(self.path, path)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if path.exists():  # without links only a lock on the folder keeps two writers apart
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.rename(self.path, path)
        sync_folder(path.parent)

    def _finish(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if (
            isinstance(error, OSError) and error.errno and error.filename is None
        ):  # whoever reports it shall not guess what it was
            error.filename = str(self.path.parent)
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written has been raised, and the draft is gone
            self.stream.close()


@contextmanager
def making_folder(folder: Path) -> Iterator[Path]:
    """A folder to be filled within the context; it appears under its name when it is complete.

    Two processes may race for it with the same content. Raises `OSError`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f"{PREFIX}{secrets.token_hex(8)}"
    draft.mkdir()
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try_lock(descriptor)
        _sweep(folder.parent, os.fstat(descriptor).st_mtime)
        yield draft
        sync_folder(draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
        sync_folder(folder.parent)
    finally:
        os.close(descriptor)
        shutil.rmtree(draft, ignore_errors=True)


def try_lock(descriptor: int, how: int = fcntl.LOCK_EX) -> bool | None:
    """Whether the kernel's lock on an open file is ours now, without waiting; None on file systems without locks.

    It ends with the descriptor, however its process ends. Raises `OSError` if the file system is in trouble.
    """
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk, where that can be done."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def why(error: OSError, path: Path) -> str:
    """A sentence on a file that cannot be written: its path, the reason, what to do."""
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return f"{path} cannot be written: {reason}"
    room = f" ({_free_bytes(path) / MIB:,.0f} MiB free)" if error.errno == errno.ENOSPC else ""
    remedy = _REMEDIES.get(error.errno or 0, "name another place")
    return f"{path} cannot be written: {reason}{room}; {remedy}"


def unwritable(path: Path) -> str | None:
    """Why no file of that name can be written, in one sentence; None if it can. Finds out by trying."""
    if path.is_dir():
        return f"{path} is a folder; name a file in it"
    if not path.parent.is_dir():
        return f"{path} cannot be written: there is no folder {path.parent}; make it, or name another file"
    if _is_device(path):
        return None if os.access(path, os.W_OK) else f"{path} cannot be written: permission denied; name another file"
    return _refused(Path(os.path.realpath(path)).parent, path)


def shared(wanted: Mapping[str, Path | None]) -> Iterator[str]:
    """A sentence on each file that several are to be: of them only the last written would be there.

    `wanted`: by option, what file it names, if any. A device takes as many as there are.
    """
    options: dict[str, list[str]] = {}
    for option, path in wanted.items():
        if path is not None and not _is_device(path):
            options.setdefault(os.path.realpath(path), []).append(option)
    for real, names in options.items():
        if len(names) > 1:
            yield f"{' and '.join(names)} name one file, {real}; give each a file of its own"


def unwritable_folder(folder: Path) -> str | None:
    """Why nothing can be written into a folder that may not be there yet; None if it can. Finds out by trying."""
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not existing.is_dir():
        return f"{folder} cannot be written to: {existing} is no folder; name another folder"
    return _refused(existing, folder)


def _refused(folder: Path, path: Path) -> str | None:
    try:
        with Draft(folder) as draft:
            draft.stream.write(bytes(_PROBE_BYTES))
            draft.stream.flush()
    except OSError as error:
        return why(error, path)
    return None


def _free_bytes(path: Path) -> int:
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    return shutil.disk_usage(folder).free


def _is_device(path: Path) -> bool:
    """Whether it is something to write into, and no file to be put in place: a terminal, a pipe, /dev/stdout."""
    is_special = path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",))
    return path.exists() and (is_special or not path.is_file())


def _sweep(folder: Path, now_s: float) -> None:
    """Remove the drafts of writers that are dead; `now_s`: by the file system's clock."""
    with suppress(OSError):  # a folder that may not be listed
        for path in folder.glob(f"{PREFIX}*"):
            with suppress(OSError):  # it went its own way meanwhile, or is another user's
                _remove_if_left(path, now_s)


def _remove_if_left(path: Path, now_s: float) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        is_old = now_s - os.fstat(descriptor).st_mtime > _LEFT_AFTER_S
        if is_old and try_lock(descriptor):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)
