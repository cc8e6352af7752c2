"""The way into the simulated engine: it has the protocol of a connection, and moves the clock itself."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.client import Limits
from pytest_llmperf.clock import NS_PER_S, Clock, VirtualClock
from pytest_llmperf.engines.base import Answer, Generation
from pytest_llmperf.engines.sim.blocks import Ids, answer_ids, as_ids, block_hashes, prompt_name
from pytest_llmperf.engines.sim.fleet import Fleet
from pytest_llmperf.engines.sim.noise import Noise
from pytest_llmperf.engines.sim.sequence import Sequence
from pytest_llmperf.records import ClientStats, Failure


class _Request(NamedTuple):
    ids: Ids
    output_tokens: int
    return_token_ids: bool


@dataclass(order=True, slots=True)
class SimReply:
    """An answer whose times are known."""

    end_ns: int
    tag: int
    _request: _Request = field(compare=False)
    _sequence: Sequence | None = field(compare=False)
    _sent_ns: int = field(compare=False)
    _stretch: float = field(compare=False, default=1.0)
    _failure: Failure | None = field(compare=False, default=None)

    @property
    def pieces(self) -> int:
        return 0 if self._sequence is None else len(self._sequence.times)

    def read(self) -> Answer:
        sequence = self._sequence
        if sequence is None:
            return Answer(
                tag=self.tag,
                sent_ns=self._sent_ns,
                flushed_ns=self._sent_ns,
                end_ns=self.end_ns,
                failure=self._failure,
            )
        count = len(sequence.times)
        times = sequence.times
        if self._stretch != 1.0:
            times = array("q", (stretched(self._sent_ns, at_ns, self._stretch) for at_ns in times))
        return Answer(
            tag=self.tag,
            sent_ns=self._sent_ns,
            flushed_ns=self._sent_ns,
            end_ns=self.end_ns,
            arrivals=Arrivals(times, array("i", (1,)) * count, array("q", (0,)) * count),
            token_ids=self._token_ids() if self._request.return_token_ids else None,
            prompt_tokens=sequence.prompt,
            output_tokens=count,
            cached_tokens=sequence.cached,
            replica=sequence.replica,
        )

    def _token_ids(self) -> tuple[int, ...]:
        assert self._sequence is not None
        assert self._sequence.generated is not None
        return tuple(self._sequence.generated.tolist())


def stretched(sent_ns: int, at_ns: int, factor: float) -> int:
    """A moment of an answer that takes so many times as long."""
    return sent_ns + round((at_ns - sent_ns) * factor)


class SimChannel:
    """Sends into a fleet and waits for it in virtual time."""

    def __init__(self, fleet: Fleet, clock: VirtualClock, noise: Noise, *, max_model_len: int, limits: Limits) -> None:
        self.stats = ClientStats()
        self._fleet = fleet
        self._clock = clock
        self._noise = noise
        self._max_model_len = max_model_len
        self._running: dict[int, tuple[_Request, Sequence, float]] = {}
        """With the factor on the answer's times."""
        self._coming: list[SimReply] = []
        """Answers on their way, by their end."""
        self._ended: list[SimReply] = []
        self._limits = limits
        self._deadlines: list[tuple[int, int, Sequence]] = []
        """When to look whether a request has had its time."""
        self._watched = 0

    def open(self, connections: int) -> None:
        """Nothing has to be connected."""

    def encode(self, generation: Generation) -> _Request:
        return _Request(as_ids(generation.token_ids), generation.output_tokens, generation.return_token_ids)

    def send(self, tag: int, request: _Request) -> None:
        now_ns = self._clock.now_ns()
        total = len(request.ids) + request.output_tokens
        detail = ""
        if total > self._max_model_len:
            detail = f"the request needs {total} tokens and the context is {self._max_model_len}"
        elif not len(request.ids) or request.output_tokens < 1:
            detail = "a request needs at least one token of input and one of output"
        if detail:
            self._ended.append(SimReply(now_ns, tag, request, None, now_ns, _failure=Failure("http_400", detail)))
            return
        sequence = self._fleet.submit(tag, request.ids, request.output_tokens, now_ns)
        name = prompt_name(request.ids, sequence.hashes, self._fleet.block_tokens)
        self._fleet.pace(self._noise.pace(name))
        self._running[tag] = (request, sequence, self._noise.stretch(name))
        self._watch(sequence, self._expires_ns(sequence))

    def poll(self, timeout_s: float) -> int:
        clock = self._clock
        if self._ended:
            return len(self._ended)
        until_ns = clock.now_ns() + max(0, round(timeout_s * NS_PER_S))
        while not self._ended:
            next_ns = min(until_ns, self._coming[0].end_ns) if self._coming else until_ns
            if self._deadlines:
                next_ns = min(next_ns, self._deadlines[0][0])
            for sequence in self._fleet.advance(next_ns):
                heapq.heappush(self._coming, self._reply(sequence))
                next_ns = min(next_ns, sequence.times[-1])
            clock.sleep_until(next_ns)
            while self._coming and self._coming[0].end_ns <= clock.now_ns():
                self._ended.append(heapq.heappop(self._coming))
            while self._deadlines and self._deadlines[0][0] <= clock.now_ns():
                self._give_up_or_wait(heapq.heappop(self._deadlines)[2])
            if clock.now_ns() >= until_ns:
                break
        return len(self._ended)

    def ended(self) -> Many[SimReply]:
        replies, self._ended = self._ended, []
        return replies

    def close(self) -> None:
        for _, sequence, _ in self._running.values():
            self._fleet.cancel(sequence)
        self._running.clear()

    def _watch(self, sequence: Sequence, at_ns: int) -> None:
        self._watched += 1
        heapq.heappush(self._deadlines, (at_ns, self._watched, sequence))

    def _heard_ns(self, sequence: Sequence) -> int:
        """When the request's last token so far came, or it was sent."""
        replica = self._fleet.replica_of(sequence)
        times = sequence.times if replica is None else replica.times_ns(sequence)
        return times[-1] if times else sequence.arrived_ns

    def _expires_ns(self, sequence: Sequence) -> int:
        """When a client has waited for long enough."""
        limits = self._limits
        silent_ns = self._heard_ns(sequence) + round(limits.silence_s * NS_PER_S)
        return min(silent_ns, sequence.arrived_ns + round(limits.exchange_s * NS_PER_S))

    def _give_up_or_wait(self, sequence: Sequence) -> None:
        """End a request that was silent, or under way, for longer than a client waits."""
        running = self._running.get(sequence.tag)
        if running is None or running[1] is not sequence:
            return
        now_ns, expires_ns, limits = self._clock.now_ns(), self._expires_ns(sequence), self._limits
        if now_ns < expires_ns:
            self._watch(sequence, expires_ns)
            return
        lasted_s = (now_ns - sequence.arrived_ns) / NS_PER_S
        over = lasted_s >= limits.exchange_s
        detail = f"not finished within {limits.exchange_s:g} s" if over else f"no byte for {limits.silence_s:g} s"
        del self._running[sequence.tag]
        self._fleet.cancel(sequence)
        failure = Failure("timeout", detail)
        reply = SimReply(now_ns, sequence.tag, running[0], None, sequence.arrived_ns, _failure=failure)
        self._ended.append(reply)

    def _reply(self, sequence: Sequence) -> SimReply:
        request, _, stretch = self._running.pop(sequence.tag)
        if request.return_token_ids and sequence.generated is None:
            size = self._fleet.block_tokens
            sequence.generated = answer_ids(request.ids, block_hashes(request.ids, size), size, sequence.out)
        sent_ns = sequence.arrived_ns
        return SimReply(
            stretched(sent_ns, sequence.times[-1], stretch), sequence.tag, request, sequence, sent_ns, stretch
        )


@dataclass(frozen=True, slots=True)
class SimConnector:
    """Opens channels into one fleet. It stays in this process: there is nothing beyond it to connect to."""

    fleet: Fleet
    clock: VirtualClock
    noise: Callable[[], Noise]
    max_model_len: int
    limits: Limits

    def open(self, clock: Clock) -> SimChannel:
        assert clock is self.clock, "a simulated engine is driven by its own clock"
        noise, longest = self.noise(), self.max_model_len
        return SimChannel(self.fleet, self.clock, noise, max_model_len=longest, limits=self.limits)
