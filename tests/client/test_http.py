"""`client/http.py`: timed exchanges with servers that behave, and with servers that do not."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import CHUNKED, END, OK, STREAM_HEAD, UNTIL_EOF, WAIT_S, chunk, event, outcome, stream, until, wait
from servers import Do, full_listener

from pytest_llmperf.client import Address, Exchange, events, http, sockets
from pytest_llmperf.clock import NS_PER_MS
from pytest_llmperf.errors import ConfigurationError

pytestmark = pytest.mark.real_time

HTTP_408 = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SLACK_NS = NS_PER_MS
"""What the kernel's wall clock and the monotonic one may differ by."""
# To this address nothing can be sent, which connecting finds out at once.
NOWHERE = (socket.AF_INET, ("255.255.255.255", 1))


@pytest.fixture
def impatient(monkeypatch):
    """Look for what has run out of time every 20 ms."""
    monkeypatch.setattr(http, "_EXPIRE_EVERY_NS", 20 * NS_PER_MS)


def here(port):
    """An address on loopback, as a resolver would give it."""
    return socket.AF_INET, ("127.0.0.1", port)


def unused_port():
    """A port that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TestAddress:
    """What URLs are understood."""

    @pytest.mark.parametrize(
        ("url", "address", "text"),
        [
            ("http://h:8000", Address("h", 8000, False, ""), "http://h:8000"),
            ("http://h", Address("h", 80, False, ""), "http://h:80"),
            ("https://h", Address("h", 443, True, ""), "https://h:443"),
            ("https://h/a/v1/", Address("h", 443, True, "/a/v1"), "https://h:443/a/v1"),
            ("HTTP://Host:1/", Address("host", 1, False, ""), "http://host:1"),
            ("http://[::1]:8000/x", Address("::1", 8000, False, "/x"), "http://[::1]:8000/x"),
            ("http://b\u00fccher.test", Address("xn--bcher-kva.test", 80, False, ""), "http://xn--bcher-kva.test:80"),
        ],
    )
    def test_good(self, url, address, text):
        """A base URL is split into its parts, and put together again with its port."""
        assert address == Address.parse(url)
        assert text == str(address)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "localhost:8000",
            "//h",
            "ftp://h",
            "http://",
            "http://:80",
            "http://h:port",
            "http://h:99999",
            "http://h:0",
            "http://[::1",
            "http://a..b",
            "http://" + 64 * "a",
            "http://h/a b",
            "http://h/\u00fc",
            "http://h h",
        ],
    )
    def test_bad(self, url):
        """Anything else is refused, with what was given and what is expected."""
        with pytest.raises(ConfigurationError) as caught:
            Address.parse(url)
        assert f"not a server's URL: {url!r}; expected http://HOST:PORT or https://HOST/PREFIX" in str(caught.value)

    @pytest.mark.parametrize("url", ["http://h/v1?token=s3cret", "http://h/#s3cret", "http://h:x/?a=s3cret"])
    def test_what_may_be_a_token_is_not_quoted(self, url):
        """A query may hold one; the message ends up in the log of a job."""
        with pytest.raises(ConfigurationError) as caught:
            Address.parse(url)
        assert "not a server's URL: 'http://h" in str(caught.value)
        assert "***'; expected http://HOST:PORT" in str(caught.value)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["http://user:s3cret@h:8000", "http://s3cret@h", "ftp://user:s3cret@h", "http://user:s3cret@h:99999"]
    )
    def test_credentials(self, url):
        """Credentials in a URL are refused, never repeated, and the way to give them is named."""
        with pytest.raises(ConfigurationError, match="carries credentials; set LLMPERF_API_KEY") as caught:
            Address.parse(url)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("http://localhost:1", True),
            ("http://127.0.0.1:1", True),
            ("http://127.1.2.3:1", True),
            ("http://[::1]:1", True),
            ("http://10.0.0.1", False),
            ("http://example.com", False),
        ],
    )
    def test_is_loopback(self, url, expected):
        """Loopback is localhost, 127.x.x.x and ::1."""
        assert expected is Address.parse(url).is_loopback


class TestBodies:
    """How the end of a response is found."""

    @pytest.mark.parametrize(
        ("response", "body"),
        [(OK, b"hello"), (CHUNKED, b"hello, world"), (UNTIL_EOF, b"hello")],
        ids=["content-length", "chunked", "until-eof"],
    )
    def test_framings(self, get, response, body):
        """A body ends by its length, its last chunk or the end of the connection."""
        assert (200, body, None) == outcome(get(Do.RECEIVE, response))

    @pytest.mark.parametrize(
        ("response", "body"),
        [
            (OK, b"hello"),
            (CHUNKED, b"hello, world"),
            (stream(b"a", b"b"), b"data: a\n\ndata: b\n\n"),
            (STREAM_HEAD + event(b"a") + b"0\r\nX-Trailer: 1\r\n\r\n", b"data: a\n\n"),
        ],
        ids=["content-length", "chunked", "events", "events-and-trailer"],
    )
    def test_split_anywhere(self, serve, connect, response, body):
        """Wherever the network cuts a response, it reads the same, and its connection is kept."""
        cuts = range(1, len(response))
        server = serve([step for cut in cuts for step in (Do.RECEIVE, response[:cut], 0.0005, response[cut:])])
        client = connect(server)
        began = time.monotonic()

        outcomes = {outcome(client.request("GET", "/x", timeout_s=WAIT_S)) for _ in cuts}

        assert {(200, body, None)} == outcomes
        assert 1 == server.connections
        assert time.monotonic() - began < 0.02 * len(cuts)  # no end was found by waiting

    @pytest.mark.parametrize("response", [CHUNKED, stream(b"hello, world")], ids=["chunked", "events"])
    def test_byte_by_byte(self, get, response):
        """A response of single bytes reads the same."""
        script = [Do.RECEIVE]
        for byte in response:
            script += [bytes([byte]), 0.0002]
        exchange = get(*script, Do.HOLD)
        assert (200, None) == (exchange.status, exchange.failure)
        assert b"hello, world" in exchange.body

    def test_error_status(self, get):
        """An error status is an answer, not a failure: what it means is for the caller to say."""
        assert (503, b"", None) == outcome(get(Do.RECEIVE, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))

    def test_no_content(self, get):
        """A 204 response ends with its head."""
        assert (204, b"", None) == outcome(get(Do.RECEIVE, b"HTTP/1.1 204 No Content\r\n\r\n", Do.HOLD))

    def test_headers(self, get):
        """Header names are lower case, whatever the server writes."""
        exchange = get(Do.RECEIVE, b"HTTP/1.1 200 OK\r\nX-Request-ID: abc\r\nCONTENT-LENGTH: 0\r\n\r\n")
        assert {"x-request-id": "abc", "content-length": "0"} == exchange.headers

    def test_interim_responses(self, get):
        """1xx responses are passed over; status and headers are those of the real one."""
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        exchange = get(Do.RECEIVE, interim, 0.01, OK)
        assert (200, b"hello", None) == outcome(exchange)
        assert {"content-length": "5"} == exchange.headers

    def test_close_after_an_interim_response(self, get):
        """A 1xx response alone is no answer."""
        assert (None, b"", "connection_closed") == outcome(get(Do.RECEIVE, b"HTTP/1.1 100 Continue\r\n\r\n"))

    def test_large_body(self, get):
        """A body far beyond one read arrives whole."""
        body = bytes(range(256)) * 8192
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert (200, body, None) == outcome(get(Do.RECEIVE, head + body))

    @pytest.mark.parametrize("ending", [[], [Do.HOLD]], ids=["close", "hold"])
    @pytest.mark.parametrize("garbage", [b"garbage", b"H", b"\0", HTTP_408], ids=["text", "start", "nul", "response"])
    @pytest.mark.parametrize(
        "response",
        [OK, OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), CHUNKED, stream(b"a")],
        ids=["content-length", "connection-close", "chunked", "events"],
    )
    def test_garbage_after_the_end(self, serve, connect, impatient, response, garbage, ending):
        """What follows an answer is no part of it, and the connection is not used again."""
        server = serve([Do.RECEIVE, response + garbage, *ending], [Do.RECEIVE, OK])
        client = connect(server)
        exchanges = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)]
        assert [(200, None)] * 2 == [(exchange.status, exchange.failure) for exchange in exchanges]
        assert 2 == server.connections


class TestStreams:
    """Events in chunks, which are parsed after the end."""

    def test_events(self, get):
        """Each event of a stream is handed over, whatever shares its chunk."""
        body = chunk(b": ping\n\n") + chunk(b"data: a\n\ndata: b\n\n") + chunk(b"data: c\n") + chunk(b"\ndata: [D")
        exchange = get(Do.RECEIVE, STREAM_HEAD + body, 0.01, chunk(b"ONE]\n\n") + END)
        assert exchange.failure is None
        assert [b"a", b"b", b"c", b"[DONE]"] == [data for _, _, data in events(exchange.fragments)]

    def test_no_last_chunk(self, get):
        """A stream that ends without its last chunk is a failure, and keeps what came."""
        assert (200, b"data: a\n\n", "connection_closed") == outcome(get(Do.RECEIVE, STREAM_HEAD + event(b"a")))

    @pytest.mark.parametrize("pause_s", [0.02, 0.0])
    def test_what_looks_like_the_end(self, serve, connect, pause_s):
        """A read that ends like a stream, within a chunk, makes a failure or nothing, never a shorter answer."""
        data = b"data: a\r\n0\r\n\r\ndata: b\r\n\r\n"
        response = STREAM_HEAD + chunk(b"data: x\r\n\r\n") + chunk(data) + END
        cut = response.index(b"data: b")
        server = serve([Do.RECEIVE, response[:40], 0.01, response[40:cut], pause_s, response[cut:]], [Do.RECEIVE, OK])
        client = connect(server)
        exchange = client.request("GET", "/x", timeout_s=WAIT_S)
        if exchange.failure is None:
            assert b"data: x\r\n\r\n" + data == exchange.body
        else:
            assert exchange.failure == http.Failure("not_http", "the stream went on after what looked like its end")
        time.sleep(0.05)
        assert (200, b"hello", None) == outcome(client.request("GET", "/x", timeout_s=WAIT_S))

    def test_garbage_in_place_of_events(self, get):
        """What is not a stream of events has none, and is no failure of HTTP."""
        exchange = get(Do.RECEIVE, STREAM_HEAD + chunk(b"\0\xff\n\n\r" * 5000) + END)
        assert exchange.failure is None
        assert [] == events(exchange.fragments)

    def test_garbage_in_place_of_chunks(self, get):
        """A stream whose chunks are none is not HTTP, with the events that came before."""
        exchange = get(Do.RECEIVE, STREAM_HEAD + event(b"a"), 0.01, b"xyz\r\n\r\n", Do.HOLD)
        assert (200, b"data: a\n\n", "not_http") == outcome(exchange)

    def test_reset(self, get):
        """A stream whose connection breaks is a failure, with the events that came before."""
        exchange = get(Do.RECEIVE, STREAM_HEAD + event(b"a"), 0.01, event(b"b"), 0.05, Do.RESET)
        assert (200, b"data: a\n\ndata: b\n\n", "connection_reset") == outcome(exchange)


class TestTimes:
    """Which clock reading a piece of a body gets."""

    def test_pieces_have_their_own_times(self, serve, connect):
        """Each piece is stamped when it arrives, not when the response is complete."""
        go_on = threading.Event()
        server = serve(
            [Do.RECEIVE, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc", go_on, b"def"],
        )
        client = connect(server)
        before_ns = time.monotonic_ns()
        client.send(0, client.encode("GET", "/x"))
        while not server.sent_ns:
            assert [] == wait(client, 0.01)
        assert [] == wait(client, 0.05)
        between_ns = time.monotonic_ns()
        go_on.set()
        (exchange,) = wait(client)

        (first_ns, first_since_ns, _, first), (second_ns, second_since_ns, _, second) = exchange.fragments
        assert (b"abc", b"def") == (first, second)
        assert before_ns <= exchange.sent_ns <= server.sent_ns[0] <= first_ns + SLACK_NS
        assert first_ns < between_ns <= server.sent_ns[1] <= second_ns + SLACK_NS
        assert before_ns <= first_since_ns <= first_ns
        assert first_ns <= second_since_ns <= second_ns
        assert second_ns == exchange.end_ns

    def test_monotone(self, get):
        """Stamps never go back: send, sent, arrivals, end."""
        pieces = [step for _ in range(10) for step in (event(b"hello"), 0.002)]
        exchange = get(Do.RECEIVE, STREAM_HEAD, *pieces, END)
        stamps = [exchange.sent_ns, exchange.flushed_ns, *(at_ns for at_ns, *_ in exchange.fragments), exchange.end_ns]
        assert 13 == len(stamps)
        assert sorted(stamps) == stamps

    def test_connecting_is_timed_apart(self, serve, connect, monkeypatch):
        """Connecting, the look-up of the name included, lies before the time at which the request was sent."""
        getaddrinfo = socket.getaddrinfo

        def slow(*args, **options):
            time.sleep(0.05)
            return getaddrinfo(*args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        client = connect(serve([Do.RECEIVE, OK, Do.RECEIVE, OK]))
        before_ns = time.monotonic_ns()
        exchanges = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)]
        assert exchanges[0].connect_ns >= 50 * NS_PER_MS
        assert exchanges[0].sent_ns >= before_ns + exchanges[0].connect_ns
        assert exchanges[1].connect_ns is None
        assert 1 == client.stats.connects.count
        assert client.stats.connects.percentile(1.0) >= exchanges[0].connect_ns

    def test_the_last_byte_of_a_request(self, serve, connect):
        """`flushed_ns` is when the kernel had taken the last byte of a large request."""
        go_on = threading.Event()
        client = connect(serve([go_on, Do.RECEIVE, OK]))
        client.send(0, client.encode("POST", "/x", bytes(16_000_000)))
        assert [] == wait(client, 0.05)
        released_ns = time.monotonic_ns()
        go_on.set()
        (exchange,) = wait(client)
        assert exchange.sent_ns < released_ns < exchange.flushed_ns <= exchange.end_ns + SLACK_NS

    def test_absence_is_counted(self, serve, connect):
        """A client that was away from its sockets says for how long, from the very first request on."""
        client = connect(serve([Do.RECEIVE, OK]))
        client.send(0, client.encode("GET", "/x"))
        time.sleep(0.1)
        wait(client)
        assert client.stats.away.percentile(1.0) >= 100 * NS_PER_MS

    def test_absence_after_a_vain_wait(self, serve, connect):
        """Being away after a wait in which nothing came is counted too."""
        client = connect(serve([Do.RECEIVE, 0.1, OK]))
        client.send(0, client.encode("GET", "/x"))
        assert [] == wait(client, 0.01)
        time.sleep(0.1)
        wait(client)
        assert client.stats.away.percentile(1.0) >= 100 * NS_PER_MS

    def test_waiting_is_not_absence(self, serve, connect):
        """A wait for a slow server is not an absence."""
        client = connect(serve([Do.RECEIVE, 0.1, OK]))
        client.send(0, client.encode("GET", "/x"))
        while client.in_flight:
            client.poll(0.5)
        assert client.stats.away.percentile(1.0) < 50 * NS_PER_MS

    def test_idleness_is_not_absence(self, serve, connect):
        """While nothing is in flight no arrival can be late."""
        client = connect(serve([Do.RECEIVE, OK, Do.RECEIVE, OK]))
        client.request("GET", "/x", timeout_s=WAIT_S)
        time.sleep(0.1)
        client.request("GET", "/x", timeout_s=WAIT_S)
        assert client.stats.away.percentile(1.0) < 100 * NS_PER_MS

    def test_the_end_of_a_connection_was_not_unread(self, serve, connect):
        """Only what is read can have waited unread: not the end of an idle connection, nor of a silent one."""
        server = serve([Do.RECEIVE, OK, 0.06], [Do.RECEIVE, UNTIL_EOF, 0.12])
        client = connect(server)
        for tag in range(2):
            client.send(tag, client.encode("GET", "/x"))
        while client.in_flight:
            client.poll(0.5)
        assert [None, None] == [exchange.failure for exchange in client.ended()]
        assert client.stats.unread.percentile(1.0) < 40 * NS_PER_MS


class TestConnections:
    """When connections are kept and when they are made."""

    def test_reuse(self, serve, connect):
        """Two requests one after the other share a connection."""
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, CHUNKED])
        client = connect(server)
        bodies = [client.request("GET", path, timeout_s=WAIT_S).body for path in ("/a", "/b")]
        assert [b"hello", b"hello, world"] == bodies
        assert 1 == server.connections

    def test_concurrent_requests(self, serve, connect):
        """Requests in flight together have a connection each, and answers are told apart by tag."""
        both = threading.Event()
        server = serve([Do.RECEIVE, both, OK], [Do.RECEIVE, CHUNKED])
        client = connect(server)
        client.send(1, client.encode("GET", "/slow"))
        client.send(2, client.encode("GET", "/fast"))
        first = wait(client)
        both.set()
        second = wait(client)
        assert [(2, b"hello, world"), (1, b"hello")] == [(e.tag, e.body) for e in [*first, *second]]

    @pytest.mark.parametrize(
        "response",
        [
            UNTIL_EOF,
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ],
        ids=["until-eof", "connection-close", "http-1.0"],
    )
    def test_no_reuse(self, serve, connect, response):
        """A connection that the server does not keep is not used again."""
        server = serve([Do.RECEIVE, response], [Do.RECEIVE, response])
        client = connect(server)
        bodies = [client.request("GET", "/x", timeout_s=WAIT_S).body for _ in range(2)]
        assert [b"hello", b"hello"] == bodies
        assert 2 == server.connections

    def test_open(self, serve, connect):
        """Connections that were opened before are used, and cost their requests nothing."""
        both = threading.Event()
        server = serve([Do.RECEIVE, both, OK], [Do.RECEIVE, both, OK])
        client = connect(server)
        client.open(2)
        assert (2, 0) == (client.stats.connects.count, client.in_flight)
        for tag in range(2):
            client.send(tag, client.encode("GET", "/x"))
        both.set()
        exchanges = wait(client)
        while client.in_flight:
            exchanges += wait(client)
        assert [None, None] == [exchange.connect_ns for exchange in exchanges]
        assert 2 == server.connections

    def test_open_counts_what_there_is(self, serve, connect):
        """Opening is up to a number, not in addition."""
        server = serve([Do.RECEIVE, OK, Do.HOLD], [Do.HOLD], [Do.HOLD])
        client = connect(server)
        client.request("GET", "/x", timeout_s=WAIT_S)
        client.open(3)
        client.open(2)
        assert 3 == client.stats.connects.count

    def test_open_in_vain(self, connect):
        """What cannot be opened is no error before it is needed."""
        client = connect(Address("127.0.0.1", unused_port(), False, ""))
        client.open(3)
        assert [] == client.ended()
        assert "connection_refused" == client.request("GET", "/x", timeout_s=WAIT_S).failure.kind

    @pytest.mark.parametrize("ending", [[], [Do.RESET], [0.02, HTTP_408]], ids=["close", "reset", "408"])
    @pytest.mark.parametrize("looks", [True, False])
    def test_idle_connection_is_closed(self, serve, connect, ending, looks):
        """An idle connection that the server has closed, or spoken on, is replaced unnoticed."""
        server = serve([Do.RECEIVE, OK, *ending], [Do.RECEIVE, OK])
        client = connect(server)
        client.request("GET", "/x", timeout_s=WAIT_S)
        time.sleep(0.06)
        if looks:
            client.poll(0)
        exchange = client.request("GET", "/x", timeout_s=WAIT_S)
        assert (200, b"hello", None) == outcome(exchange)
        assert exchange.connect_ns is not None
        assert (2, 0) == (server.connections, client.stats.resent)

    def test_idle_connections_while_others_stream(self, serve, connect):
        """A connection that is closed while idle is noticed while other requests are in flight."""
        server = serve([Do.RECEIVE, OK, 0.02], [Do.RECEIVE, 0.1, OK, Do.RECEIVE, OK])
        client = connect(server)
        for tag in range(2):
            client.send(tag, client.encode("GET", "/x"))
        exchanges = [*wait(client), *wait(client)]
        client.send(2, client.encode("GET", "/x"))
        exchanges += wait(client)
        assert [200, 200, 200] == [exchange.status for exchange in exchanges]
        assert (2, 0) == (server.connections, client.stats.resent)

    def test_closed_after_each_answer(self, serve, connect):
        """A server that closes each connection without having said so gets each request all the same."""
        server = serve(*[[Do.RECEIVE, OK] for _ in range(20)])
        client = connect(server)
        outcomes = {outcome(client.request("GET", "/x", timeout_s=WAIT_S)) for _ in range(20)}
        assert {(200, b"hello", None)} == outcomes
        assert 20 == server.connections

    @pytest.mark.parametrize(
        "response",
        [b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge", STREAM_HEAD + event(b"error") + END],
        ids=["413", "events"],
    )
    def test_early_answer_to_an_unread_request(self, serve, connect, response):
        """A connection on which a part of a request is still unsent is not used again."""
        done = threading.Event()
        server = serve([Do.RECEIVE_HEAD, response, done], [Do.RECEIVE, OK])
        client = connect(server)
        early = client.request("POST", "/x", bytes(16_000_000), timeout_s=WAIT_S)
        late = client.request("GET", "/x", timeout_s=WAIT_S)
        done.set()
        assert [None, None] == [early.failure, late.failure]
        assert b"hello" == late.body
        assert 2 == server.connections

    def test_ipv6(self, serve, connect):
        """A server on ::1 is reached, and its host header has brackets."""
        try:
            server = serve([Do.RECEIVE, OK], host="::1")
        except OSError:
            pytest.skip("this machine has no IPv6")
        assert b"hello" == connect(server).request("GET", "/x", timeout_s=WAIT_S).body
        assert f"\r\nHost: [::1]:{server.port}\r\n".encode() in server.requests[0]

    def test_close_twice(self, serve, connect):
        """Closing drops what is in flight and may be repeated."""
        client = connect(serve([Do.RECEIVE, Do.HOLD]))
        client.send(0, client.encode("GET", "/x"))
        client.close()
        client.close()
        assert (0, []) == (client.in_flight, client.ended())

    def test_environment_proxies(self, serve, connect, monkeypatch):
        """A proxy in the environment is not used."""
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{unused_port()}")
        server = serve([Do.RECEIVE, OK])
        assert (200, b"hello", None) == outcome(connect(server).request("GET", "/x", timeout_s=WAIT_S))
        assert server.requests[0].startswith(b"GET /x HTTP/1.1\r\n")


class TestResending:
    """A request that met the end of an idle connection."""

    @pytest.mark.parametrize("ending", [[], [Do.RESET]], ids=["close", "reset"])
    def test_once(self, serve, connect, ending):
        """A request whose idle connection ends without a byte of an answer is sent again on a new one."""
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, *ending], [Do.RECEIVE, OK])
        client = connect(server)
        first = client.request("GET", "/x", timeout_s=WAIT_S)
        before_ns = time.monotonic_ns()
        again = client.request("POST", "/y", b"{}", timeout_s=WAIT_S)
        assert (200, b"hello", None) == outcome(again)
        assert [False, True] == [first.resent, again.resent]
        assert (1, 2) == (client.stats.resent, server.connections)
        assert again.connect_ns > 0
        assert again.sent_ns >= before_ns + again.connect_ns
        assert server.requests[1] == server.requests[2]
        assert server.requests[2].startswith(b"POST /y ")

    def test_opened_before(self, serve, connect):
        """A connection that was opened before its first request counts as idle."""
        server = serve([Do.RECEIVE], [Do.RECEIVE, OK])
        client = connect(server)
        client.open(1)
        exchange = client.request("GET", "/x", timeout_s=WAIT_S)
        assert (200, b"hello", None, True) == (*outcome(exchange), exchange.resent)

    def test_not_twice(self, serve, connect):
        """A request that has been sent again is not sent a third time."""
        server = serve([Do.RECEIVE, OK, Do.RECEIVE], [Do.RECEIVE], [Do.RECEIVE, OK])
        client = connect(server)
        exchange = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)][1]
        assert (None, b"", "connection_closed", True) == (*outcome(exchange), exchange.resent)
        assert (1, 2) == (client.stats.resent, server.connections)

    @pytest.mark.parametrize("ending", [[], [Do.RESET]], ids=["close", "reset"])
    def test_not_from_a_new_connection(self, serve, connect, ending):
        """A connection that was made for a request was not idle: its end is a failure."""
        server = serve([Do.RECEIVE, *ending], [Do.RECEIVE, OK])
        client = connect(server)
        exchange = client.request("GET", "/x", timeout_s=WAIT_S)
        assert exchange.failure.kind in ("connection_closed", "connection_reset")
        assert (0, 1) == (client.stats.resent, server.connections)

    @pytest.mark.parametrize("ending", [[], [0.01, Do.RESET]], ids=["close", "reset"])
    def test_not_after_a_byte(self, serve, connect, ending):
        """A server that has begun to answer has taken the request."""
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, b"H", *ending], [Do.RECEIVE, OK])
        client = connect(server)
        exchange = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)][1]
        assert exchange.failure.kind in ("connection_closed", "connection_reset")
        assert (0, 1) == (client.stats.resent, server.connections)

    def test_nobody_is_there_any_more(self, connect):
        """Where no new connection can be made, that is the failure."""
        go_on = threading.Event()
        listener = socket.create_server(("127.0.0.1", 0))

        def serve_once():
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(OK)
                sock.recv(4096)
                listener.close()
                go_on.set()

        thread = threading.Thread(target=serve_once)
        thread.start()
        client = connect(Address("127.0.0.1", listener.getsockname()[1], False, ""))
        exchange = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)][1]
        thread.join(WAIT_S)
        assert go_on.is_set()
        assert (None, b"", "connection_refused", True) == (*outcome(exchange), exchange.resent)

    def test_a_large_request(self, serve, connect):
        """A request that was sent in part is sent again from its beginning."""
        body = bytes(range(250)) * 64_000
        server = serve([Do.RECEIVE, OK, Do.RECEIVE_HEAD, Do.RESET], [Do.RECEIVE, OK])
        client = connect(server)
        client.request("GET", "/x", timeout_s=WAIT_S)
        exchange = client.request("POST", "/x", body, timeout_s=WAIT_S)
        assert (200, b"hello", None, True) == (*outcome(exchange), exchange.resent)
        assert server.requests[2].endswith(b"\r\n\r\n" + body)


class TestAddresses:
    """A name with several addresses."""

    @pytest.mark.parametrize("kinds", ["rg", "ng", "nrng", "rnrg"])
    def test_one_after_another(self, serve, connect, resolve, kinds):
        """The first address that accepts is used, however the ones before it refuse."""
        server = serve([Do.RECEIVE, OK])
        found = {"r": here(unused_port()), "n": NOWHERE, "g": here(server.port)}
        resolve(*[found[kind] for kind in kinds])
        exchange = connect(Address("server.test", 1, False, "")).request("GET", "/x", timeout_s=WAIT_S)
        assert (200, b"hello", None) == outcome(exchange)

    def test_a_family_that_is_missing(self, serve, connect, resolve):
        """An address of a family that the machine does not have is passed over."""
        server = serve([Do.RECEIVE, OK])
        resolve((-1, ("::1", 1)), here(server.port))
        exchange = connect(Address("server.test", 1, False, "")).request("GET", "/x", timeout_s=WAIT_S)
        assert (200, b"hello", None) == outcome(exchange)

    def test_none_accepts(self, connect, resolve):
        """Where none accepts, the last one's failure is reported."""
        resolve(NOWHERE, here(unused_port()))
        failure = connect(Address("server.test", 1, False, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert failure == http.Failure("connection_refused", "nothing listens at http://server.test:1")

    def test_no_answer(self, serve, connect, resolve, impatient, monkeypatch):
        """An address that does not answer is given up for the next one."""
        monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.05)
        server = serve([Do.RECEIVE, OK])
        with full_listener() as port:
            resolve(here(port), here(server.port))
            client = connect(Address("server.test", 1, False, ""))
            client.send(0, client.encode("GET", "/x"))
            (exchange,) = wait(client)
        assert (200, b"hello", None) == outcome(exchange)

    def test_the_one_that_accepted_is_kept(self, serve, connect, resolve):
        """Later connections go straight to the address that has accepted."""
        server = serve([Do.RECEIVE, OK, Do.HOLD], [Do.HOLD])
        refusing = unused_port()
        resolve(here(refusing), here(server.port))
        client = connect(Address("server.test", 1, False, ""))
        client.request("GET", "/x", timeout_s=WAIT_S)
        with socket.create_server(("127.0.0.1", refusing)) as listener:
            listener.setblocking(False)
            client.open(2)
            until(lambda: server.connections == 2)
            with pytest.raises(BlockingIOError):
                listener.accept()

    def test_tls_is_not_tried_elsewhere(self, serve, connect, resolve):
        """A server that does not speak TLS is reported, rather than the next address."""
        server = serve([b"HTTP/1.1 400 Bad Request\r\n\r\n"])
        resolve(here(server.port), here(unused_port()))
        failure = connect(Address("server.test", 1, True, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert "tls" == failure.kind


class TestRequests:
    """What is written."""

    def test_get(self, serve, connect):
        """A GET has the prefix of the address, its host and the client's headers."""
        server = serve([Do.RECEIVE, OK])
        address = Address("127.0.0.1", server.port, False, "/base")
        connect(address, headers={"Authorization": "Bearer k"}).request("GET", "/x", timeout_s=WAIT_S)
        expected = f"GET /base/x HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer k\r\n\r\n"
        assert [expected.encode()] == server.requests

    @pytest.mark.parametrize(
        ("body", "headers"),
        [(b"{}", b"Content-Type: application/json\r\nContent-Length: 2"), (b"", b"Content-Length: 0")],
    )
    def test_post(self, serve, connect, body, headers):
        """A POST has its length, zero included."""
        server = serve([Do.RECEIVE, OK])
        connect(server).request("POST", "/x", body, timeout_s=WAIT_S)
        assert server.requests[0].endswith(b"\r\n" + headers + b"\r\n\r\n" + body)

    def test_large_request_and_slow_reader(self, serve, connect):
        """A request beyond every buffer arrives whole, however late the server begins to read."""
        body = bytes(range(250)) * 20_000
        server = serve([0.1, Do.RECEIVE, OK])
        exchange = connect(server).request("POST", "/x", body, timeout_s=WAIT_S)
        assert (200, b"hello", None) == outcome(exchange)
        assert server.requests[0].endswith(b"\r\n\r\n" + body)

    def test_response_while_sending(self, serve, connect):
        """Another answer is read and stamped while a large request waits for its server."""
        later = threading.Event()
        server = serve([later, Do.RECEIVE, OK], [Do.RECEIVE, CHUNKED])
        client = connect(server)
        client.send(1, client.encode("POST", "/x", bytes(5_000_000)))
        client.send(2, client.encode("GET", "/x"))
        (fast,) = wait(client)
        later.set()
        (slow,) = wait(client)
        assert [(2, None), (1, None)] == [(exchange.tag, exchange.failure) for exchange in (fast, slow)]


class TestFailures:
    """Every way to fail is told apart, and none raises."""

    def test_refused(self, connect):
        """A port on which nothing listens is named."""
        client = connect(Address("127.0.0.1", port := unused_port(), False, ""))
        client.send(3, client.encode("GET", "/x"))
        (exchange,) = wait(client)
        assert 3 == exchange.tag
        assert exchange.sent_ns == exchange.end_ns > 0
        assert exchange.failure == http.Failure("connection_refused", f"nothing listens at http://127.0.0.1:{port}")
        assert 0 == client.in_flight

    def test_unknown_host(self, connect, monkeypatch):
        """A name that does not resolve is named."""

        def fail(*_, **__):
            raise socket.gaierror(-2, "Name unknown")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        client = connect(Address("h", 1, False, ""))
        failure = client.request("GET", "/x", timeout_s=WAIT_S).failure
        assert http.Failure("unknown_host", "the name 'h' does not resolve: Name unknown") == failure

    def test_no_route(self, connect):
        """A connection that cannot even be begun fails by its cause."""
        failure = connect(Address("255.255.255.255", 1, False, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert "connect_failed" == failure.kind
        assert failure.detail.startswith("http://255.255.255.255:1: [Errno ")

    def test_connect_timeout(self, connect, impatient, monkeypatch):
        """A connection that never comes about is given up."""
        monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.1)
        with full_listener() as port:
            client = connect(Address("127.0.0.1", port, False, ""))
            client.send(0, client.encode("GET", "/x"))
            failure = wait(client)[0].failure
        detail = f"http://127.0.0.1:{port} did not accept a connection within 0.1 s"
        assert http.Failure("connect_timeout", detail) == failure

    def test_open_gives_up(self, connect, impatient, monkeypatch):
        """Opening connections that never come about takes no longer than one of them may take."""
        monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.1)
        with full_listener() as port:
            client = connect(Address("127.0.0.1", port, False, ""))
            began = time.monotonic()
            client.open(3)
            assert 0.1 <= time.monotonic() - began < 1.0

    def test_tls_handshake_that_never_ends(self, serve, connect, impatient, monkeypatch):
        """A server that accepts and says nothing has not finished connecting over TLS."""
        monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.1)
        server = serve([Do.HOLD])
        client = connect(Address("127.0.0.1", server.port, True, ""))
        client.send(0, client.encode("GET", "/x"))
        assert "connect_timeout" == wait(client)[0].failure.kind

    @pytest.mark.slow
    def test_out_of_file_descriptors(self):
        """Connections for which there are no file descriptors fail, and the others go on."""
        script = """
import resource, socket
from pytest_llmperf.client import Address, HttpClient, Limits
from pytest_llmperf.clock import RealClock
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
address = Address("127.0.0.1", listener.getsockname()[1], False, "")
client = HttpClient(address, RealClock(), headers={}, limits=Limits(silence_s=5))
client.open(10)
resource.setrlimit(resource.RLIMIT_NOFILE, (24, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for tag in range(40):
    client.send(tag, client.encode("GET", "/x"))
while client.poll(0.1):
    pass
ended = client.ended()
print(len(ended) + client.in_flight, client.in_flight >= 10, {exchange.failure.kind for exchange in ended})
print(ended[0].failure.detail)
client.close()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
        assert "" == done.stderr
        assert done.stdout.startswith("40 True {'too_many_files'}\n")
        assert "Too many open files" in done.stdout

    def test_tls_to_a_plain_server(self, serve, connect):
        """HTTPS to a server that speaks plain HTTP is a TLS failure."""
        server = serve([b"HTTP/1.1 400 Bad Request\r\n\r\n"])
        failure = connect(Address("127.0.0.1", server.port, True, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert "tls" == failure.kind
        assert failure.detail.startswith(f"https://127.0.0.1:{server.port}: ")

    @pytest.mark.parametrize(
        "script",
        [
            [],
            [b"HTTP/1.1 2"],
            [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"],
            [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"],
            [CHUNKED[:-2]],
        ],
        ids=["no-byte", "status-line", "head", "content-length", "chunked"],
    )
    def test_closed_early(self, get, script):
        """A response cut short is a failure, never a shorter body."""
        assert "connection_closed" == get(Do.RECEIVE, *script).failure.kind

    @pytest.mark.parametrize(
        ("script", "kinds"),
        [
            ([Do.RESET], ["connection_reset", "connect_failed"]),
            ([Do.RECEIVE, Do.RESET], ["connection_reset"]),
            ([Do.RECEIVE, OK[:20], 0.02, Do.RESET], ["connection_reset"]),
            ([Do.RECEIVE, STREAM_HEAD + event(b"a")[:5], 0.02, Do.RESET], ["connection_reset"]),
        ],
        ids=["before-reading", "before-answering", "head", "stream"],
    )
    def test_reset(self, get, script, kinds):
        """A connection that breaks fails its request, whenever that is."""
        assert get(*script).failure.kind in kinds

    @pytest.mark.parametrize("response", [OK, CHUNKED, stream(b"a")], ids=["content-length", "chunked", "events"])
    def test_reset_after_the_end(self, serve, connect, response):
        """A connection that breaks after the answer takes nothing from it, nor from the next one."""
        server = serve([Do.RECEIVE, response, Do.RESET], [Do.RECEIVE, response])
        client = connect(server)
        exchanges = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)]
        assert [(200, None)] * 2 == [(exchange.status, exchange.failure) for exchange in exchanges]

    def test_reset_within_the_body(self, serve, connect):
        """A connection that breaks within a body fails, with the fragments that came before."""
        go_on = threading.Event()
        client = connect(serve([Do.RECEIVE, OK[:-2], go_on, Do.RESET]))
        client.send(0, client.encode("GET", "/x"))
        assert [] == wait(client, 0.1)
        go_on.set()
        (exchange,) = wait(client)
        assert (200, b"hel", "connection_reset") == outcome(exchange)
        assert exchange.failure.detail.startswith("while receiving: ")

    def test_reset_while_sending(self, serve, connect):
        """A connection that breaks while a request is being sent fails."""
        server = serve([Do.RECEIVE_HEAD, Do.RESET])
        exchange = connect(server).request("POST", "/x", bytes(5_000_000), timeout_s=WAIT_S)
        assert (None, b"", "connection_reset") == outcome(exchange)

    def test_an_early_answer_is_read(self, serve, connect):
        """A server that refuses an upload and closes is quoted, not called a broken connection."""
        refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge"
        server = serve([Do.RECEIVE_HEAD, refusal])
        exchange = connect(server).request("POST", "/x", bytes(5_000_000), timeout_s=WAIT_S)
        assert (413, b"large") == (exchange.status, exchange.body)

    def test_waiting_for_nothing_still_looks(self, serve, connect):
        """`wait(0)` hands over what has arrived, and does not block for what has not."""
        client = connect(serve([Do.RECEIVE, OK]))
        client.send(7, client.encode("GET", "/x"))
        deadline = time.monotonic() + WAIT_S
        while not (finished := wait(client, 0)):
            assert time.monotonic() < deadline
        assert b"hello" == finished[0].body

    @pytest.mark.parametrize(
        "response",
        [
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x15\x03\x03\x00\x02\x02\x46",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ],
        ids=["ssh", "tls-alert", "two-lengths", "bad-chunk", "upgrade"],
    )
    def test_not_http(self, get, response):
        """What is not an HTTP answer is called so."""
        assert "not_http" == get(Do.RECEIVE, response, Do.HOLD).failure.kind

    @pytest.mark.parametrize(("lines", "kind"), [(200, None), (201, "not_http")])
    def test_header_limit(self, get, lines, kind):
        """200 header lines are read, one more is not."""
        head = b"".join(b"X-%d: 1\r\n" % number for number in range(lines - 1))
        exchange = get(Do.RECEIVE, b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: 5\r\n\r\nhello")
        assert kind == outcome(exchange)[2]
        if exchange.failure is not None:
            assert exchange.failure.detail.endswith("more than 200 headers")

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * (3 << 20),
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
            b"HTTP/1.1 100 Continue\r\n\r\n" * 60_000,
            CHUNKED[:-2] + b"X: y\r\n" * 100_000,
        ],
        ids=["line", "lines", "interim-responses", "trailers"],
    )
    def test_endless_headers(self, get, head):
        """Headers without end are given up."""
        assert "not_http" == get(Do.RECEIVE, head, Do.HOLD).failure.kind

    def test_endless_body(self, serve, connect, impatient):
        """A server that sends faster than it is read does not keep the client from all else."""
        client = connect(serve([Do.RECEIVE, STREAM_HEAD, Do.HOLD]), exchange_s=0.1)
        client.most_answer_bytes = sys.maxsize
        client.open(1)
        client.send(0, client.encode("GET", "/x"))
        (connection,) = client._pool.active
        flood = (STREAM_HEAD + b"fffffff\r\n").ljust(sockets.READ_BYTES, b"x"), [], 0, None
        connection.socket.recvmsg = lambda *_: flood
        (exchange,) = wait(client)
        assert http.Failure("timeout", "not finished within 0.1 s") == exchange.failure

    @pytest.mark.parametrize(
        "response",
        [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20, STREAM_HEAD + event(b"a") * 20],
        ids=["head", "stream"],
    )
    def test_drip(self, get, impatient, response):
        """A server that sends a byte now and then is given up after `exchange_s`."""
        drip = [step for byte in response for step in (bytes([byte]), 0.005)]
        exchange = get(Do.RECEIVE, *drip, Do.HOLD, exchange_s=0.15)
        assert http.Failure("timeout", "not finished within 0.15 s") == exchange.failure
        assert 0.15 <= (exchange.end_ns - exchange.sent_ns) / 1e9 < 1.0

    @pytest.mark.parametrize(
        "script",
        [[], [OK[:-2]], [STREAM_HEAD + event(b"a")]],
        ids=["from-the-start", "within-the-body", "within-a-stream"],
    )
    def test_silence(self, get, impatient, script):
        """A server that says nothing for `silence_s` fails its request, and not much later."""
        exchange = get(Do.RECEIVE, *script, Do.HOLD, silence_s=0.1)
        assert ("timeout", "no byte for 0.1 s") == (exchange.failure.kind, exchange.failure.detail)
        assert 0.1 <= (exchange.end_ns - exchange.sent_ns) / 1e9 < 1.0

    def test_speaking_in_time(self, get, impatient):
        """The limit is on silence, not on the length of an answer."""
        pieces = [step for byte in OK[-5:] for step in (0.05, bytes([byte]))]
        assert (200, b"hello", None) == outcome(get(Do.RECEIVE, OK[:-5], *pieces, silence_s=0.2))

    def test_request_timeout(self, serve, connect):
        """`request` gives up after its own limit, and says which request it was."""
        client = connect(serve([Do.RECEIVE, Do.HOLD]))
        began = time.monotonic()
        failure = client.request("GET", "/x", timeout_s=0.1).failure
        assert http.Failure("timeout", "did not finish within 0.1 s") == failure
        assert 0.1 <= time.monotonic() - began < 0.4
        assert 0 == client.in_flight

    def test_one_fails(self, serve, connect):
        """A failure ends its own exchange only."""
        server = serve([Do.RECEIVE, b"nonsense\r\n\r\n"], [Do.RECEIVE, 0.1, OK])
        client = connect(server)
        client.send(1, client.encode("GET", "/bad"))
        client.send(2, client.encode("GET", "/good"))
        exchanges: list[Exchange] = []
        while len(exchanges) < 2:
            exchanges += wait(client)
        assert [(1, "not_http"), (2, None)] == [(e.tag, e.failure and e.failure.kind) for e in exchanges]

    def test_usable_after_a_failure(self, serve, connect):
        """A client goes on after a failure, on a new connection."""
        server = serve([Do.RECEIVE], [Do.RECEIVE, OK])
        client = connect(server)
        outcomes = [outcome(client.request("GET", "/x", timeout_s=WAIT_S)) for _ in range(2)]
        assert [(None, b"", "connection_closed"), (200, b"hello", None)] == outcomes


class TestPolling:
    """What one look at the sockets does."""

    def test_nothing_there(self, serve, connect):
        """Without a request in flight a look lasts as long as it may, and finds nothing."""
        client = connect(serve())
        began = time.monotonic()
        assert not client.poll(0.05)
        assert 0.045 <= time.monotonic() - began < 0.5

    def test_below_a_millisecond(self, serve, connect):
        """A rest below a millisecond is not rounded to one, nor to nothing, where the kernel stamps what comes."""
        if not sockets.wants_kernel_stamps():
            pytest.skip("without stamps the selector's milliseconds have to do")
        client = connect(serve([Do.HOLD]))
        client.open(1)
        client.poll(0)
        took = []
        for _ in range(20):
            began = time.monotonic()
            client.poll(0.0003)
            took.append(time.monotonic() - began)
        assert 0.0003 <= min(took) < 0.001

    def test_something_there(self, serve, connect):
        """A look that finds something says so, and ends before its time."""
        client = connect(serve([Do.RECEIVE, OK]))
        client.send(0, client.encode("GET", "/x"))
        assert client.poll(WAIT_S) == 1  # the connection has been made
        assert client.poll(WAIT_S) == 1
        assert 1 == len(client.ended())
        assert [] == client.ended()
