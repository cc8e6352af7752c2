"""Sessions that arrive at a rate, whether the server keeps up or not."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from pytest_llmperf.load.arguments import COUNT, DURATION, POSITIVE, SECONDS, SEED, check, written
from pytest_llmperf.load.base import WHOLE, Sessions, Share, Steady, check_share
from pytest_llmperf.load.draws import THINK, Floats, ThinkTime, ThinkTimes, gamma_gaps, to_ns
from pytest_llmperf.load.timetable import Plan, Timetable, first_requests

_LIKELY_S = 2.0
_MOST_CONNECTIONS = 1024
"""A request that takes `_LIKELY_S` needs rate * _LIKELY_S connections; what is missing is made when it is needed."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """See `constant`, `poisson` and `burst`: `name` is one of them, `shape` None where it has none."""

    name: str
    rate: float
    _: KW_ONLY
    shape: float | None = None
    seed: int = 0
    ramp_s: float = 0.0
    warmup_s: float = 0.0
    duration_s: float | None = None
    max_requests: int | None = None
    think_s: ThinkTime = 0.0
    max_in_flight: int | None = None

    is_open: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(
            self,
            {
                "rate": POSITIVE,
                "shape": POSITIVE if self.name == "burst" else POSITIVE.or_none(),
                "seed": SEED,
                "ramp_s": SECONDS,
                "warmup_s": SECONDS,
                "duration_s": DURATION.or_none(),
                "max_requests": COUNT.or_none(),
                "think_s": THINK,
                "max_in_flight": COUNT.or_none(),
            },
        )

    def schedule(self, sessions: Sessions, share: Share = WHOLE) -> Timetable:
        check_share(self, share)
        planned: list[Plan] = [
            [at_ns, *[None] * (len(turns) - 1)] if turns else []
            for at_ns, turns in zip(self._starts_ns(len(sessions)), sessions, strict=True)
        ]
        plans = first_requests(planned, self.max_requests)
        last_ns = max((plan[0] for plan in plans if plan and plan[0] is not None), default=0)
        duration_ns = None if self.duration_s is None else round(self.duration_s * 1e9)
        return Timetable(
            plans,
            share,
            think=ThinkTimes(self.think_s, self.seed, sessions),
            duration_s=self.duration_s,
            max_in_flight=self.max_in_flight,
            steady=Steady.between(round((self.ramp_s + self.warmup_s) * 1e9), [last_ns, duration_ns]),
        )

    def _starts_ns(self, count: int) -> list[int]:
        """When each of the sessions starts: cumulated gaps through the inverse of the cumulative rate."""
        units = np.arange(count, dtype=np.float64) if self.name == "constant" else np.cumsum(self._gaps(count))
        # The rate at t is rate * t / ramp_s up to ramp_s, so that rate * ramp_s / 2 sessions arrive by then.
        ramped = np.minimum(units, self.rate * self.ramp_s / 2)
        return to_ns(np.sqrt(2 * self.ramp_s * ramped / self.rate) + (units - ramped) / self.rate)

    def _gaps(self, count: int) -> Floats:
        return gamma_gaps(1.0 if self.shape is None else self.shape, self.seed, count)

    def workers(self, asked: int) -> int:
        return asked if self.max_in_flight is None else min(asked, self.max_in_flight)

    def connections(self, sessions: int, share: Share = WHOLE) -> int:
        likely = min(_MOST_CONNECTIONS, math.ceil(self.rate * _LIKELY_S))
        return min(sessions, share.of(likely if self.max_in_flight is None else min(likely, self.max_in_flight)))

    def describe(self) -> str:
        return written(self)


def constant(
    rate: float,
    *,
    seed: int = 0,
    ramp_s: float = 0.0,
    warmup_s: float = 0.0,
    duration_s: float | None = None,
    max_requests: int | None = None,
    think_s: ThinkTime = 0.0,
    max_in_flight: int | None = None,
) -> OpenLoop:
    """`rate` sessions start per second, evenly, the first at once, and nobody waits for answers.

    The further turns of a session follow its answers.

    * `seed`: of the think times.
    * `ramp_s`: over this time the rate rises from 0 in a straight line.
    * `warmup_s`: the time after the ramp that is not yet measured.
    * `duration_s`: nothing is sent from then on; sessions are cut short.
    * `max_requests`: how many requests are sent at most: all turns of the first sessions to start, the
      last of which may be cut short.
    * `think_s`: seconds from an answer to the session's next turn: a number, `exponential(mean_s)` or
      `lognormal(mean_s, sigma)`.
    * `max_in_flight`: a session that starts while so many requests are in flight is shed, with all its
      turns, and counted; several workers split the number evenly. The further turns of a session that
      has started are always sent.

    Measured is what follows ramp and warm-up, until the last session starts, or until `duration_s`.

    Raises `ConfigurationError` listing every argument out of range.
    """
    return OpenLoop(
        "constant",
        rate,
        seed=seed,
        ramp_s=ramp_s,
        warmup_s=warmup_s,
        duration_s=duration_s,
        max_requests=max_requests,
        think_s=think_s,
        max_in_flight=max_in_flight,
    )


def poisson(
    rate: float,
    *,
    seed: int = 0,
    ramp_s: float = 0.0,
    warmup_s: float = 0.0,
    duration_s: float | None = None,
    max_requests: int | None = None,
    think_s: ThinkTime = 0.0,
    max_in_flight: int | None = None,
) -> OpenLoop:
    """`rate` sessions start per second on average, independently of one another.

    The gaps between them are exponential, drawn from `seed`; the first session comes after the first
    gap. Everything else is as with `constant`.

    Raises `ConfigurationError` listing every argument out of range.
    """
    return OpenLoop(
        "poisson",
        rate,
        seed=seed,
        ramp_s=ramp_s,
        warmup_s=warmup_s,
        duration_s=duration_s,
        max_requests=max_requests,
        think_s=think_s,
        max_in_flight=max_in_flight,
    )


def burst(
    rate: float,
    *,
    shape: float,
    seed: int = 0,
    ramp_s: float = 0.0,
    warmup_s: float = 0.0,
    duration_s: float | None = None,
    max_requests: int | None = None,
    think_s: ThinkTime = 0.0,
    max_in_flight: int | None = None,
) -> OpenLoop:
    """`rate` sessions start per second on average, in bursts.

    The gaps between them have a gamma distribution of this `shape`, drawn from `seed`: 1 is `poisson`,
    below 1 the sessions come in bursts, above 1 more evenly. It is what vLLM calls burstiness. Everything
    else is as with `constant` and `poisson`.

    Raises `ConfigurationError` listing every argument out of range.
    """
    return OpenLoop(
        "burst",
        rate,
        shape=shape,
        seed=seed,
        ramp_s=ramp_s,
        warmup_s=warmup_s,
        duration_s=duration_s,
        max_requests=max_requests,
        think_s=think_s,
        max_in_flight=max_in_flight,
    )
