"""A verdict as the outcome of its test, in pytest's own terms."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.errors import ConfigurationError, EngineError
from pytest_llmperf.option_values import GateMode
from pytest_llmperf.reports import text
from pytest_llmperf.reports.visible import visible
from pytest_llmperf.verdicts import Verdict

if TYPE_CHECKING:
    import pytest

    from pytest_llmperf.judged import Judged

_FAILING = {
    GateMode.FAIL: (Verdict.REGRESSED,),
    GateMode.STRICT: (Verdict.REGRESSED, Verdict.INCONCLUSIVE, Verdict.NO_BASELINE),
}


def fails(result: Judged, mode: GateMode) -> bool:
    """Whether a verdict fails its test; INVALID_RUN is an error in every mode."""
    return result.verdict in _FAILING.get(mode, ())


def lack(config: pytest.Config) -> None:
    """Something that was asked for is not there: no exit code of 0, if the session has one already."""
    import pytest  # noqa: PLC0415 - for its exit codes alone

    session = config.pluginmanager.get_plugin("session")
    if session is not None and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def turn_red(session: pytest.Session, nodeid: str, reason: str) -> None:
    """Have a test that had passed fail after all, in the session's counts and in the terminal's."""
    import pytest  # noqa: PLC0415 - for its reports alone

    reporter: pytest.TerminalReporter | None = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("passed", []) if reporter is not None else []
    passed = [report for report in reports if report.nodeid == nodeid]
    for report in passed:
        reports.remove(report)
    location = passed[0].location if passed else (nodeid.partition("::")[0], None, nodeid)
    report = pytest.TestReport(nodeid, location, {}, "failed", reason, "call")
    session.testsfailed += 1
    session.config.hook.pytest_runtest_logreport(report=report)


def apply(
    report: pytest.TestReport,
    excinfo: pytest.ExceptionInfo[BaseException] | None,
    results: Sequence[Judged],
    mode: GateMode,
    awaited: Collection[str] = (),
    width: int = text.CHARACTERS,
) -> None:
    """Turn the report of a test's call into what its measurements make of it, except the `awaited` ones.

    An engine that failed and a measurement that is invalid are errors: the code under test was not
    found wanting, it was not measured. They come before an assertion that failed on such figures.
    `width`: of the lines on the measurements, characters.
    """
    error = None if excinfo is None else excinfo.value
    invalid = [result for result in results if not result.validity or result.verdict is Verdict.INVALID_RUN]
    failing = [one for one in results if fails(one, mode) and one.provenance.measurement not in awaited]
    if isinstance(error, EngineError):
        make_error(report, _plain(f"{type(error).__name__}: {error}"))
    elif invalid:
        if error is not None:
            report.sections.append(("the test itself then failed", report.longreprtext))
        make_error(report, lines_on(invalid, width))
    elif isinstance(error, ConfigurationError) and excinfo is not None:
        say(report, excinfo)
    elif failing and not report.skipped:
        if report.failed:
            report.sections.append(("the test itself failed, too", report.longreprtext))
        # A regression that an xfail mark expects is an expected failure.
        report.outcome = "skipped" if hasattr(report, "wasxfail") else "failed"
        report.longrepr = f"{text.headline(failing)}\n{lines_on(failing, width)}"


_PROPERTY = "llmperf_"


def record(item: pytest.Item, report: pytest.TestReport, results: Sequence[Judged]) -> None:
    """Give the test its properties: in this report and, where JUnit files take them from, that of its teardown."""
    found = [one for result in results if result.verdict is not None for one in _properties(result)]
    report.user_properties += found
    others = [one for one in item.user_properties if not one[0].startswith(_PROPERTY)]  # ours are of an earlier attempt
    item.user_properties[:] = [*others, *found]


def _properties(result: Judged) -> Iterator[tuple[str, str]]:
    """The verdict, and each gated metric in its base unit."""
    name = result.provenance.name
    prefix = _PROPERTY if name is None else f"{_PROPERTY}{visible(name)}_"
    yield f"{_PROPERTY}measurement", result.provenance.measurement
    yield f"{_PROPERTY}verdict", str(result.verdict)
    for finding in result.judgement.findings if result.judgement is not None else ():
        for suffix, value in (("", finding.now), ("_baseline", finding.baseline), ("_change", finding.change)):
            if value is not None:
                yield f"{prefix}{finding.metric.name}{suffix}", f"{value:.6g}"


def _line_of(report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
    """The line of the test that asked for what cannot be done; our own frames say nothing to its author."""
    file = report.location[0]
    lines = [entry.lineno + 1 for entry in excinfo.traceback if str(entry.path).endswith(file)]
    return f"{file}:{lines[-1]}" if lines else file


def say(report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Have a report show what an error of ours says, and where the test or its fixture asked for it."""
    error = excinfo.value
    report.longrepr = _plain(f"{_line_of(report, excinfo)}: {type(error).__name__}: {error}")


_MEASURED = "llmperf_measured"
"""Attribute of reports that are errors of a measurement, and not of a fixture."""


def make_error(report: pytest.TestReport, reason: str) -> None:
    """Make an error of a call's report; pytest counts a failure outside the call as one."""
    report.outcome = "failed"
    report.when = "setup"
    report.longrepr = reason
    setattr(report, _MEASURED, True)


def name_phases(reporter: pytest.TerminalReporter) -> None:
    """Have the headers of errors say that they come from the measurement; all that counts them has done so before."""
    for report in reporter.stats.get("error", []):
        if getattr(report, _MEASURED, False):
            report.when = "measurement"


def make_failure(report: pytest.TestReport) -> None:
    """Make a failure of a setup's report: the opposite of `make_error`."""
    report.when = "call"


def _plain(message: str) -> str:
    """A message with its lines, and nothing else that moves a cursor: a server's log may hold colours."""
    return "\n".join(map(text.plain, message.splitlines()))


def lines_on(results: Sequence[Judged], width: int = text.CHARACTERS) -> str:
    """All that is said of these results, in lines of at most `width` characters."""
    lines = (line for result in results for line in text.measurement(result, width))
    return "\n".join(text.folded(lines, width))
