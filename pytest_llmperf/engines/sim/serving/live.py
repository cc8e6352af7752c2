"""The fleet in real time: its events happen when the machine's clock says so.

Its own times stay exact: what is late here does not make later steps later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pytest_llmperf.clock import NS_PER_S, RealClock
from pytest_llmperf.engines.sim.blocks import Ids, prompt_name
from pytest_llmperf.engines.sim.fleet import Fleet
from pytest_llmperf.engines.sim.noise import Noise
from pytest_llmperf.engines.sim.sequence import Sequence
from pytest_llmperf.engines.sim.serving.exposition import Latencies

# With noise, a run begins with the first request after so long without any.
_PAUSE_NS = NS_PER_S


class Running:
    """A request in the fleet."""

    __slots__ = ("_due_ns", "_known", "_stretch", "_tell", "ids", "sent", "sequence")

    def __init__(self, sequence: Sequence, stretch: float, tell: Callable[[Running, Ids], None]) -> None:
        self.sequence = sequence
        self.ids: Ids | None = None
        """What the model says; None before it has said anything."""
        self.sent = 0
        """Tokens handed over."""
        self._known = 0
        self._due_ns: deque[int] = deque()
        self._stretch = stretch
        self._tell = tell

    def is_over(self) -> bool:
        """Whether its last token was handed over."""
        return self.sent == self.sequence.out

    def moment_ns(self, at_ns: int) -> int:
        """When a token that the engine has at this time leaves: noise on the way delays it."""
        if self._stretch == 1.0:
            return at_ns
        arrived_ns = self.sequence.arrived_ns
        return arrived_ns + round((at_ns - arrived_ns) * self._stretch)

    def times_s(self) -> npt.NDArray[np.float64]:
        """When its tokens left, seconds after its arrival; of a request that has ended."""
        return (np.asarray(self.sequence.times) - self.sequence.arrived_ns) * (self._stretch / NS_PER_S)

    def take(self, fleet: Fleet, now_ns: int) -> int:
        """How many tokens are due by now that were not before."""
        sequence = self.sequence
        replica = fleet.replica_of(sequence)
        count = len(sequence.times) if replica is None else replica.tokens(sequence)
        if count == self._known and not self._due_ns:
            return 0
        if self._stretch == 1.0:
            new, self._known = count - self._known, count
            return new
        if count > self._known:
            times = sequence.times if replica is None else replica.times_ns(sequence)
            self._due_ns += [self.moment_ns(at_ns) for at_ns in times[self._known : count]]
            self._known = count
        new = 0
        while self._due_ns and self._due_ns[0] <= now_ns:
            self._due_ns.popleft()
            new += 1
        return new

    @property
    def next_ns(self) -> int | None:
        """When its next token is due, if the engine has it already."""
        return self._due_ns[0] if self._due_ns else None

    def tell(self, ids: Ids) -> None:
        """Hand over tokens."""
        self.sent += len(ids)
        self._tell(self, ids)


class Live:
    """Takes requests, lets the fleet's time pass, and tells each request's tokens when they are due."""

    def __init__(self, fleet: Fleet, new_noise: Callable[[], Noise], *, delays: bool) -> None:
        """`delays`: whether the noise delays single requests."""
        self.fleet = fleet
        self._delays = delays
        self.latencies = Latencies()
        self._new_noise = new_noise
        self._noise = new_noise()
        self._running: dict[int, Running] = {}
        self._tags = 0
        self._idle_since_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns: int | None = None

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self._running)

    def submit(self, ids: Ids, output_tokens: int, arrived_ns: int, tell: Callable[[Running, Ids], None]) -> Running:
        """Take a request that arrived then; `tell` gets it and its tokens whenever some are due."""
        if not self._running and arrived_ns - self._idle_since_ns > _PAUSE_NS:
            self._noise = self._new_noise()
        self._tags += 1
        sequence = self.fleet.submit(self._tags, ids, output_tokens, arrived_ns)
        name = prompt_name(ids, sequence.hashes, self.fleet.block_tokens)
        self.fleet.pace(self._noise.pace(name))
        running = Running(sequence, self._noise.stretch(name), tell)
        self._running[sequence.tag] = running
        self._set_timer()
        return running

    def cancel(self, running: Running) -> None:
        """Forget a request whose client has gone."""
        if self._running.pop(running.sequence.tag, None) is not None:
            if not running.sequence.done:
                self.fleet.cancel(running.sequence)
            self.latencies.aborted += 1
            self._rest()

    def _pump(self) -> None:
        """Let everything happen that is due."""
        self._timer = self._timer_ns = None
        now_ns = RealClock.now_ns()
        while self.fleet.advance(now_ns):
            pass
        for running in list(self._running.values()):
            new = running.take(self.fleet, now_ns)
            if new:
                self._tell(running, new)
        self._set_timer()

    def _tell(self, running: Running, new: int) -> None:
        sequence = running.sequence
        if running.ids is None:
            running.ids = self.fleet.replicas[0].answer(sequence)  # the same from each of them
            self.latencies.first_token(self._first_ns(running) - sequence.arrived_ns)
        running.tell(running.ids[running.sent : running.sent + new])
        if running.is_over() and self._running.pop(sequence.tag, None) is not None:
            self.latencies.ended(running.times_s())
            self._rest()

    def _first_ns(self, running: Running) -> int:
        replica = self.fleet.replica_of(running.sequence)
        times = running.sequence.times if replica is None else replica.times_ns(running.sequence)
        return running.moment_ns(times[0])

    def _rest(self) -> None:
        if not self._running:
            self._idle_since_ns = RealClock.now_ns()

    def _set_timer(self) -> None:
        """Wake up when something happens next."""
        moments = [running.next_ns for running in self._running.values()] if self._delays else []
        at_ns = min((moment for moment in (*moments, self.fleet.next_ns) if moment is not None), default=None)
        if at_ns == self._timer_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = at_ns
        self._timer = None if at_ns is None else asyncio.get_running_loop().call_at(at_ns / NS_PER_S, self._pump)
