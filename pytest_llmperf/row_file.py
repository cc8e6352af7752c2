"""A file to which lines are appended while something is measured.

No line is ever cut short by a full disk, and what was written can be read back although the path is gone.
"""

from __future__ import annotations

import errno
import io
import os
import weakref
from collections.abc import Iterator
from pathlib import Path


class RowFile:
    """Appends whole lines; the folder is made where there is none."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` if it cannot be made."""
        self.path = path
        self.size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self.written = Written(os.open(path, flags, 0o644))
        self._is_open = True

    def append(self, lines: bytes) -> None:
        """Write at the end. Raises `OSError`; the file then ends where it did before."""
        if not self._is_open:
            raise ValueError(f"{self.path} is closed")
        left = memoryview(lines)
        try:
            while left:  # a disk that gets full takes a part
                left = left[os.write(self.written.descriptor, left) :]
        except OSError:
            os.ftruncate(self.written.descriptor, self.size)
            os.lseek(self.written.descriptor, self.size, os.SEEK_SET)
            raise
        self.size += len(lines)

    def check(self) -> None:
        """Raise `FileNotFoundError` if the path does not lead to this file any more."""
        ours = os.fstat(self.written.descriptor)
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise FileNotFoundError(errno.ENOENT, "it was removed while it was written", str(self.path))

    def close(self) -> None:
        """Append nothing more; what was written can be read as long as somebody holds `written`."""
        self._is_open = False


class Written:
    """What a file holds, whatever has become of its path."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        self._closing()

    def lines(self, offset: int = 0) -> Iterator[bytes]:
        """The whole lines from there on; a last one without its end is left out. Raises `OSError`."""
        with io.BufferedReader(_From(self.descriptor, offset)) as stream:
            yield from (line for line in stream if line.endswith(b"\n"))


class _From(io.RawIOBase):
    """Reads a descriptor from a place on, without moving it."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor = descriptor
        self._offset = offset

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = os.preadv(self._descriptor, [view], self._offset)
        self._offset += count
        return count
