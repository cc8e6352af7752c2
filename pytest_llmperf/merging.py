"""What the workers of pytest-xdist have measured, as one session's result.

Each worker measures and judges its own tests, one at a time on each device. When it is done it sends what came of them
to the process that has started it, which stores, reports and prints for all.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf import atomic
from pytest_llmperf.baselines import Baselines
from pytest_llmperf.hardware import Hardware
from pytest_llmperf.judged import Judged, Provenance, Validity
from pytest_llmperf.options import Options
from pytest_llmperf.reports import benchmark, outcome, session_files, terminal
from pytest_llmperf.reports.content import Report
from pytest_llmperf.suite import Outlook
from pytest_llmperf.verdicts import Judgement, Verdict

if TYPE_CHECKING:
    import pytest

_OUTPUT = "llmperf"
"""Our place in what a worker hands over."""


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of several that share the tests."""
    return hasattr(config, "workerinput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What is left of a result on its way: all that is said of it, and what the last line counts."""

    provenance: Provenance
    validity: Validity
    judgement: Judgement | None
    lines: tuple[str, ...]

    @classmethod
    def of(cls, result: Judged, lines: Sequence[str]) -> Remaining:
        """Of a result that will not change any more, with the lines on it."""
        return cls(
            provenance=result.provenance, validity=result.validity, judgement=result.judgement, lines=tuple(lines)
        )

    @property
    def verdict(self) -> Verdict | None:
        return None if self.judgement is None else self.judgement.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What one worker has measured."""

    hardware: dict[str, Hardware]
    outlook: list[Outlook]
    results: list[Remaining]
    about: list[str]
    """What holds for all of them."""
    rows: list[benchmark.Row]
    storable: frozenset[str]
    """The measurements that may become a baseline."""
    late: list[tuple[str, str]]
    """Tests that were found wanting after their end, and why."""
    report: Report | None
    annotations: list[str]
    notes: list[str]
    failed: list[str]
    """Tests that failed for another reason than a verdict."""
    folder: Path
    """Where its records and server logs are."""


def send(config: Any, parcel: Parcel) -> None:
    """Hand over what this worker has measured, when it ends."""
    config.workeroutput[_OUTPUT] = pickle.dumps(parcel)


@dataclass(slots=True)
class Merged:
    """The parcels of all workers of this session."""

    options: Options
    parcels: list[Parcel] = field(default_factory=list)
    saved: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, workeroutput: dict[str, Any]) -> None:
        """What a worker has handed over; one that was killed hands nothing over."""
        packed = workeroutput.get(_OUTPUT)
        if packed is not None:
            self.parcels.append(pickle.loads(packed))

    def finish(self, session: pytest.Session) -> None:
        """Store and report what was measured, as a session in one process does."""
        if not self.parcels:
            return
        self.notes += dict.fromkeys(note for parcel in self.parcels for note in parcel.notes)
        for nodeid, reason in self._all(lambda parcel: parcel.late):
            outcome.turn_red(session, nodeid, reason)
        benchmark.keep_whole(session.config, partial(self._not_written, session.config))
        benchmark.leave_out(session.config)
        table = benchmark.table_of(session.config)
        if table is not None:
            table.extend(self._all(lambda parcel: parcel.rows))
        if self.options.save_baseline is not None and not self._is_saved(self.options.save_baseline):
            session.testsfailed += 1  # what was asked for is not there: not an exit code of 0
        if session_files.is_wanted(self.options) and not self._is_reported():
            session.testsfailed += 1  # as above

    def describe_machine(self, machine_info: dict[str, Any]) -> None:
        """Add the hardware to pytest-benchmark's machine information; of several the first that was measured on."""
        hardware = next(iter(self._hardware().values()), None)
        if hardware is not None:
            benchmark.describe_machine(machine_info, hardware)

    def summarise(self, reporter: pytest.TerminalReporter, width: int) -> None:
        """Print every measurement and what came of all."""
        results = self._all(lambda parcel: parcel.results)
        content = terminal.Content(
            hardware_key=next(iter(self._hardware()), ""),
            outlook=list({str(one): one for one in self._all(lambda parcel: parcel.outlook)}.values()),
            results=[(result, result.lines) for result in results],
            about=list(dict.fromkeys(self._all(lambda parcel: parcel.about))),
            folders=[parcel.folder for parcel in self.parcels],
            failed=len(self._all(lambda parcel: parcel.failed)),
        )
        terminal.summary(reporter, content, self.saved, self.notes, width)
        for annotation in self._all(lambda parcel: parcel.annotations):
            reporter.write_line(annotation)

    def _not_written(self, config: pytest.Config, sentence: str) -> None:
        self.notes.append(sentence)
        outcome.lack(config)

    def _all(self, part: Callable[[Parcel], Sequence[Any]]) -> list[Any]:
        return [one for parcel in self.parcels for one in part(parcel)]

    def _hardware(self) -> dict[str, Hardware]:
        return {key: hardware for parcel in self.parcels for key, hardware in parcel.hardware.items()}

    def _is_saved(self, name: str) -> bool:
        store = Baselines(self.options.baselines, self.options.nights)
        storable = {measurement for parcel in self.parcels for measurement in parcel.storable}
        rows = [row for row in self._all(lambda parcel: parcel.rows) if _measurement(row) in storable]
        try:
            for key, hardware in self._hardware().items():
                group = [row for row in rows if _key(row) == key]
                if group:
                    self.saved.append(store.save(name, key, benchmark.document(group, hardware)))
        except OSError as error:
            self.notes.append(f"the baseline was not stored: {atomic.why(error, self.options.baselines)}")
            return False
        return True

    def _is_reported(self) -> bool:
        reports = [parcel.report for parcel in self.parcels if parcel.report is not None]
        if not reports:
            return True
        notes, is_there = session_files.put(_together(reports, stored=bool(self.saved)), self.options)
        self.notes += notes
        return is_there


def _together(reports: Sequence[Report], *, stored: bool) -> Report:
    """One report of the sections of all."""
    first = reports[0]
    return Report(
        source=first.source,
        sections=tuple(section for report in reports for section in report.sections),
        saved_at=first.saved_at,
        environment={key: found for report in reports for key, found in report.environment.items()},
        notes=tuple(dict.fromkeys(_notes(reports))),
        failed=tuple(nodeid for report in reports for nodeid in report.failed),
        stored=stored,
        keys=tuple(dict.fromkeys(key for report in reports for key in report.keys)),
    )


def _notes(reports: Sequence[Report]) -> Iterator[str]:
    for report in reports:
        yield from report.notes


def _measurement(row: benchmark.Row) -> str:
    name: str = row.extra_info["llmperf"]["measurement"]
    return name


def _key(row: benchmark.Row) -> str:
    key: str = row.extra_info["llmperf"]["provenance"]["hardware_key"]
    return key
