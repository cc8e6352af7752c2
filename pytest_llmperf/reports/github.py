"""GitHub Actions: annotations on the lines of the tests, as the commands that its log is read for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_llmperf import units
from pytest_llmperf.reports.content import Report, Section
from pytest_llmperf.reports.visible import visible
from pytest_llmperf.verdicts import Verdict

_LEVELS = {
    Verdict.REGRESSED: "error",
    Verdict.INVALID_RUN: "error",
    Verdict.INCONCLUSIVE: "warning",
    Verdict.NO_BASELINE: "notice",
}
_MOST = 10
"""GitHub shows so many of each level and step, and drops the rest."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test stands: its file below the workspace, and its line counted from 1."""

    file: str
    line: int | None = None


def commands(report: Report, places: Mapping[str, Place], *, is_lenient: bool = False) -> Iterator[str]:
    """One command for each measurement that is not green.

    `places`: by the test's node id. `is_lenient`: a regression fails nothing, so it is no error here.
    """
    left = dict.fromkeys(_LEVELS.values(), _MOST)
    for section in report.by_severity:
        level = _LEVELS.get(section.verdict) if section.verdict is not None else None
        if level is None:
            continue
        if is_lenient and section.verdict is Verdict.REGRESSED:
            level = "warning"
        left[level] -= 1
        if left[level] >= 0:
            yield _command(level, section, places.get(section.test))


def _command(level: str, section: Section, place: Place | None) -> str:
    known = {"title": f"{section.verdict_text} {section.name}"}
    if place is not None:
        known = {"file": place.file, **({} if place.line is None else {"line": str(place.line)}), **known}
    properties = ",".join(f"{name}={_property(value)}" for name, value in known.items())
    return f"::{level} {properties}::{_data(_message(section))}"


def _message(section: Section) -> str:
    found = [
        f"{one.metric.name} {units.quantity(one.baseline, one.metric.unit)} -> "
        f"{units.quantity(one.now, one.metric.unit)}, {units.change(one.change)}"
        for one in section.findings
        if one.verdict is section.verdict
        and one.baseline is not None
        and one.now is not None
        and one.change is not None
    ]
    notes = dict.fromkeys(one.note for one in section.findings if one.note is not None and not found)
    advice = section.judgement.advice if section.judgement is not None else None
    said = [*section.invalid, *found, *notes, *([] if advice is None else [advice])]
    return "\n".join(visible(line) for line in said) or section.verdict_text


def _data(given: str) -> str:
    return given.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(given: str) -> str:
    return _data(visible(given)).replace(":", "%3A").replace(",", "%2C")
