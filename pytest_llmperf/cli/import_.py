"""`pytest-llmperf import FILE...`: other tools' result files as one of ours."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pytest_llmperf.cli import exit_codes
from pytest_llmperf.errors import ConfigurationError, LLMPerfError

if TYPE_CHECKING:
    from pytest_llmperf.foreign.imported import Imported

HELP = "read result files of vllm bench serve, AIPerf, GuideLLM or SGLang and write them in the form of our own"
# A folder of baselines is named by it.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_UNKNOWN = "unknown"
_SHOWN = ("ttft_p50", "tpot_p50", "e2e_p50", "output_throughput", "request_throughput")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to read, where to write, and what the files do not say."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON or JSONL, as the tool wrote it")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("imported.json"), metavar="OUT.json",
        help="where to write (default: imported.json)",
    )  # fmt: skip
    parser.add_argument(
        "--hardware", default=_UNKNOWN, metavar="KEY",
        help="hardware key of the machine that served, as `pytest-llmperf doctor` prints it there (default: unknown)",
    )  # fmt: skip
    parser.add_argument("--name", metavar="TEST", help="name of the measurement (default: made of tool and load)")
    parser.add_argument("--engine", default=_UNKNOWN, metavar="KIND", help="engine that served, such as vllm")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Read, write and say what was found; 0 if written, 2 for files that cannot be used, 3 for wrong options."""
    try:
        _check(arguments)
        imported = _convert(arguments)
    except LLMPerfError as error:
        problems = error.problems if isinstance(error, ConfigurationError) else str(error).splitlines()
        sys.stderr.writelines(f"pytest-llmperf import: {problem}\n" for problem in problems)
        return exit_codes.USAGE if isinstance(error, ConfigurationError) else exit_codes.INVALID
    except OSError as error:
        from pytest_llmperf.atomic import why  # noqa: PLC0415 - only here

        sys.stderr.write(f"pytest-llmperf import: --output: {why(error, arguments.output)}\n")
        return exit_codes.USAGE
    out.writelines(f"{line}\n" for one in imported for line in _summary(one))
    out.write(f"written: {arguments.output}\n")
    return exit_codes.OK


def _check(arguments: argparse.Namespace) -> None:
    """Raises `ConfigurationError` with every mistake."""
    problems = []
    if not _KEY.fullmatch(arguments.hardware):
        problems.append(
            f"--hardware {arguments.hardware!r} cannot be a hardware key; use letters, digits and . _ + - only, such "
            f"as NVIDIA-GH200-96GB"
        )
    for option in ("name", "engine"):
        given = getattr(arguments, option)
        if given is not None and not (given.strip() and given.isprintable()):
            problems.append(f"--{option} {given!r}: expected a name of printable characters")
    if any(_same(arguments.output, path) for path in arguments.files):
        problems.append(f"--output {arguments.output} is one of the files to read; expected another name")
    if problems:
        raise ConfigurationError(*problems)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _convert(arguments: argparse.Namespace) -> list[Imported]:
    # Only here: `--help` and the other subcommands shall not wait for numpy.
    from pytest_llmperf.clock import timestamp  # noqa: PLC0415
    from pytest_llmperf.foreign import read_runs  # noqa: PLC0415
    from pytest_llmperf.foreign.document import document  # noqa: PLC0415
    from pytest_llmperf.foreign.imported import Naming, measurements, originals  # noqa: PLC0415
    from pytest_llmperf.result_file import write  # noqa: PLC0415

    naming = Naming(hardware_key=arguments.hardware, test=arguments.name, engine_kind=arguments.engine)
    imported = measurements(read_runs(arguments.files), naming)
    made = document(
        [one.measurement for one in imported],
        arguments.hardware,
        saved_at=timestamp().isoformat(),
        originals=originals(imported),
    )
    write(made, arguments.output)
    return imported


def _summary(imported: Imported) -> list[str]:
    from pytest_llmperf.units import count, quantity  # noqa: PLC0415

    heading = f"{imported.name} ({imported.runs[0].tool}, {count(len(imported.runs), 'run')})"
    shown = {figure.metric: figure for figure in imported.measurement.figures if figure.metric in _SHOWN}
    lines = [
        f"  {name}: {', '.join(quantity(value, shown[name].unit) for value in shown[name].values)}"
        for name in _SHOWN
        if name in shown
    ]
    return [heading, *lines, *(f"  doubt: {doubt}" for doubt in imported.doubts)]
