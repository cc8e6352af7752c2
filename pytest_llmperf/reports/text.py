"""A measurement as plain text: the verdict, a table of the gated metrics, and what else bears on it."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from pytest_llmperf import units
from pytest_llmperf.gate.files import Change
from pytest_llmperf.judged import Judged, Provenance, Validity
from pytest_llmperf.reports import next_step
from pytest_llmperf.reports.visible import visible
from pytest_llmperf.results import CacheResult, Figures, PerfResult
from pytest_llmperf.stats import Sample
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

_HEADINGS = ("metric per run", "baseline", "now", "change", "interval", "could see", "p", "verdict")
_IDLE = "gpu_idle"
_NARROW = (0, 1, 2, 3, 5, 7)
"""The columns that stay where the terminal is narrow; interval and p then have a line of their own."""
_ABSENT = "-"
_AGAINST = ", against "
_ROUNDS_SHOWN = 12
_HEADLINE = 2
"""Metrics in a line of 80 columns; of more it is said how many."""
_BOUND_PLACES = re.compile(
    "|".join(
        (
            r"(?<=\d) (?=(?:%|[A-Za-z]{1,3}(?:/[a-z]{1,5})?)(?![\w/]))",  # `15.0 ms`
            r"(?<=\d) (?=runs?\b)",
            r"(?<=[a-z%]) (?=\([\d.,]+ \w+\))",  # `15.0 ms (16.2 ms)`
            r"(?<=[A-Z2]{3}) (?=\d)",  # `TTFT 15.0 ms`
        )
    )
)
"""Spaces at which no line ends."""
_NAMED = re.compile(rf"^({'|'.join(Verdict)}) ")
"""The beginning of a verdict line, which is looked for in logs as it is."""
_BOUND = "\N{NO-BREAK SPACE}"
"""A space at which no line ends; `visible` leaves none of them in what comes from elsewhere."""
CHARACTERS = 80
"""The width of a report where nobody knows the reader's."""


def measurement(result: Judged, width: int = CHARACTERS) -> Iterator[str]:
    """All that is said of one measurement, line by line; its table within `width` characters."""
    return map(plain, _measurement(result, width))


def _measurement(result: Judged, width: int) -> Iterator[str]:
    yield from _first_lines(verdict_line(result), width)
    found = result.judgement
    doubts = found.doubts if found is not None and result.validity and not found.reasons else ()
    if found is not None:
        yield from (f"  {line}" for line in findings_table(found.findings, doubts, width - 2))
    if isinstance(result, PerfResult):
        yield from (f"  {line}" for line in figures(result))
        yield from (f"  {line}" for line in roofline(result))
    if found is None:
        yield from (f"  doubt: {doubt}" for doubt in result.doubts)
        return
    yield from (f"  {line}" for line in _remarks(found, doubts=doubts))


def _first_lines(line: str, width: int) -> list[str]:
    """The verdict and its name; what it was held against stands below where there is no room beside it."""
    named, separator, against = line.rpartition(_AGAINST)
    return [line] if len(line) <= width or not separator else [named, f"  against {against}"]


def judged(name: str, judgement: Judgement, width: int = CHARACTERS) -> Iterator[str]:
    """A judgement of which nothing but itself is known, such as that of two files."""
    lines = _first_lines(_judged_line(name, judgement), width)
    doubts = () if judgement.reasons else judgement.doubts
    lines += [f"  {line}" for line in findings_table(judgement.findings, doubts, width - 2)]
    lines += [f"  {line}" for line in _remarks(judgement, doubts=doubts)]
    return map(plain, lines)


def plain(line: str) -> str:
    """The line with what is no text written out: a name with an escape code in it moves no cursor."""
    return visible(line, len(line)).replace("\n", "\\n")


def folded(lines: Iterable[str], width: int) -> Iterator[str]:
    """Lines of at most `width` characters, as far as their words are no longer."""
    return (part for line in lines for part in wrapped(line, width))


