"""What a report tells, wherever it came from: a session that has just ended, or a result file.

Figures are plain values under the names that a result file gives them, so that a report of a file and one
of a session are made alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_llmperf.history import Series
from pytest_llmperf.metrics import Quantity
from pytest_llmperf.reports.next_step import WHY_FAILED, next_step
from pytest_llmperf.timeline import Timeline
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

NOT_JUDGED = "not judged"
_SEVERITY = (
    Verdict.REGRESSED,
    Verdict.INVALID_RUN,
    Verdict.INCONCLUSIVE,
    Verdict.NO_BASELINE,
    None,
    Verdict.IMPROVED,
    Verdict.PASS,
)
"""What a reader has to see first, first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The stored night that a measurement is set beside."""

    name: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One measurement."""

    name: str
    """The test's node id, and the measurement's name if it has one."""
    test: str
    hardware_key: str
    judgement: Judgement | None = None
    """None where nothing was judged."""
    invalid: tuple[str, ...] = ()
    """Why the figures may not be believed."""
    doubts: tuple[str, ...] = ()
    values: Mapping[Quantity, Sequence[float]] = field(default_factory=dict)
    """By gated metric, each run's value in the metric's own unit."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    """What was measured, in words: workload, load, cache, engine."""
    is_open: bool = False
    """Whether the load sends without waiting for answers; then TTFT counts from the schedule."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The test's parameters."""
    before: Before | None = None
    differences: tuple[str, ...] = ()
    """How the engine differs from the baseline's."""
    accepting: tuple[str, ...] = ()
    """Lines of a shell that accept what has regressed."""
    timeline: Timeline | None = None
    """None where there are no records."""
    series: tuple[Series, ...] = ()
    """The stored nights of the gated metrics."""

    @property
    def verdict(self) -> Verdict | None:
        if self.invalid:
            return Verdict.INVALID_RUN
        return None if self.judgement is None else self.judgement.verdict

    @property
    def verdict_text(self) -> str:
        return NOT_JUDGED if self.verdict is None else str(self.verdict)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return () if self.judgement is None else self.judgement.findings

    @property
    def is_simulated(self) -> bool:
        return self.hardware_key.startswith("sim-")

    @property
    def ttft(self) -> str:
        """The TTFT that counts, by its name among the figures."""
        return "scheduled_ttft" if self.is_open else "ttft"

    def number(self, *path: str) -> float | None:
        """A figure by the names that lead to it; None where it was not measured."""
        return number(self.figures, *path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one report tells."""

    source: str
    """What it is of: a session, or a file's name."""
    sections: tuple[Section, ...]
    saved_at: str = ""
    """ISO 8601; empty where it is not known or, as with simulations, does not matter."""
    commit: str | None = None
    environment: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By hardware key, how it differs from the newest stored night's."""
    notes: tuple[str, ...] = ()
    """What the reader should know of the report itself, such as files that could not be used."""
    failed: tuple[str, ...] = ()
    """Tests that failed for another reason than a verdict: by an assertion, or before anything was measured."""
    stored: bool = False
    """Whether the session has stored a baseline."""
    keys: tuple[str, ...] = ()
    """Of the hardware that it would have been, where nothing was measured."""

    @property
    def hardware_keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(section.hardware_key for section in self.sections)) or self.keys

    @property
    def by_severity(self) -> list[Section]:
        """The sections, those that need a person first; in the order of the tests where alike."""
        return sorted(self.sections, key=lambda section: _SEVERITY.index(section.verdict))

    @property
    def advice(self) -> str:
        """What to do about the worst of the verdicts."""
        if not self.sections:
            return WHY_FAILED if self.failed else "run pytest -rs to see why nothing was measured"
        outcomes = [(section.verdict, section.judgement) for section in self.sections]
        return next_step(outcomes, stored=self.stored, failed=bool(self.failed))

    def tally(self) -> str:
        """`1 REGRESSED, 18 PASS`; the worst first."""
        found = [section.verdict for section in self.sections]
        counts = [(found.count(verdict), verdict or NOT_JUDGED) for verdict in _SEVERITY]
        verdicts = [f"{count} {verdict}" for count, verdict in counts if count] or ["nothing was measured"]
        return ", ".join([*([f"{len(self.failed)} failed"] if self.failed else []), *verdicts])


def typical(values: Sequence[float]) -> float:
    """As the level of a night: the geometric mean, which is 0 where a run's value is."""
    if min(values) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def number(tree: Any, *path: str) -> float | None:
    """What stands at the end of a path of names, if it is a finite number."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    is_number = isinstance(tree, (int, float)) and not isinstance(tree, bool)
    return float(tree) if is_number and math.isfinite(tree) else None


def items(tree: Any, name: str) -> list[Mapping[str, Any]]:
    """The objects of a list of that name; none where there is no such list."""
    found = tree.get(name) if isinstance(tree, Mapping) else None
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def numbers(tree: Any, name: str) -> Iterator[tuple[str, float]]:
    """The numbers of an object of that name, such as the tokens by tier."""
    found = tree.get(name) if isinstance(tree, Mapping) else None
    for key in found if isinstance(found, Mapping) else ():
        value = number(found, key)
        if value is not None:
            yield str(key), value
