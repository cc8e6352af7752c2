"""`client/sockets.py` and `client/http.py` over TLS, with a real certificate."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from helpers import CHUNKED, END, OK, STREAM_HEAD, UNTIL_EOF, WAIT_S, event, outcome, stream, wait
from servers import Do, Wire

from pytest_llmperf.client import Address, events, http, sockets
from pytest_llmperf.clock import NS_PER_MS, NS_PER_S

pytestmark = pytest.mark.real_time

STALE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
CA = """
[req]
distinguished_name = name
prompt = no
x509_extensions = authority
[name]
CN = Authority of a test
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
"""
LEAF = """
[req]
distinguished_name = name
prompt = no
[name]
CN = localhost
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with an authority, `ca.pem`, and what it has signed for localhost, `server.pem`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl program")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "ca.cnf").write_text(CA)
    (folder / "server.cnf").write_text(LEAF)
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -config ca.cnf",
        f"req -new {new_key} -keyout server.key -out server.csr -config server.cnf",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 1 -days 2 -out server.pem"
        " -extfile server.cnf -extensions server",
    ):
        subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def tls(request, certificates):
    """What a server needs, for each version of the protocol."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = request.param
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


@pytest.fixture
def trusted(certificates, monkeypatch):
    """Have clients trust the authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))


