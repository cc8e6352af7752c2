"""The way to an engine in a worker process: what to send goes out, an answer's times come back once it has ended."""

from __future__ import annotations

import itertools
import json
import select
import socket
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import NS_PER_S, Clock, RealClock
from pytest_llmperf.engines.base import Answer, Generation
from pytest_llmperf.engines.completions import as_text
from pytest_llmperf.engines.in_process.worker import BEAT_S, PREFIX, message
from pytest_llmperf.engines.wording import Wording
from pytest_llmperf.errors import EngineAnswerError
from pytest_llmperf.records import ClientStats, EngineTimings, Failure

_READ_BYTES = 1 << 20
_PATIENCE_NS = int(5 * BEAT_S * NS_PER_S)
"""Beyond a request's own limit: a worker whose loop stands still shows no sign of life, and gives up nothing either."""


class Link:
    """A connection to a worker: whole messages, out and in."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._received = bytearray()

    @classmethod
    def to(cls, address: Address, timeout_s: float) -> Link:
        """A new connection. Raises `OSError` where nothing listens."""
        connected = socket.create_connection((address.host, address.port), timeout=timeout_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connected)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        self._socket.sendall(message(header, body))

    def receive(self, timeout_s: float) -> list[tuple[dict[str, Any], bytes]]:
        """What is there, waiting for something up to `timeout_s`. Raises `OSError` once the other side is gone."""
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            return []
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the worker process closed the connection")
        self._received += data
        return list(self._messages())

    def ask(self, what: str, timeout_s: float, **words: Any) -> Any:
        """What the worker says to one question. Raises `OSError` where it does not answer."""
        clock = RealClock()
        until_ns = clock.now_ns() + int(timeout_s * NS_PER_S)
        self.send({"do": what, **words})
        while (left_ns := until_ns - clock.now_ns()) > 0:  # signs of life come all the time, and are no answer
            for header, _ in self.receive(left_ns / NS_PER_S):
                if header["is"] == what:
                    return header["content"]
        raise TimeoutError(f"the worker process did not answer within {timeout_s:g} s")

    def close(self) -> None:
        self._socket.close()

    def _messages(self) -> Any:
        while len(self._received) >= PREFIX.size:
            header_size, body_size = PREFIX.unpack_from(self._received)
            end = PREFIX.size + header_size + body_size
            if len(self._received) < end:
                return
            header = json.loads(self._received[PREFIX.size : PREFIX.size + header_size])
            body = bytes(self._received[PREFIX.size + header_size : end])
            del self._received[:end]
            yield header, body


@dataclass(frozen=True, slots=True)
class InProcessReply:
    """What a worker has told of one request."""

    tag: int
    end_ns: int
    _header: dict[str, Any]
    _body: bytes

    @property
    def pieces(self) -> int:
        return 1  # columns, whatever their length

    def read(self) -> Answer:
        header, count = self._header, self._header["arrivals"]
        times, tokens, ids = array("q"), array("i"), array("i")
        times.frombytes(self._body[: 8 * count])
        tokens.frombytes(self._body[8 * count : 12 * count])
        ids.frombytes(self._body[12 * count :])
        failure = None if header["failure"] is None else Failure(*header["failure"])
        if failure is None and not count:
            failure = Failure("no_tokens", "the engine ended its answer without a generated token")
        timings = header.get("timings")
        return Answer(
            tag=self.tag,
            sent_ns=header["sent_ns"],
            end_ns=self.end_ns,
            arrivals=Arrivals(times, tokens, array("q", bytes(8 * count))),
            token_ids=tuple(ids) if failure is None else None,
            prompt_tokens=header.get("prompt_tokens"),
            output_tokens=len(ids) if failure is None else None,
            cached_tokens=header.get("cached_tokens"),
            failure=failure,
            timings=EngineTimings(**timings) if timings else None,
        )


@dataclass(slots=True)
class _Waiting:
    tag: int
    since_ns: int


class InProcessChannel:
    """Has a worker send requests. The answers' times are the worker's, of the same monotonic clock as ours.

    `sent_ns` is when the engine got the request. What passes between this process's word and that moment is part of
    the send's lateness, as it is of every client, and not of TTFT.
    """

    def __init__(self, address: Address, clock: Clock, limits: Limits, wording: Wording | None, *, text: bool) -> None:
        """`text`: prompts are sent as text. `wording`: how ids become one of exact length, if they can."""
        self.stats = ClientStats()
        self._address = address
        self._clock = clock
        self._limits = limits
        self._wording = wording
        self._text = text
        self._link: Link | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, _Waiting] = {}
        self._ended: list[InProcessReply] = []
        self._heard_ns = 0

    def open(self, connections: int) -> None:
        """One connection carries them all."""
        del connections
        self._connected()

    def encode(self, generation: Generation) -> tuple[dict[str, Any], bytes]:
        ids, output_tokens = generation.token_ids, generation.output_tokens
        if self._text:
            text = as_text(ids) if self._wording is None else self._wording.text(ids)
            return self.encode_text(text, output_tokens)
        return self._header(output_tokens), np.asarray(ids, np.int32).tobytes()

    def encode_text(self, text: str, output_tokens: int) -> tuple[dict[str, Any], bytes]:
        """A request with a text that is sent as it is."""
        return {**self._header(output_tokens), "text": text}, b""

    def send(self, tag: int, request: tuple[dict[str, Any], bytes]) -> None:
        number, now_ns = next(self._numbers), self._clock.now_ns()
        self._waiting[number] = _Waiting(tag, now_ns)
        self._heard_ns = max(self._heard_ns, now_ns) if len(self._waiting) == 1 else self._heard_ns
        header, body = request
        try:
            self._connected().send({**header, "tag": number}, body)
        except OSError as error:
            self._lose(Failure("connection_closed", f"the worker process is gone: {error}"))

    def poll(self, timeout_s: float) -> int:
        if self._ended:
            return len(self._ended)
        if self._link is None:  # lost, and nothing to be heard until something is sent again
            self._clock.sleep(timeout_s)
            return 0
        try:
            messages = self._link.receive(timeout_s)
        except OSError as error:
            self._lose(Failure("connection_closed", str(error)))
            return len(self._ended)
        now_ns = self._clock.now_ns()
        if messages:
            self._heard_ns = now_ns
        for header, body in messages:
            waiting = self._waiting.pop(header["tag"], None) if header["is"] == "answer" else None
            if waiting is not None:
                self._ended.append(InProcessReply(waiting.tag, header["end_ns"], header, body))
        if self._waiting and now_ns - self._heard_ns > self._limits.silence_s * NS_PER_S + _PATIENCE_NS:
            silent_s = (now_ns - self._heard_ns) / NS_PER_S
            self._lose(Failure("timeout", f"no sign of life from the worker process for {silent_s:.1f} s"))
        return len(messages)

    def ended(self) -> Sequence[InProcessReply]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """What is still under way is cancelled by the worker when it sees this."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._waiting.clear()

    def _header(self, output_tokens: int) -> dict[str, Any]:
        limits = self._limits
        about = {"silence_s": limits.silence_s, "exchange_s": limits.exchange_s}
        return {"do": "generate", "output_tokens": output_tokens, **about}

    def _connected(self) -> Link:
        if self._link is None:
            self._link = Link.to(self._address, self._limits.silence_s)
        return self._link

    def _lose(self, failure: Failure) -> None:
        """Everything under way has failed."""
        now_ns, lost = self._clock.now_ns(), list(self._waiting.values())
        self.close()
        for waiting in lost:
            header = {"sent_ns": waiting.since_ns, "arrivals": 0, "failure": (failure.kind, failure.detail)}
            self._ended.append(InProcessReply(waiting.tag, now_ns, header, b""))


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessConnector:
    """Opens channels to one worker, in this process or in another one of this machine."""

    address: Address
    limits: Limits
    text: bool = False
    wording: Wording | None = field(default=None)

    def open(self, clock: Clock) -> InProcessChannel:
        return InProcessChannel(self.address, clock, self.limits, self.wording, text=self.text)


def asked(address: Address, what: str, timeout_s: float, **words: Any) -> Any:
    """One question on a connection of its own. Raises `EngineAnswerError` where there is no answer."""
    try:
        link = Link.to(address, timeout_s)
        try:
            return link.ask(what, timeout_s, **words)
        finally:
            link.close()
    except OSError as error:
        raise EngineAnswerError(
            f"the worker process at {address.host}:{address.port} does not answer: {error}"
        ) from None
