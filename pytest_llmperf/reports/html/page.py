"""The page: what each place of the template shows, as text and numbers that are written already."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from pytest_llmperf import __version__, units
from pytest_llmperf.reports.content import Report, Section, typical
from pytest_llmperf.reports.facts import client_error, facts
from pytest_llmperf.reports.html import plots
from pytest_llmperf.reports.html.svg import Plot, check_installed
from pytest_llmperf.reports.next_step import GREEN
from pytest_llmperf.reports.sweeps import sweeps_in
from pytest_llmperf.reports.visible import visible
from pytest_llmperf.verdicts import Finding

if TYPE_CHECKING:
    from markupsafe import Markup

_ABSENT = "-"
_OPEN = 6
"""Of so many measurements each is unfolded; of more those that need a person."""
_DRAWINGS = {
    "distributions": plots.distributions,
    "rounds": plots.rounds,
    "course": plots.course,
    "nights": plots.nights,
}
_HEADINGS = (
    "metric per run",
    "baseline",
    "now",
    "change",
    "interval",
    "could see",
    "p",
    "client's error, at most",
    "verdict",
)
_FIGURES = re.compile(r"[-+<>x]?\d|-$|$")
"""A cell that is set to the right, as numbers are; one that was not measured among them."""
_PARTS = re.compile(r"(::|[/_\[])(?=.)")
_SHARES = {"prefill": "prefill", "decode": "decode", "link": "host link"}


def page(report: Report) -> str:
    """The whole report as one HTML document.

    Raises `ConfigurationError` where the libraries of the extra `report` are not installed.
    """
    check_installed()
    import jinja2  # noqa: PLC0415 - an extra

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = visible
    environment.filters["breakable"] = _breakable
    environment.filters["capitalised"] = lambda text: f"{text[:1].upper()}{text[1:]}"
    environment.tests["figures"] = lambda cell: _FIGURES.match(cell) is not None
    script, style = _packaged("page.js"), _packaged("page.css")
    return environment.from_string(_packaged("page.html.jinja")).render(
        report=report,
        version=__version__,
        headings=_HEADINGS,
        sections=[_Shown(section, place, is_open=_is_open(section, report)) for place, section in _placed(report)],
        sweeps=[(found, plots.sweep(found, f"sweep{place}")) for place, found in enumerate(sweeps_in(report.sections))],
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style,
    )


def _packaged(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _breakable(name: str) -> Markup:
    """A test's name that goes on in the next line between its parts rather than within a word."""
    from markupsafe import Markup, escape  # noqa: PLC0415 - comes with jinja2, an extra

    return Markup(_PARTS.sub(r"\1<wbr>", str(escape(visible(name)))))


def _placed(report: Report) -> Iterator[tuple[int, Section]]:
    yield from enumerate(report.by_severity, start=1)


def _is_open(section: Section, report: Report) -> bool:
    return section.verdict not in GREEN or len(report.sections) <= _OPEN


@dataclass(frozen=True, slots=True)
class Row:
    """One gated metric: its cells in the order of the headings, and what was noted of it."""

    cells: tuple[str, ...]
    verdict: str
    note: str | None = None


class _Shown:
    """What the template asks of one measurement."""

    def __init__(self, section: Section, place: int, *, is_open: bool) -> None:
        self.section = section
        self.anchor = f"m{place}"
        self.is_open = is_open
        self.verdict = section.verdict_text
        self.rows = list(_rows(section))
        self.facts = list(facts(section))
        self.shares = list(_shares(section))
        self.plots = list(_plots(section, self.anchor))
        self.runs = _runs(section)

    @property
    def worst(self) -> Row | None:
        """The metric that the overview shows: the first with the measurement's own verdict."""
        return next((row for row in self.rows if row.verdict == self.verdict), self.rows[0] if self.rows else None)

    @property
    def doubts(self) -> list[str]:
        judged = self.section.judgement.doubts if self.section.judgement is not None else ()
        invalid = self.section.invalid
        return [one for one in dict.fromkeys((*judged, *self.section.doubts)) if one not in invalid]

    @property
    def assumptions(self) -> str | None:
        ceiling = self.section.figures.get("ceiling")
        assumed = ceiling.get("assumptions") if isinstance(ceiling, Mapping) else None
        return assumed if isinstance(assumed, str) else None


def _rows(section: Section) -> Iterator[Row]:
    """What was judged; of what was not, the values."""
    for finding in section.findings:
        yield _finding_row(finding, section)
    judged = {finding.metric.name for finding in section.findings}
    for quantity, values in section.values.items():
        if quantity.name not in judged and values:
            now = units.quantity(typical(values), quantity.unit)
            blank = (_ABSENT,) * 4
            cells = (quantity.name, _ABSENT, now, *blank, client_error(section, quantity.name))
            yield Row(cells=cells, verdict=section.verdict_text)


def _finding_row(finding: Finding, section: Section) -> Row:
    unit = finding.metric.unit
    cells = (
        finding.metric.name,
        _ABSENT if finding.baseline is None else units.quantity(finding.baseline, unit),
        _ABSENT if finding.now is None else units.quantity(finding.now, unit),
        _ABSENT if finding.change is None else units.change(finding.change),
        _ABSENT if finding.interval is None else " .. ".join(map(units.change, finding.interval)),
        _ABSENT if finding.detectable is None else units.change(finding.detectable),
        _ABSENT if finding.p is None else units.probability(finding.p),
        client_error(section, finding.metric.name),
    )
    return Row(cells=cells, verdict=str(finding.verdict), note=finding.note)


def _shares(section: Section) -> Iterator[tuple[str, float, str]]:
    """Of the roofline: name, share, and the share in words; an idle link is left out."""
    for name, label in _SHARES.items():
        share = section.number("ceiling", name)
        if share:
            yield label, share, units.share(share)


def _plots(section: Section, anchor: str) -> Iterator[Plot]:
    for name, draw in _DRAWINGS.items():
        made = draw(section, f"{anchor}{name}")
        if made is not None:
            yield made


def _runs(section: Section) -> dict[str, Any]:
    """Each run's values of the gated metrics, as a table."""
    columns = [(quantity, list(values)) for quantity, values in section.values.items()]
    most = max((len(values) for _, values in columns), default=0)
    rows = [
        (str(run + 1), *(units.quantity(v[run], q.unit) if run < len(v) else _ABSENT for q, v in columns))
        for run in range(most)
    ]
    return {"headings": ["run", *(quantity.name for quantity, _ in columns)], "rows": rows}
