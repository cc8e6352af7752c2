"""`client/http.py`: timed exchanges with servers that behave, and with servers that do not."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from servers import Do, RawServer

from pytest_llmperf.client import Address, Exchange, HttpClient, Limits, http
from pytest_llmperf.clock import RealClock
from pytest_llmperf.errors import ConfigurationError

WAIT_S = 5.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n"
UNTIL_EOF = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello"


@pytest.fixture
def serve():
    """Start raw servers that are stopped after the test, and after the clients."""
    with contextlib.ExitStack() as stack:
        yield lambda *scripts, **options: stack.enter_context(RawServer(*scripts, **options))


@pytest.fixture
def connect(serve):
    """Make clients that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(server_or_address, *, silence_s=WAIT_S, headers=None):
            address = server_or_address
            if isinstance(server_or_address, RawServer):
                address = Address.parse(server_or_address.url)
            client = HttpClient(address, RealClock(), headers=headers or {}, limits=Limits(silence_s=silence_s))
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def get(serve, connect):
    """Play one script to one GET request and return the exchange."""

    def play(*script, silence_s=WAIT_S):
        client = connect(serve(script), silence_s=silence_s)
        client.send(7, client.encode("GET", "/x"))
        (exchange,) = wait(client, WAIT_S)
        return exchange

    return play


