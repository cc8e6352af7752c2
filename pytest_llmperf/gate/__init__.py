"""The only place that decides.

Runs are the sample. Each gated metric's log run values are compared with others, stored or of the
same night; Holm's step-down over all gated metrics bounds the probability that a healthy build fails
anywhere. A family's size is fixed before anything is measured, so that a verdict given when a test
ends can only be sharpened by what is measured later.
"""

from pytest_llmperf.gate.criterion import ALPHA, DETECT, NIGHT_SPREAD, SCREEN, Criterion
from pytest_llmperf.gate.family import Family
from pytest_llmperf.gate.stored import Gate, confirmed
from pytest_llmperf.gate.trial import Base, Trial, tried

__all__ = [
    "ALPHA",
    "DETECT",
    "NIGHT_SPREAD",
    "SCREEN",
    "Base",
    "Criterion",
    "Family",
    "Gate",
    "Trial",
    "confirmed",
    "tried",
]
