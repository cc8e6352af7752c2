"""`client/lookout.py`, through the client: which of many connections are looked at first."""

from __future__ import annotations

import threading
import time

import pytest
from helpers import END, OK, STREAM_HEAD, WAIT_S, chunk, event, stream, until, wait
from servers import Do

from pytest_llmperf import clock
from pytest_llmperf.client import Exchange, events, http, lookout, sockets
from pytest_llmperf.clock import NS_PER_MS, NS_PER_S


@pytest.fixture
def many(monkeypatch):
    """Treat one connection as many are treated."""
    for module in (http, lookout):
        monkeypatch.setattr(module, "FEW", 0)


@pytest.fixture
def taken(monkeypatch):
    """The tags of the exchanges that were read, in that order."""
    tags = []
    take = Exchange.take

    def watched(exchange, at_ns, since_ns, data):
        tags.append(exchange.tag)
        return take(exchange, at_ns, since_ns, data)

    monkeypatch.setattr(Exchange, "take", watched)
    return tags


@pytest.mark.usefixtures("many")
def test_answers(serve, connect):
    """Connections serve streams and other answers in turn, and are kept."""
    answers = [stream(b"a"), OK, stream(b"b", b"c")]
    cuts = [(answer[:cut], answer[cut:]) for answer in answers for cut in range(60, len(answer), 5)]
    server = serve([step for first, rest in cuts for step in (Do.RECEIVE, first, 0.001, rest)])
    client = connect(server)
    exchanges = [client.request("GET", "/x", timeout_s=WAIT_S) for _ in cuts]
    assert {(200, None)} == {(exchange.status, exchange.failure) for exchange in exchanges}
    assert {b"data: a\n\n", b"data: b\n\ndata: c\n\n"} == {exchange.body for exchange in exchanges}
    assert 1 == server.connections


@pytest.mark.usefixtures("many")
def test_first_tokens_go_first(serve, connect, taken):
    """What waits for its first token is read before what streams already."""
    go_on = threading.Event()
    streaming = [Do.RECEIVE, STREAM_HEAD + event(b"a"), go_on, event(b"b"), Do.HOLD]
    server = serve(streaming, streaming, [Do.RECEIVE, go_on, OK])
    client = connect(server)
    for tag in (1, 2):
        client.send(tag, client.encode("GET", "/x"))
    while len(taken) < 2:
        client.poll(0.05)
    client.send(3, client.encode("GET", "/x"))
    while len(server.requests) < 3:
        client.poll(0.01)
    taken.clear()
    go_on.set()
    until(lambda: len(server.sent_ns) == 5)
    time.sleep(0.02)
    client.poll(0.05)
    assert [3, 1, 2] == [taken[0], *sorted(taken[1:])]


@pytest.mark.usefixtures("many")
def test_looks_again_while_it_reads_streams(serve, connect, taken, monkeypatch):
    """A first token that comes while streams are read does not wait for all of them."""
    monkeypatch.setattr(lookout, "_SLICE", 1)
    go_on, late = threading.Event(), threading.Event()
    streaming = [Do.RECEIVE, STREAM_HEAD + event(b"a"), go_on, event(b"b"), Do.HOLD]
    server = serve(streaming, streaming, streaming, [Do.RECEIVE, late, OK])
    client = connect(server)
    for tag in (1, 2, 3):
        client.send(tag, client.encode("GET", "/x"))
    while len(taken) < 3:
        client.poll(0.05)
    client.send(4, client.encode("GET", "/x"))
    while len(server.requests) < 4:
        client.poll(0.01)
    taken.clear()
    go_on.set()
    until(lambda: len(server.sent_ns) == 6)
    take = Exchange.take

    def slow(exchange, at_ns, since_ns, data):
        late.set()
        until(lambda: len(server.sent_ns) == 7)
        time.sleep(0.02)
        return take(exchange, at_ns, since_ns, data)

    time.sleep(0.02)
    monkeypatch.setattr(Exchange, "take", slow)
    client.poll(0.05)
    assert 4 == len(taken)
    assert 4 == taken[1]


