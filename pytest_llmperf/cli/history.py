"""`pytest-llmperf history`: stored results as series over time, the steps in them, and what made a step."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pytest_llmperf.cli import exit_codes
from pytest_llmperf.errors import BaselineError, ConfigurationError

if TYPE_CHECKING:
    from pytest_llmperf.history import Answer, Reading, Series, Step

HELP = "show stored results over time, and find steps in them"
_DEFAULT_FOLDER = "baselines"
_NAMED = 8
"""Tests that a complaint lists at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to read, and what to do with it."""
    parser.usage = (
        "%(prog)s [FOLDER | FILE ...] [--git RANGE] [--test TEXT] [--metric NAME] [--json FILE]\n"
        "       %(prog)s bisect FOLDER --test TEXT --metric NAME [--step N] [--checkout DIR] [--install CMD]\n"
        "       %(prog)s verdict FILE --test TEXT --metric NAME --change SHARE"
    )
    parser.add_argument(
        "what", metavar="FOLDER | FILE", nargs="*",
        help="result files or folders of them (default: baselines); after the word bisect: print the git commands "
        "that find what made a step; after verdict: what a result says to git bisect",
    )  # fmt: skip
    parser.add_argument(
        "--git",
        metavar="RANGE",
        help="read what the commits of a range brought to the folder, such as HEAD or v1..main",
    )
    parser.add_argument("--test", metavar="TEXT", help="only tests that have this in their name")
    parser.add_argument("--metric", action="append", metavar="NAME", help="only this metric (may be repeated)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write series and steps there")
    bisect = parser.add_argument_group("bisect")
    bisect.add_argument("--step", type=int, metavar="N", help="its number in the table (default: the last)")
    bisect.add_argument(
        "--checkout", type=Path, metavar="DIR", help="where git is to bisect (default: the current folder)"
    )
    bisect.add_argument("--install", metavar="CMD", help="builds a commit there, such as 'pip install -e .'")
    bisect.add_argument(
        "--base", action="append", metavar="WORD=VALUE",
        help="measure this build in turn with each commit, instead of judging by the nights before the step",
    )  # fmt: skip
    bisect.add_argument("--options", metavar="TEXT", help="further options for pytest")
    verdict = parser.add_argument_group("verdict")
    verdict.add_argument("--change", type=float, metavar="SHARE", help="size of the step that is looked for")


_ACTIONS = {
    "bisect": ("step", "checkout", "install", "base", "options"),
    "verdict": ("change",),
}
"""First word: the options that only it takes."""


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print the series: 0, also with steps; 2 for files that cannot be used; 3 for a mistake in the arguments.

    `verdict` answers as `git bisect run` reads it: 0 good, 1 bad, 125 cannot be told.
    """
    action = next((word for word in arguments.what[:1] if word in _ACTIONS), None)
    try:
        _check(arguments, action)
        if action == "verdict":
            return _verdict(arguments, out)
        return _bisect(arguments, out) if action == "bisect" else _show(arguments, out)
    except ConfigurationError as error:
        _complain(*error.problems)
        return exit_codes.USAGE
    except BaselineError as error:
        _complain(*str(error).split("\n"))
        return exit_codes.INVALID


def _check(arguments: argparse.Namespace, action: str | None) -> None:
    """Raises `ConfigurationError` listing what does not go together."""
    problems = [
        f"--{option} goes with the word {word} in front: pytest-llmperf history {word} ..."
        for word, options in _ACTIONS.items()
        for option in options
        if word != action and getattr(arguments, option) is not None
    ]
    if action is not None:
        lacking = [f"--{one}" for one in ("test", "metric") if not getattr(arguments, one)]
        if action == "verdict" and arguments.change is None:
            lacking.append("--change")
        if lacking:
            problems.append(f"{action} needs {', '.join(lacking)}")
        if len(arguments.metric or ()) > 1:
            problems.append(f"{action} takes one --metric, got {', '.join(arguments.metric)}")
        if len(arguments.what) != 2:
            problems.append(f"{action} takes one {'file' if action == 'verdict' else 'folder'} after the word {action}")
        if arguments.json is not None:
            problems.append(f"--json does not go with {action}: it writes the series")
    if arguments.git is not None and (action == "verdict" or len(arguments.what) - bool(action) > 1):
        problems.append("--git takes one folder")
    if problems:
        raise ConfigurationError(*problems)


def _show(arguments: argparse.Namespace, out: TextIO) -> int:
    from pytest_llmperf.reports.history import history_json, table  # noqa: PLC0415 - needs numpy

    reading = _reading(arguments, arguments.what or [_DEFAULT_FOLDER])
    _complain(*reading.problems)
    found = _series(arguments, reading)
    lines = list(table(found))  # all of them or, where steps cannot be looked for, none
    out.writelines(f"{line}\n" for line in lines)
    if arguments.json is not None:
        _write(arguments.json, history_json(found, reading.problems))
    return exit_codes.INVALID if reading.problems else exit_codes.OK