def wait(client, timeout_s):
    """The exchanges that have ended, waiting for the first one up to `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        client.poll(max(0.0, min(0.05, deadline - time.monotonic())))
        ended = client.ended()
        if ended or time.monotonic() >= deadline:
            return ended


def unused_port():
    """A port that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def outcome(exchange):
    """Status, body and kind of failure."""
    return exchange.status, exchange.body, exchange.failure and exchange.failure.kind


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
            "http://h/v1?api-version=1",
            "http://h/#top",
            "http://a..b",
            "http://" + 64 * "a",
        ],
    )
    def test_bad(self, url):
        """Anything else is refused, with what was given and what is expected."""
        with pytest.raises(ConfigurationError) as caught:
            Address.parse(url)
        assert f"not a server's URL: {url!r}; expected http://HOST:PORT or https://HOST/PREFIX" in str(caught.value)

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

    @pytest.mark.parametrize("response", [OK, CHUNKED], ids=["content-length", "chunked"])
    def test_split_anywhere(self, serve, connect, response):
        """Wherever the network cuts a response, it reads the same."""
        script = []
        for cut in range(1, len(response)):
            script += [Do.RECEIVE, response[:cut], 0.001, response[cut:]]
        server = serve(script)
        client = connect(server)

        bodies = {client.request("GET", "/x", timeout_s=WAIT_S).body for _ in range(1, len(response))}

        assert {b"hello" if response == OK else b"hello, world"} == bodies
        assert 1 == server.connections

    def test_byte_by_byte(self, get):
        """A response of single bytes reads the same."""
        script = [Do.RECEIVE]
        for byte in CHUNKED:
            script += [bytes([byte]), 0.0005]
        assert (200, b"hello, world", None) == outcome(get(*script))

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
        sent_ns = client.send(0, client.encode("GET", "/x"))
        while not server.sent_ns:
            assert [] == wait(client, 0.01)
        assert [] == wait(client, 0.1)
        between_ns = time.monotonic_ns()
        go_on.set()
        (exchange,) = wait(client, WAIT_S)

        (first_ns, first), (second_ns, second) = exchange.fragments
        assert (b"abc", b"def") == (first, second)
        assert before_ns <= sent_ns <= server.sent_ns[0] <= first_ns <= between_ns
        assert between_ns <= server.sent_ns[1] <= second_ns
        assert sent_ns == exchange.sent_ns
        assert second_ns == exchange.end_ns

    def test_monotone(self, get):
        """Stamps never go back: send, arrivals, end."""
        pieces = [step for _ in range(10) for step in (b"5\r\nhello\r\n", 0.002)]
        exchange = get(Do.RECEIVE, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *pieces, b"0\r\n\r\n")
        stamps = [exchange.sent_ns, *(at_ns for at_ns, _ in exchange.fragments), exchange.end_ns]
        assert 12 <= len(stamps)
        assert sorted(stamps) == stamps

    def test_connecting_is_not_timed(self, serve, connect, monkeypatch):
        """A slow connect lies before the time at which the request was sent."""
        connected_ns = []
        create_connection = socket.create_connection

        def slow(*args, **options):
            sock = create_connection(*args, **options)
            connected_ns.append(time.monotonic_ns())
            return sock

        monkeypatch.setattr(http.socket, "create_connection", slow)
        client = connect(serve([Do.RECEIVE, OK]))
        sent_ns = client.send(0, client.encode("GET", "/x"))
        wait(client, WAIT_S)
        assert connected_ns[0] <= sent_ns

    def test_absence_is_counted(self, serve, connect):
        """A client that was away from its sockets says for how long, from the very first request on."""
        client = connect(serve([Do.RECEIVE, OK]))
        client.send(0, client.encode("GET", "/x"))
        time.sleep(0.1)
        wait(client, WAIT_S)
        assert max(client.busy_ns) >= 100_000_000

    def test_absence_after_a_vain_wait(self, serve, connect):
        """Being away after a wait in which nothing came is counted too."""
        client = connect(serve([Do.RECEIVE, 0.1, OK]))
        client.send(0, client.encode("GET", "/x"))
        assert [] == wait(client, 0.01)
        time.sleep(0.15)
        wait(client, WAIT_S)
        assert max(client.busy_ns) >= 150_000_000

    def test_idleness_is_not_absence(self, serve, connect):
        """While nothing is in flight no arrival can be late."""
        client = connect(serve([Do.RECEIVE, OK, Do.RECEIVE, OK]))
        client.request("GET", "/x", timeout_s=WAIT_S)
        time.sleep(0.2)
        client.request("GET", "/x", timeout_s=WAIT_S)
        assert max(client.busy_ns) < 200_000_000


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
        first = wait(client, WAIT_S)
        both.set()
        second = wait(client, WAIT_S)
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

    @pytest.mark.parametrize("ending", [[], [Do.RESET], [b"HTTP/1.1 408 Request Timeout\r\n\r\n"]])
    def test_idle_connection_is_closed(self, serve, connect, ending):
        """An idle connection that the server has closed, or spoken on, is replaced unnoticed."""
        server = serve([Do.RECEIVE, OK, *ending], [Do.RECEIVE, OK])
        client = connect(server)
        client.request("GET", "/x", timeout_s=WAIT_S)
        time.sleep(0.1)
        assert (200, b"hello", None) == outcome(client.request("GET", "/x", timeout_s=WAIT_S))
        assert 2 == server.connections

    def test_early_answer_to_an_unread_request(self, serve, connect, monkeypatch):
        """A connection on which a part of a request is still unsent is not used again."""
        create_connection = socket.create_connection

        def with_small_buffer(*args, **options):
            sock = create_connection(*args, **options)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            return sock

        monkeypatch.setattr(http.socket, "create_connection", with_small_buffer)
        done = threading.Event()
        server = serve([Do.RECEIVE_HEAD, OK, done], [Do.RECEIVE, OK])
        client = connect(server)
        exchanges = [client.request("POST", "/x", bytes(5_000_000), timeout_s=WAIT_S) for _ in range(2)]
        done.set()
        assert [(200, b"hello", None)] * 2 == [outcome(exchange) for exchange in exchanges]
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
        assert [] == wait(client, 0.1)


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
        (fast,) = wait(client, WAIT_S)
        later.set()
        (slow,) = wait(client, WAIT_S)
        assert [(2, None), (1, None)] == [(exchange.tag, exchange.failure) for exchange in (fast, slow)]


