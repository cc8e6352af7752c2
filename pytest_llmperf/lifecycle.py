"""What the plugin's hooks do, from the end of collection to the summary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf import atomic, marks, merging, units
from pytest_llmperf.clock import RealClock, timestamp
from pytest_llmperf.engines import EngineSpec
from pytest_llmperf.engines.orphans import clear_up
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.gate import Criterion
from pytest_llmperf.hardware import Hardware, declared, detect
from pytest_llmperf.interruption import Interruption
from pytest_llmperf.judged import Judged
from pytest_llmperf.option_values import GateMode
from pytest_llmperf.options import Options
from pytest_llmperf.reports import benchmark, github, outcome, session_files, terminal, text
from pytest_llmperf.reports.beside import beside
from pytest_llmperf.reports.from_session import Told
from pytest_llmperf.resume import Earlier, find
from pytest_llmperf.suite import Measured, PlannedTest, Suite

if TYPE_CHECKING:
    from pytest_llmperf.judged import Judged
    from pytest_llmperf.reports.content import Report

_UNMET_KEY = pytest.StashKey[str]()
_CONTRADICTION_KEY = pytest.StashKey[str]()
_RESULTS_KEY = pytest.StashKey["list[Judged]"]()


class Lifecycle:
    """One pytest session that has performance tests."""

    def __init__(self, config: pytest.Config, options: Options, items: Sequence[pytest.Item]) -> None:
        """Check everything that can be checked before anything is started.

        Raises `ConfigurationError` listing every mistake.
        """
        self.options = options
        self._config = config
        self._rows: dict[str, list[benchmark.Row]] = {}
        self._saved: list[Path] = []
        self._notes: list[str] = []
        self._failed: dict[str, None] = {}
        """Tests that failed for another reason than a verdict, in their order."""
        self._annotations: list[str] = []
        self._items = {item.nodeid: item for item in items}
        self._table = None if merging.is_worker(config) else benchmark.table_of(config)
        """Where pytest-benchmark shows and writes from; a worker's is shown nowhere."""
        clock = RealClock()
        self._progress = terminal.Progress(config, clock)
        hardware = detect(options.nvml_timeout_s) if options.hardware is None else declared(options.hardware)
        problems = [
            *_unwritable(options),
            *filter(None, [benchmark.unwritable_json(config)]),
            *_shared(options, config),
        ]
        earlier: Earlier | None = None
        self._resumed: str | None = None
        if options.resume and merging.is_worker(config):
            problems.append(
                "--llmperf-resume goes on in one process, and this is one of several workers, each of which keeps "
                "records of its own; leave out -n, or give -n 0"
            )
        elif options.resume:
            earlier, self._resumed = find(options.output)
        self.suite = Suite(
            options,
            hardware,
            self._plan(items, hardware, problems),
            clock=clock,
            output=_unused(options.output / f"{timestamp():%Y%m%d-%H%M%S}-{os.getpid()}"),
            progress=self._progress,
            recording=not benchmark.is_disabled(config),
            problems=problems,
            earlier=earlier,
        )
        benchmark.keep_whole(config, self.not_written)
        benchmark.leave_out(config)
        self.interruption = Interruption()
        self._cleared = clear_up(clock, self._progress)

    def _plan(self, items: Sequence[pytest.Item], hardware: Hardware, problems: list[str]) -> list[PlannedTest]:
        """Read the marks of each test; those that will be skipped are not planned."""
        planned = []
        for item in items:
            try:
                contradiction = marks.contradiction(item)
                if contradiction is not None:
                    item.stash[_CONTRADICTION_KEY] = contradiction
                    continue
                wants_engine = "llm_engine" in getattr(item, "fixturenames", ())
                here = self._hardware_for(item, hardware) if wants_engine else hardware
                unmet = marks.requirement(item).unmet_by(here)
                if unmet is not None:
                    self._mark_unmet(item, unmet)
                    continue
                spec = marks.engine_spec(item, self.options) if wants_engine else None
                if spec is not None:
                    problems += [f"{item.nodeid}: {problem}" for problem in _elsewhere(spec, hardware)]
                plain = marks.engine_spec(item, self.options, is_head=False) if wants_engine else None
                criteria = marks.criteria(item)
                planned.append(PlannedTest(nodeid=item.nodeid, spec=spec, plain=plain, criteria=criteria))
            except ConfigurationError as error:
                problems += [f"{item.nodeid}: {problem}" for problem in error.problems]
        return planned

    def _hardware_for(self, item: pytest.Item, hardware: Hardware) -> Hardware:
        """What the test runs on: a simulated engine brings its hardware along."""
        mark = item.get_closest_marker("llm_engine")
        kinds = (self.options.engine,) if self.options.engine or mark is None else mark.args
        if hardware.declared or kinds != ("sim",):
            return hardware
        return marks.simulated_hardware(marks.engine_spec(item, self.options))

    def _mark_unmet(self, item: pytest.Item, unmet: str) -> None:
        reason = unmet
        if self.options.url is not None:
            reason += "; --llmperf-hardware KEY says what the server runs on"
        item.stash[_UNMET_KEY] = reason
        if not self.options.require_hardware:
            item.add_marker(pytest.mark.skip(reason=reason))

    def check_hardware(self, item: pytest.Item) -> None:
        """Fail a test whose hardware is nowhere, or is not there where that was asked for."""
        self._progress.begin(item.name)
        contradiction, unmet = item.stash.get(_CONTRADICTION_KEY, None), item.stash.get(_UNMET_KEY, None)
        if contradiction is not None:
            pytest.fail(contradiction, pytrace=False)
        if item.stash.get(_RESULTS_KEY, None):
            self._forget(item)
        if unmet is not None and self.options.require_hardware:
            pytest.fail(f"{unmet} (--llmperf-require-hardware)", pytrace=False)

    def _forget(self, item: pytest.Item) -> None:
        """A plugin runs the test again: only its last attempt counts."""
        item.stash[_RESULTS_KEY] = []
        self._failed.pop(item.nodeid, None)
        for measurement in self.suite.forget(item.nodeid):
            for row in self._rows.pop(measurement, []):
                if self._table is not None:
                    self._table.remove(row)

    def measured(self, item: pytest.Item, result: Judged, criteria: Sequence[Criterion]) -> None:
        """Take a new result into pytest-benchmark's table, and warn of what was not judged."""
        item.stash.setdefault(_RESULTS_KEY, []).append(result)
        made = benchmark.rows(item, result, criteria)
        self._rows[result.provenance.measurement] = made
        if self._table is not None:
            self._table.extend(made)

    def complete_report(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Give a test's report what its measurements and its hardware make of it."""
        if call.when == "setup" and report.failed:
            if _UNMET_KEY in item.stash or _CONTRADICTION_KEY in item.stash:
                outcome.make_failure(report)
            elif call.excinfo is not None and isinstance(call.excinfo.value, ConfigurationError):
                outcome.say(report, call.excinfo)
        if report.failed:
            self._failed[item.nodeid] = None
        if call.when != "call":
            return
        if call.excinfo is not None:  # also where an xfail mark makes light of it
            self.suite.failed.add(item.nodeid)
        results: list[Judged] = item.stash.get(_RESULTS_KEY, [])
        width = terminal.width_of(self._config)
        outcome.apply(report, call.excinfo, results, self.options.gate, self.suite.awaited, width)
        outcome.record(item, report, results)
        if any(outcome.fails(result, self.options.gate) for result in results):
            self._leave_as_judged(item)
        unrecorded = self.suite.unrecorded(item.nodeid) if report.passed else None
        if unrecorded is not None:
            outcome.make_error(report, unrecorded)
        self._progress.clear()

    def _leave_as_judged(self, item: pytest.Item) -> None:
        """No second chance from pytest-rerunfailures: with several, a slow build would pass more often than stated."""
        plugins = self._config.pluginmanager
        if plugins.has_plugin("rerunfailures") or plugins.has_plugin("pytest_rerunfailures"):
            item.add_marker(pytest.mark.flaky(condition=False), append=False)

    def test_done(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Let go of what only this test needed."""
        following = None if nextitem is None else nextitem.nodeid
        self.suite.test_done(item.nodeid, following, is_shared=merging.is_worker(self._config))

    def finish(self, session: pytest.Session, error: BaseException | None) -> None:
        """Settle the verdicts, store what is to be stored, and leave no process behind.

        A worker of several hands over what it has, and the one process that has started them stores and reports it.
        `error`: what has ended the loop over the tests. Raises `KeyboardInterrupt` once all is written if a signal
        came meanwhile.
        """
        try:
            self.suite.confirm(is_wanted=error is None or isinstance(error, session.Failed))  # that is --maxfail
        finally:
            with self.interruption.put_off():
                self.suite.close()
        with self.interruption.put_off():
            self._write(session, cut_short=error is not None)
        if self.interruption.is_noted:
            raise KeyboardInterrupt

    def _write(self, session: pytest.Session, *, cut_short: bool) -> None:
        """All that is decided and stored once the last test is over."""
        self._account(cut_short=cut_short)
        self._notes += self.suite.unconfirmed
        if _is_whole(self._config):
            self._notes += self.suite.vanished({item.nodeid for item in session.items})
        late = list(self._late())
        made = [row for rows in self._rows.values() for row in rows]
        judgements = {
            m.result.provenance.measurement: m.result.judgement
            for m in self.suite.measured
            if m.result.judgement is not None
        }
        benchmark.write_judgements(made, judgements)
        if merging.is_worker(self._config):
            merging.send(self._config, self._parcel(late))
        else:
            self._settle(session, late)

    def _settle(self, session: pytest.Session, late: Sequence[Judged]) -> None:
        for nodeid, reason in self._reds(late):
            outcome.turn_red(session, nodeid, reason)
        if self.options.save_baseline is not None and not self._save(self.options.save_baseline):
            session.testsfailed += 1  # what was asked for is not there: not an exit code of 0
        if session_files.is_wanted(self.options) and not self._report():
            session.testsfailed += 1  # as above

    def _account(self, *, cut_short: bool) -> None:
        """Say what is missing, and how to go on from what there is."""
        journal = self.suite.journal
        try:
            journal.close(cut_short=cut_short)
        except OSError as error:
            self._notes.append(f"{journal.folder} does not say how the session ended: {error}")
        unfinished = journal.unfinished if self.suite.recording else {}
        for name, (done, of) in unfinished.items():
            self._notes.append(f"unfinished: {name}: {done} of {units.count(of, 'run')} on record")
        if journal.has_runs and (unfinished or (cut_short and journal.is_open)):
            self._notes.append("what is on record counts with --llmperf-resume, which measures the rest")
        if self.suite.earlier is not None:
            self._notes += self.suite.earlier.notes

    def _parcel(self, late: Sequence[Judged]) -> merging.Parcel:
        """What this worker has measured."""
        suite = self.suite
        if self.options.save_baseline is not None:
            self._note_unstored()
        is_wanted = suite.recording and session_files.is_wanted(self.options)
        report = self._drawn_up() if is_wanted else None
        content = terminal.content_of(suite, text.CHARACTERS, len(self._failed))
        return merging.Parcel(
            hardware=suite.hardware_by_key,
            outlook=list(content.outlook),
            results=[
                merging.Remaining.of(measured.result, lines)
                for measured, (_, lines) in zip(suite.measured, content.results, strict=True)
            ],
            about=list(content.about),
            rows=[row for rows in self._rows.values() for row in rows],
            storable=frozenset(
                m.result.provenance.measurement for m in suite.measured if suite.may_be_stored(m.result)
            ),
            late=list(self._reds(late)),
            report=report,
            annotations=self._annotations,
            notes=self._notes,
            failed=list(self._failed),
            folder=suite.output,
        )

    def not_written(self, sentence: str) -> None:
        """A file that was asked for is not there: said in the summary, and no exit code of 0."""
        self._notes.append(sentence)
        outcome.lack(self._config)

    def _late(self) -> Iterable[Judged]:
        """What fails its test only now, each once."""
        late = self.suite.review()
        late += [result for result in self.suite.settled if outcome.fails(result, self.options.gate)]
        return {result.provenance.measurement: result for result in late}.values()

    def _reds(self, late: Iterable[Judged]) -> Iterator[tuple[str, str]]:
        """Tests that had passed and are found wanting once all comparisons of the session are known, and why.

        Holm's rule grants the smallest p-values first, so a borderline one may need a later test's;
        and what stored nights flag is measured again in the end.
        """
        if self.options.gate in (GateMode.FAIL, GateMode.STRICT):
            width = terminal.width_of(self._config)
            yield from ((result.provenance.test, outcome.lines_on([result], width)) for result in late)

    def _save(self, name: str) -> bool:
        """Store the session's valid results; say which were left out and why. Whether it could."""

        def document(key: str, group: Sequence[Measured]) -> dict[str, object]:
            rows = [row for m in group for row in self._rows[m.result.provenance.measurement]]
            return benchmark.document(rows, self.suite.hardware_by_key[key])

        self._note_unstored()
        try:
            self._saved = self.suite.save_baselines(name, document)
        except OSError as error:
            self._notes.append(f"the baseline was not stored: {atomic.why(error, self.options.baselines)}")
            return False
        return True

    def _note_unstored(self) -> None:
        for measured in self.suite.measured:
            if not self.suite.may_be_stored(measured.result):
                why = self._why_unstored(measured.result)
                self._notes.append(f"not stored{why}: {text.verdict_line(measured.result)}")

    def _why_unstored(self, result: Judged) -> str:
        """Where the verdict does not say it."""
        if not result.is_level:
            return ", because it is not of the cache state that it declares"
        return ", because its test failed" if result.provenance.test in self.suite.failed else ""

    def _report(self) -> bool:
        """Write the reports; whether those that were asked for are there."""
        if not self.suite.recording:
            self._notes.append("no report: benchmarks are disabled (--benchmark-disable)")
            return True
        notes, is_there = session_files.put(self._drawn_up(), self.options)
        self._notes += notes
        return is_there

    def _drawn_up(self) -> Report:
        """The session's report, and the annotations that go with it."""
        names = [m.result.provenance.measurement for m in self.suite.measured]
        records = beside(self.suite.output, names)
        told = [
            Told(
                result=m.result,
                metrics=[criterion.metric for criterion in m.criteria],
                params=self._params(m.result.provenance.test),
                gauges=records.gauges(name),
            )
            for name, m in zip(names, self.suite.measured, strict=True)
        ]
        self._notes += records.notes
        report = session_files.report_of(
            told,
            self.options,
            hardware=self.suite.hardware_by_key,
            saved=self._saved,
            failed=list(self._failed),
            keys=[self.suite.hardware.key],
        )
        if self.options.github is not None:
            is_lenient = self.options.gate is GateMode.WARN
            self._annotations = list(github.commands(report, self._places(), is_lenient=is_lenient))
        return report

    def _params(self, nodeid: str) -> Mapping[str, Any]:
        callspec = getattr(self._items.get(nodeid), "callspec", None)
        return {} if callspec is None else callspec.params

    def _places(self) -> dict[str, github.Place]:
        """Where the tests stand, as GitHub counts files."""
        workspace = self.options.github.workspace if self.options.github is not None else None
        start = self._config.rootpath if workspace is None else workspace
        places = {}
        for nodeid, item in self._items.items():
            file, line, _ = item.location
            path = os.path.relpath(self._config.rootpath / file, start)
            places[nodeid] = github.Place(path.replace(os.sep, "/"), None if line is None else line + 1)
        return places

    def describe_machine(self, machine_info: dict[str, Any]) -> None:
        """Add the hardware to pytest-benchmark's machine information."""
        benchmark.describe_machine(machine_info, self.suite.hardware)

    def summarise(self, reporter: pytest.TerminalReporter) -> None:
        width = terminal.width_of(self._config)
        terminal.summary(
            reporter, terminal.content_of(self.suite, width, len(self._failed)), self._saved, self._notes, width
        )
        for annotation in self._annotations:
            reporter.write_line(annotation)

    def header(self) -> list[str]:
        """What was found, and what is going to be measured; nothing under `-q`."""
        if self._config.get_verbosity() < 0:
            return []
        found = [*self._cleared, *(() if self._resumed is None else (self._resumed,))]
        lines = (*(text.plain(f"llmperf: {one}") for one in found), *terminal.header(self.suite.outlook))
        return list(text.folded(lines, terminal.width_of(self._config)))


def _is_whole(config: pytest.Config) -> bool:
    """Whether the session runs all tests of the files that it was given."""
    chosen = config.getoption("keyword") or config.getoption("markexpr") or config.getoption("lf", default=False)
    return not chosen and not any("::" in str(argument) for argument in config.invocation_params.args)


def _elsewhere(spec: EngineSpec, hardware: Hardware) -> Iterator[str]:
    """Why an engine cannot be on the hardware that the option declares."""
    if spec.kind == "sim":
        needed = marks.simulated_hardware(spec)
        if hardware.simulated and spec.part == hardware.part and len(needed.gpus) > len(hardware.gpus):
            yield (
                f"{spec} takes {len(needed.gpus)} GPUs and {hardware.key} has {len(hardware.gpus)}; give "
                f"--llmperf-hardware sim:{len(needed.gpus)}x-{spec.part}"
            )
    elif hardware.declared and spec.url is None:
        yield (
            "--llmperf-hardware says what the server behind a URL runs on, but "
            f"{spec.kind} is started on this machine; leave the option out, or give --llmperf-url"
        )


def _unused(folder: Path) -> Path:
    """The folder, or one beside it: a process may have several sessions within a second."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], others) if not path.exists())


def _shared(options: Options, config: pytest.Config) -> Iterator[str]:
    """Files that are to be written by more than one of us, pytest and pytest-benchmark."""
    junit = config.getoption("xmlpath", default=None)
    return atomic.shared(
        {
            "--llmperf-report": options.report,
            "--llmperf-markdown": options.markdown,
            "--benchmark-json": benchmark.json_path(config),
            "--junit-xml": None if junit is None else Path(os.path.expandvars(Path(junit).expanduser())).absolute(),
        }
    )


def _unwritable(options: Options) -> list[str]:
    """Folders that the session is going to write to and cannot."""
    wanted = [("--llmperf-output", options.output)]
    if options.save_baseline is not None:
        wanted.append(("--llmperf-baselines", options.baselines))
    problems = []
    for option, folder in wanted:
        problem = atomic.unwritable_folder(folder)
        if problem is not None:
            problems.append(f"{option}: {problem}")
    return problems
