"""Schedules of the open loads: turns with a planned time, and turns that follow an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import takewhile

from pytest_llmperf.load.base import Release, Share, Steady
from pytest_llmperf.load.draws import ThinkTimes

Plan = Sequence[int | None]
"""Per turn of a session: when to send, in ns; None: when the answer before has come, after the think time."""


def first_requests(plans: Sequence[Plan], most: int | None) -> Sequence[Plan]:
    """The plans cut down to the first `most` turns in time.

    A turn without a time of its own counts at that of the turn before it. So it is known before the
    run which turns are sent, however the answers come and however many workers there are.
    """
    if most is None:
        return plans
    turns = []
    for session, plan in enumerate(plans):
        at_ns = 0
        for planned_ns in plan:
            at_ns = at_ns if planned_ns is None else max(at_ns, planned_ns)
            turns.append((at_ns, session))
    kept = [0] * len(plans)
    for _, session in sorted(turns)[:most]:
        kept[session] += 1
    return [plan[:count] for plan, count in zip(plans, kept, strict=True)]


class Timetable:
    """Turns become due at their time, or when their predecessor has ended if that is later."""

    def __init__(
        self,
        plans: Sequence[Plan],
        share: Share,
        *,
        think: ThinkTimes,
        duration_s: float | None,
        max_in_flight: int | None,
        steady: Steady,
    ) -> None:
        """The first turn of each plan has a time. `max_in_flight` is that of all workers together."""
        self._plans = plans
        self._think = think
        self._until_ns = math.inf if duration_s is None else round(duration_s * 1e9)
        self._room = math.inf if max_in_flight is None else share.of(max_in_flight)
        self._steady = steady
        self._turns = [0] * len(plans)
        self._in_flight = 0
        self._shed = 0
        starts = ((plans[session][0], session) for session in share.sessions(plans))
        self._coming = [(at_ns, session) for at_ns, session in starts if at_ns is not None and at_ns < self._until_ns]
        heapify(self._coming)

    def due(self, now_ns: int) -> Sequence[Release]:
        if not self._coming or self._coming[0][0] > now_ns:
            return ()
        released = []
        while self._coming and self._coming[0][0] <= now_ns:
            at_ns, session = heappop(self._coming)
            if self._turns[session] == 0 and self._in_flight >= self._room:
                self._shed += self._meant(session)
                continue
            self._turns[session] += 1
            self._in_flight += 1
            released.append(Release(session, at_ns))
        return released

    def _meant(self, session: int) -> int:
        """How many turns the session would have had; one that follows an answer counts, whenever that came."""
        return sum(1 for _ in takewhile(lambda at_ns: at_ns is None or at_ns < self._until_ns, self._plans[session]))

    def next_ns(self) -> int | None:
        return self._coming[0][0] if self._coming else None

    def ended(self, session: int, at_ns: int, *, more: bool) -> None:
        self._in_flight -= 1
        turn = self._turns[session]
        if not more or turn >= len(self._plans[session]):
            return
        planned_ns = self._plans[session][turn]
        next_ns = at_ns + self._think.before_ns(session, turn) if planned_ns is None else planned_ns
        if next_ns < self._until_ns:
            heappush(self._coming, (next_ns, session))

    @property
    def shed(self) -> int:
        return self._shed

    def steady(self) -> Steady:
        return self._steady