def wrapped(line: str, width: int) -> list[str]:
    """A line in as many as it takes; the further ones begin a little more to the right.

    Words stay whole, a number stays with its unit and with one in brackets after it, and a shell's command as it is.
    """
    if len(line) <= width or line.endswith("\\"):
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    bound = _NAMED.sub(rf"\1{_BOUND}", _BOUND_PLACES.sub(_BOUND, line))
    folded = textwrap.wrap(bound, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [one.replace(_BOUND, " ") for one in folded]


class Told(Protocol):
    """What the last line has to know of a result."""

    @property
    def provenance(self) -> Provenance: ...

    @property
    def validity(self) -> Validity: ...

    @property
    def judgement(self) -> Judgement | None: ...

    @property
    def verdict(self) -> Verdict | None: ...


def worst(results: Sequence[Told]) -> Verdict | None:
    """The verdict that asks most of the reader; None where nothing was judged and nothing is invalid."""
    return next_step.worst([_outcome(result) for result in results])


def _outcome(result: Told) -> next_step.Outcome:
    return (result.verdict if result.validity else Verdict.INVALID_RUN, result.judgement)


def closing(results: Sequence[Told], *, stored: bool, failed: int = 0) -> str:
    """One line: how many of which verdict, and what to do about the worst. `stored`: whether a baseline was saved.

    `failed`: how many tests failed for another reason than a verdict.
    """
    others = f"{failed} failed, " if failed else ""
    if not results:
        return f"llmperf: {others}nothing was measured"
    outcomes = [_outcome(result) for result in results]
    counts = Counter(verdict for verdict, _ in outcomes)
    parts = [f"{counts[verdict]} {verdict}" for verdict in next_step.WORST_FIRST if counts[verdict]]
    if counts[None]:
        parts.append(f"{counts[None]} not judged")
    step = next_step.next_step(outcomes, stored=stored, failed=failed > 0)
    label = "" if step in next_step.ANSWERS else "what to do: "
    return f"llmperf: {others}{', '.join(parts)}; {label}{step}"


def _remarks(judgement: Judgement, doubts: Sequence[str]) -> Iterator[str]:
    yield from _notes(judgement.findings)
    beside = {doubt for finding in judgement.findings for doubt in _about(finding, doubts)}
    yield from (f"doubt: {doubt}" for doubt in doubts if doubt not in beside)
    if judgement.advice is not None:
        yield f"what to do: {judgement.advice}"


def assumptions(results: Sequence[Judged]) -> Iterator[str]:
    """What the shares of the roofline were computed with, each once."""
    for assumed in dict.fromkeys(filter(None, map(_assumed, results))):
        yield f"roofline of {assumed}"


def _assumed(result: Judged) -> str:
    ceiling = result.ceiling if isinstance(result, PerfResult) else None
    return "" if ceiling is None else ceiling.assumptions


def _notes(findings: Sequence[Finding]) -> Iterator[str]:
    """Each note on several metrics once; one on a single metric stands beside its number."""
    counts = Counter(finding.note for finding in findings if finding.note is not None)
    for note in (note for note, count in counts.items() if count > 1):
        names = ", ".join(finding.metric.name for finding in findings if finding.note == note)
        yield f"{names}: {note}"


def verdict_line(result: Judged) -> str:
    """`REGRESSED perf_tests/test_x.py::test_y, against 0001_main.json (5 + 5 runs)`."""
    judgement, name = result.judgement, result.provenance.measurement
    if not result.validity:
        return f"INVALID_RUN {name}: {result.validity}"
    if judgement is None:
        return f"not judged {name} ({units.count(len(result), 'run')})"
    if judgement.against is None and not judgement.reasons:
        return f"{judgement.verdict} {name} ({units.count(len(result), 'run')})"
    return _judged_line(name, judgement)


def _judged_line(name: str, judgement: Judgement) -> str:
    if judgement.reasons:
        return f"{judgement.verdict} {name}: {'; '.join(judgement.reasons)}"
    counts = next((f" ({f.base_runs} + {f.new_runs} runs)" for f in judgement.findings if f.base_runs), "")
    against = "" if judgement.against is None else f"{_AGAINST}{judgement.against}"
    return f"{judgement.verdict} {name}{against}{counts}"


def headline(results: Sequence[Judged]) -> str:
    """`REGRESSED: tpot_p50 +16.1 %`: what fails a test, for where there is room for one line."""
    parts = [part for result in results for part in _failing(result)]
    more = len(parts) - _HEADLINE
    return plain(f"{worst(results)}: {', '.join(parts[:_HEADLINE])}{f', and {more} more' if more > 0 else ''}")


def _failing(result: Judged) -> Iterator[str]:
    """The metrics that a verdict comes from, each with its change if there is one."""
    for finding in () if result.judgement is None else result.judgement.findings:
        if finding.verdict is result.verdict:
            yield finding.metric.name + ("" if finding.change is None else f" {units.change(finding.change)}")


def findings_table(findings: Sequence[Finding], doubts: Sequence[str] = (), width: int = CHARACTERS) -> list[str]:
    """One line per gated metric, a dash where there is no number, and below it what is to be known of that number."""
    if not findings:
        return []
    rows = [_HEADINGS, *(_row(finding) for finding in findings)]
    lines = table(rows)
    is_narrow = max(map(len, lines)) > width
    if is_narrow:
        lines = table([[row[column] for column in _NARROW] for row in rows])
    if max(map(len, lines)) > width:
        return _named_above(rows, findings, doubts)
    made = [lines[0]]
    for finding, line in zip(findings, lines[1:], strict=True):
        made += [line, *_beside(finding, doubts, findings, with_interval=is_narrow)]
    return made


def _named_above(rows: Sequence[Sequence[str]], findings: Sequence[Finding], doubts: Sequence[str]) -> list[str]:
    """Where a metric's name alone is too long: each name has its own line."""
    heading, *lines = table([["", *(row[column] for column in _NARROW[1:])] for row in rows])
    made = [heading]
    for finding, line in zip(findings, lines, strict=True):
        made += [finding.metric.name, line, *_beside(finding, doubts, findings, with_interval=True)]
    return made


def _beside(
    finding: Finding, doubts: Sequence[str], findings: Sequence[Finding], *, with_interval: bool
) -> Iterator[str]:
    """What bears on one number, below it."""
    if with_interval and finding.interval is not None:
        p = "" if finding.p is None else f", p {units.probability(finding.p)}"
        yield f"    change {' .. '.join(map(units.change, finding.interval))}{p}"
    if finding.note is not None and [one.note for one in findings].count(finding.note) == 1:
        yield f"    {finding.metric.name}: {finding.note}"
    yield from (f"    doubt: {doubt}" for doubt in _about(finding, doubts))


def _about(finding: Finding, doubts: Sequence[str]) -> list[str]:
    """The doubts that are about this metric alone."""
    return [doubt for doubt in doubts if doubt.startswith(f"{finding.metric.name}: ")]


def changes_table(changes: Sequence[Change]) -> list[str]:
    """One line per metric that may not be judged."""
    rows = [
        ("metric", "base", "new", "change", ""),
        *(
            (
                change.quantity.name,
                units.quantity(change.base, change.quantity.unit),
                units.quantity(change.new, change.quantity.unit),
                units.change(change.change),
                "",
            )
            for change in changes
        ),
    ]
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the last as it is, those between to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_aligned(row, widths).rstrip() for row in rows]


