"""What every load is: a maker of schedules, which say who sends next.

A load makes a `Schedule` for each run. The driver asks it which turns to send, and tells it when one
has ended; a schedule knows nothing of tokens, sockets or clocks. All its times are whole nanoseconds
since the run's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_llmperf.errors import ConfigurationError

Sessions = Sequence[Sequence[float | None]]
"""Per session, per turn: the turn's own time in seconds from the run's start; None where it has none."""


@dataclass(frozen=True, slots=True)
class Release:
    """One turn to send. `at_ns`: when the load meant it to be sent."""

    session: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the sessions one worker drives; a session never moves to another."""

    worker: int = 0
    workers: int = 1

    def has(self, session: int) -> bool:
        """Whether the session is this worker's."""
        return session % self.workers == self.worker

    def of(self, total: int) -> int:
        """This worker's part of a number that is split as evenly as it goes."""
        return len(range(self.worker, total, self.workers))

    def sessions(self, sessions: Sessions) -> list[int]:
        """The numbers of this worker's sessions, those without a turn left out."""
        return [number for number in range(self.worker, len(sessions), self.workers) if sessions[number]]


WHOLE = Share()
"""The share of one worker alone."""


@dataclass(frozen=True, slots=True)
class Steady:
    """The part of a run that is measured, both ends included; `end_ns` None: to the run's end.

    Where the load fell before it was to be measured, it ends where it starts.
    """

    start_ns: int = 0
    end_ns: int | None = None

    @classmethod
    def between(cls, start_ns: int, ends_ns: Sequence[int | None]) -> Steady:
        """From the start to the earliest of the ends that there are."""
        ends = [end for end in ends_ns if end is not None]
        return cls(start_ns, max(start_ns, min(ends)) if ends else None)


class Schedule(Protocol):
    """The state of one run: which session sends its next turn, and when."""

    def due(self, now_ns: int) -> Sequence[Release]:
        """Turns to send by now, each named once, ordered by `at_ns`."""
        ...

    def next_ns(self) -> int | None:
        """When the next turn becomes due if no answer comes before.

        It may lie in the past: then the turn is due at once. None: only an answer can bring one, or
        nothing is left.
        """
        ...

    def ended(self, session: int, at_ns: int, *, more: bool) -> None:
        """The session's turn ended then; `more` tells whether it has another one."""
        ...

    @property
    def shed(self) -> int:
        """Turns that the load meant to send and had to drop."""
        ...

    def steady(self) -> Steady:
        """The part of the run to measure; asked after the run."""
        ...


class Load(Protocol):
    """A load model; its fields are its identity."""

    @property
    def is_open(self) -> bool:
        """Whether sends do not wait for answers, so that latency counts from the intended send."""
        ...

    @property
    def duration_s(self) -> float | None:
        """From then on nothing is sent; None: until all sessions have ended."""
        ...

    @property
    def max_requests(self) -> int | None:
        """How many requests are sent at most; None: as many as the sessions have."""
        ...

    def schedule(self, sessions: Sessions, share: Share = WHOLE) -> Schedule:
        """A fresh schedule for the worker's part of these sessions.

        Raises `ConfigurationError` if the load cannot be split over so many workers.
        """
        ...

    def workers(self, asked: int) -> int:
        """How many of the asked workers it can be split over."""
        ...

    def connections(self, sessions: int, share: Share = WHOLE) -> int:
        """How many connections the worker's `sessions` are likely to need at a time, to be made before the run."""
        ...

    def describe(self) -> str:
        """As it is written in a test, with every argument that is not the default; identifies the load."""
        ...


def check_share(load: Load, share: Share) -> None:
    """Raise `ConfigurationError` if a worker were left without a part, and its sessions unsent."""
    most = load.workers(share.workers)
    if share.workers > most:
        raise ConfigurationError(f"{load.describe()} can be split over at most {most} workers, got {share.workers}")