@pytest.mark.usefixtures("trusted")
class TestTls:
    """What is the same over TLS."""

    @pytest.mark.parametrize(
        ("response", "body"),
        [
            (OK, b"hello"),
            (CHUNKED, b"hello, world"),
            (UNTIL_EOF, b"hello"),
            (stream(b"a", b"b"), b"data: a\n\ndata: b\n\n"),
        ],
        ids=["content-length", "chunked", "until-eof", "events"],
    )
    def test_framings(self, serve, connect, tls, response, body):
        """A body ends by its length, its last chunk or the proper end of the connection."""
        server = serve([Do.RECEIVE, response], tls=tls)
        assert server.url.startswith("https://127.0.0.1:")
        assert (200, body, None) == outcome(connect(server).request("GET", "/x", timeout_s=WAIT_S))
        assert server.requests[0].startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:")

    def test_name(self, serve, connect, tls):
        """A server is reached by the name in its certificate."""
        server = serve([Do.RECEIVE, OK], tls=tls)
        address = Address.parse(f"https://localhost:{server.port}")
        assert (200, b"hello", None) == outcome(connect(address).request("GET", "/x", timeout_s=WAIT_S))

    @pytest.mark.parametrize("response", [CHUNKED, stream(b"hello, world")], ids=["chunked", "events"])
    def test_byte_by_byte(self, serve, connect, tls, response):
        """Records that come byte by byte read the same."""
        server = serve([Do.RECEIVE, Wire((response[:70], response[70:]), piece=1, pause_s=0.0002), Do.HOLD], tls=tls)
        exchange = connect(server).request("GET", "/x", timeout_s=WAIT_S)
        assert (200, None) == (exchange.status, exchange.failure)
        assert b"hello, world" in exchange.body

    def test_split_anywhere(self, serve, connect, tls):
        """Wherever an answer is cut into records and segments, it reads the same, on one connection."""
        response = stream(b"a", b"b")
        cuts = range(1, len(response), 3)
        script = []
        for cut in cuts:
            script += [Do.RECEIVE, Wire((response[:cut], response[cut:]), piece=cut + 15, pause_s=0.0003)]
        server = serve(script, tls=tls)
        client = connect(server)
        bodies = {client.request("GET", "/x", timeout_s=WAIT_S).body for _ in cuts}
        assert {b"data: a\n\ndata: b\n\n"} == bodies
        assert 1 == server.connections

    @pytest.mark.parametrize("wait_s", [0.0, 0.1])
    def test_large_request_and_large_answer(self, serve, connect, tls, wait_s):
        """Bodies far beyond one record arrive whole, both ways, however late the server begins to read."""
        body = bytes(range(250)) * 1200
        more = body * 20
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
        server = serve([wait_s, *[Do.RECEIVE, head % len(body) + body, Do.RECEIVE, head % len(more) + more]], tls=tls)
        client = connect(server)
        exchanges = [client.request("POST", "/x", sent, timeout_s=WAIT_S) for sent in (body, more)]
        assert [(200, body, None), (200, more, None)] == [outcome(exchange) for exchange in exchanges]
        assert [len(body), len(more)] == [len(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
        assert 1 == server.connections

    def test_reuse(self, serve, connect, tls):
        """Requests one after the other share a connection, with a pause between them too."""
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, stream(b"a"), 0.05, Do.RECEIVE, OK], tls=tls)
        client = connect(server)
        exchanges = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)]
        client.poll(0.05)
        exchanges.append(client.request("GET", "/x", timeout_s=WAIT_S))
        assert [None] * 3 == [exchange.failure for exchange in exchanges]
        assert exchanges[0].connect_ns > 0
        assert [None, None] == [exchange.connect_ns for exchange in exchanges[1:]]
        assert 1 == server.connections

    def test_open(self, serve, connect, tls):
        """Connections that were opened before are kept, although TLS itself says something on them."""
        server = serve(*[[Do.RECEIVE, OK]] * 2, tls=tls)
        client = connect(server)
        client.open(2)
        client.poll(0.05)
        client.poll(0.05)
        assert 2 == client.stats.connects.count
        for tag in range(2):
            client.send(tag, client.encode("GET", "/x"))
        exchanges = wait(client)
        while client.in_flight:
            exchanges += wait(client)
        assert [(200, b"hello", None)] * 2 == [outcome(exchange) for exchange in exchanges]
        assert 2 == server.connections

    def test_closed_while_idle(self, serve, connect, tls):
        """An idle connection that the server closes is replaced unnoticed."""
        server = serve([Do.RECEIVE, OK], [Do.RECEIVE, OK], tls=tls)
        client = connect(server)
        client.request("GET", "/x", timeout_s=WAIT_S)
        time.sleep(0.05)
        assert (200, b"hello", None) == outcome(client.request("GET", "/x", timeout_s=WAIT_S))
        assert (2, 0) == (server.connections, client.stats.resent)

    @pytest.mark.parametrize("ending", [[], [Do.RESET]], ids=["close", "reset"])
    def test_resent(self, serve, connect, tls, ending):
        """A request whose idle connection ends without an answer is sent again."""
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, *ending], [Do.RECEIVE, OK], tls=tls)
        client = connect(server)
        exchange = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in range(2)][1]
        assert (200, b"hello", None, True) == (*outcome(exchange), exchange.resent)
        assert (2, 1) == (server.connections, client.stats.resent)

    def test_what_came_along(self, serve, connect, tls):
        """What a server says beyond its answer, in a record of its own, is no answer to the next request."""
        server = serve([Do.RECEIVE, Wire((OK, STALE)), Do.HOLD], [Do.RECEIVE, OK], tls=tls)
        client = connect(server)
        outcomes = [outcome(client.request("GET", "/x", timeout_s=WAIT_S)) for _ in range(2)]
        assert [(200, b"hello", None)] * 2 == outcomes
        assert 2 == server.connections

    @pytest.mark.parametrize("pieces", [2, 3])
    def test_early_answer_to_an_unread_request(self, serve, connect, tls, monkeypatch, pieces):
        """A connection that TLS has still something to send on is not kept, to be found writable for ever."""

        class Small(socket.socket):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        monkeypatch.setattr(socket, "socket", Small)
        go_on = threading.Event()
        server = serve([Do.RECEIVE_HEAD, OK, go_on, Do.HOLD], tls=tls)
        client = connect(server)
        request = client.encode("POST", "/x", bytes(pieces << 16))
        client.send(0, request[: pieces << 16])
        (exchange,) = wait(client)
        assert (200, b"hello", None) == outcome(exchange)
        go_on.set()
        for _ in range(3):
            client.poll(0.005)
        assert not client.poll(0.01)

    def test_many_small_records(self, serve, connect, tls):
        """Records far smaller than a read arrive all, although the socket is empty before they are read."""
        pieces = tuple(event(b"x") for _ in range(3000))
        server = serve([Do.RECEIVE, STREAM_HEAD, Wire((*pieces, END)), Do.HOLD], tls=tls)
        exchange = connect(server).request("GET", "/x", timeout_s=WAIT_S)
        assert exchange.failure is None
        assert 3000 == len(events(exchange.fragments))

    def test_endless_body(self, tls):
        """A server that sends faster than it is read does not keep the client from all else, and nothing is lost."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = tls.wrap_bio(incoming, outgoing, server_side=True)
        context = ssl.create_default_context()
        with socket.socket() as sock:
            client = sockets.TlsSocket(sock, context, "localhost")
            client._plain.send = lambda data: incoming.write(bytes(data))
            client._plain.recvmsg = lambda size, _: (self._wire(outgoing, size), [], 0, None)
            while not all([self._shaken(server), client.handshake()]):
                pass
            while self._read_all(client):  # tickets for sessions
                pass
            body = bytes(range(256)) * 10_000
            server.write(body)
            reads = []
            while sum(map(len, reads)) < len(body):
                reads.append(self._read_all(client))
        assert body == b"".join(reads)
        assert len(reads) > 2

    @staticmethod
    def _wire(outgoing, size):
        data = outgoing.read(size)
        if not data:
            raise BlockingIOError
        return data

    @staticmethod
    def _shaken(server):
        try:
            server.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    @staticmethod
    def _read_all(client):
        """What can be read before the client should look elsewhere."""
        read = []
        try:
            while True:
                read.append(client.recvmsg(sockets.READ_BYTES, 0)[0])
        except BlockingIOError:
            return b"".join(read)

    def test_read_late(self, serve, connect, tls):
        """What is read late has the kernel's stamp; by how much it may have come earlier is said."""
        if not sockets.wants_kernel_stamps():
            pytest.skip("this platform does not stamp what arrives")
        has_read = threading.Event()
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, STREAM_HEAD + event(b"a"), has_read, END], tls=tls)
        client = connect(server)
        client.request("GET", "/x", timeout_s=WAIT_S)
        client.send(0, client.encode("GET", "/x"))
        time.sleep(0.15)
        client.poll(0)
        has_read.set()
        (exchange,) = wait(client)
        ((at_ns, late_ns, _),) = events(exchange.fragments)
        sent_ns = server.sent_ns[1]
        assert sent_ns - NS_PER_MS <= at_ns < sent_ns + 50 * NS_PER_MS
        assert at_ns - late_ns <= sent_ns + NS_PER_MS
        assert exchange.sent_ns - NS_PER_MS <= at_ns - late_ns
        assert 0 == client.stats.unstamped
        assert client.stats.unread.percentile(1.0) >= 0.1 * NS_PER_S


