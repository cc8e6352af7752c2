"""Responses, and what tests of the client do with them."""

from __future__ import annotations

import time

WAIT_S = 5.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n"
UNTIL_EOF = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(data: bytes) -> bytes:
    """A chunk with one event."""
    return chunk(b"data: %b\n\n" % data)


def stream(*events: bytes) -> bytes:
    """A whole response of events with a chunk each."""
    return STREAM_HEAD + b"".join(map(event, events)) + END


def wait(client, timeout_s=WAIT_S):
    """The exchanges that have ended, waiting for the first one up to `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        client.poll(max(0.0, min(0.05, deadline - time.monotonic())))
        ended = client.ended()
        if ended or time.monotonic() >= deadline:
            return ended


def until(condition):
    """Wait for something that another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def outcome(exchange):
    """Status, body and kind of failure."""
    return exchange.status, exchange.body, exchange.failure and exchange.failure.kind
