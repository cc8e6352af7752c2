"""Server-sent events out of timed body fragments.

An event belongs to the fragment that completed it, however the network has cut the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

Fragment: TypeAlias = tuple[int, int, bool, bytes]
"""`(at_ns, since_ns, exact, data)`: a piece of a body and when it arrived.

The newest of its bytes came at `at_ns`, all of them after `since_ns`. `exact`: the last of its bytes
came at `at_ns`; of the others this is not known.
"""

Event: TypeAlias = tuple[int, int, bytes]
"""`(at_ns, late_ns, data)`: the event was there by `at_ns`, and at most `late_ns` before."""

_BOM = b"\xef\xbb\xbf"


def events(fragments: Iterable[Fragment]) -> Iterator[Event]:
    """The events of a body.

    Follows the event-stream format of the HTML standard: lines end with LF, CRLF or CR, a blank
    line ends an event, several `data` lines are joined by LF, comments and other fields are passed
    over. Data not ended by a blank line is not an event.
    """
    lines = _Lines()
    at_start = True  # of an event
    for at_ns, since_ns, exact, data in fragments:
        # What nearly every fragment is: one event of one line, whole.
        if at_start and data[:6] == b"data: " and data.find(b"\n") == len(data) - 2 and b"\r" not in data:
            if data[-1:] == b"\n":
                yield at_ns, 0 if exact else max(0, at_ns - since_ns), data[6:-2]
                continue
        found = lines.events(data)
        at_start = lines.at_start
        for index, event in enumerate(found, 1):
            last = exact and at_start and index == len(found)
            yield at_ns, 0 if last else max(0, at_ns - since_ns), event


class _Lines:
    """Where a stream stands: bytes of an unfinished line, and data of an unfinished event."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._data: list[bytes] = []
        self._after_cr = False
        self._began = False

    @property
    def at_start(self) -> bool:
        """Whether nothing is unfinished."""
        return not self._pieces and not self._data and not self._after_cr

    def events(self, fragment: bytes) -> list[bytes]:
        """The events that a fragment completes."""
        found = []
        for line in self._lines(fragment):
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data = []
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
        return found

    def _lines(self, fragment: bytes) -> list[bytes]:
        if not fragment:
            return []
        text = fragment[1:] if self._after_cr and fragment[:1] == b"\n" else fragment  # a CRLF that was cut in two
        self._after_cr = fragment.endswith(b"\r")
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._pieces.append(text)
        if b"\n" not in text:
            if not self._began and sum(map(len, self._pieces)) >= len(_BOM):
                self._begin()
            return []
        self._begin()
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest] if rest else []
        return lines

    def _begin(self) -> None:
        if not self._began:
            self._began = True
            self._pieces = [b"".join(self._pieces).removeprefix(_BOM)]
