"""Turns sent at the times that the workload has recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load.arguments import COUNT, DURATION, POSITIVE, SECONDS, SEED, check, written
from pytest_llmperf.load.base import WHOLE, Sessions, Share, Steady, check_share
from pytest_llmperf.load.draws import THINK, ThinkTime, ThinkTimes
from pytest_llmperf.load.timetable import Plan, Timetable, first_requests

_LIKELY_CONNECTIONS = 256
"""Made before the run; further ones as they are needed, their time recorded apart."""


@dataclass(frozen=True, slots=True)
class Replay:
    """See `replay`."""

    speed: float = 1.0
    _: KW_ONLY
    think_s: ThinkTime = 0.0
    duration_s: float | None = None
    max_requests: int | None = None
    max_in_flight: int | None = None
    seed: int = 0

    name: ClassVar[str] = "replay"
    is_open: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(
            self,
            {
                "speed": POSITIVE,
                "think_s": THINK,
                "duration_s": DURATION.or_none(),
                "max_requests": COUNT.or_none(),
                "max_in_flight": COUNT.or_none(),
                "seed": SEED,
            },
        )

    def schedule(self, sessions: Sessions, share: Share = WHOLE) -> Timetable:
        check_share(self, share)
        _check_times(sessions)
        plans = [self._plan(turns) for turns in sessions]
        return Timetable(
            first_requests(plans, self.max_requests),
            share,
            think=ThinkTimes(self.think_s, self.seed, sessions),
            duration_s=self.duration_s,
            max_in_flight=self.max_in_flight,
            steady=Steady(),
        )

    def _plan(self, turns: Sequence[float | None]) -> Plan:
        planned = [None if at_s is None else round(at_s / self.speed * 1e9) for at_s in turns]
        return [0, *planned[1:]] if planned and planned[0] is None else planned

    def workers(self, asked: int) -> int:
        return asked if self.max_in_flight is None else min(asked, self.max_in_flight)

    def connections(self, sessions: int, share: Share = WHOLE) -> int:
        likely = _LIKELY_CONNECTIONS if self.max_in_flight is None else self.max_in_flight
        return min(sessions, share.of(likely))

    def describe(self) -> str:
        return written(self)


def _check_times(sessions: Sessions) -> None:
    """Raise `ConfigurationError` at a recorded time that is none."""
    problems = [
        f"replay: at_s must be {SECONDS.words}, or None, got {at_s!r} (session {session}, turn {turn})"
        for session, turns in enumerate(sessions)
        for turn, at_s in enumerate(turns)
        if not (at_s is None or SECONDS.holds(at_s))
    ]
    if problems:
        raise ConfigurationError(*problems)


def replay(
    speed: float = 1.0,
    *,
    think_s: ThinkTime = 0.0,
    duration_s: float | None = None,
    max_requests: int | None = None,
    max_in_flight: int | None = None,
    seed: int = 0,
) -> Replay:
    """Each turn at its own time divided by `speed`, whether the server keeps up or not.

    A turn whose predecessor has not ended by then is sent as soon as it has, and counts as late. A
    turn without a time of its own follows the answer before it; a session that begins with one starts
    at once.

    * `think_s`: seconds from an answer to a turn without a time: a number, `exponential(mean_s)` or
      `lognormal(mean_s, sigma)`, drawn from `seed`. `speed` does not change it.
    * `duration_s`: nothing whose time is then or later is sent; it is a time of the replay, not of the
      recording.
    * `max_requests`: how many requests are sent at most: the first by their time, those without one
      counted with the turn before them.
    * `max_in_flight`: a session that starts while so many requests are in flight is shed, with all its
      turns, and counted; several workers split the number evenly. The further turns of a session that
      has started are always sent.

    The whole run is measured.

    Raises `ConfigurationError` listing every argument out of range, and, when a run begins, every
    recorded time that is negative or no number.
    """
    return Replay(
        speed,
        think_s=think_s,
        duration_s=duration_s,
        max_requests=max_requests,
        max_in_flight=max_in_flight,
        seed=seed,
    )
