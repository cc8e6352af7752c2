"""`pytest-llmperf compare BASE NEW`: two stored results, with a verdict where they may be compared."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pytest_llmperf.cli import exit_codes
from pytest_llmperf.errors import BaselineError, ConfigurationError, unknown

if TYPE_CHECKING:
    from pytest_llmperf.gate.files import FileComparison, Terms
    from pytest_llmperf.result_file import ResultFile

HELP = "compare two stored results, or one with the nights of a baseline folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to compare, and how."""
    parser.add_argument(
        "base", metavar="BASE", type=Path, help="a result file, or a folder of stored nights such as baselines/KEY"
    )
    parser.add_argument("new", metavar="NEW", type=Path, help="a result file")
    parser.add_argument("--metric", action="append", metavar="NAME", help="only this metric (may be repeated)")
    nights = parser.add_mutually_exclusive_group()
    nights.add_argument(
        "--same-night", action="store_true", help="both were measured in turn on one machine, so nights do not count"
    )
    nights.add_argument(
        "--night-spread", type=_share, metavar="SHARE",
        help="standard deviation by which nights are taken to differ until 6 are there (default: 0.02)",
    )  # fmt: skip
    parser.add_argument("--alpha", type=_probability, metavar="P", help="of failing a healthy build (default: 0.01)")
    parser.add_argument(
        "--detect", type=_positive_share, metavar="SHARE", help="what a PASS must have been able to see"
    )
    parser.add_argument("--min-effect", type=_share, metavar="SHARE", help="what a change has to exceed")
    parser.add_argument("--nights", type=_count, default=30, metavar="N", help="of a folder, the newest (default: 30)")
    parser.add_argument(
        "--rename", action="append", default=[], type=_pair, metavar="OLD=NEW",
        help="replace text in the names of BASE, such as h100=gh200 (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--subset", action="store_true", help="NEW holds only a part of BASE on purpose: what it lacks is no mistake"
    )
    parser.add_argument(
        "--force", action="store_true", help="print the changes of results that may not be compared, without a verdict"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, such as 0.02 for 2 %, got {text!r}")
    return value


def _positive_share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive share such as 0.1 for 10 %, got {text!r}")
    return value


def _probability(text: str) -> float:
    value = _number(text)
    if not 1e-9 <= value <= 0.5:
        raise argparse.ArgumentTypeError(f"expected a probability from 1e-9 to 0.5, such as 0.01, got {text!r}")
    return value


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not (old and separator):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, got {text!r}")
    return old, new


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print the verdicts: 0 no regression, 1 a regression, 2 not comparable or not usable, 3 a usage mistake."""
    from pytest_llmperf.gate.files import compared  # noqa: PLC0415 - needs numpy and scipy
    from pytest_llmperf.reports.text import folded  # noqa: PLC0415 - as above

    try:
        terms, new = _terms(arguments), _file(arguments.new)
        base = _base_files(arguments, new)
        _check_metrics(terms, [*base, new])
        comparison = compared(base, new, terms)
    except (BaselineError, ConfigurationError) as error:
        sys.stderr.writelines(f"pytest-llmperf compare: {line}\n" for line in str(error).split("\n"))
        return exit_codes.USAGE if isinstance(error, ConfigurationError) else exit_codes.INVALID
    if arguments.subset:
        comparison = replace(comparison, vanished=())
    with contextlib.suppress(BrokenPipeError):  # the verdict stands, however much of it is read
        lines = _report(comparison, base, new, forced=arguments.force)
        out.writelines(f"{line}\n" for line in folded(lines, shutil.get_terminal_size().columns))
    return _exit_code(comparison)


def _terms(arguments: argparse.Namespace) -> Terms:
    from pytest_llmperf.gate.files import Terms  # noqa: PLC0415 - as above

    given = {name: getattr(arguments, name) for name in ("alpha", "detect", "min_effect", "night_spread")}
    known = {name: value for name, value in given.items() if value is not None}
    if arguments.same_night:
        known["night_spread"] = None
    if arguments.detect is not None and arguments.detect <= (arguments.min_effect or 0.0):
        raise ConfigurationError(f"--detect {arguments.detect} must be more than --min-effect {arguments.min_effect}")
    metrics = None if arguments.metric is None else frozenset(arguments.metric)
    return Terms(**known, metrics=metrics, renamed=tuple(arguments.rename))


def _file(path: Path) -> ResultFile:
    from pytest_llmperf.result_file import read  # noqa: PLC0415 - as above

    if os.path.isdir(path):  # `Path.is_dir` raises for a name that is too long
        raise BaselineError(f"{path} is a folder; the new result is one file, such as {path}/0001_main.json")
    return read(path)


def _base_files(arguments: argparse.Namespace, new: ResultFile) -> list[ResultFile]:
    """One file, or the newest of a folder, newest first; the new result is not held against itself."""
    from pytest_llmperf.baselines import Baselines  # noqa: PLC0415 - as above

    path: Path = arguments.base
    if not os.path.isdir(path):
        file = _file(path)
        if file.path.samefile(new.path):
            raise ConfigurationError(f"BASE and NEW are the same file, {new.path}; give two results")
        return [file]
    if arguments.same_night:
        raise ConfigurationError(f"--same-night takes two files, and {path} is a folder of nights")
    # A folder is named for its hardware, which `.` does not say.
    folder = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    files = [file for file in Baselines(folder.parent).files(folder.name) if not file.path.samefile(new.path)]
    if not files:
        raise BaselineError(f"{path} has no other stored result: expected files such as 0001_main.json in it")
    return files[: arguments.nights]


def _check_metrics(terms: Terms, files: list[ResultFile]) -> None:
    """Raise `ConfigurationError` for a metric that no file has: judging the others would hide a slip of the pen."""
    known = sorted({entry.metric for file in files for entry in file.entries})
    problems = [unknown("metric", name, known) for name in sorted(terms.metrics or ()) if name not in known]
    if problems:
        raise ConfigurationError(*(f"--metric: {problem}" for problem in problems))


def _report(comparison: FileComparison, base: list[ResultFile], new: ResultFile, *, forced: bool) -> Iterator[str]:
    from pytest_llmperf import units  # noqa: PLC0415 - as above
    from pytest_llmperf.reports import text  # noqa: PLC0415 - as above

    nights = "" if len(base) == 1 else f" and {units.count(len(base) - 1, 'night')} before it"
    yield f"base: {base[0].path}{nights} ({base[0].hardware_key})"
    yield f"new:  {new.path} ({new.hardware_key})"
    for measurement, judgement in comparison.judgements.items():
        yield from text.judged(measurement, judgement, shutil.get_terminal_size().columns)
    if comparison.refusals:
        yield "NOT COMPARABLE:"
        yield from (f"  {refusal}" for refusal in comparison.refusals)
        if forced:
            for measurement, changes in comparison.changes.items():
                yield measurement
                yield from (f"  {line}" for line in text.changes_table(changes))
        else:
            yield "  --force prints the changes all the same, without a verdict"
    elif not comparison.judgements:
        yield "NOT COMPARABLE: the two have no measurement in common"
    yield from (f"MISSING: {line}" for line in comparison.vanished)
    yield from (f"new: {line}" for line in comparison.appeared)
    yield from text.tally(list(comparison.judgements.values()))


def _exit_code(comparison: FileComparison) -> int:
    from pytest_llmperf.verdicts import Verdict  # noqa: PLC0415 - as above

    verdicts = {judgement.verdict for judgement in comparison.judgements.values()}
    if Verdict.REGRESSED in verdicts:
        return exit_codes.REGRESSED
    if not verdicts or Verdict.INVALID_RUN in verdicts or comparison.vanished:
        return exit_codes.INVALID
    return exit_codes.OK