class TestFailures:
    """Every way to fail is told apart, and none raises."""

    def test_refused(self, connect):
        """A port on which nothing listens is named."""
        client = connect(Address("127.0.0.1", port := unused_port(), False, ""))
        sent_ns = client.send(3, client.encode("GET", "/x"))
        (exchange,) = wait(client, 0)
        assert (3, sent_ns, sent_ns) == (exchange.tag, exchange.sent_ns, exchange.end_ns)
        assert exchange.failure == http.Failure("connection_refused", f"nothing listens at http://127.0.0.1:{port}")

    @pytest.mark.parametrize(
        ("error", "kind", "detail"),
        [
            (TimeoutError(), "connect_timeout", "http://h:1 did not accept a connection within 10 s"),
            (socket.gaierror(-2, "Name unknown"), "unknown_host", "the name 'h' does not resolve: Name unknown"),
            (OSError(113, "No route to host"), "connect_failed", "http://h:1: [Errno 113] No route to host"),
        ],
    )
    def test_no_connection(self, connect, monkeypatch, error, kind, detail):
        """A connection that cannot be made fails by its cause."""

        def fail(*_, **__):
            raise error

        monkeypatch.setattr(http.socket, "create_connection", fail)
        failure = connect(Address("h", 1, False, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert kind == failure.kind
        assert failure.detail.startswith(detail)

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

    def test_reset_within_the_body(self, serve, connect):
        """A connection that breaks within a body fails, with the fragments that came before."""
        go_on = threading.Event()
        client = connect(serve([Do.RECEIVE, OK[:-2], go_on, Do.RESET]))
        client.send(0, client.encode("GET", "/x"))
        assert [] == wait(client, 0.1)
        go_on.set()
        (exchange,) = wait(client, WAIT_S)
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

    @pytest.mark.parametrize("script", [[], [OK[:-2]]], ids=["from-the-start", "within-the-body"])
    def test_silence(self, get, script):
        """A server that says nothing for `silence_s` fails its request, and not much later."""
        exchange = get(Do.RECEIVE, *script, Do.HOLD, silence_s=0.2)
        assert ("timeout", "no byte for 0.2 s") == (exchange.failure.kind, exchange.failure.detail)
        assert 0.2 <= (exchange.end_ns - exchange.sent_ns) / 1e9 < 1.0

    def test_speaking_in_time(self, get):
        """The limit is on silence, not on the length of an answer."""
        pieces = [step for byte in OK[-5:] for step in (0.1, bytes([byte]))]
        assert (200, b"hello", None) == outcome(get(Do.RECEIVE, OK[:-5], *pieces, silence_s=0.4))

    def test_request_timeout(self, serve, connect):
        """`request` gives up after its own limit, and says which request it was."""
        client = connect(serve([Do.RECEIVE, Do.HOLD]))
        failure = client.request("GET", "/x", timeout_s=0.1).failure
        assert http.Failure("timeout", "GET /x did not finish within 0.1 s") == failure

    def test_one_fails(self, serve, connect):
        """A failure ends its own exchange only."""
        server = serve([Do.RECEIVE, b"nonsense\r\n\r\n"], [Do.RECEIVE, 0.1, OK])
        client = connect(server)
        client.send(1, client.encode("GET", "/bad"))
        client.send(2, client.encode("GET", "/good"))
        exchanges: list[Exchange] = []
        while len(exchanges) < 2:
            exchanges += wait(client, WAIT_S)
        assert [(1, "not_http"), (2, None)] == [(e.tag, e.failure and e.failure.kind) for e in exchanges]

    def test_usable_after_a_failure(self, serve, connect):
        """A client goes on after a failure, on a new connection."""
        server = serve([Do.RECEIVE], [Do.RECEIVE, OK])
        client = connect(server)
        outcomes = [outcome(client.request("GET", "/x", timeout_s=WAIT_S)) for _ in range(2)]
        assert [(None, b"", "connection_closed"), (200, b"hello", None)] == outcomes


def test_nothing_to_wait_for(serve, connect):
    """Without a request in flight there is nothing to wait for."""
    assert [] == connect(serve()).wait(None)
