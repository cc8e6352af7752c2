"""The terminal: what is going to be measured, what is being waited for, and the summary of the performance tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf import units
from pytest_llmperf.clock import Clock, seconds_between
from pytest_llmperf.files import nearby
from pytest_llmperf.reports import text
from pytest_llmperf.reports.accepting import commands
from pytest_llmperf.verdicts import Verdict

if TYPE_CHECKING:
    import pytest

    from pytest_llmperf.judged import Judged
    from pytest_llmperf.suite import Outlook, Suite

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
        self._running: str | None = None
        self._rest = _Rest(clock)

    def begin(self, test: str) -> None:
        """What is said from now on is about this test."""
        self._running = test
        self._rest = _Rest(self._clock)

    def __call__(self, step: str, detail: str = "", done: float | None = None) -> None:
        """See `pytest_llmperf.engines.process.Progress`."""
        if self._silent or self._reporter is None:
            return
        remaining_s = self._rest.seconds(done)
        parts = (step, detail, None if remaining_s is None else f"{units.left(remaining_s)} left")
        what, now_ns = text.plain(", ".join(part for part in parts if part)), self._clock.now_ns()
        if self._reporter.isatty:
            self._write(f"\r\x1b[K{self._named(what)[:_TTY_CHARACTERS]}")
            self._dirty = True
        elif self._said_ns is None or seconds_between(self._said_ns, now_ns) >= _REPEAT_S:
            said = text.wrapped(f"llmperf: {self._named(what, room=None)}", text.CHARACTERS)
            self._write("".join(f"\n{line}" for line in said))
            self._said_ns, self._dirty = now_ns, True

    def clear(self) -> None:
        """Make room for what pytest writes next."""
        if self._dirty and self._reporter is not None:
            self._write("\r\x1b[K" if self._reporter.isatty else "\n")
            self._dirty = False

    def _named(self, what: str, room: int | None = _TTY_CHARACTERS) -> str:
        """Which test it is, as far as there is room; the numbers come first."""
        if self._running is None:
            return what
        name = text.plain(self._running)
        left = len(name) if room is None else room - len(what) - len(": ")
        if len(name) > left:
            name = f"{name[: max(0, left - 3)]}..." if left > len("...") else ""
        return f"{name}: {what}" if name else what

    def _write(self, what: str) -> None:
        with self._capture.global_and_fixture_disabled() if self._capture else nullcontext():
            if self._reporter is not None:
                self._reporter.write(what, flush=True)


class _Rest:
    """How long the rest of a measurement may take, if it goes on as fast as so far."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: tuple[int, float] | None = None
        self._done = 0.0

    def seconds(self, done: float | None) -> float | None:
        """After this share of it; None while nothing is known. A share that falls is another measurement's."""
        if done is None:
            return None
        now_ns = self._clock.now_ns()
        if self._began is None or done < self._done:
            self._began = (now_ns, done)
        self._done = done
        began_ns, before = self._began
        return None if done <= before else seconds_between(began_ns, now_ns) / (done - before) * (1 - done)


def header(outlooks: Sequence[Outlook]) -> Iterator[str]:
    """What is measured, with what, against what: a line for each piece of hardware."""
    for outlook in outlooks:
        yield text.plain(f"llmperf: {outlook}")


def width_of(config: pytest.Config) -> int:
    """Characters of a line where this session writes; a worker of xdist writes nowhere itself."""
    is_here = config.pluginmanager.has_plugin("terminalreporter")
    return config.get_terminal_writer().fullwidth if is_here else text.CHARACTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a session has to tell at its end, wherever its tests ran."""

    hardware_key: str
    """Where nothing was measured."""
    outlook: Sequence[Outlook]
    results: Sequence[tuple[text.Told, Sequence[str]]]
    """Each with the lines on it."""
    about: Sequence[str]
    """What holds for all of them."""
    folders: Sequence[Path]
    """Where records and server logs are."""
    failed: int = 0
    """Tests that failed for another reason than a verdict."""


def content_of(suite: Suite, width: int, failed: int = 0) -> Content:
    """Of a session that has measured in this process; `width`: of the terminal; `failed`: see `Content`."""
    results = [measured.result for measured in suite.measured]
    return Content(
        hardware_key=suite.hardware.key,
        outlook=suite.outlook,
        results=[(result, _told(result, suite.options.baselines, width)) for result in results],
        about=[*text.assumptions(results), *(suite.gate.spreads() if suite.gate is not None else ())],
        folders=[suite.output],
        failed=failed,
    )


def _told(result: Judged, baselines: Path, width: int) -> tuple[str, ...]:
    """All lines on a result: what was found, and how to accept what has regressed."""
    about = result.provenance
    accepting = commands(about.measurement, about.hardware_key, result.judgement, baselines)
    return (*text.measurement(result, width), *(f"    {line}" for line in accepting))


def summary(
    reporter: pytest.TerminalReporter, content: Content, saved: Sequence[Path], notes: Sequence[str], width: int
) -> None:
    """Print every measurement of the session, and at last one line that says what came of it and what to do.

    `width`: of the terminal, in characters.
    """
    if not content.results and not notes:
        return
    results = [result for result, _ in content.results]
    measured_on = dict.fromkeys(result.provenance.hardware_key for result in results)
    reporter.write_sep("=", text.plain(f"llmperf on {', '.join(measured_on) or content.hardware_key}"))
    _write(reporter, header(content.outlook), width)
    for result, (first, *rest) in content.results:
        _write(reporter, [first], width, **_colour(result.verdict))
        _write(reporter, rest, width)
    _write(reporter, _about_all(content, saved, notes), width)
    colour = _colour(text.worst(results))
    _write(reporter, [text.closing(results, stored=bool(saved), failed=content.failed)], width, **colour)


def _about_all(content: Content, saved: Sequence[Path], notes: Sequence[str]) -> Iterator[str]:
    yield from content.about
    yield from (f"stored as baseline: {nearby(path)}" for path in saved)
    yield from notes
    if content.results:
        yield from (f"records and server logs: {nearby(folder)}" for folder in content.folders)


def _colour(verdict: Verdict | None) -> dict[str, bool]:
    return {} if verdict is None else _COLOURS.get(verdict, {"yellow": True})


def _write(reporter: pytest.TerminalReporter, lines: Iterable[str], width: int, **colour: bool) -> None:
    for part in text.folded(map(text.plain, lines), width):
        reporter.write_line(part, **colour)
