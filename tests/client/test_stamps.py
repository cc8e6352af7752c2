"""`client/sockets.py` and `client/http.py`: when something arrived, however late it is read."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from helpers import END, OK, STREAM_HEAD, WAIT_S, chunk, event, until, wait
from servers import Do

from pytest_llmperf import clock
from pytest_llmperf.client import events, sockets
from pytest_llmperf.clock import NS_PER_MS, NS_PER_S

pytestmark = pytest.mark.real_time

AWAY_S = 0.1
SLACK_NS = NS_PER_MS
"""What the kernel's wall clock and the monotonic one may differ by."""
SOON_NS = 40 * NS_PER_MS
"""Within this a server thread gets its bytes to the kernel, on a busy machine too."""

needs_stamps = pytest.mark.skipif(not sockets.wants_kernel_stamps(), reason="this platform does not stamp what arrives")


@pytest.fixture(params=["not wanted", "refused"])
def no_stamps(request, monkeypatch):
    """A platform that does not stamp what arrives, or says that it will not."""
    if request.param == "not wanted":
        monkeypatch.setattr(sockets, "wants_kernel_stamps", lambda: False)
    else:
        monkeypatch.setattr(sockets, "_SO_TIMESTAMPING", 9999)


@pytest.fixture
def late(serve, connect):
    """Play a script, and read the answer to a request `AWAY_S` after it was sent; the rest after that."""

    def play(*script, rest=b""):
        has_read = threading.Event()
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, *script, has_read, rest])
        client = connect(server)
        client.request("GET", "/x", timeout_s=WAIT_S)  # the kernel begins to stamp a moment after it is asked to
        client.stats = type(client.stats)()
        server.sent_ns.clear()
        client.send(0, client.encode("GET", "/x"))
        time.sleep(AWAY_S)
        client.poll(0)
        has_read.set()
        (exchange,) = wait(client)
        exchange.settle()
        assert exchange.failure is None
        return client, exchange, server.sent_ns

    return play


