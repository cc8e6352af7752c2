"""`pytest-llmperf baseline`: the stored nights, and the changes of their level that were accepted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

from pytest_llmperf.cli import exit_codes
from pytest_llmperf.errors import BaselineError, ConfigurationError

HELP = "list, show, save, prune and promote stored nights; acknowledge a change that is accepted"


class _Action(NamedTuple):
    """One word after `baseline`; what it does stands under its name in `ACTIONS` of `nights` or `acknowledge`."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", nargs="?", help="only this hardware key, night by night")


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="hardware key, a folder of the baselines")
    parser.add_argument(
        "test", metavar="TEST", nargs="?", help="only this measurement; * and ? stand for any text and any character"
    )
    parser.add_argument("--metric", action="append", metavar="M", help="only this metric (may be repeated)")


def _save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="result file, such as one of --benchmark-json; oldest first"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="what the nights are called, such as main")
    parser.add_argument(
        "--accept-regressed", action="store_true", help="store what regressed as well, which is left out otherwise"
    )


def _prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="hardware key, a folder of the baselines")
    parser.add_argument("--keep", required=True, metavar="N", help="how many of the newest nights stay")
    parser.add_argument("--dry-run", action="store_true", help="only say which files would be removed")


def _promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("origin", metavar="FROM_DIR", type=Path, help="another folder of baselines, by hardware key")
    parser.add_argument("--only", metavar="NAME", help="only nights that were saved under this name")


def _acknowledge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", nargs="?", help="hardware key, a folder of the baselines")
    parser.add_argument(
        "test", metavar="TEST", nargs="?", help="measurement; * and ? stand for any text and any character"
    )
    parser.add_argument("--metric", metavar="M", help="what has changed, such as ttft_p50")
    parser.add_argument(
        "--change",
        metavar="CHANGE",
        help="by how much, as the report prints it: +8%% of a latency is slower, -7.4%% of a throughput is, too",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why it is accepted")
    parser.add_argument("--expires", metavar="DATE", help="last day on which the new level is expected: 2026-12-31")
    parser.add_argument(
        "--since", metavar="N", help="number of the first night at the new level (default: the next night's)"
    )
    parser.add_argument("--list", action="store_true", help="print what is accepted, of KEY or of all hardware")
    parser.add_argument("--remove", metavar="INDEX", help="take back what --list shows under this number of KEY")


_ACTIONS = {
    "list": _Action("say what is stored, by hardware key", _list),
    "show": _Action("say at which level the tests of a hardware key are, and how much nights differ", _show),
    "save": _Action("store result files as the next nights of their hardware", _save),
    "prune": _Action("remove the oldest nights of a hardware key", _prune),
    "promote": _Action("take the nights of another folder into this one", _promote),
    "acknowledge": _Action("accept a change of a metric's level until a day", _acknowledge),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser per action; all know where the baselines are."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, action in _ACTIONS.items():
        own = actions.add_parser(name, help=action.help, description=action.help)
        action.add_arguments(own)
        own.add_argument(
            "--baselines", type=Path, default=Path("baselines"), metavar="DIR",
            help="where results are stored (default: baselines)",
        )  # fmt: skip


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """0 done, 2 files that cannot be used or written, 3 a mistake in the arguments."""
    from pytest_llmperf.atomic import why  # noqa: PLC0415 - as below
    from pytest_llmperf.cli.baseline import acknowledge, nights  # noqa: PLC0415 - they need numpy

    try:
        (nights.ACTIONS | acknowledge.ACTIONS)[arguments.action](arguments, out)
    except ConfigurationError as error:
        return _complain(arguments, error.problems, exit_codes.USAGE)
    except BaselineError as error:
        return _complain(arguments, str(error).split("\n"), exit_codes.INVALID)
    except OSError as error:
        if error.filename is None:  # it was standard output
            raise
        sentence = f"{why(error, Path(error.filename))}; nothing half-written is left"
        return _complain(arguments, [sentence], exit_codes.INVALID)
    return exit_codes.OK


def _complain(arguments: argparse.Namespace, problems: list[str] | tuple[str, ...], code: int) -> int:
    sys.stderr.writelines(f"pytest-llmperf baseline {arguments.action}: {problem}\n" for problem in problems)
    return code
