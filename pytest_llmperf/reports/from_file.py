"""The content of a report from a result file, and from the records and baselines that lie beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_llmperf.gate.advice import STORED
from pytest_llmperf.gate.files import Terms, compared
from pytest_llmperf.metrics import METRICS, Quantity
from pytest_llmperf.reports.accepting import commands
from pytest_llmperf.reports.beside import beside
from pytest_llmperf.reports.content import Report, Section, number
from pytest_llmperf.reports.past import NO_PAST, Past, environment_differences, past_of, set_beside, steps_problem
from pytest_llmperf.result_file import ResultFile, moment
from pytest_llmperf.result_rows import Entry
from pytest_llmperf.timeline import Timeline
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

_ABOUT = {"workload": "workload", "load": "load", "cache": "cache", "engine": "engine_kind"}


def report_of(file: ResultFile, *, records: Path | None = None, baselines: Path | None = None) -> Report:
    """All that a file says.

    `records`: the session's folder, such as `.llmperf/<time>-<pid>`. `baselines`: the folder of stored nights; a file
    that was not judged is then compared with them. What cannot be used of either is a note of the report.
    """
    notes: list[str] = []
    past = NO_PAST if baselines is None else past_of(_folder_of(baselines, file.hardware_key), without=[file.path])
    notes += past.reading.problems
    records_of = beside(records, {entry.measurement for entry in file.entries})
    judgements = {} if any(entry.judgement for entry in file.entries) else _compared(file, past, notes)
    problem = steps_problem(past)
    notes += [problem] if problem is not None else []
    sections = [
        _section(file, entries, past, judgements.get(name), records_of.timeline(name), _store_of(baselines, file))
        for name, entries in _by_measurement(file.entries).items()
    ]
    notes += records_of.notes
    differences = environment_differences(past, file.fingerprint)
    return Report(
        source=file.path.name,
        sections=tuple(sections),
        saved_at=file.saved_at if moment(file.saved_at) is not None else "",
        commit=file.commit,
        environment={file.hardware_key: differences} if differences else {},
        notes=tuple(dict.fromkeys(notes)),
        stored=any(one.judgement is not None and one.judgement.advice == STORED for one in sections),
    )


def judgement_of(stored: Mapping[str, Any], quantities: Mapping[str, Quantity]) -> Judgement | None:
    """A judgement as a file has it; None where there is none, or none that this release knows.

    `quantities`: what else the findings may be about, beside the metrics.
    """
    try:
        verdict = Verdict(stored.get("verdict"))
        findings = [_finding(one, quantities) for one in stored.get("findings", ())]
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    against, advice = stored.get("against"), stored.get("advice")
    return Judgement(
        verdict=verdict,
        findings=tuple(findings),
        against=against if isinstance(against, str) else None,
        doubts=_texts(stored.get("doubts")),
        advice=advice if isinstance(advice, str) else None,
    )


def _finding(stored: Mapping[str, Any], quantities: Mapping[str, Quantity]) -> Finding:
    name = stored["metric"]
    interval = [float(bound) for bound in stored.get("interval") or ()]
    counts = {side: number(stored, side) for side in ("base_runs", "new_runs")}
    return Finding(
        metric=quantities[name] if name in quantities else METRICS[name],
        verdict=Verdict(stored["verdict"]),
        baseline=number(stored, "baseline"),
        now=number(stored, "now"),
        change=number(stored, "change"),
        interval=(interval[0], interval[1]) if len(interval) == 2 else None,
        p=number(stored, "p"),
        detectable=number(stored, "detectable"),
        base_runs=None if counts["base_runs"] is None else int(counts["base_runs"]),
        new_runs=None if counts["new_runs"] is None else int(counts["new_runs"]),
        note=stored["note"] if isinstance(stored.get("note"), str) else None,
    )


def _folder_of(baselines: Path, hardware_key: str) -> Path:
    """The folder of that hardware: below the one given, or the one given itself."""
    below = baselines / hardware_key
    return baselines if baselines.name == hardware_key and not below.is_dir() else below


def _store_of(baselines: Path | None, file: ResultFile) -> Path:
    """The folder of all hardware, as commands are told it."""
    if baselines is None:
        return Path("baselines")
    return baselines.parent if _folder_of(baselines, file.hardware_key) == baselines else baselines


def _compared(file: ResultFile, past: Past, notes: list[str]) -> Mapping[str, Judgement]:
    """As `pytest-llmperf compare` judges the file against those nights."""
    files = [one.file for one in reversed(past.reading.files)]
    if not files:
        return {}
    comparison = compared(files, file, Terms())
    notes += [f"not comparable: {refusal}" for refusal in comparison.refusals]
    return comparison.judgements


def _by_measurement(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.measurement, []).append(entry)
    return found


def _section(
    file: ResultFile,
    entries: Sequence[Entry],
    past: Past,
    judged: Judgement | None,
    course: Timeline | None,
    baselines: Path,
) -> Section:
    entry = entries[0]
    figures = file.results.get(entry.measurement, {})
    quantities = {one.metric: one.quantity for one in entries}
    judgement = judgement_of(entry.judgement, quantities) if entry.judgement else judged
    section = Section(
        name=entry.measurement,
        test=entry.test,
        hardware_key=file.hardware_key,
        judgement=judgement,
        invalid=_texts(figures.get("validity")) or (judgement.reasons if judgement is not None else ()),
        doubts=_texts(figures.get("doubts")),
        values={one.quantity: tuple(map(one.quantity.stored, one.stored_values)) for one in entries},
        figures=figures,
        about=_about(entry),
        is_open=entry.provenance.get("open_load") is True,
        params=entry.params,
        accepting=commands(entry.measurement, file.hardware_key, judgement, baselines),
        timeline=course,
    )
    engine = entry.provenance.get("engine")
    return set_beside(
        section,
        past,
        comparable=entry.comparable,
        words=entry.engine_words,
        engine=engine if isinstance(engine, dict) else {},
    )


def _about(entry: Entry) -> dict[str, str]:
    known = {label: entry.provenance.get(name) for label, name in _ABOUT.items()}
    known["model"] = entry.engine_words.get("model")
    return {label: value for label, value in known.items() if isinstance(value, str)}


def _texts(stored: Any) -> tuple[str, ...]:
    return tuple(one for one in stored if isinstance(one, str)) if isinstance(stored, list) else ()
