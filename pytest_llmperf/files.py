"""Opening files: what somebody else may have written, and what others shall not write.

A named pipe is not waited for, a device is not read, and nothing is read without a bound. What is wrong
with a file is an `OSError` whose `strerror` says so, as the system's own are.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

MIB = 1 << 20
LONGEST_LINE = 64 * MIB
"""A conversation of a million tokens is some 5 MiB, a trace's row some kB."""
_CHUNK = MIB
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class TwiceError(ValueError):
    """A name stands twice in one object."""


def nearby(path: Path) -> str:
    """The path for people: from where they are, if it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises `OSError` for what is none: a pipe, a device, a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a null byte
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}; expected a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """All of a file. Raises `OSError` for what is no file, or has more than `most` bytes."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(most + 1) if size <= most else None  # it may grow
    if content is None or len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most // MIB} MiB, the most that is read", str(path))
    return content


def read_text(path: Path, most: int, encoding: str = "utf-8") -> str:
    """The same as text. Raises `UnicodeDecodeError`, too."""
    return read_bytes(path, most).decode(encoding)


def lines(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """The lines of an open file with their ends. Raises `OSError` at one that is longer than `LONGEST_LINE`."""
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            problem = f"a line is longer than {LONGEST_LINE // MIB} MiB, the most that is read"
            raise OSError(errno.EFBIG, problem, str(path))
        yield line


def json_of(text: str | bytes) -> Any:
    """A JSON document in which no object has a name twice: readers would disagree about it.

    Raises `ValueError`, of which `TwiceError` is one, and `RecursionError` for what is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise TwiceError(f"an object has {twice[:60]!r} twice")
    return made


def create(path: Path, *, private: bool = False) -> IO[bytes]:
    """A new file in place of any that was there, unbuffered; not for others to write, `private`: nor to read.

    Whatever the umask: build containers often have none. Raises `OSError`.
    """
    mode = 0o600 if private else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    if private:  # of a file that was there the mode has stayed
        os.fchmod(descriptor, mode)
    return os.fdopen(descriptor, "wb", buffering=0)