def _reading(arguments: argparse.Namespace, what: list[str]) -> Reading:
    from pytest_llmperf.history import committed_files, stored_files  # noqa: PLC0415 - as above

    paths = [Path(word) for word in what]
    return stored_files(paths) if arguments.git is None else committed_files(paths[0], arguments.git)


def _series(arguments: argparse.Namespace, reading: Reading) -> list[Series]:
    """Raises `BaselineError` where nothing is left."""
    from pytest_llmperf.history import series_of  # noqa: PLC0415 - as above

    metrics = None if arguments.metric is None else frozenset(arguments.metric)
    found = series_of(reading.files, test=arguments.test, metrics=metrics)
    if found:
        return found
    everything = series_of(reading.files)
    if not everything:
        raise BaselineError("none of the files holds a measurement")
    tests = dict.fromkeys(series.measurement for series in everything)
    names = dict.fromkeys(series.quantity.name for series in everything)
    wanted = [f"the test {arguments.test!r}"] if arguments.test is not None else []
    wanted += [f"the metric {', '.join(arguments.metric)}"] if arguments.metric else []
    raise BaselineError(
        f"no series has {' and '.join(wanted)}; there are the tests {_some(list(tests))} and the metrics "
        f"{_some(list(names))}"
    )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _bisect(arguments: argparse.Namespace, out: TextIO) -> int:
    from pytest_llmperf.history import Recipe, bisection  # noqa: PLC0415 - as above

    folder = arguments.what[1]
    reading = _reading(arguments, [folder])
    _complain(*reading.problems)
    series = _one(arguments, _series(arguments, reading))
    recipe = Recipe(
        checkout=(arguments.checkout or Path()).resolve(),
        install=arguments.install,
        base=tuple(arguments.base or ()),
        options=arguments.options or "",
    )
    lines = list(bisection(series, _step(arguments, series), Path(folder), recipe))
    out.writelines(f"{line}\n" for line in lines)
    return exit_codes.OK


def _one(arguments: argparse.Namespace, found: list[Series]) -> Series:
    """The only current series. Raises `ConfigurationError` naming them where there are several."""
    current = [series for series in found if not series.replaced]
    exact = [series for series in current if series.measurement == arguments.test]
    chosen = exact or current
    if len(chosen) != 1:
        names = ", ".join(f"{series.measurement} on {series.hardware_key}" for series in chosen)
        raise ConfigurationError(
            f"--test {arguments.test!r} fits several: {names}; give one whole name, and one folder"
        )
    return chosen[0]


def _step(arguments: argparse.Namespace, series: Series) -> Step:
    """Raises `BaselineError` where there is none, `ConfigurationError` for another number than theirs."""
    if not series.steps:
        why = "no step was found" if series.steps is not None else "too few nights to tell a step"
        raise BaselineError(f"{series.quantity.name} of {series.measurement}: {why} in {len(series.nights)} night(s)")
    number = len(series.steps) if arguments.step is None else arguments.step
    if not 1 <= number <= len(series.steps):
        raise ConfigurationError(f"--step {number}: expected a number from 1 to {len(series.steps)}")
    return series.steps[number - 1]


def _verdict(arguments: argparse.Namespace, out: TextIO) -> int:
    """Nothing that cannot be read is good or bad."""
    from pytest_llmperf.history import Answer, answer  # noqa: PLC0415 - as above
    from pytest_llmperf.result_file import read  # noqa: PLC0415 - as above

    path, (metric,) = Path(arguments.what[1]), arguments.metric
    try:
        entries = read(path).entries
    except BaselineError as error:
        _complain(str(error))
        return Answer.SKIP
    entry = next((one for one in entries if (one.measurement, one.metric) == (arguments.test, metric)), None)
    told: Answer = Answer.SKIP if entry is None else answer(entry, arguments.change)
    out.write(f"{told.name.lower()}: {metric} of {arguments.test}\n")
    return told


def _write(path: Path, document: dict[str, object]) -> None:
    """Raises `ConfigurationError` where that cannot be done."""
    from pytest_llmperf.atomic import why  # noqa: PLC0415 - as above
    from pytest_llmperf.result_file import write  # noqa: PLC0415 - as above

    try:
        write(document, path)
    except OSError as error:
        raise ConfigurationError(f"--json {why(error, path)}") from None


def _complain(*sentences: str) -> None:
    sys.stderr.writelines(f"pytest-llmperf history: {sentence}\n" for sentence in sentences)
