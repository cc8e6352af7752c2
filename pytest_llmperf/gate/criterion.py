"""What is asked of a metric."""

from __future__ import annotations

from dataclasses import dataclass

ALPHA = 0.01
"""Family-wise probability of failing a healthy build in one session."""
DETECT = 0.10
"""The slowdown that a PASS must have been able to see, unless `llm_gate(detect=...)` says otherwise."""
NIGHT_SPREAD = 0.02
"""Standard deviation between nights that is assumed while too few are stored to know it.

No figure of it has been published; node, driver and neighbour effects of 1 to 2 % are what designs
of such gates reckon with.
"""


SCREEN = 0.02
"""Share of healthy metrics that stored nights may flag, where what is flagged is measured again before it fails.

With 20 metrics 14 to 25 % of healthy nights then need a second measurement.
"""


@dataclass(frozen=True, slots=True)
class Criterion:
    """What is asked of one metric, as shares: 0.1 is 10 %.

    `detect`: PASS means that a change for the worse of that size would have been found.
    `min_effect`: a change is REGRESSED or IMPROVED only if it is shown to be larger than this;
    for what is known to differ from one server start to the next.
    """

    metric: str
    detect: float = DETECT
    min_effect: float = 0.0