@pytest.mark.usefixtures("many")
def test_bounds_of_a_stream_that_is_looked_at_rarely(serve, connect, taken):
    """What piled up in a stream may have come since it was looked at itself, whenever others were."""
    if not sockets.wants_kernel_stamps():
        pytest.skip("this platform does not stamp what arrives")
    has_read = threading.Event()
    server = serve(
        [Do.RECEIVE, STREAM_HEAD + event(b"a"), 0.02, event(b"b"), 0.03, event(b"c"), has_read, chunk(b": x\n\n") + END]
    )
    client = connect(server)
    client.send(0, client.encode("GET", "/x"))
    while not taken:
        client.poll(0.01)
    until(lambda: len(server.sent_ns) == 3)
    time.sleep(0.02)
    client.poll(0)
    has_read.set()
    (exchange,) = wait(client)
    found = events(exchange.fragments)
    assert [b"a", b"b", b"c"] == [data for _, _, data in found]
    for (at_ns, late_ns, _), sent_ns in zip(found, server.sent_ns, strict=False):
        assert at_ns - late_ns <= sent_ns + NS_PER_MS
        assert at_ns >= sent_ns - NS_PER_MS


@pytest.mark.usefixtures("many")
def test_the_clock_is_set(serve, connect, taken, monkeypatch):
    """What came in a stream before the wall clock was set is not converted by what it shows since."""
    if not sockets.wants_kernel_stamps():
        pytest.skip("this platform does not stamp what arrives")
    ahead_ns = [3600 * NS_PER_S]
    time_ns = time.time_ns
    monkeypatch.setattr(clock.time, "time_ns", lambda: time_ns() + ahead_ns[0])
    go_on, has_read = threading.Event(), threading.Event()
    server = serve([Do.RECEIVE, STREAM_HEAD + event(b"a"), go_on, event(b"b"), has_read, event(b"c"), END])
    client = connect(server)  # its idea of the wall clock is an hour wrong until it is set right
    client.send(0, client.encode("GET", "/x"))
    while not taken:
        client.poll(0.01)
    go_on.set()
    until(lambda: len(server.sent_ns) == 2)
    time.sleep(0.05)
    ahead_ns[0] = 0
    client.poll(0)
    has_read.set()
    (exchange,) = wait(client)
    _, during, after = events(exchange.fragments)
    assert server.sent_ns[1] + 40 * NS_PER_MS < during[0] < server.sent_ns[2]
    assert during[0] - during[1] <= server.sent_ns[1] + NS_PER_MS
    assert server.sent_ns[2] - NS_PER_MS <= after[0] < server.sent_ns[2] + 40 * NS_PER_MS
    assert 1 == client.stats.clock_steps


@pytest.mark.usefixtures("many")
def test_without_epoll(serve, connect, monkeypatch):
    """Where there is none, streams are read all the same."""
    monkeypatch.delattr(lookout.select, "epoll")
    monkeypatch.setattr(lookout.selectors, "DefaultSelector", lookout.selectors.SelectSelector)
    server = serve([Do.RECEIVE, STREAM_HEAD + event(b"a"), 0.02, event(b"b") + END, Do.RECEIVE, OK])
    client = connect(server)
    bodies = [client.request("GET", "/x", timeout_s=0.2).body for _ in range(2)]
    assert [b"data: a\n\ndata: b\n\n", b"hello"] == bodies


def test_more_than_a_few(serve, connect):
    """Many streams at once arrive whole, in the same order as they were sent, and exactly timed."""
    count, tokens = lookout.FEW + 8, [b"%d" % number for number in range(5)]
    script = [Do.RECEIVE, STREAM_HEAD, *[step for token in tokens for step in (event(token), 0.02)], END]
    client = connect(serve(*[[*script, *script]] * count))
    client.open(count)
    exchanges = []
    for _ in range(2):
        for tag in range(count):
            client.send(tag, client.encode("GET", "/x"))
        while client.in_flight:
            client.poll(0.01)
        exchanges += client.ended()
    assert 2 * count == len(exchanges)
    assert [None] * 2 * count == [exchange.failure for exchange in exchanges]
    for exchange in exchanges:
        found = events(exchange.fragments)
        assert tokens == [data for _, _, data in found]
        assert sorted(at_ns for at_ns, _, _ in found) == [at_ns for at_ns, _, _ in found]
        assert exchange.sent_ns <= found[0][0] + NS_PER_MS
        assert found[-1][0] <= exchange.end_ns
    assert count == client.stats.connects.count
