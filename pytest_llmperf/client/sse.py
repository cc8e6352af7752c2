"""Server-sent events out of timed body fragments.

Parsing happens after the bytes were stamped. An event belongs to the fragment that completed it,
however the network has cut the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def events(fragments: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield `(at_ns, data)` for each event of a body given as `(at_ns, bytes)` fragments.

    Follows the event-stream format of the HTML standard: lines end with LF, CRLF or CR, a blank
    line ends an event, several `data` lines are joined by LF, comments and other fields are passed
    over. Data not ended by a blank line is not an event.
    """
    data: list[bytes] = []
    for at_ns, line in _lines(fragments):
        if not line:
            if data:
                yield at_ns, b"\n".join(data)
                data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))


def _lines(fragments: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends, each with the time of the fragment in which it ended."""
    rest = b""
    after_cr = False
    for at_ns, raw in fragments:
        fragment = raw[1:] if after_cr and raw.startswith(b"\n") else raw  # a CRLF that was cut in two
        after_cr = fragment.endswith(b"\r") or (after_cr and not raw)
        text = (rest + fragment).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        for line in lines:
            yield at_ns, line
