"""A measurement as plain text: the verdict, a table of the gated metrics, and what else bears on it."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_llmperf import units
from pytest_llmperf.gate.files import Change
from pytest_llmperf.judged import Judged
from pytest_llmperf.results import Figures, PerfResult
from pytest_llmperf.stats import Sample
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

_HEADINGS = ("metric", "baseline", "now", "change", "interval", "could see", "p", "verdict")
_IDLE = "gpu_idle"
_ABSENT = "-"
_ROUNDS_SHOWN = 12
_CHARACTERS = 80


def measurement(result: Judged) -> Iterator[str]:
    """All that the terminal says of one measurement, line by line."""
    yield verdict_line(result)
    found = result.judgement
    yield from (f"  {line}" for line in findings_table(found.findings if found is not None else ()))
    if isinstance(result, PerfResult):
        yield from (f"  {line}" for line in figures(result))
        yield from (f"  {line}" for line in roofline(result))
    if found is None:
        yield from (f"  doubt: {doubt}" for doubt in result.doubts)
        return
    yield from (f"  {line}" for line in _remarks(found, doubts=found.doubts if result.validity else ()))


def judged(name: str, judgement: Judgement) -> Iterator[str]:
    """A judgement of which nothing but itself is known, such as that of two files."""
    yield _judged_line(name, judgement)
    yield from (f"  {line}" for line in findings_table(judgement.findings))
    yield from (f"  {line}" for line in _remarks(judgement, doubts=judgement.doubts))


def _remarks(judgement: Judgement, doubts: Sequence[str]) -> Iterator[str]:
    yield from _notes(judgement.findings)
    yield from (f"doubt: {doubt}" for doubt in doubts)
    if judgement.advice is not None:
        yield f"what to do: {judgement.advice}"


def assumptions(results: Sequence[Judged]) -> Iterator[str]:
    """What the shares of the roofline were computed with, each once."""
    for assumed in dict.fromkeys(filter(None, map(_assumed, results))):
        yield from textwrap.wrap(f"roofline of {assumed}", _CHARACTERS, subsequent_indent="  ")


def _assumed(result: Judged) -> str:
    ceiling = result.ceiling if isinstance(result, PerfResult) else None
    return "" if ceiling is None else ceiling.assumptions


def _notes(findings: Sequence[Finding]) -> Iterator[str]:
    """Each note once, with the metrics that it is about."""
    for note in dict.fromkeys(finding.note for finding in findings if finding.note is not None):
        names = ", ".join(finding.metric.name for finding in findings if finding.note == note)
        yield f"{names}: {note}"


def verdict_line(result: Judged) -> str:
    """`REGRESSED perf_tests/test_x.py::test_y, against 0001_main.json (5 + 5 runs)`."""
    judgement, name = result.judgement, result.provenance.measurement
    if not result.validity:
        return f"INVALID_RUN {name}: {result.validity}"
    if judgement is None:
        return f"not judged {name} ({units.count(len(result), 'run')})"
    if judgement.against is None:
        return f"{judgement.verdict} {name} ({units.count(len(result), 'run')})"
    return _judged_line(name, judgement)


def _judged_line(name: str, judgement: Judgement) -> str:
    counts = next((f" ({f.base_runs} + {f.new_runs} runs)" for f in judgement.findings if f.base_runs), "")
    return f"{judgement.verdict} {name}, against {judgement.against}{counts}"


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """One line per gated metric; a dash where there is no number."""
    if not findings:
        return []
    return table([_HEADINGS, *(_row(finding) for finding in findings)])


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
    measured = [f"{name} p50 {_two(sample)}" for name, sample in latencies if sample.count]
    if measured:
        yield f"{', '.join(measured)} (p99)"
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
        yield ", ".join(rates)
    rounds = [one.ttft for one in result.by_round]
    if len(rounds) > 1 and all(sample.count for sample in rounds):
        shown = " ".join(units.seconds(sample.p50) for sample in rounds[:_ROUNDS_SHOWN])
        more = f" ... {units.seconds(rounds[-1].p50)}" if len(rounds) > _ROUNDS_SHOWN else ""
        yield f"TTFT p50 by round: {shown}{more}"
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
