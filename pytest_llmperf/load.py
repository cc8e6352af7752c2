"""Load models: who sends next, and when.

A load makes a `Schedule` for each run. The driver asks it which sessions may send now, and tells it
when a request has ended; a schedule knows nothing of tokens or sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_llmperf.errors import ConfigurationError


class Schedule(Protocol):
    """The state of one run: which session sends its next turn, and when."""

    def due(self) -> Sequence[int]:
        """Sessions that send their next turn now; each is named once per turn."""
        ...

    def ended(self, session: int, *, more: bool) -> None:
        """The session's turn has ended; `more` tells whether it has another one."""
        ...


class Load(Protocol):
    """A load model; its fields are its identity."""

    def schedule(self, turns: Sequence[int]) -> Schedule:
        """A fresh schedule for sessions with that many turns each."""
        ...

    def describe(self) -> str:
        """As it is written in a test."""
        ...


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """See `round_robin`."""

    barrier: bool

    def schedule(self, turns: Sequence[int]) -> Schedule:
        rounds = [[s for s, count in enumerate(turns) if number < count] for number in range(max(turns, default=0))]
        if self.barrier:
            return _Batches(rounds)
        return _Batches([[session] for sessions in rounds for session in sessions])

    def describe(self) -> str:
        return "round_robin(barrier=True)" if self.barrier else "round_robin()"


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """See `closed_loop`."""

    concurrency: int

    def schedule(self, turns: Sequence[int]) -> Schedule:
        return _Slots(len(turns), self.concurrency)

    def describe(self) -> str:
        return f"closed_loop({self.concurrency})"


class _Batches:
    """Groups sent at once, each when the one before has ended altogether."""

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self._batches = deque(batches)
        self._open: set[int] = set()
        self._dropped: set[int] = set()

    def due(self) -> Sequence[int]:
        while not self._open and self._batches:
            batch = [session for session in self._batches.popleft() if session not in self._dropped]
            self._open.update(batch)
            if batch:
                return batch
        return ()

    def ended(self, session: int, *, more: bool) -> None:
        self._open.discard(session)
        if not more:
            self._dropped.add(session)


class _Slots:
    """A fixed number of sessions at a time, each turn after turn; a finished one makes room."""

    def __init__(self, sessions: int, concurrency: int) -> None:
        self._waiting = deque(range(sessions))
        self._ready: deque[int] = deque()
        self._free = concurrency

    def due(self) -> Sequence[int]:
        while self._free and self._waiting:
            self._ready.append(self._waiting.popleft())
            self._free -= 1
        due = tuple(self._ready)
        self._ready.clear()
        return due

    def ended(self, session: int, *, more: bool) -> None:
        if more:
            self._ready.append(session)
        else:
            self._free += 1


def round_robin(*, barrier: bool = False) -> RoundRobin:
    """One user after another, round by round, one request in flight.

    With `barrier`, all users send at once and the next round starts when the last one has finished:
    the order of TensorRT-LLM's benchmark.
    """
    return RoundRobin(barrier)


def closed_loop(concurrency: int) -> ClosedLoop:
    """`concurrency` sessions at a time; each sends its next turn as soon as it has its answer.

    Raises `ConfigurationError` unless `concurrency` is a whole number of at least 1.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        msg = f"closed_loop: concurrency must be a whole number of at least 1, got {concurrency!r}"
        raise ConfigurationError(msg)
    return ClosedLoop(concurrency)
