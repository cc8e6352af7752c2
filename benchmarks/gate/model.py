"""Runs as they come from a machine: heavy-tailed, autocorrelated requests, noise of runs, effects of nights.

    log run statistic = request noise + run effect + night effect

Requests: 500 per run, the same prompts each run, log sd 0.4 of which 80 % is the prompts' own and 20 %
AR(1) with coefficient 0.5; 2 % of them stall by an exponential delay of mean 0.4 on the log scale. Run
effect: normal, correlated 0.5 between metrics, its sd spread by 30 % between metrics. Night effect:
normal, correlated 0.8 between metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

REQUESTS = 500
STATISTICS: dict[str, Callable[[Array], Array]] = {
    "p50": lambda logs: np.median(logs, axis=1),
    "gmean": lambda logs: logs.mean(axis=1),
}
_POOL = 20_000
_WITHIN, _STALLS, _STALL = 0.2, 0.02, 0.4


def request_noise(statistic: str, seed: int = 5) -> Array:
    """The statistic of many runs of the same requests, less its mean: what requests alone make of it."""
    random = np.random.default_rng(seed)
    prompts = random.normal(0, 0.4 * math.sqrt(1 - _WITHIN), REQUESTS)
    found = []
    for _ in range(_POOL // 2000):
        noise = random.standard_normal((2000, REQUESTS))
        for i in range(1, REQUESTS):
            noise[:, i] = 0.5 * noise[:, i - 1] + math.sqrt(0.75) * noise[:, i]
        stalls = (random.random(noise.shape) < _STALLS) * random.exponential(_STALL, noise.shape)
        found.append(STATISTICS[statistic](prompts + 0.4 * math.sqrt(_WITHIN) * noise + stalls))
    pool = np.concatenate(found)
    return pool - pool.mean()


@dataclass(frozen=True, slots=True)
class Machine:
    """One hardware key with its noise: standard deviations as shares."""

    pool: Array
    metrics: int
    run: float
    night: float

    def spreads(self, random: np.random.Generator) -> Array:
        """The sd of each metric's run effect."""
        return self.run * np.exp(0.3 * random.standard_normal(self.metrics)) / math.exp(0.09)

    def nights(self, random: np.random.Generator, spreads: Array, nights: int, runs: int) -> Array:
        """`[metric, night, run]`."""
        shape = (self.metrics, nights, runs)
        values = self.pool[random.integers(0, self.pool.size, shape)]
        effect = random.standard_normal((1, nights, runs)) + random.standard_normal(shape)
        values = values + spreads[:, None, None] * math.sqrt(0.5) * effect
        common = math.sqrt(0.8) * random.standard_normal((1, nights, 1))
        return values + self.night * (common + math.sqrt(0.2) * random.standard_normal((self.metrics, nights, 1)))
