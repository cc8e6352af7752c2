"""Replicas behind a router, driven from event to event."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.engines.sim.blocks import Ids, block_hashes
from pytest_llmperf.engines.sim.cache import PrefixCache
from pytest_llmperf.engines.sim.replica import Counters, Replica, total
from pytest_llmperf.engines.sim.routing import POLICIES
from pytest_llmperf.engines.sim.sequence import Sequence
from pytest_llmperf.engines.sim.settings import Settings
from pytest_llmperf.engines.sim.timing import Timing


class Fleet:
    """The whole engine; times are nanoseconds of whatever clock the caller has, and never go backwards."""

    def __init__(
        self, timing: Timing, settings: Settings, caches: list[PrefixCache], policy: str, *, prefix_caching: bool
    ) -> None:
        """`caches`: one for each replica."""
        self.replicas = [Replica(timing, settings, cache, prefix_caching=prefix_caching) for cache in caches]
        self.block_tokens = int(settings.block_tokens)
        self._route = POLICIES[policy](self.replicas, settings)
        self._front_ns = round(timing.request_s * NS_PER_S)
        self._events: list[tuple[int, int, Callable[[Any, int], list[Sequence]], Any]] = []
        self._order = 0
        self._at: dict[int, Replica] = {}

    @property
    def next_ns(self) -> int | None:
        """When something happens next; None while nothing is going on."""
        return self._events[0][0] if self._events else None

    def submit(self, tag: int, ids: Ids, output_tokens: int, at_ns: int) -> Sequence:
        """Take a request that reaches the server then."""
        sequence = Sequence(tag, ids, block_hashes(ids, self.block_tokens), output_tokens, at_ns)
        self._schedule(at_ns + self._front_ns, self._arrive, sequence)
        return sequence

    def advance(self, until_ns: int) -> list[Sequence]:
        """Let time pass up to the first moment at which requests end, at most to `until_ns`; returns these."""
        events = self._events
        while events and events[0][0] <= until_ns:
            at_ns, _, happen, whom = heapq.heappop(events)
            ended = happen(whom, at_ns)
            if ended:
                return ended
        return []

    def replica_of(self, sequence: Sequence) -> Replica | None:
        """Where a request is; None before it has been routed."""
        return self._at.get(sequence.tag)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a request that nobody waits for any more."""
        replica = self._at.pop(sequence.tag, None)
        if replica is None:
            sequence.done = True
        else:
            replica.cancel(sequence)

    def counters(self) -> Counters:
        """Of all replicas together."""
        return total(self.replicas)

    def reset_cache(self) -> bool:
        """Forget every cached prefix; False while requests are running, as their blocks cannot go."""
        if any(replica.load for replica in self.replicas):
            return False
        for replica in self.replicas:
            replica.cache.clear()
        return True

    def pace(self, factor: float) -> None:
        """Multiply the duration of every step from now on."""
        for replica in self.replicas:
            replica.pace = factor

    def _schedule(self, at_ns: int, happen: Callable[[Any, int], list[Sequence]], whom: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_ns, self._order, happen, whom))

    def _arrive(self, sequence: Sequence, now_ns: int) -> list[Sequence]:
        if sequence.done:
            return []
        number = self._route(sequence.ids, sequence.hashes)
        replica = self.replicas[number]
        sequence.replica = number if len(self.replicas) > 1 else None
        self._at[sequence.tag] = replica
        replica.submit(sequence)
        if replica.step_end_ns is None:
            # After all that arrives in this moment.
            self._schedule(now_ns, self._wake, replica)
        return []

    def _wake(self, replica: Replica, now_ns: int) -> list[Sequence]:
        if replica.step_end_ns is None:
            self._go_on(replica, now_ns)
        return []

    def _step_ended(self, replica: Replica, now_ns: int) -> list[Sequence]:
        ended = replica.finish_step()
        for sequence in ended:
            del self._at[sequence.tag]
        self._go_on(replica, now_ns)
        return ended

    def _go_on(self, replica: Replica, now_ns: int) -> None:
        if replica.start_step(now_ns):
            assert replica.step_end_ns is not None
            self._schedule(replica.step_end_ns, self._step_ended, replica)
            return
        at_ns = replica.wake_ns()
        if at_ns is not None:
            self._schedule(max(at_ns, now_ns), self._wake, replica)
