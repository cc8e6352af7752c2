"""`client/exchange.py`: what a response is and where it ends, however the network has cut it."""

from __future__ import annotations

import gc
import re
import weakref
from itertools import pairwise

import httptools
import pytest
from helpers import CHUNKED, END, OK, STREAM_HEAD, UNTIL_EOF, chunk, event, stream
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_llmperf.client import Exchange, events
from pytest_llmperf.client.sockets import READ_BYTES
from pytest_llmperf.records import Failure

EMOJI = "data: \u00e9\u4e2d\U0001f600\n\n".encode()
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
TOKENS = [b"data: %d\n\n" % number for number in range(5)]
# Name: response, body, whether the connection can be used again.
FRAMED = {
    "content-length": (OK, b"hello", True),
    "chunked": (CHUNKED, b"hello, world", True),
    "close": (OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), b"hello", False),
    "http-1.0": (OK.replace(b"1.1", b"1.0"), b"hello", False),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", True),
    "no-content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "interim": (INTERIM + OK, b"hello", True),
    "interim-stream": (INTERIM + stream(b"a"), b"data: a\n\n", True),
    "events": (STREAM_HEAD + b"".join(map(chunk, TOKENS)) + END, b"".join(TOKENS), True),
    "no-events": (STREAM_HEAD + END, b"", True),
    "events-in-one-chunk": (STREAM_HEAD + chunk(b"".join(TOKENS)) + END, b"".join(TOKENS), True),
    "event-in-many-chunks": (STREAM_HEAD + b"".join(chunk(bytes([b])) for b in EMOJI) + END, EMOJI, True),
    "events-and-length": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 19\r\n\r\ndata: 1\n\ndata: 22\n\n",
        b"data: 1\n\ndata: 22\n\n",
        True,
    ),
    "events-and-close": (
        stream(b"a").replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
        b"data: a\n\n",
        False,
    ),
    "error-events": (stream(b"a").replace(b"200 OK", b"500 No"), b"data: a\n\n", True),
    "trailers": (STREAM_HEAD + event(b"a") + b"0\r\nX: 1\r\nY: 2\r\n\r\n", b"data: a\n\n", True),
    "extensions": (
        STREAM_HEAD + b'9;a=b;c\r\ndata: a\n\n\r\n9;d="e"\r\ndata: b\n\n\r\n0;end\r\n\r\n',
        b"data: a\n\ndata: b\n\n",
        True,
    ),
    "leading-zeros": (STREAM_HEAD + b"0009\r\ndata: a\n\n\r\n000\r\n\r\n", b"data: a\n\n", True),
    "crlf": (
        STREAM_HEAD + chunk(b"data: a\r\n\r\n") + chunk(b"data: b\r\n\r\n") + END,
        b"data: a\r\n\r\ndata: b\r\n\r\n",
        True,
    ),
    "large": (STREAM_HEAD + chunk(b"data: " + 9000 * b"x" + b"\n\n") + END, b"data: " + 9000 * b"x" + b"\n\n", True),
}
# What looks like the end of a stream, within a chunk of it.
FALSE_ENDS = {
    "alone": b"\r\n0\r\n\r\n",
    "in-an-event": b"data: a\r\n0\r\n\r\ndata: b\r\n\r\n",
    "before-an-event": b"\r\n0\r\n\r\ndata: b\n\n",
    "at-the-end": b"data: a\r\n0\r\n\r\n",
    "twice": b"\r\n0\r\n\r\n\r\n0\r\n\r\n",
}


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The pieces between the cuts, those without bytes left out: a read has some."""
    edges = [0, *sorted({number for number in cuts if 0 < number < len(data)}), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


def read(pieces: list[bytes], *, hang_up: bool = False) -> tuple[Exchange, int | None]:
    """What the client makes of reads at 1, 2, 3, ...; and the number of the one that ended it, None if none did.

    `hang_up`: the connection ends after them.
    """
    exchange = Exchange(0, b"")
    for number, piece in enumerate(pieces, 1):
        if exchange.take(number, number - 1, piece):
            return exchange, number
    if hang_up:
        exchange.parse()
        if not exchange.ended_with_connection():
            exchange.failure = Failure("connection_closed", "")
    return exchange, None


cuts = st.lists(st.integers(1, 500), max_size=12)


class TestFraming:
    """Where a response ends."""

    @pytest.mark.parametrize("name", FRAMED)
    def test_every_cut(self, name):
        """Whichever two pieces a response comes in, the second one ends it, and both are in it."""
        response, body, reusable = FRAMED[name]
        for number in range(1, len(response)):
            exchange, ended = read(cut(response, [number]))
            assert 2 == ended
            assert (reusable, body, None) == (exchange.reusable, exchange.body, exchange.failure)

    @pytest.mark.slow
    @settings(max_examples=300)
    @given(st.sampled_from([*FRAMED]), cuts)
    def test_any_cuts(self, name, numbers):
        """However a response is cut, its last piece ends it; body, events and status are the same."""
        response, body, reusable = FRAMED[name]
        pieces = cut(response, numbers)
        exchange, ended = read(pieces)
        assert len(pieces) == ended
        assert (reusable, body, None) == (exchange.reusable, exchange.body, exchange.failure)
        whole, _ = read([response])
        assert (whole.status, whole.headers) == (exchange.status, exchange.headers)
        assert [e[2] for e in events(whole.fragments)] == [e[2] for e in events(exchange.fragments)]

    @pytest.mark.parametrize("name", FRAMED)
    def test_byte_by_byte(self, name):
        """A response in single bytes is the same, and ends with the last one."""
        response, body, _ = FRAMED[name]
        exchange, ended = read([bytes([byte]) for byte in response])
        assert (len(response), body, None) == (ended, exchange.body, exchange.failure)

    @pytest.mark.parametrize("name", FRAMED)
    def test_cut_short(self, name):
        """A response that lacks its last bytes has not ended, whether or not the connection has."""
        response, body, _ = FRAMED[name]
        for length in range(len(response)):
            exchange, ended = read([response[:length]] if length else [], hang_up=True)
            assert ended is None
            assert "connection_closed" == exchange.failure.kind
            assert body.startswith(exchange.body)

    @given(st.sampled_from([UNTIL_EOF, UNTIL_EOF.replace(b"1.1", b"1.0")]), cuts)
    def test_until_the_connection_ends(self, response, numbers):
        """A body without a length ends with its connection only, and is whole then."""
        exchange, ended = read(cut(response, numbers), hang_up=True)
        assert (None, b"hello", None) == (ended, exchange.body, exchange.failure)

    @pytest.mark.parametrize("name", FRAMED)
    def test_garbage_after_the_end(self, name):
        """What follows the end in one piece is no part of the answer, and the connection is not used again."""
        response, body, _ = FRAMED[name]
        for garbage in (b"garbage", b"H", b"\0", OK, stream(b"b"), b"\r\nHTTP/1.1 200 OK\r\n\r\n"):
            exchange, _ = read([response + garbage], hang_up=True)
            assert (False, body, None) == (exchange.reusable, exchange.body, exchange.failure)
            if not garbage.endswith(END):
                head = response.rindex(b"\r\n\r\n", 0, -len(END)) + 4 if body else len(response) - 1
                exchange, _ = read([response[:head], response[head:] + garbage], hang_up=True)
                assert (False, body, None) == (exchange.reusable, exchange.body, exchange.failure)

    @given(st.sampled_from([*FALSE_ENDS]), cuts)
    def test_what_looks_like_the_end(self, name, numbers):
        """The end of a stream within a chunk makes a failure or nothing, never a shorter answer."""
        body = b"data: x\n\n" + FALSE_ENDS[name] + b"data: y\n\n"
        response = STREAM_HEAD + event(b"x") + chunk(FALSE_ENDS[name]) + event(b"y") + END
        pieces = cut(response, numbers)
        exchange, ended = read(pieces)
        exchange.settle()
        if ended == len(pieces):
            assert (body, None) == (exchange.body, exchange.failure)
        else:
            assert Failure("not_http", "the stream went on after what looked like its end") == exchange.failure

    def test_a_false_end_is_seen(self):
        """A read that ends like a stream, in the midst of it, is a failure when it is looked at."""
        response = STREAM_HEAD + chunk(b"data: a\r\n0\r\n\r\ndata: b\n\n") + END
        number = response.index(b"data: b")
        exchange, ended = read(cut(response, [len(STREAM_HEAD), number]))
        assert (2, None) == (ended, exchange.failure)
        exchange.settle()
        assert Failure("not_http", "the stream went on after what looked like its end") == exchange.failure


class TestFragments:
    """The pieces of a body and their times."""

    def test_times(self):
        """A fragment has the time of its read, and of the one before it."""
        exchange, _ = read([STREAM_HEAD + event(b"a"), event(b"b")[:4], event(b"b")[4:] + event(b"c"), END])
        expected = [
            (1, 0, True, b"data: a\n\n"),
            (2, 1, True, b"d"),
            (3, 2, False, b"ata: b\n\n"),
            (3, 2, True, b"data: c\n\n"),
        ]
        assert expected == exchange.fragments
        assert exchange.fragments is exchange.fragments

    def test_not_stamped(self):
        """Without the kernel's stamps no time is exact."""
        exchange = Exchange(0, b"", stamped=False)
        assert exchange.take(2, 1, stream(b"a"))
        assert [(2, 1, False, b"data: a\n\n")] == exchange.fragments

    @pytest.mark.parametrize("after", [END, b"5", b"5\r\n", b"9\r\nd"], ids=["end", "digit", "size", "more"])
    def test_not_the_newest(self, after):
        """Of a fragment after which something else came in the same read, the time is not exact."""
        exchange, _ = read([STREAM_HEAD, event(b"a") + after])
        assert (2, 1, False, b"data: a\n\n") == exchange.fragments[0]

    @pytest.mark.parametrize(("size", "exact"), [(READ_BYTES - 1, True), (READ_BYTES, False)])
    def test_full_read(self, size, exact):
        """A read that took all that it could may have left something: its stamp may be that of the rest."""
        exchange, _ = read([STREAM_HEAD + b"ffff\r\n", size * b"x"])
        exchange.settle()
        assert [(2, 1, exact, size * b"x")] == exchange.fragments

    def test_settled_once(self):
        """Settling again changes nothing, after a failure neither."""
        exchange, _ = read([STREAM_HEAD + event(b"a"), event(b"b")])
        exchange.failure = Failure("connection_reset", "")
        for _ in range(2):
            exchange.settle()
            assert Failure("connection_reset", "") == exchange.failure
            assert b"data: a\n\ndata: b\n\n" == exchange.body

    def test_not_http_within_a_stream(self):
        """What is found out late is a failure all the same, and found out once."""
        exchange, ended = read([STREAM_HEAD + event(b"a"), b"nonsense\r\n", event(b"b"), b"\r\n" + END])
        assert 4 == ended
        for _ in range(2):
            exchange.settle()
            assert "not_http" == exchange.failure.kind
            assert b"data: a\n\n" == exchange.body

    @pytest.mark.parametrize(
        "pieces",
        [
            [OK],
            [stream(b"a")],
            [STREAM_HEAD, event(b"a"), END],
            [STREAM_HEAD, b"nonsense\r\n", END],
            [STREAM_HEAD + chunk(b"\r\n0"), b"\r\n" + END],
        ],
        ids=["response", "stream", "stream-in-pieces", "nonsense", "false-end"],
    )
    def test_no_cycles(self, pieces):
        """A settled exchange goes when the last one lets go of it: nothing collects cycles during a run."""

        class Watched(Exchange):
            __slots__ = ("__weakref__",)

        gc.disable()
        try:
            exchange = Watched(0, b"")
            for piece in pieces:
                exchange.take(1, 0, piece)
            exchange.settle()
            watched = weakref.ref(exchange)
            del exchange
            assert watched() is None
        finally:
            gc.enable()


