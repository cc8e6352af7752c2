"""SplitMix64 (Steele, Lea, Flood 2014), on whole arrays: numbers that are the same on every machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
"""By which the generator's state grows."""


def mixed(words: Words) -> Words:
    """The generator's finalizer: every bit of a word moves every bit of what it becomes; one to one."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
