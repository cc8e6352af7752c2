"""What a session leaves behind for people beside the terminal: page, comment, annotations, the step's summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_llmperf import atomic
from pytest_llmperf.clock import timestamp
from pytest_llmperf.hardware import Hardware
from pytest_llmperf.options import Options
from pytest_llmperf.reports.content import Report
from pytest_llmperf.reports.from_session import Told, section_of
from pytest_llmperf.reports.markdown import markdown
from pytest_llmperf.reports.past import NO_PAST, environment_differences, past_of, steps_problem

_SOURCE = "pytest session"
_LONGEST_SUMMARY = 900_000
"""Characters: GitHub takes summaries of a MiB for each step."""


def is_wanted(options: Options) -> bool:
    """Whether a report is to be made at all: drawing one up takes a while."""
    return options.report is not None or options.markdown is not None or options.github is not None


def report_of(
    told: Sequence[Told],
    options: Options,
    *,
    hardware: Mapping[str, Hardware],
    saved: Sequence[Path],
    failed: Sequence[str] = (),
    keys: Sequence[str] = (),
) -> Report:
    """What a session has measured, beside what was stored before it.

    `hardware`: by key, what was measured on. `saved`: what this session has stored, which is no past. `failed`, `keys`:
    see `Report`.
    """
    pasts = {key: past_of(options.baselines / key, without=saved) for key in hardware}
    differences = {key: environment_differences(past, hardware[key].fingerprint()) for key, past in pasts.items()}
    notes = [note for past in pasts.values() for note in (*past.reading.problems, steps_problem(past)) if note]
    return Report(
        source=_SOURCE,
        sections=tuple(
            section_of(one, pasts.get(one.result.provenance.hardware_key, NO_PAST), options.baselines) for one in told
        ),
        saved_at=timestamp().isoformat(),
        environment={key: found for key, found in differences.items() if found},
        notes=tuple(dict.fromkeys([*(f"failed: {nodeid}" for nodeid in failed), *notes])),
        failed=tuple(failed),
        stored=bool(saved),
        keys=tuple(keys),
    )


def put(report: Report, options: Options) -> tuple[list[str], bool]:
    """Write all that was asked for; what is to be said of that, and whether it is there."""
    notes, is_there = [], True
    for path, problem in write(report, options):
        is_there = is_there and problem is None
        notes.append(f"report: {path}" if problem is None else f"the report: {atomic.why(problem, path)}")
    problem = summarise(report, options)
    if problem is not None and options.github is not None:
        reason = f"{options.github.summary}: {problem.strerror or problem}"
        notes.append(f"the step's summary could not be written: {reason}")
    return notes, is_there


def write(report: Report, options: Options) -> Iterator[tuple[Path, OSError | None]]:
    """Write the files that were asked for; each with what was in the way, if something was."""
    if options.report is not None:
        from pytest_llmperf.reports.html import page  # noqa: PLC0415 - an extra, and slow to load

        yield options.report, _put(options.report, page(report))
    if options.markdown is not None:
        yield options.markdown, _put(options.markdown, markdown(report))


def summarise(report: Report, options: Options) -> OSError | None:
    """Append the report to the step's summary where GitHub shows one; what was in the way is returned."""
    summary = options.github.summary if options.github is not None else None
    if summary is None or not report.sections:
        return None
    try:
        with summary.open("a", encoding="utf-8") as stream:  # others have written to it before
            stream.write(markdown(report, _LONGEST_SUMMARY))
    except OSError as error:
        return error
    return None


def _put(path: Path, content: str) -> OSError | None:
    try:
        atomic.write(path, content)
    except OSError as error:
        return error
    return None