@needs_stamps
class TestStamped:
    """With the kernel's stamps."""

    def test_read_late(self, late):
        """What is read late has the time at which it came, exactly, and the client knows how late it was."""
        _, exchange, (sent_ns, *_) = late(STREAM_HEAD + event(b"a"), rest=END)
        ((at_ns, late_ns, data),) = events(exchange.fragments)
        assert (b"a", 0) == (data, late_ns)
        assert sent_ns - SLACK_NS <= at_ns < sent_ns + SOON_NS

    def test_whole_answer_read_late(self, late):
        """The end of an answer is when its last byte came, not when it was read."""
        client, exchange, (sent_ns, *_) = late(OK)
        ((at_ns, since_ns, exact, data),) = exchange.fragments
        assert (b"hello", True) == (data, exact)
        assert sent_ns - SLACK_NS <= at_ns == exchange.end_ns < sent_ns + SOON_NS
        assert since_ns == at_ns, "it came in one segment"
        assert 0 == client.stats.unstamped
        assert client.stats.unread.percentile(1.0) >= AWAY_S * NS_PER_S - SOON_NS
        assert exchange.stamped

    def test_what_came_in_one_segment_came_together(self, late):
        """A server that sends its last tokens, the usage and the end at once: each has the time of all."""
        _, exchange, (sent_ns, *_) = late(STREAM_HEAD + event(b"a") + event(b"b") + END)
        found = events(exchange.fragments)
        assert [(b"a", 0), (b"b", 0)] == [(data, late_ns) for _, late_ns, data in found]
        assert all(sent_ns - SLACK_NS <= at_ns < sent_ns + SOON_NS for at_ns, _, _ in found)

    def test_what_came_in_two_segments_may_have_come_apart(self, late):
        """Read at once, only the newest of it is dated."""
        _, exchange, _ = late(STREAM_HEAD + event(b"a"), 0.03, event(b"b") + END)
        first, _ = events(exchange.fragments)
        assert first[1] > 0

    def test_segments_are_counted_for_each_exchange(self, serve, connect):
        """A connection that has carried much is no worse for it."""
        answer = STREAM_HEAD + event(b"a") + event(b"b") + END
        client = connect(serve([*(Do.RECEIVE, answer) * 4]))
        for tag in range(4):
            client.send(tag, client.encode("GET", "/x"))
            (exchange,) = wait(client)
            assert [0, 0] == [late_ns for _, late_ns, _ in events(exchange.fragments)]

    def test_piled_up(self, late):
        """Of two events that are read together the second one's time is known; the first may have come before."""
        _, exchange, (first_ns, second_ns, *_) = late(STREAM_HEAD + event(b"a"), 0.03, event(b"b"), rest=END)
        (at_ns, late_ns, first), (exact_ns, none_ns, second) = events(exchange.fragments)
        assert (b"a", b"b") == (first, second)
        assert second_ns - SLACK_NS <= exact_ns < second_ns + SOON_NS
        assert 0 == none_ns
        assert at_ns == exact_ns
        assert at_ns - late_ns <= first_ns + SLACK_NS

    @pytest.mark.parametrize(
        ("following", "rest"),
        [
            (END, b""),
            (b"5\r\n", b": x\n\n\r\n" + END),
            (chunk(b"data: unfini"), chunk(b"shed\n\n") + END),
            (chunk(b": comment\n\n"), END),
        ],
        ids=["end", "size", "unfinished", "comment"],
    )
    def test_piled_up_with_something_else(self, late, following, rest):
        """An event with which bytes of no other event were read has no exact time either."""
        _, exchange, (first_ns, second_ns, *_) = late(STREAM_HEAD + event(b"a"), 0.03, following, rest=rest)
        at_ns, late_ns, data = events(exchange.fragments)[0]
        assert b"a" == data
        assert at_ns >= second_ns - SLACK_NS
        assert at_ns - late_ns <= first_ns + SLACK_NS

    def test_more_than_one_read(self, late):
        """Where a read takes a part of what has piled up, the stamp may be that of the rest."""
        size = sockets.READ_BYTES
        filler = b"data: " + b"x" * (size - len(STREAM_HEAD) - 6 - 6 - 2 - 2) + b"\n\n"
        head = STREAM_HEAD + b"%04x\r\n" % len(filler) + filler + b"\r\n"
        assert size == len(head)
        _, exchange, (first_ns, *_) = late(head, 0.03, event(b"b"), rest=END)
        at_ns, late_ns, _ = events(exchange.fragments)[0]
        assert at_ns - late_ns <= first_ns + SLACK_NS

    def test_reading_in_time(self, serve, connect):
        """Where the client keeps looking, nothing is unread for long, and little is unknown."""
        client = connect(serve([Do.RECEIVE, STREAM_HEAD, *[event(b"a"), 0.005] * 20, END]))
        client.send(0, client.encode("GET", "/x"))
        while client.in_flight:
            client.poll(WAIT_S)
        (exchange,) = client.ended()
        assert all(late_ns == 0 for _, late_ns, _ in events(exchange.fragments)[2:-1])
        assert client.stats.unread.percentile(0.5) < 2 * NS_PER_MS

    def test_the_clock_is_set(self, serve, connect, monkeypatch):
        """A wall clock that is set moves no stamp: until it is known again, the time of the read stands."""
        ahead_ns = [3600 * NS_PER_S]
        time_ns = time.time_ns
        monkeypatch.setattr(clock.time, "time_ns", lambda: time_ns() + ahead_ns[0])
        server = serve([Do.RECEIVE, OK, Do.RECEIVE, OK])
        client = connect(server)  # its idea of the wall clock is an hour wrong until it is set right
        client.open(1)
        exchanges = []
        for _ in range(2):
            client.send(0, client.encode("GET", "/x"))
            time.sleep(0.1)
            if ahead_ns[0]:
                ahead_ns[0] = 0
            exchanges += wait(client)
        (during_ns, since_ns, exact, _), (after_ns, _, after_exact, _) = [e.fragments[0] for e in exchanges]
        assert (False, True) == (exact, after_exact)
        assert since_ns <= server.sent_ns[0] + SLACK_NS
        assert server.sent_ns[0] + SOON_NS <= during_ns < server.sent_ns[1]
        assert server.sent_ns[1] - SLACK_NS <= after_ns < server.sent_ns[1] + SOON_NS
        assert (1, 1) == (client.stats.clock_steps, client.stats.unstamped)


class TestUnstamped:
    """Without them."""

    def test_read_late(self, no_stamps, late):
        """The time is that of the read, and how much earlier it may have come is said."""
        client, exchange, (sent_ns, *_) = late(STREAM_HEAD + event(b"a"), rest=END)
        ((at_ns, late_ns, _),) = events(exchange.fragments)
        assert at_ns >= exchange.sent_ns + AWAY_S * NS_PER_S
        assert exchange.sent_ns - SLACK_NS <= at_ns - late_ns <= sent_ns
        assert not any(exact for _, _, exact, _ in exchange.fragments)
        assert not exchange.stamped
        assert client.stats.unstamped >= 2

    def test_reading_in_time(self, no_stamps, serve, connect):
        """Where the client keeps looking, the unknown is as small as the time between two looks."""
        client = connect(serve([Do.RECEIVE, STREAM_HEAD, *[event(b"a"), 0.01] * 10, END]))
        client.send(0, client.encode("GET", "/x"))
        while client.in_flight:
            client.poll(0.001)
        (exchange,) = client.ended()
        lateness = sorted(late_ns for _, late_ns, _ in events(exchange.fragments))
        assert 0 < lateness[5] < 5 * NS_PER_MS


@needs_stamps
def test_stamps_are_the_wall_clock(serve):
    """A stamp is nanoseconds of the wall clock; a read without one has 0."""
    server = serve([0.02, b"x", Do.HOLD])
    with socket.create_connection((server.host, server.port)) as sock:
        assert sockets.ask_for_stamps(sock)
        before_ns = time.time_ns()
        until(lambda: server.sent_ns)
        time.sleep(0.02)
        data, ancillary, _, _ = sock.recvmsg(10, sockets.ANCILLARY_BYTES)
        assert b"x" == data
        assert before_ns <= sockets.wall_stamp_ns(ancillary) <= time.time_ns() - 10 * NS_PER_MS
        assert 0 == sockets.wall_stamp_ns([])
