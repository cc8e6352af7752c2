"""The report as a comment on a pull request: the verdict first, the details folded.

GitHub renders Markdown and some HTML. Whatever comes from elsewhere stands in `<code>` or `<pre>`, where GitHub
makes no links, mentions or references of it, with every character that Markdown knows written as an entity.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from pytest_llmperf import __version__, units
from pytest_llmperf.reports import text
from pytest_llmperf.reports.content import Report, Section
from pytest_llmperf.reports.facts import ABSENT, facts
from pytest_llmperf.reports.next_step import GREEN
from pytest_llmperf.reports.visible import visible
from pytest_llmperf.verdicts import Finding

LONGEST = 60_000
"""Characters: GitHub takes comments of 65,536."""
_ROWS = 8
"""Measurements in the table that everybody sees."""
_NAME = 120
_COLUMNS = 100
_PROSE = re.compile(r"[\w\s;,.()=-]*")
"""Text in which Markdown and GitHub see nothing but text."""
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_NO_KEY = re.compile(r"[^A-Za-z0-9._]+")
_TABLE = 130
"""Columns of a table of findings in full: a browser scrolls."""


def marker(report: Report) -> str:
    """The first line: by it a comment is found again and updated, one for each set of hardware."""
    keys = "+".join(_NO_KEY.sub("-", key).strip("-") for key in sorted(report.hardware_keys))
    return f"<!-- pytest-llmperf report: {keys or 'nothing'} -->"


def markdown(report: Report, longest: int = LONGEST) -> str:
    """The comment, of at most so many characters; what did not fit is said."""
    verdicts = f"### {report.tally()}"
    head = [marker(report), verdicts, "", _advice(report), _about(report), "", *_table(report), *_notes(report)]
    written = "\n".join(head) + "\n"
    blocks = [_block(section) for section in report.by_severity]
    if not blocks:
        return written
    all_of = "The measurement" if len(blocks) == 1 else f"All {len(blocks)} measurements"
    opening = f"\n<details><summary>{all_of}</summary>\n"
    closing = "\n</details>\n"
    room = longest - len(written) - len(opening) - len(closing) - _COLUMNS
    shown: list[str] = []
    for block in blocks:
        room -= len(block) + 1
        if room < 0:
            break
        shown.append(block)
    left = len(blocks) - len(shown)
    rest = f"\nand {units.count(left, 'more measurement')}, for which this comment has no room" if left else ""
    return f"{written}{opening}\n{chr(10).join(shown)}\n{rest}{closing}"


def code(given: str) -> str:
    """Text from elsewhere within a line: shown as it is, whatever it holds."""
    flat = " ".join(visible(given, _NAME).split())
    return f"<code>{_PUNCTUATION.sub(lambda found: f'&#{ord(found.group())};', flat)}</code>"


def _advice(report: Report) -> str:
    """What to do, and the end of its line; a result file may hold any text as advice."""
    said = report.advice
    return f"What to do: {said if _PROSE.fullmatch(said) and '_' not in said else code(said)}<br>"


def _about(report: Report) -> str:
    on = f" on {', '.join(map(code, report.hardware_keys))}" if report.hardware_keys else ""
    commit = f", commit {code(report.commit[:10])}" if report.commit is not None else ""
    return f"{code(report.source)}{on}{commit}; pytest-llmperf {__version__}"


def _table(report: Report) -> Iterator[str]:
    """What needs a person; of a report that is green, nothing."""
    shown = [section for section in report.by_severity if section.verdict not in GREEN]
    if not shown:
        return
    yield "| verdict | measurement | metric | baseline | now | change | could see |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for section in shown[:_ROWS]:
        yield f"| {' | '.join((f'**{section.verdict_text}**', code(section.name), *_worst(section)))} |"
    if len(shown) > _ROWS:
        yield f"\nand {len(shown) - _ROWS} more that need a look"


def _worst(section: Section) -> tuple[str, ...]:
    """The finding that the verdict comes from; of what is invalid, why."""
    if section.invalid:
        return (code(section.invalid[0]), *(ABSENT,) * 4)
    found = next((one for one in section.findings if one.verdict is section.verdict), None)
    if found is None:
        return (ABSENT,) * 5
    return (code(found.metric.name), *_numbers(found))


def _numbers(finding: Finding) -> tuple[str, ...]:
    unit = finding.metric.unit
    levels = [ABSENT if one is None else units.quantity(one, unit) for one in (finding.baseline, finding.now)]
    changes = [ABSENT if one is None else units.change(one) for one in (finding.change, finding.detectable)]
    return tuple(html.escape(one).replace(" ", "&nbsp;") for one in (*levels, *changes))


def _notes(report: Report) -> Iterator[str]:
    if report.notes:
        yield ""
        yield f"{code(report.notes[0])}{f' and {len(report.notes) - 1} more notes' if len(report.notes) > 1 else ''}"


def _block(section: Section) -> str:
    """One measurement as plain text; nothing in it is Markdown to GitHub."""
    lines = "\n".join(visible(line) for line in _lines(section))
    return f"<pre>{html.escape(lines)}</pre>"


def _lines(section: Section) -> Iterator[str]:
    judgement = section.judgement
    if section.invalid or judgement is None:
        yield f"{section.verdict_text} {section.name}"
        yield from (f"  invalid: {reason}" for reason in section.invalid)
    else:
        yield from text.judged(section.name, judgement, _TABLE)
        yield from (f"    {line}" for line in section.accepting)
    known = [f"{label} {value}" for label, value in facts(section)]
    yield from text.wrapped(f"  {'; '.join(known)}", _COLUMNS)
    said = () if judgement is None else judgement.doubts
    yield from (f"  doubt: {doubt}" for doubt in section.doubts if doubt not in said)
    yield from (f"  differs from the baseline: {difference}" for difference in section.differences)
