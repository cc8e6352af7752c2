"""The command `pytest-llmperf`: one file per subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pytest_llmperf import __version__
from pytest_llmperf.cli import doctor, import_, load, serve

SUBCOMMANDS = {"doctor": doctor, "import": import_, "load": load, "serve": serve}
"""Name: module with `HELP`, `add_arguments(parser)` and `run(arguments) -> exit code`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pytest-llmperf", description="Performance-regression tests of LLM serving.")
    parser.add_argument("--version", action="version", version=f"pytest-llmperf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in SUBCOMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    parsed = parser.parse_args(arguments)
    code: int = SUBCOMMANDS[parsed.command].run(parsed, sys.stdout)
    return code