class TestHeaders:
    """Status and headers."""

    def test_those_of_the_real_response(self):
        """1xx responses leave nothing behind."""
        exchange, _ = read([INTERIM, OK])
        assert (200, {"content-length": "5"}) == (exchange.status, exchange.headers)

    def test_interim_responses_are_no_answer(self):
        """After 1xx responses alone nothing is complete, and there is no status."""
        exchange, ended = read([INTERIM], hang_up=True)
        assert (None, None, "connection_closed") == (ended, exchange.status, exchange.failure.kind)

    @pytest.mark.parametrize("lines", [199, 200, 201])
    def test_header_limit(self, lines):
        """200 header lines are read, one more is not; those of trailers and of interim responses count."""
        heads = [
            b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * (lines - 1) + b"Content-Length: 0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n" * (lines - 1) + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            STREAM_HEAD + b"0\r\n" + b"X: 1\r\n" * (lines - 2) + b"\r\n",
        ]
        for head in heads:
            if lines <= 200:
                assert 1 == read([head])[1]
            else:
                with pytest.raises(httptools.HttpParserError):
                    read([head])

    def test_nothing_began(self):
        """Without a read nothing has begun, although the connection has ended."""
        exchange, ended = read([], hang_up=True)
        assert (None, False, "connection_closed") == (ended, exchange.began, exchange.failure.kind)
        assert read([b"H"])[0].began