@pytest.mark.usefixtures("trusted")
class TestCut:
    """Connections that end in the midst of something."""

    @pytest.mark.parametrize(
        "response",
        [OK, CHUNKED, stream(b"a"), UNTIL_EOF],
        ids=["content-length", "chunked", "events", "until-eof"],
    )
    @pytest.mark.parametrize("drop", [1, 20])
    def test_within_a_record(self, serve, connect, tls, response, drop):
        """A connection that is cut within a record is a failure, never a shorter answer."""
        server = serve([Do.RECEIVE, Wire((response[:-3], response[-3:]), drop=drop)], tls=tls)
        exchange = connect(server).request("GET", "/x", timeout_s=WAIT_S)
        assert "connection_reset" == exchange.failure.kind
        assert "while receiving: " in exchange.failure.detail
        assert 200 == exchange.status

    def test_between_records(self, serve, connect, tls):
        """A body that only the end of the connection ends is not taken for whole if TLS did not say the end."""
        server = serve([Do.RECEIVE, Wire((UNTIL_EOF, b"!"), drop=0), Wire((b"?",), drop=23)], tls=tls)
        exchange = connect(server).request("GET", "/x", timeout_s=WAIT_S)
        assert (200, "connection_reset") == (exchange.status, exchange.failure.kind)

    def test_within_the_handshake(self, serve, connect, certificates, monkeypatch):
        """A server that goes within the handshake has not finished connecting."""
        server = serve([b"\x16\x03\x03\x00"])
        failure = connect(Address("127.0.0.1", server.port, True, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert failure.kind in ("tls", "connect_failed")

    def test_garbage(self, serve, connect, tls):
        """Garbage in place of a record is a failure."""
        server = serve(
            [Do.RECEIVE, OK[:-2], Wire((b"\x17\x03\x03\x00\x20" + bytes(32),), sealed=False), Do.HOLD], tls=tls
        )
        exchange = connect(server).request("GET", "/x", timeout_s=WAIT_S)
        assert (200, b"hel", "connection_reset") == outcome(exchange)


class TestTrust:
    """Which servers are spoken to."""

    def test_unknown_authority(self, serve, connect, tls):
        """A certificate that nobody has vouched for is refused, by its cause."""
        server = serve([Do.RECEIVE, OK], tls=tls)
        failure = connect(server).request("GET", "/x", timeout_s=WAIT_S).failure
        assert http.Failure("tls", f"https://127.0.0.1:{server.port}: CERTIFICATE_VERIFY_FAILED") == failure
        assert [] == server.requests

    @pytest.mark.usefixtures("trusted")
    def test_wrong_name(self, serve, connect, resolve, tls):
        """A certificate for another name is refused."""
        server = serve([Do.RECEIVE, OK], tls=tls)
        resolve((socket.AF_INET, ("127.0.0.1", server.port)))
        failure = connect(Address("server.test", 443, True, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert "tls" == failure.kind
        assert [] == server.requests

    @pytest.mark.usefixtures("trusted")
    def test_plain_server(self, serve, connect):
        """HTTPS to a server that speaks plain HTTP is a TLS failure."""
        server = serve([b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.05])
        failure = connect(Address("127.0.0.1", server.port, True, "")).request("GET", "/x", timeout_s=WAIT_S).failure
        assert "tls" == failure.kind
        assert failure.detail.startswith(f"https://127.0.0.1:{server.port}: ")

    @pytest.mark.usefixtures("trusted")
    def test_plain_client(self, serve, connect, tls):
        """HTTP to a server that speaks TLS is a failure."""
        server = serve([Do.RECEIVE, OK], tls=tls)
        address = Address("127.0.0.1", server.port, False, "")
        failure = connect(address).request("GET", "/x", timeout_s=WAIT_S).failure
        assert failure.kind in ("not_http", "connection_reset", "connection_closed")
