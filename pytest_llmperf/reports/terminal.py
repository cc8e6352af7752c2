"""The terminal: what is being waited for, and the summary of the performance tests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.clock import Clock, seconds_between
from pytest_llmperf.reports import text
from pytest_llmperf.verdicts import Verdict

if TYPE_CHECKING:
    import pytest

    from pytest_llmperf.judged import Judged
    from pytest_llmperf.suite import Suite

_TTY_CHARACTERS = 79
_REPEAT_S = 15.0
"""How often a log is told what is going on."""

_COLOURS = {
    Verdict.PASS: {"green": True},
    Verdict.IMPROVED: {"green": True},
    Verdict.REGRESSED: {"red": True},
    Verdict.INVALID_RUN: {"red": True},
}


class Progress:
    """Says what a test is doing while it runs; nothing under `-q`.

    A terminal gets one line that is rewritten, a log a sign of life from time to time.
    """

    def __init__(self, config: pytest.Config, clock: Clock) -> None:
        self._reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
        self._capture: Any = config.pluginmanager.get_plugin("capturemanager")
        self._clock = clock
        self._said_ns: int | None = None
        self._dirty = False
        self._silent = config.get_verbosity() < 0

    def __call__(self, step: str, detail: str = "") -> None:
        """See `pytest_llmperf.engines.process.Progress`."""
        if self._silent or self._reporter is None:
            return
        what, now_ns = f"{step}, {detail}" if detail else step, self._clock.now_ns()
        if self._reporter.isatty:
            self._write(f"\r\x1b[K{what[:_TTY_CHARACTERS]}")
            self._dirty = True
        elif self._said_ns is None or seconds_between(self._said_ns, now_ns) >= _REPEAT_S:
            self._write(f"\nllmperf: {what}")
            self._said_ns, self._dirty = now_ns, True

    def clear(self) -> None:
        """Make room for what pytest writes next."""
        if self._dirty and self._reporter is not None:
            self._write("\r\x1b[K" if self._reporter.isatty else "\n")
            self._dirty = False

    def _write(self, what: str) -> None:
        with self._capture.global_and_fixture_disabled() if self._capture else nullcontext():
            if self._reporter is not None:
                self._reporter.write(what, flush=True)


def summary(reporter: pytest.TerminalReporter, suite: Suite, saved: Sequence[Path], notes: Sequence[str]) -> None:
    """Print every measurement of the session, and one line that says what came of it."""
    if not suite.measured and not notes:
        return
    measured_on = dict.fromkeys(measured.result.provenance.hardware_key for measured in suite.measured)
    reporter.write_sep("=", f"llmperf on {', '.join(measured_on) or suite.hardware.key}")
    for measured in suite.measured:
        _measurement(reporter, measured.result)
    for line in text.assumptions([measured.result for measured in suite.measured]):
        reporter.write_line(line)
    for line in suite.gate.spreads() if suite.gate is not None else ():
        reporter.write_line(line)
    for path in saved:
        reporter.write_line(f"stored as baseline: {path}")
    for note in notes:
        reporter.write_line(note)
    if suite.measured:
        reporter.write_line(f"records and server logs: {suite.output}")


def _measurement(reporter: pytest.TerminalReporter, result: Judged) -> None:
    first, *rest = text.measurement(result)
    colour = {} if result.verdict is None else _COLOURS.get(result.verdict, {"yellow": True})
    reporter.write_line(first, **colour)
    for line in rest:
        reporter.write_line(line)
