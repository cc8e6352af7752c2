"""Seeded random numbers, the same for the same seed everywhere, and the times drawn from them.

Only the raw output of PCG64 is used, whose stream numpy guarantees, unlike that of the methods of
`Generator`; it becomes a distribution through the inverse of its cumulative function.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import numpy as np

from pytest_llmperf.load.arguments import POSITIVE, Rule, check, is_at_least_zero, written
from pytest_llmperf.load.base import Sessions

Floats = np.ndarray
"""One-dimensional, float64."""

LONGEST_NS = 2.0**62
"""About 146 years: no drawn time is longer, so that all of them fit into an int64."""


def uniforms(seed: int, label: str, count: int) -> Floats:
    """`count` numbers above 0 and below 1 for this label; another label gives unrelated ones."""
    key = hashlib.sha256(f"{seed}\0{label}".encode()).digest()
    raw = np.random.PCG64(int.from_bytes(key[:16], "little")).random_raw(count)
    # An odd number of 53 bits is exact as a float and neither 0 nor 2**53: no distribution is asked for its ends.
    odd = (raw >> np.uint64(11)) | np.uint64(1)
    drawn: Floats = odd.astype(np.float64) * 2.0**-53
    return drawn


def gamma_gaps(shape: float, seed: int, count: int) -> Floats:
    """Independent gaps with a mean of 1 and a standard deviation of 1 / sqrt(shape)."""
    drawn = uniforms(seed, "gaps", count)
    if shape == 1:
        gaps: Floats = -np.log1p(-drawn)
        return gaps
    from scipy.special import gammaincinv  # noqa: PLC0415 - only bursts pay for it

    return np.asarray(gammaincinv(shape, drawn)) / shape


def to_ns(seconds: Floats) -> list[int]:
    """Whole nanoseconds."""
    times: list[int] = np.rint(np.minimum(seconds * 1e9, LONGEST_NS)).astype(np.int64).tolist()
    return times


@dataclass(frozen=True, slots=True, repr=False)
class Exponential:
    """See `exponential`."""

    mean_s: float

    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        check(self, {"mean_s": POSITIVE})

    def __repr__(self) -> str:
        return written(self)

    def quantiles_s(self, at: Floats) -> Floats:
        """The inverse of the cumulative distribution, in seconds."""
        drawn: Floats = -self.mean_s * np.log1p(-at)
        return drawn


@dataclass(frozen=True, slots=True, repr=False)
class LogNormal:
    """See `lognormal`."""

    mean_s: float
    sigma: float

    name: ClassVar[str] = "lognormal"

    def __post_init__(self) -> None:
        check(self, {"mean_s": POSITIVE, "sigma": POSITIVE})

    def __repr__(self) -> str:
        return written(self)

    def quantiles_s(self, at: Floats) -> Floats:
        """The inverse of the cumulative distribution, in seconds."""
        from scipy.special import ndtri  # noqa: PLC0415 - only these think times pay for it

        return np.exp(math.log(self.mean_s) - self.sigma**2 / 2 + self.sigma * np.asarray(ndtri(at)))


ThinkTime = float | Exponential | LogNormal
"""How long a user takes from an answer to the next turn: seconds, or how they are distributed."""

THINK = Rule(
    "a number of seconds, at least 0, or exponential(mean_s) or lognormal(mean_s, sigma)",
    lambda value: isinstance(value, Exponential | LogNormal) or is_at_least_zero(value),
)


class ThinkTimes:
    """The think time before each turn, drawn before the run: no order of answers changes it."""

    def __init__(self, think_s: ThinkTime, seed: int, sessions: Sessions) -> None:
        self._fixed_ns: int | None = None
        if isinstance(think_s, int | float):
            self._fixed_ns = round(think_s * 1e9)
            return
        # Drawn for the sessions of all workers, so that no split changes them either.
        self._offsets = [0, *accumulate(map(len, sessions))]
        self._drawn_ns = to_ns(think_s.quantiles_s(uniforms(seed, "think times", self._offsets[-1])))

    def before_ns(self, session: int, turn: int) -> int:
        """From the end of the turn before to this one."""
        return self._drawn_ns[self._offsets[session] + turn] if self._fixed_ns is None else self._fixed_ns


def exponential(mean_s: float) -> Exponential:
    """Think times that are distributed exponentially, with this mean in seconds.

    Raises `ConfigurationError` unless the mean is above 0.
    """
    return Exponential(mean_s)


def lognormal(mean_s: float, sigma: float) -> LogNormal:
    """Think times whose logarithm is distributed normally.

    `mean_s` is the mean of the think times themselves, in seconds; `sigma` the standard deviation of
    their logarithm. Raises `ConfigurationError` unless both are above 0.
    """
    return LogNormal(mean_s, sigma)