MUTATIONS = st.tuples(st.integers(0, 300), st.integers(0, 3), st.binary(max_size=6))
"""Where, how many bytes are taken out, and what is put in."""


def settled(pieces: list[bytes]) -> Exchange:
    """As the client reads what may be anything: only the parser's own errors."""
    try:
        exchange, _ = read(pieces, hang_up=True)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return Exchange(0, b"", failure=Failure("not_http", ""))
    exchange.settle()
    return exchange


class TestAnything:
    """Whatever comes, it is an answer or a failure, and takes no longer than it should."""

    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=20))
    @example([b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"])
    def test_bytes(self, pieces):
        """Arbitrary bytes raise nothing but the parser's errors."""
        exchange = settled(pieces)
        events(exchange.fragments)

    @given(st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from([b"\r\n", END, event(b"a")]))))
    def test_bytes_after_a_head(self, pieces):
        """Nor do they within a stream, and what is taken for an answer has a last chunk."""
        exchange = settled([STREAM_HEAD, *pieces])
        events(exchange.fragments)
        assert exchange.failure is not None or re.search(rb"(^|\r\n)0+(;[^\r]*)?\r\n", b"".join(pieces))

    @pytest.mark.slow
    @settings(max_examples=300)
    @given(st.sampled_from([*FRAMED]), st.lists(MUTATIONS, min_size=1, max_size=3), cuts)
    def test_mutated(self, name, mutations, numbers):
        """A response with bytes lost, added and changed is the same however it is cut, or a failure."""
        response = FRAMED[name][0]
        for where, lost, added in mutations:
            response = response[:where] + added + response[where + lost :]
        pieces = cut(response, numbers) if response else []
        exchange, whole = settled(pieces), settled([response] if response else [])
        if exchange.failure is None and whole.failure is None:
            assert (whole.status, whole.body) == (exchange.status, exchange.body)

    @pytest.mark.parametrize(
        "piece", [b"\n", b"\r\n", b"1\r\na\r\n", b"\r\n\r\n", b"3\r\n\r\n0\r\n", event(b"x")], ids=repr
    )
    def test_many_pieces(self, piece):
        """The work is in proportion to what came, however small its pieces are."""
        exchange = settled([STREAM_HEAD, *[piece] * 20_000])
        assert exchange.failure is not None
        assert len(events(exchange.fragments)) <= 20_000
