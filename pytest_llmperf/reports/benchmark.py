"""Results in pytest-benchmark's own form: rows of its table and its JSON.

One benchmark per gated metric of a measurement; its `data` holds one value per run, throughput as
seconds per token, so that lower is better everywhere. All names of pytest-benchmark that are not
public are used here and nowhere else: `config._benchmarksession` with its `benchmarks`, `json`, `storage`, `logger`,
`save_json`, `handle_saving`, `groups`, `display` and `xdist_benchmark_found`, and
`stats.Metadata`, as of 4.0 to 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest_benchmark.plugin
import pytest_benchmark.stats
import pytest_benchmark.utils

from pytest_llmperf import atomic
from pytest_llmperf.clock import timestamp
from pytest_llmperf.gate import Criterion
from pytest_llmperf.hardware import Hardware
from pytest_llmperf.judged import Judged, RatioResult
from pytest_llmperf.reports.figures import figures_json, ratio_json
from pytest_llmperf.result_file import NO_DAY, SCHEMA_VERSION, comparable
from pytest_llmperf.results import PerfResult
from pytest_llmperf.verdicts import Finding, Judgement

if TYPE_CHECKING:
    import pytest


Row = Any
"""A `pytest_benchmark.stats.Metadata`, which has no types."""


def table_of(config: pytest.Config) -> list[Row] | None:
    """The rows that pytest-benchmark shows and writes; None with `-p no:benchmark`."""
    session = _session_of(config)
    return None if session is None else cast("list[Row]", session.benchmarks)


def _session_of(config: pytest.Config) -> Any:
    return getattr(config, "_benchmarksession", None)


def is_disabled(config: pytest.Config) -> bool:
    """Whether benchmarks are to measure nothing: `--benchmark-disable`.

    Under xdist pytest-benchmark disables its own, which would disturb each other; ours have their devices to
    themselves.
    """
    disabled = config.getoption("benchmark_disable", default=False)
    return bool(disabled and not config.getoption("benchmark_enable", default=False))


def warn_of_xdist(config: pytest.Config, is_due: bool) -> None:
    """Whether pytest-benchmark is to say that it measures nothing under xdist: our tests are measured."""
    session = _session_of(config)
    if session is not None and hasattr(session, "xdist_benchmark_found"):  # 5.3
        session.xdist_benchmark_found = session.xdist_benchmark_found and is_due


def json_path(config: pytest.Config) -> Path | None:
    """Where `--benchmark-json` is to be; None without it, for standard output, and with `-p no:benchmark`."""
    return _json_path(_session_of(config))


def unwritable_json(config: pytest.Config) -> str | None:
    """Why the file of `--benchmark-json` cannot be written, in one sentence; None if it can, or is not asked for."""
    path = json_path(config)
    problem = None if path is None else atomic.unwritable(path)
    return None if problem is None else f"--benchmark-json: {problem}"


def keep_whole(config: pytest.Config, not_written: Callable[[str], None]) -> None:
    """Have the file of `--benchmark-json` appear complete or not at all, and no full disk hide the verdicts.

    pytest-benchmark would end the session with an internal error. `not_written` is told what could not be
    written, and why.
    """
    session = _session_of(config)
    if session is None:
        return
    path = _json_path(session)
    save, save_json = session.handle_saving, session.save_json

    def saving_json(document: Any) -> None:
        if path is None:
            save_json(document)
            return
        content: str = pytest_benchmark.utils.safe_dumps(document, ensure_ascii=True, indent=4)
        try:
            atomic.write(path, content)
        except OSError as error:
            not_written(f"--benchmark-json: {atomic.why(error, path)}")
        else:
            session.logger.info(f"Wrote benchmark data in: {session.json}", purple=True)

    def saving() -> None:
        try:
            save()
        except OSError as error:
            not_written(f"--benchmark-save: {atomic.why(error, Path(error.filename or str(session.storage)))}")

    session.save_json, session.handle_saving = saving_json, saving


def leave_out(config: pytest.Config) -> None:
    """Show the user's own benchmarks in pytest-benchmark's tables and none of ours, which have a table of their own.

    Its tables of ours are some 200 columns wide and one for each metric. Where one of its options is about tables or
    comparisons, they are shown as ever: it checks what it shows. What it stores does not change.
    """
    session = _session_of(config)
    if session is None or _has_asked_for_tables(config):
        return
    display = session.display

    def displaying(reporter: pytest.TerminalReporter) -> None:
        groups = session.groups or []
        others = [(name, [row for row in rows if "llmperf" not in row["extra_info"]]) for name, rows in groups]
        session.groups = [(name, rows) for name, rows in others if rows]
        display(reporter)

    session.display = displaying


_TABLE_OPTIONS = {
    "benchmark_columns": ["min", "max", "mean", "stddev", "median", "iqr", "outliers", "ops", "rounds", "iterations"],
    "benchmark_sort": "min",
    "benchmark_group_by": "group",
    "benchmark_name": "normal",
    "benchmark_time_unit": None,
    "benchmark_histogram": False,
    "benchmark_compare": None,
    "benchmark_compare_fail": None,
    "benchmark_verbose": False,
}
"""pytest-benchmark's options that are about its tables, each with what it is where nobody gives it."""


def _has_asked_for_tables(config: pytest.Config) -> bool:
    given = {name: config.getoption(name, default=default) for name, default in _TABLE_OPTIONS.items()}
    return any(given[name] and given[name] != default for name, default in _TABLE_OPTIONS.items())


