"""What is said of a measurement; the gate decides which it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pytest_llmperf.metrics import Quantity

IN_TURN = "the base build in turn"
"""What stands in a judgement in place of a stored file."""


class Verdict(str, Enum):
    """What is said of a measurement. Only PASS and IMPROVED are green by themselves."""

    PASS = "PASS"
    IMPROVED = "IMPROVED"
    NO_BASELINE = "NO_BASELINE"
    INCONCLUSIVE = "INCONCLUSIVE"
    REGRESSED = "REGRESSED"
    INVALID_RUN = "INVALID_RUN"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What would let an INCONCLUSIVE comparison see what it is asked to see."""

    runs: int | None = None
    """So many tonight; None where no number of them would do."""
    of_base: bool = False
    """Whether the stored night needs as many, too."""
    otherwise: str | None = None
    """What it takes where more runs would not do."""
    or_less: bool = True
    """Whether asking for a larger change only would do, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found for one metric, in its own unit and direction; None where there is no number."""

    metric: Quantity
    verdict: Verdict
    baseline: float | None = None
    now: float | None = None
    change: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    detectable: float | None = None
    """The smallest change for the worse that would have been found with probability 0.8."""
    base_runs: int | None = None
    new_runs: int | None = None
    note: str | None = None
    remedy: Remedy | None = None
    """Of INCONCLUSIVE; not in result files, whose advice is made of it."""
    is_other: bool = False
    """Of NO_BASELINE: whether the same is stored, of another workload or engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict on one measurement, with what it rests on."""

    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    against: str | None = None
    """The baseline's file."""
    doubts: tuple[str, ...] = ()
    advice: str | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why nothing was compared; none where something was, also if that was then found invalid."""
        return self.doubts if self.verdict is Verdict.INVALID_RUN and not self.findings else ()

    @property
    def is_of_nights(self) -> bool:
        """Whether it rests on stored nights, and not only on another build that was measured in turn."""
        return self.against is not None and not self.against.startswith(IN_TURN)
