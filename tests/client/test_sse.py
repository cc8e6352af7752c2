"""`client/sse.py`: events and their times, however the network has cut the stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llmperf.client import events, sse


def parse(*pieces: bytes) -> list[tuple[int, bytes]]:
    """Events of a body whose pieces arrived at 0, 1, 2, ..."""
    return [(at_ns, data) for at_ns, _, data in events([(at, at - 1, True, piece) for at, piece in enumerate(pieces)])]


def late(*fragments: tuple[int, int, bool, bytes]) -> list[tuple[int, int, bytes]]:
    """Events and by how much they may have come earlier."""
    return list(events(fragments))


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


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"], ids=repr)
class TestLateness:
    """By how much an event may have come before its time."""

    def test_one_event(self, end):
        """An event that ends with the newest byte came at that time; without stamps it may have come before."""
        exact = end != b"\r\r"  # after a last CR an LF may still belong to it
        assert [(7, 0 if exact else 4, b"a")] == late((7, 3, True, b"data: a" + end))
        assert [(7, 4, b"a")] == late((7, 3, False, b"data: a" + end))

    def test_two_events(self, end):
        """Of two events in one fragment the first one may have come before."""
        first, last = late((7, 3, True, b"data: a" + end + b"data: b" + end))
        assert (7, 4, b"a") == first
        assert last in [(7, 0, b"b"), (7, 4, b"b")]

    @pytest.mark.parametrize("rest", [b"data: b", b": x", b": x\n", b": x\n\n", b"id: 1\n", b"\n", b"\r"], ids=repr)
    def test_something_after_it(self, end, rest):
        """So may one after which anything else came in its fragment."""
        if (end, rest) == (b"\r\r", b"\n"):
            pytest.skip("that is the end of the same line")
        assert (7, 4, b"a") == late((7, 3, True, b"data: a" + end + rest))[0]

    def test_ended_by_a_later_fragment(self, end):
        """An event that began in an earlier fragment came with its end."""
        found = late((5, 1, True, b"data: a"), (7, 3, True, end))
        assert [(7, b"a")] == [(at_ns, data) for at_ns, _, data in found]
        assert found[0][1] in (0, 4)

    def test_an_event_of_the_fragment_before(self, end):
        """A fragment that ends no event says nothing about the one before."""
        found = late((5, 1, False, b"data: a" + end), (7, 3, True, b": x" + end), (9, 8, True, b"data: b" + end))
        assert [(5, 4, b"a"), (9, b"b")] == [found[0], (found[1][0], found[1][2])]

    def test_clocks_that_disagree(self, end):
        """A stamp from before the last look is not late by less than nothing."""
        assert [(3, 0, b"a")] == late((3, 7, False, b"data: a" + end))


def test_byte_order_mark():
    """A byte order mark at the beginning of a stream is passed over, anywhere else it belongs to its line."""
    for pieces in ([b"\xef\xbb\xbfdata: a\n\n"], [b"\xef", b"\xbb", b"\xbf", b"data: a\n", b"\n"]):
        assert [b"a"] == [data for _, data in parse(*pieces)]
    for pieces in ([b"data: a\n\n\xef\xbb\xbfdata: b\n\n"], [b"data: a\n\n", b"\xef\xbb\xbfdata: b\n\n"]):
        assert [b"a"] == [data for _, data in parse(*pieces)]


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


@given(st.lists(st.binary(max_size=12)), st.lists(st.sampled_from([b"\n", b"\r", b"data: ", b"data", b":", b"x", b""])))
def test_anything(garbage, pieces):
    """Arbitrary bytes have the events that they have, in one piece or in many, and raise nothing."""
    for fragments in (garbage, pieces):
        whole = [data for _, data in parse(b"".join(fragments))]
        assert whole == [data for _, data in parse(*fragments)]


_simple = st.builds(lambda text, end: b"data: " + text + end, _text, st.sampled_from([b"\n\n"] * 9 + [b"\n", b"\r\n"]))


@given(st.lists(st.one_of(_simple, _simple, _simple, st.sampled_from([b"\n\n", b": x\n\n", b"data:\n\n", b"", b"\n"]))))
@example([b"data: a\n\ndata: b\n\n", b"\n\n"])
@example([b"data: a\n\n", b"data: \n\n"])
@example([b"data: a\n\ndata: b\n\n", b": x"])
def test_the_short_way(pieces):
    """What servers send nearly always is read in a shorter way, with the same events."""
    fragments = [(2 * number + 1, 2 * number, number % 3 > 0, piece) for number, piece in enumerate(pieces)]
    assert list(sse._any_events(fragments)) == events(fragments)


@pytest.mark.parametrize("piece", [b"a", b"\r", b"\n", b"data", b"data: x\n", b"\xef\xbb"], ids=repr)
def test_many_pieces(piece):
    """The work is in proportion to what came."""
    assert len(parse(*[piece] * 20_000)) <= 20_000
