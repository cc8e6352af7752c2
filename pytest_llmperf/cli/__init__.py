"""The command `pytest-llmperf`: one file per subcommand."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from pytest_llmperf import __version__
from pytest_llmperf.cli import ab, baseline, compare, doctor, exit_codes, history, import_, load, report, serve

SUBCOMMANDS = {
    "ab": ab,
    "baseline": baseline,
    "compare": compare,
    "doctor": doctor,
    "history": history,
    "import": import_,
    "load": load,
    "report": report,
    "serve": serve,
}
"""Name: module with `HELP`, `add_arguments(parser)` and `run(arguments) -> exit code`."""


_LESS = re.compile(r"-[0-9.]+ ?%")


def _joined(arguments: Iterable[str]) -> list[str]:
    """`--change -7.4%` as `--change=-7.4%`: what begins with a dash and is no plain number is an option to argparse."""
    joined: list[str] = []
    for argument in arguments:
        if _LESS.fullmatch(argument) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


class _Parser(argparse.ArgumentParser):
    """Takes a negative percentage for a value, and ends with our own exit code for mistakes in the arguments."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(_joined(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(exit_codes.USAGE, f"{self.prog}: error: {message}\n")


def argument_parser() -> argparse.ArgumentParser:
    """What reads the command line, all subcommands included."""
    parser = _Parser(prog="pytest-llmperf", description="Performance-regression tests of LLM serving.")
    parser.add_argument("--version", action="version", version=f"pytest-llmperf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in SUBCOMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    parsed = argument_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path or a name may hold what the terminal has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    code: int = exit_codes.OK
    try:
        code = SUBCOMMANDS[parsed.command].run(parsed, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk behind standard output, or no place for a temporary folder
        sys.stderr.write(f"pytest-llmperf {parsed.command}: {error}; make room there, or name another place\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.INVALID
    return code
