"""`client/sse.py`: events and their times, however the network has cut the stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llmperf.client import events


def parse(*pieces: bytes) -> list[tuple[int, bytes]]:
    """Events of a body whose pieces arrived at 0, 1, 2, ..."""
    return list(events(enumerate(pieces)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends(end):
    """LF, CRLF and CR all end a line."""
    assert [(0, b"one"), (0, b"two")] == parse(end.join([b"data: one", b"", b"data: two", b"", b""]))


def test_no_fragments():
    """A body without fragments has no events."""
    assert [] == parse()


def test_unended_event():
    """Data that no blank line has ended is not an event."""
    assert [(0, b"one")] == parse(b"data: one\n\ndata: two\n")


def test_unended_line():
    """A last line without its end is not an event, even where the server is done."""
    assert [] == parse(b"data: [DONE]")


def test_multi_line_data():
    """Several data lines of one event are joined by LF."""
    assert [(0, b"one\n\ntwo")] == parse(b"data: one\ndata\ndata:two\n\n")


def test_one_space_is_removed():
    """Just one space after the colon belongs to the format, the rest to the data."""
    assert [(0, b"a"), (0, b" b"), (0, b"c: d ")] == parse(b"data:a\n\ndata:  b\n\ndata: c: d \n\n")


def test_other_lines_are_passed_over():
    """Comments, other fields and blank lines make no event."""
    assert [(0, b"x")] == parse(b": ping\n\n\nevent: token\nid: 7\nretry: 10\ndatum: no\n\ndata: x\n\n: ping\n\n")


def test_empty_data():
    """A data line without content is an event with empty data."""
    assert [(0, b""), (0, b"")] == parse(b"data\n\ndata:\n\n")


def test_time_of_the_completing_fragment():
    """An event has the time of the fragment that ended its blank line, not of its first byte."""
    assert [(2, b"one"), (3, b"two"), (3, b"three")] == parse(
        b"data: o", b"ne\n", b"\ndata:", b" two\n\ndata: three\n\n"
    )


def test_crlf_in_two_fragments():
    """A CRLF that was cut in two ends one line, not two."""
    assert [(1, b"a\nb")] == parse(b"data: a\r", b"\ndata: b\r\n\r", b"\n")


def test_crlf_around_an_empty_fragment():
    """A fragment without bytes between CR and LF does not make two line ends of them."""
    assert [(2, b"a\nb")] == parse(b"data: a\r", b"", b"\ndata: b\r\n\r\n")


Line = tuple[bytes, bytes]
"""A line and its end."""

_text = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=6).map(str.encode)
_lines = st.one_of(
    st.builds(b"data: ".__add__, _text),
    st.builds(b"data:".__add__, _text.filter(lambda text: not text.startswith(b" "))),
    st.just(b"data"),
    st.builds(b":".__add__, _text),
    st.builds(b"event: ".__add__, _text),
    st.just(b""),
)


@st.composite
def streams(draw: st.DrawFn) -> list[Line]:
    """Lines with any of the three ends, told apart: CR followed by an empty line's LF would be one CRLF."""
    lines: list[Line] = []
    for line in draw(st.lists(_lines, max_size=12)):
        end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
        if not line and end == b"\n" and lines and lines[-1][1] == b"\r":
            end = b"\r"
        lines.append((line, end))
    return lines


def expected_events(lines: list[Line]) -> list[tuple[int, bytes]]:
    """Data of each event, and the offset of the byte that completes it: the first of the blank line's end."""
    found = []
    data: list[bytes] = []
    offset = 0
    for line, end in lines:
        if line.startswith(b"data"):
            data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif not line and data:
            found.append((offset, b"\n".join(data)))
            data = []
        offset += len(line) + len(end)
    return found


@given(streams(), st.lists(st.integers(0, 200), max_size=20))
@example([(b"data: \xc3\xa9", b"\r\n"), (b"", b"\r\n")], list(range(12)))
@example([(b"data: a", b"\r\n"), (b"data: b", b"\r\n"), (b"", b"\r\n")], [8, 8])
def test_any_split(lines, cuts):
    """However a stream is cut, its events are the same, each timed by the fragment that completes it."""
    body = b"".join(line + end for line, end in lines)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:stop] for start, stop in pairwise(edges)]

    expected = []
    for offset, data in expected_events(lines):
        piece = next(number for number, stop in enumerate(edges[1:]) if offset < stop)
        expected.append((piece, data))
    assert expected == parse(*pieces)
