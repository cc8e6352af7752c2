"""Every exception and warning of the package.

LLMPerfError
├── ConfigurationError       what was asked cannot be done as it was asked
├── EngineError              the engine, not the test, is at fault
│   ├── EngineStartError     it never became ready
│   ├── EngineDiedError      it was ready, and its process has ended
│   └── EngineAnswerError    it answers, but not as the protocol says
├── NvmlError                NVML is not there, or does not answer
├── OverdueError             something did not come back within its time
├── DeviceBusyError          another process measures on the device
├── NoSamplesError           a statistic was asked of nothing
├── BaselineError            a stored result cannot be used
└── ForeignResultError       another tool's result file cannot be used

LLMPerfWarning
├── NoBaselineWarning        nothing to compare with
├── InconclusiveWarning      the comparison could not have seen what it was asked to see
├── RegressionWarning        a regression that the gate was told not to fail
└── NotMeasuredWarning       the workload ran, and nothing was recorded
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LLMPerfError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigurationError(LLMPerfError):
    """What was asked cannot be done as it was asked; lists every mistake found.

    `problems`: one sentence each: what was given, what is accepted.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[ConfigurationError], tuple[str, ...]]:
        return type(self), self.problems  # from a worker process they arrive one by one


class DeviceBusyError(LLMPerfError):
    """Another process measures on the device, and went on for longer than was to be waited."""


class EngineError(LLMPerfError):
    """The engine is at fault; the text carries what it said."""


class EngineStartError(EngineError):
    """An engine never became ready, or a server could not be reached."""

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        """`is_final`: the same start would fail in the same way, or cost as much time as this one did."""
        super().__init__(text)
        self.is_final = is_final


class EngineDiedError(EngineError):
    """The engine's process ended while it was needed."""


class EngineAnswerError(EngineError):
    """The engine answered, but not as the protocol says."""


class NvmlError(LLMPerfError):
    """NVML is not there or does not answer; the text is one sentence on why and, where known, what to do."""

    def __init__(self, sentence: str, *, has_driver: bool = True) -> None:
        """`has_driver`: whether there is a driver, which then fails."""
        super().__init__(sentence)
        self.has_driver = has_driver


class OverdueError(LLMPerfError):
    """Something did not come back within its time; the text says what was waited for, and how long."""


def unknown(what: str, given: object, accepted: Iterable[str]) -> str:
    """The sentence on a word that is not known: what is accepted, and what was probably meant."""
    known = list(accepted)
    shown = given[:60] if isinstance(given, str) else given  # a file's word may be of any length
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {shown!r}; {hint}accepted: {', '.join(known)}"


class NoSamplesError(LLMPerfError):
    """A statistic was asked of nothing; a number here would be invented."""


class BaselineError(LLMPerfError):
    """A stored result cannot be read or does not belong where it lies."""


class ForeignResultError(LLMPerfError):
    """Another tool's result file cannot be read, or does not say what a measurement needs."""


class LLMPerfWarning(UserWarning):
    """Base of the package's warnings; `-W error::pytest_llmperf.errors.NAME` makes one fail."""


class NoBaselineWarning(LLMPerfWarning):
    """Nothing stored matches this measurement. Save one with `--llmperf-save-baseline NAME`."""


class InconclusiveWarning(LLMPerfWarning):
    """The comparison could not have seen the change it was asked to see. Raise `--llmperf-runs`."""


class RegressionWarning(LLMPerfWarning):
    """A regression was found while `--llmperf-gate warn` is in force."""


class NotMeasuredWarning(LLMPerfWarning):
    """The workload ran once without being recorded or judged, because benchmarks are disabled."""
