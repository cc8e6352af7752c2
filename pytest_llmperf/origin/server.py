"""The server itself: a loop that sends what is due and looks after its sockets until more is."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import selectors
import time
from collections.abc import Callable

from pytest_llmperf.origin.agenda import Agenda
from pytest_llmperf.origin.connection import Connection, listen
from pytest_llmperf.origin.protocol import MAX_MODEL_LEN, MODEL, Order, RefusalError, response
from pytest_llmperf.origin.streams import Stream
from pytest_llmperf.origin.tally import Tally

# Nothing else is looked at while a batch is under way: 64 connections or 1024 tokens are a few ms.
_ACCEPT_BATCH = 64
_TOKEN_BATCH = 1024
_MODEL = {"id": MODEL, "object": "model", "created": 1, "owned_by": MODEL, "max_model_len": MAX_MODEL_LEN}


class Origin:
    """The server; it listens as soon as it is made, on any free port unless `port` says otherwise.

    `ttft_s`, `itl_s`: seconds to the first token, and from each to the next. Raises `OSError` if it
    cannot listen there, `ValueError` for a negative time.
    """

    def __init__(self, ttft_s: float = 0.1, itl_s: float = 0.01, host: str = "127.0.0.1", port: int = 0) -> None:
        if not (0 <= ttft_s < float("inf") and 0 <= itl_s < float("inf")):
            raise ValueError(f"no time of a token: ttft_s={ttft_s}, itl_s={itl_s}")
        self._ttft_ns = round(ttft_s * 1e9)
        self._itl_ns = round(itl_s * 1e9)
        self._tally = Tally()
        self._numbers = itertools.count(1)
        self._agenda = Agenda()
        self._connections: set[Connection] = set()
        self._stopping = False
        self._listener = listen(host, port)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.url = "http://{}:{}".format(*self.address)
        self._contents: dict[bytes, Callable[[], object]] = {
            b"GET /health": dict,
            b"GET /v1/models": lambda: {"object": "list", "data": [_MODEL]},
            b"GET /stats": self._tally.stats,
            b"POST /reset": self._tally.reset,
        }

    def serve(self, leash: int | None = None) -> None:
        """Serve until the other end of the pipe `leash` is closed or written to; then close everything."""
        with contextlib.closing(self):
            if leash is not None:
                self._selector.register(leash, selectors.EVENT_READ, self._stop)
            while not self._stopping:
                self._send_due()
                self._wait()

    def close(self) -> None:
        """Close everything; for a server that does not serve any more, or never did."""
        for connection in tuple(self._connections):
            self._drop(connection)
        self._listener.close()
        self._selector.close()

    def _send_due(self) -> None:
        """Send the tokens that are due."""
        agenda, tally = self._agenda, self._tally
        now_ns = time.monotonic_ns()
        for _ in range(_TOKEN_BATCH):
            entry = agenda.take_due(now_ns)
            if entry is None:
                return
            due_ns, number, connection = entry
            stream = connection.stream
            if stream is None:  # the client has gone
                continue
            sent = stream.sent
            if not sent:
                tally.late_us.append((time.monotonic_ns() - due_ns) / 1e3)
            connection.put(stream.next_data())
            tally.tokens += stream.sent - sent
            if stream.sent < stream.order.tokens:
                agenda.add((due_ns + self._itl_ns, number, connection))
            else:
                self._finish(connection)

    def _wait(self) -> None:
        """Look after the sockets; return when a token is due or something has happened, if not before."""
        due_ns = self._agenda.next_ns()
        pause_s = None if due_ns is None else max(0, due_ns - time.monotonic_ns()) / 1e9
        # The selector may know whole milliseconds only, select knows microseconds.
        if select.select([self._selector], [], [], pause_s)[0]:
            for key, mask in self._selector.select(0):
                key.data(mask)

    def _stop(self, _: int) -> None:
        self._stopping = True

    def _accept(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            for _ in range(_ACCEPT_BATCH):
                sock, _ = self._listener.accept()
                self._connections.add(Connection(sock, self._selector, self._look_after))

    def _look_after(self, connection: Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            connection.flush()
        if mask & selectors.EVENT_READ:
            if connection.read():
                self._take_requests(connection)
            else:
                self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._connections.remove(connection)
        if connection.stream is not None:
            connection.stream = None
            self._tally.active -= 1
            self._tally.aborted += 1
        connection.close()

    def _take_requests(self, connection: Connection) -> None:
        """Answer what has been received completely, one request after the other."""
        while not connection.closing and connection.stream is None:
            try:
                request = connection.take_request()
                if request is None:
                    return
                self._answer(connection, *request)
            except RefusalError as error:
                connection.closing |= error.fatal
                connection.put(error.response)
            connection.end_if_done()

    def _answer(self, connection: Connection, route: bytes, body: bytes) -> None:
        if route in (b"POST /v1/completions", b"POST /v1/chat/completions"):
            self._begin(connection, Order.parse(body, chat=b"chat" in route))
        elif route in self._contents:
            connection.put(response(json.dumps(self._contents[route]())))
        else:
            raise RefusalError(404, "there is nothing here")

    def _begin(self, connection: Connection, order: Order) -> None:
        """Begin an answer; its first token is due when it is due, whatever has passed since."""
        number, tally = next(self._numbers), self._tally
        connection.stream = Stream(order, number)
        tally.active += 1
        tally.peak = max(tally.peak, tally.active)
        self._agenda.add_first((connection.arrived_ns + self._ttft_ns, number, connection))

    def _finish(self, connection: Connection) -> None:
        connection.stream = None
        self._tally.active -= 1
        self._tally.requests += 1
        connection.end_if_done()
        if connection.received:  # sent ahead; it could not be answered before
            connection.arrived_ns = time.monotonic_ns()
            self._take_requests(connection)
