"""One user after another, round by round: the order of TensorRT-LLM's benchmark."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from pytest_llmperf.load.arguments import FLAG, check, written
from pytest_llmperf.load.base import WHOLE, Release, Sessions, Share, Steady, check_share


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """See `round_robin`."""

    _: KW_ONLY
    barrier: bool = False

    name: ClassVar[str] = "round_robin"
    is_open: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, {"barrier": FLAG})

    def schedule(self, sessions: Sessions, share: Share = WHOLE) -> _Rounds:
        check_share(self, share)
        return _Rounds(share.sessions(sessions), barrier=self.barrier)

    def workers(self, asked: int) -> int:
        return 1

    def connections(self, sessions: int, share: Share = WHOLE) -> int:
        del share
        return sessions if self.barrier else min(sessions, 1)

    def describe(self) -> str:
        return written(self)


class _Rounds:
    """The sessions that have another turn, in their order; one of them is in flight, or a round."""

    shed = 0

    def __init__(self, sessions: Sequence[int], *, barrier: bool) -> None:
        self._waiting = deque(sessions)
        self._barrier = barrier
        self._in_flight = 0
        self._free_ns = 0

    def due(self, now_ns: int) -> Sequence[Release]:
        at_ns = self.next_ns()
        if at_ns is None or at_ns > now_ns:
            return ()
        # Answers of a round come in any order, its users are always asked in the same one.
        group = sorted(self._waiting) if self._barrier else [self._waiting[0]]
        for _ in group:
            self._waiting.popleft()
        self._in_flight = len(group)
        return [Release(session, at_ns) for session in group]

    def next_ns(self) -> int | None:
        return self._free_ns if self._waiting and not self._in_flight else None

    def ended(self, session: int, at_ns: int, *, more: bool) -> None:
        self._in_flight -= 1
        self._free_ns = max(self._free_ns, at_ns)
        if more:
            self._waiting.append(session)

    def steady(self) -> Steady:
        return Steady()


def round_robin(*, barrier: bool = False) -> RoundRobin:
    """One user after another, round by round, one request in flight.

    With `barrier`, all users send at once and the next round starts when the last one has finished:
    the order of TensorRT-LLM's benchmark. The whole run is measured, and one worker drives it.

    Raises `ConfigurationError` unless `barrier` is True or False.
    """
    return RoundRobin(barrier=barrier)