def _json_path(session: Any) -> Path | None:
    """Where `--benchmark-json` is to be; None without it, and for standard output."""
    given = None if session is None else session.json
    if given is None or isinstance(given, Path):
        return None if given is None else given.absolute()
    path = Path(given.name)  # pytest-benchmark 4 opens it when it starts
    return path.absolute() if path.exists() else None


_ONCE = "telemetry"
"""What only a measurement's first row holds: of eight GPUs it is some 10 kB for each run."""


@dataclass(slots=True)
class _Fixture:
    """What `Metadata` wants to know of a benchmark fixture."""

    name: str
    fullname: str
    group: str
    param: str | None
    params: dict[str, Any] | None
    extra_info: dict[str, Any] = field(default_factory=dict)
    cprofile_stats: None = None
    has_error: bool = False


def rows(item: pytest.Item, result: Judged, criteria: Sequence[Criterion]) -> list[Row]:
    """One row per gated metric that every run has; none for an invalid measurement, or one without a run."""
    if not result.validity:
        return []
    made = []
    figures = figures_json(result) if isinstance(result, PerfResult) else ratio_json(cast("RatioResult", result))
    for criterion in criteria:
        metric = result.quantity(criterion.metric)
        measured = result.values(metric.name)
        values = [value for value in measured if value is not None and value > 0]
        if values and len(values) == len(measured):
            made.append(_row(item, result, figures, criterion, [metric.stored(value) for value in values]))
            figures = {name: value for name, value in figures.items() if name != _ONCE}
    return made


def _row(
    item: pytest.Item, result: Judged, figures: dict[str, Any], criterion: Criterion, stored: Sequence[float]
) -> Row:
    metric, provenance = result.quantity(criterion.metric), result.provenance
    callspec = getattr(item, "callspec", None)
    # A ratio is its measurement's only metric, and its name is the measurement's.
    names = dict.fromkeys(name for name in (provenance.name, metric.name) if name is not None)
    suffix = "::".join(names)
    fixture = _Fixture(
        name=f"{item.name}::{suffix}",
        fullname="::".join((provenance.test, *names)),
        group=metric.name,
        param=None if callspec is None else callspec.id,
        params=None if callspec is None else dict(callspec.params),
    )
    fixture.extra_info["llmperf"] = {
        "schema_version": SCHEMA_VERSION,
        "measurement": provenance.measurement,
        "metric": metric.name,
        "unit": metric.unit,
        "stored_as": "1/value" if metric.higher_is_better else "value",
        "criterion": {"detect": criterion.detect, "min_effect": criterion.min_effect},
        "comparable": comparable(provenance),
        "engine_words": provenance.engine_words,
        **({"simulated": True} if provenance.simulated else {}),
        "provenance": provenance.to_json(),
        "result": figures,
    }
    row = pytest_benchmark.stats.Metadata(fixture, 1, {"timer": "llmperf", "disable_gc": False, "warmup": False})
    for value in stored:
        row.update(value)
    return row


def write_judgements(made: Sequence[Row], judgements: Mapping[str, Judgement]) -> None:
    """Put each measurement's final judgement into its rows."""
    for row in made:
        about = row.extra_info["llmperf"]
        judgement = judgements.get(about["measurement"])
        if judgement is not None:
            about["judgement"] = judgement_json(judgement)


def judgement_json(judgement: Judgement) -> dict[str, Any]:
    """A judgement, absent numbers left out."""
    return {
        "verdict": judgement.verdict.value,
        "against": judgement.against,
        "findings": [_finding_json(finding) for finding in judgement.findings],
        "doubts": list(judgement.doubts),
        "advice": judgement.advice,
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    known = {
        "baseline": finding.baseline,
        "now": finding.now,
        "change": finding.change,
        "interval": None if finding.interval is None else list(finding.interval),
        "p": finding.p,
        "detectable": finding.detectable,
        "base_runs": finding.base_runs,
        "new_runs": finding.new_runs,
        "note": finding.note,
    }
    given = {name: value for name, value in known.items() if value is not None}
    return {"metric": finding.metric.name, "verdict": finding.verdict.value, **given}


def describe_machine(machine_info: dict[str, Any], hardware: Hardware) -> None:
    """Add our part to pytest-benchmark's machine information, and take out what jitters.

    The measured CPU frequency differs from run to run, which makes every comparison warn that the
    machine is another one.
    """
    cpu = machine_info.get("cpu")
    if isinstance(cpu, dict):
        machine_info["cpu"] = {name: value for name, value in cpu.items() if not name.startswith("hz_actual")}
    machine_info["llmperf"] = {
        "schema_version": SCHEMA_VERSION,
        "hardware_key": hardware.key,
        "fingerprint": hardware.fingerprint(),
    }


def document(made: Sequence[Row], hardware: Hardware) -> dict[str, Any]:
    """A whole result file, as `--benchmark-json` would write it.

    Simulated figures owe nothing to this machine, this commit or this day, so that the same simulation gives the
    same file.
    """
    if hardware.simulated:
        about: dict[str, Any] = {}
        describe_machine(about, hardware)
        return {
            "machine_info": about,
            "commit_info": {},
            "benchmarks": [row.as_dict(include_data=True) for row in made],
            "datetime": NO_DAY,
            "version": pytest_benchmark.__version__,
        }
    machine_info = pytest_benchmark.plugin.pytest_benchmark_generate_machine_info()
    describe_machine(machine_info, hardware)
    return {
        "machine_info": machine_info,
        "commit_info": pytest_benchmark.utils.get_commit_info(None),
        "benchmarks": [row.as_dict(include_data=True) for row in made],
        "datetime": timestamp().isoformat(),
        "version": pytest_benchmark.__version__,
    }
