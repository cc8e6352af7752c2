"""Which replica gets a request."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from pytest_llmperf.engines.sim.blocks import Hashes, Ids
from pytest_llmperf.engines.sim.replica import Replica
from pytest_llmperf.engines.sim.settings import Settings


class Policy(Protocol):
    """Chooses by what the router in front of the replicas can see."""

    def __call__(self, ids: Ids, hashes: Hashes) -> int:
        """The number of the replica for this prompt."""
        ...


class RoundRobin:
    """One after another."""

    def __init__(self, replicas: Sequence[Replica], settings: Settings) -> None:
        del settings
        self._count = len(replicas)
        self._next = 0

    def __call__(self, ids: Ids, hashes: Hashes) -> int:
        del ids, hashes
        chosen, self._next = self._next, (self._next + 1) % self._count
        return chosen


class LeastLoaded:
    """The one with the fewest requests; of equal ones the first after the one chosen last."""

    def __init__(self, replicas: Sequence[Replica], settings: Settings) -> None:
        del settings
        self._replicas = replicas
        self._last = -1

    def __call__(self, ids: Ids, hashes: Hashes) -> int:
        del ids, hashes
        count = len(self._replicas)
        order = [(self._last + 1 + step) % count for step in range(count)]
        self._last = min(order, key=lambda number: self._replicas[number].load)
        return self._last


class PrefixHash:
    """Consistent hashing of the prompt's beginning with bounded loads, as KubeAI does it.

    Each replica has points on a ring. The first one clockwise from the prompt's hash is taken whose load is at most
    `load_factor` times the mean load, which counts the new request; since KubeAI's pull request 528 only the mean
    does. With a factor of 1 and more there always is such a one.
    """

    def __init__(self, replicas: Sequence[Replica], settings: Settings) -> None:
        self._replicas = replicas
        self._factor = settings.load_factor
        self._tokens = int(settings.prefix_tokens)
        points = [
            (_hash(f"replica-{number} {point}".encode()), number)
            for number in range(len(replicas))
            for point in range(int(settings.ring_points))
        ]
        self._ring = sorted(points)

    def __call__(self, ids: Ids, hashes: Hashes) -> int:
        del hashes
        loads = [replica.load for replica in self._replicas]
        most = (sum(loads) + 1) / len(loads) * self._factor
        start = bisect.bisect_left(self._ring, (_hash(ids[: self._tokens].tobytes()), 0))
        if min(loads) <= most:
            for step in range(len(self._ring)):
                number = self._ring[(start + step) % len(self._ring)][1]
                if loads[number] <= most:
                    return number
        return self._ring[start % len(self._ring)][1]


class CacheAware:
    """The replica that has most of the prompt cached, unless little is or the loads are out of balance: then the
    least loaded one, as SGLang's router does it."""

    def __init__(self, replicas: Sequence[Replica], settings: Settings) -> None:
        self._replicas = replicas
        self._share = settings.match_share
        self._imbalance = settings.imbalance
        self._least = LeastLoaded(replicas, settings)

    def __call__(self, ids: Ids, hashes: Hashes) -> int:
        loads = [replica.load for replica in self._replicas]
        if len(hashes) and max(loads) <= self._imbalance * (min(loads) + 1):
            matches = [replica.match(hashes) for replica in self._replicas]
            best = max(range(len(matches)), key=lambda number: (matches[number], -loads[number]))
            if matches[best] >= self._share * len(hashes):
                return best
        return self._least(ids, hashes)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


POLICIES: dict[str, Callable[[Sequence[Replica], Settings], Policy]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "prefix_hash": PrefixHash,
    "cache_aware": CacheAware,
}
