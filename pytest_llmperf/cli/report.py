"""`pytest-llmperf report RESULT.json`: a result file as a page for people, or as a comment on a pull request."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

from pytest_llmperf import atomic
from pytest_llmperf.cli import exit_codes
from pytest_llmperf.errors import BaselineError, ConfigurationError

HELP = "make an HTML page, or Markdown for a pull request, of a result file"
_STANDARD_OUTPUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to read, and what to write."""
    parser.add_argument(
        "result", metavar="RESULT.json", type=Path, help="a file of --benchmark-json, or a stored night"
    )
    parser.add_argument(
        "--records", metavar="DIR", type=Path,
        help="the session's records, .llmperf/<time>-<pid>: distributions and the course over time",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", metavar="DIR", type=Path,
        help="the stored nights: what differs from them, and their history; what was not judged is judged by them",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE.html", type=Path, help="write the page there")
    parser.add_argument("--markdown", metavar="FILE.md", help="write the comment there; - prints it")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Write what was asked for: 0, whatever the verdicts; 2 for a file that cannot be used; 3 for a usage mistake."""
    try:
        _check(arguments)
        _write(arguments, out)
    except ConfigurationError as error:
        _complain(*error.problems)
        return exit_codes.USAGE
    except BaselineError as error:
        _complain(*str(error).split("\n"))
        return exit_codes.INVALID
    return exit_codes.OK


def _check(arguments: argparse.Namespace) -> None:
    """Raises `ConfigurationError` listing every mistake, before anything is read."""
    problems = []
    if arguments.output is None and arguments.markdown is None:
        problems.append("say what to write: -o FILE.html for a page, --markdown FILE.md for a comment")
    wanted = {"-o": arguments.output}
    if arguments.markdown not in (None, _STANDARD_OUTPUT):
        wanted["--markdown"] = Path(arguments.markdown)
    problems += atomic.shared({"RESULT.json": arguments.result, **wanted})
    for option, path in wanted.items():
        problem = None if path is None else atomic.unwritable(path)
        if problem is not None:
            problems.append(f"{option}: {problem}")
    for option, folder in (("--records", arguments.records), ("--baselines", arguments.baselines)):
        if folder is not None and not folder.is_dir():
            problems.append(f"{option}: {folder} is no folder")
    if problems:
        raise ConfigurationError(*problems)
    if arguments.output is not None:
        from pytest_llmperf.reports.html.svg import check_installed  # noqa: PLC0415 - needs numpy

        check_installed()


def _write(arguments: argparse.Namespace, out: TextIO) -> None:
    from pytest_llmperf.reports.from_file import report_of  # noqa: PLC0415 - needs numpy
    from pytest_llmperf.reports.markdown import markdown  # noqa: PLC0415 - as above
    from pytest_llmperf.result_file import read  # noqa: PLC0415 - as above

    report = report_of(read(arguments.result), records=arguments.records, baselines=arguments.baselines)
    _complain(*report.notes)
    if arguments.output is not None:
        from pytest_llmperf.reports.html import page  # noqa: PLC0415 - as above

        _put(arguments.output, page(report))
        out.write(f"{arguments.output}: {report.tally()}\n")
    if arguments.markdown == _STANDARD_OUTPUT:
        out.write(markdown(report))
    elif arguments.markdown is not None:
        _put(Path(arguments.markdown), markdown(report))


def _put(path: Path, content: str) -> None:
    """Raises `ConfigurationError` where that cannot be done."""
    try:
        atomic.write(path, content)
    except OSError as error:
        raise ConfigurationError(atomic.why(error, path)) from None


def _complain(*sentences: str) -> None:
    sys.stderr.writelines(f"pytest-llmperf report: {sentence}\n" for sentence in sentences)
