"""Seeded noise, so that a simulated night differs from another one as real ones do.

What is drawn hangs on the seed and on the prompts, not on what ran before: a test has the same
noise alone and within its suite.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()
_MASK = 2**64 - 1


class Noise:
    """The noise of one run. Shares are standard deviations; 0: none. Prompts are told apart by their names."""

    def __init__(self, seed: int, run: float, request: float) -> None:
        self._seed = seed
        self._run = run
        self._request = request
        self._pace: float | None = None

    def pace(self, prompt: int) -> float:
        """The factor on the run's step times, lognormal with median 1; drawn by the run's first prompt."""
        if self._pace is None:
            self._pace = math.exp(self._run * self._normal(prompt, 1)) if self._run else 1.0
        return self._pace

    def stretch(self, prompt: int) -> float:
        """The factor on an answer's times, at least 1: what lies between engine and client only ever delays."""
        return 1.0 + abs(self._request * self._normal(prompt, 2)) if self._request else 1.0

    def _normal(self, prompt: int, salt: int) -> float:
        state = prompt ^ (self._seed * 0x9E3779B97F4A7C15 + salt) & _MASK
        for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # SplitMix64's finalizer
            state = ((state ^ (state >> 30)) * factor) & _MASK
        return _NORMAL.inv_cdf(((state >> 11) + 0.5) / 2**53)