def tally(judgements: Sequence[Judgement]) -> Iterator[str]:
    """`18 PASS, 1 REGRESSED`; nothing of nothing."""
    counts = Counter(judgement.verdict for judgement in judgements)
    if counts:
        yield ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])


def _row(finding: Finding) -> tuple[str, ...]:
    unit = finding.metric.unit
    return (
        finding.metric.name,
        _ABSENT if finding.baseline is None else units.quantity(finding.baseline, unit),
        _ABSENT if finding.now is None else units.quantity(finding.now, unit),
        _ABSENT if finding.change is None else units.change(finding.change),
        _ABSENT if finding.interval is None else " .. ".join(map(units.change, finding.interval)),
        _ABSENT if finding.detectable is None else units.change(finding.detectable),
        _ABSENT if finding.p is None else units.probability(finding.p),
        str(finding.verdict),
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right, the verdict last and unpadded."""
    name, *numbers, verdict = row
    cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False))]
    return "  ".join([*cells, verdict])


def figures(result: Figures) -> Iterator[str]:
    """The measured figures in a few lines; what was not measured is left out."""
    latencies = [("TTFT", result.ttft), ("TPOT", result.tpot), ("ITL", result.itl), ("E2E", result.e2e)]
    measured = [f"{name} {_two(sample)}" for name, sample in latencies if sample.count]
    if measured:
        yield f"all requests, p50 (p99): {', '.join(measured)}"
    rates = [
        units.quantity(value, unit) + what
        for value, unit, what in (
            (result.output_throughput, units.TOKENS_PER_SECOND, " out"),
            (result.total_throughput, units.TOKENS_PER_SECOND, " in and out"),
            (result.request_throughput, units.REQUESTS_PER_SECOND, ""),
        )
        if value is not None
    ]
    if rates:
        yield f"all runs: {', '.join(rates)}"
    rounds = [one.ttft for one in result.by_round]
    if len(rounds) > 1 and all(sample.count for sample in rounds):
        shown = " ".join(units.seconds(sample.p50) for sample in rounds[:_ROUNDS_SHOWN])
        more = f" ... {units.seconds(rounds[-1].p50)}" if len(rounds) > _ROUNDS_SHOWN else ""
        yield f"all requests, TTFT p50 by round: {shown}{more}"
    yield from _cache(result)
    yield from _gpu(result)


def roofline(result: PerfResult) -> Iterator[str]:
    """What share of the peaks was reached; an idle link is left out."""
    shares = {} if result.ceiling is None else result.ceiling.shares
    parts = [f"{name} {units.share(share)}" for name, share in shares.items() if share]
    if parts:
        yield f"roofline: {', '.join(parts)}"


def _two(sample: Sample) -> str:
    return f"{units.seconds(sample.p50)} ({units.seconds(sample.p99)})"


def _cache(result: Figures) -> Iterator[str]:
    cache = result.cache
    parts = [] if cache.hit_rate is None else [f"hit rate {units.share(cache.hit_rate)}"]
    if cache.tiers is not None:
        total = sum(cache.tiers.values())
        parts += [f"{tier} {units.share(count / total)}" for tier, count in cache.tiers.items() if count]
    for what, amount in (("offloaded", cache.offloaded_bytes), ("restored", cache.restored_bytes)):
        if amount:
            parts.append(f"{what} {units.size(amount)}")
    if cache.preemptions:
        parts.append(f"preemptions {cache.preemptions}")
    if parts:
        yield f"cache: {', '.join(parts)}"
    if cache.replicas is not None and len(cache.replicas) > 1:
        yield f"cache of each replica: {', '.join(map(_replica, cache.replicas))}"


def _replica(cache: CacheResult) -> str:
    """How much it found of how much it was given."""
    rate = "hit rate unknown" if cache.hit_rate is None else f"hit rate {units.share(cache.hit_rate)}"
    return rate if cache.tiers is None else f"{rate} of {sum(cache.tiers.values()):,} tokens"


def _gpu(result: Figures) -> Iterator[str]:
    """What the GPUs took, and what held their clocks; idling is no news."""
    gpu = result.gpu
    if gpu is None:
        return
    amounts = ((gpu.joules_per_token, units.JOULES_PER_TOKEN), (gpu.mean_power_w, units.WATTS))
    parts = [units.quantity(value, unit) for value, unit in amounts if value is not None]
    parts += [f"{name} {units.share(share)}" for name, share in gpu.reasons.items() if share and name != _IDLE]
    parts += [f"lost {one}" for one in gpu.lost]
    if parts:
        yield f"gpu: {', '.join(parts)}"
