"""One user after another, round by round: the order of TensorRT-LLM's benchmark."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load.arguments import FLAG, SEED, Rule, check, written
from pytest_llmperf.load.base import WHOLE, Release, Sessions, Share, Steady, check_share
from pytest_llmperf.load.draws import THINK, ThinkTime, ThinkTimes, uniforms

_ORDER = Rule("'turn' or 'random'", lambda value: value in ("turn", "random"))


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """See `round_robin`."""

    _: KW_ONLY
    barrier: bool = False
    order: str = "turn"
    think_s: ThinkTime = 0.0
    seed: int = 0

    name: ClassVar[str] = "round_robin"
    is_open: ClassVar[bool] = False
    duration_s: ClassVar[None] = None
    max_requests: ClassVar[None] = None

    def __post_init__(self) -> None:
        check(self, {"barrier": FLAG, "order": _ORDER, "think_s": THINK, "seed": SEED})
        if self.barrier and self.order != "turn":
            raise ConfigurationError(
                f"round_robin: with a barrier all users send at once, so order={self.order!r} has no meaning there; "
                "leave one of the two out"
            )

    def schedule(self, sessions: Sessions, share: Share = WHOLE) -> _Rounds:
        check_share(self, share)
        return _Rounds(self, sessions, share)

    def workers(self, asked: int) -> int:
        return 1

    def connections(self, sessions: int, share: Share = WHOLE) -> int:
        del share
        return sessions if self.barrier else min(sessions, 1)

    def describe(self) -> str:
        return written(self)


class _Rounds:
    """The sessions that still have a turn in this round, and those of the next; one is in flight, or a round."""

    shed = 0

    def __init__(self, load: RoundRobin, sessions: Sessions, share: Share) -> None:
        self._load = load
        self._think = ThinkTimes(load.think_s, load.seed, sessions)
        self._turns = [0] * len(sessions)
        self._ready_ns = [0] * len(sessions)
        self._in_flight = 0
        self._free_ns = 0
        self._rounds = 0
        self._later = share.sessions(sessions)
        self._waiting = self._next_round()

    def _next_round(self) -> deque[int]:
        """The sessions of `_later`, in the order of this round."""
        group, self._later = self._later, []
        if self._load.order == "random":
            places = uniforms(self._load.seed, f"order of round {self._rounds}", len(self._turns))
            group.sort(key=places.__getitem__)
        elif self._load.barrier:  # its answers come in any order
            group.sort()
        self._rounds += 1
        return deque(group)

    def _group(self) -> list[int]:
        """Who sends next, together."""
        return list(self._waiting) if self._load.barrier else [self._waiting[0]]

    def due(self, now_ns: int) -> Sequence[Release]:
        at_ns = self.next_ns()
        if at_ns is None or at_ns > now_ns:
            return ()
        group = self._group()
        for session in group:
            self._waiting.popleft()
            self._turns[session] += 1
        self._in_flight = len(group)
        return [Release(session, at_ns) for session in group]

    def next_ns(self) -> int | None:
        if self._in_flight or not self._waiting:
            return None
        return max(self._free_ns, *(self._ready_ns[session] for session in self._group()))

    def ended(self, session: int, at_ns: int, *, more: bool) -> None:
        self._in_flight -= 1
        self._free_ns = max(self._free_ns, at_ns)
        if more:
            self._ready_ns[session] = at_ns + self._think.before_ns(session, self._turns[session])
            self._later.append(session)
        if not self._in_flight and not self._waiting:
            self._waiting = self._next_round()

    def steady(self) -> Steady:
        return Steady()


def round_robin(*, barrier: bool = False, order: str = "turn", think_s: ThinkTime = 0.0, seed: int = 0) -> RoundRobin:
    """One user after another, round by round, one request in flight.

    * `barrier`: all users send at once and the next round starts when the last one has finished: the
      order of TensorRT-LLM's benchmark.
    * `order`: in which order the users of a round send: "turn", in that of the workload, or "random",
      in another one each round, drawn from `seed`. Not with `barrier`, where they send together.
    * `think_s`: no user sends again sooner than this after the last answer to them: a number of seconds,
      `exponential(mean_s)` or `lognormal(mean_s, sigma)`, drawn from `seed`. Nobody goes first meanwhile.

    The whole run is measured, and one worker drives it.

    Raises `ConfigurationError` listing every argument out of range.
    """
    return RoundRobin(barrier=barrier, order=order, think_s=think_s, seed=seed)
