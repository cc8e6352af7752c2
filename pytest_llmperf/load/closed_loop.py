"""A fixed number of users at a time, who wait for their answers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from heapq import heapify, heappop, heappush
from typing import ClassVar

from pytest_llmperf.load.arguments import COUNT, DURATION, SECONDS, SEED, check, written
from pytest_llmperf.load.base import WHOLE, Release, Sessions, Share, Steady, check_share
from pytest_llmperf.load.draws import THINK, ThinkTime, ThinkTimes


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """See `closed_loop`."""

    concurrency: int
    _: KW_ONLY
    think_s: ThinkTime = 0.0
    ramp_s: float = 0.0
    warmup_s: float = 0.0
    duration_s: float | None = None
    max_requests: int | None = None
    seed: int = 0

    name: ClassVar[str] = "closed_loop"
    is_open: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(
            self,
            {
                "concurrency": COUNT,
                "think_s": THINK,
                "ramp_s": SECONDS,
                "warmup_s": SECONDS,
                "duration_s": DURATION.or_none(),
                "max_requests": COUNT.or_none(),
                "seed": SEED,
            },
        )

    def schedule(self, sessions: Sessions, share: Share = WHOLE) -> _Slots:
        check_share(self, share)
        return _Slots(self, sessions, share)

    def workers(self, asked: int) -> int:
        return min(asked, self.concurrency)

    def connections(self, sessions: int, share: Share = WHOLE) -> int:
        return min(sessions, share.of(self.concurrency))

    def describe(self) -> str:
        return written(self)


class _Slots:
    """Places for one session each; one that finishes makes room for the next that waits."""

    shed = 0

    def __init__(self, load: ClosedLoop, sessions: Sessions, share: Share) -> None:
        self._think = ThinkTimes(load.think_s, load.seed, sessions)
        self._steady_ns = round((load.ramp_s + load.warmup_s) * 1e9)
        self._until_ns = math.inf if load.duration_s is None else round(load.duration_s * 1e9)
        self._left = math.inf if load.max_requests is None else share.of(load.max_requests)
        # A load that never had all its slots busy has no moment at which it began to fall.
        self._more_sessions = sum(map(bool, sessions)) > load.concurrency
        self._more_requests = load.max_requests is not None and load.max_requests > load.concurrency
        self._emptied_ns: int | None = None
        self._turns = [0] * len(sessions)
        mine = share.sessions(sessions)
        # The slots are dealt to the workers like the sessions: together they open as one worker's would.
        slots = range(share.worker, load.concurrency, share.workers)
        opened = [round(slot * load.ramp_s * 1e9 / load.concurrency) for slot in slots]
        self._coming = list(zip(opened, mine, strict=False))
        heapify(self._coming)
        self._waiting = deque(mine[len(slots) :])

    def due(self, now_ns: int) -> Sequence[Release]:
        if not self._coming or self._coming[0][0] > now_ns:
            return ()
        released = []
        while self._coming and self._coming[0][0] <= now_ns and self._left:
            at_ns, session = heappop(self._coming)
            self._turns[session] += 1
            self._left -= 1
            released.append(Release(session, at_ns))
        return released

    def next_ns(self) -> int | None:
        return self._coming[0][0] if self._coming and self._left else None

    def ended(self, session: int, at_ns: int, *, more: bool) -> None:
        if more:
            self._come(at_ns + self._think.before_ns(session, self._turns[session]), session)
        elif self._waiting:
            self._come(at_ns, self._waiting.popleft())
        else:
            self._emptied_ns = at_ns if self._emptied_ns is None else min(self._emptied_ns, at_ns)

    def _come(self, at_ns: int, session: int) -> None:
        if at_ns < self._until_ns:
            heappush(self._coming, (at_ns, session))

    def steady(self) -> Steady:
        # What still wants to come when no request is left to send marks where the slots began to stay empty.
        refused_ns = self._coming[0][0] if self._coming and not self._left else None
        return Steady.between(
            self._steady_ns,
            [
                None if self._until_ns == math.inf else int(self._until_ns),
                self._emptied_ns if self._more_sessions else None,
                refused_ns if self._more_requests else None,
            ],
        )


def closed_loop(
    concurrency: int,
    *,
    think_s: ThinkTime = 0.0,
    ramp_s: float = 0.0,
    warmup_s: float = 0.0,
    duration_s: float | None = None,
    max_requests: int | None = None,
    seed: int = 0,
) -> ClosedLoop:
    """`concurrency` sessions at a time, each sending its next turn when it has its answer.

    * `think_s`: seconds from an answer to the session's next turn: a number, `exponential(mean_s)` or
      `lognormal(mean_s, sigma)`, drawn from `seed`. A finished session makes room for the next at once.
    * `ramp_s`: over this time the slots open one after another, the first at once.
    * `warmup_s`: the time after the ramp that is not yet measured.
    * `duration_s`: nothing is sent from then on; sessions are cut short.
    * `max_requests`: how many requests are sent at most; several workers split it evenly.

    Measured is what follows ramp and warm-up, until a slot has to stay empty because nothing is left
    to send, or until `duration_s`. Where there never was more than the slots could hold at once, it is
    measured to the end of the run.

    Raises `ConfigurationError` listing every argument out of range.
    """
    return ClosedLoop(
        concurrency,
        think_s=think_s,
        ramp_s=ramp_s,
        warmup_s=warmup_s,
        duration_s=duration_s,
        max_requests=max_requests,
        seed=seed,
    )
