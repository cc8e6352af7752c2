"""What is said of a measurement; the gate decides which it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pytest_llmperf.metrics import Quantity


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
