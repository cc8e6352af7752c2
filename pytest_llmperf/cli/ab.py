"""`pytest-llmperf ab`: two builds on one machine, measured in turn by the tests that pytest is given."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from pytest_llmperf.atomic import unwritable
from pytest_llmperf.cli import exit_codes
from pytest_llmperf.secret import without_credentials

HELP = "measure two builds in turn on this machine, by the tests that pytest is given, and judge between them"
_BUILD = "{build}"
"""Stands in a word for the folder of the build that a revision was checked out into."""
_GIT_S = 600.0
"""How long one git command may take: checking out a large repository onto a slow disk takes minutes."""
_PYTEST_USAGE = (2, 3, 4)
"""What pytest ends with when it was interrupted, broke, or was called wrongly."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two builds, how often each is measured, and what pytest is to be called with."""
    parser.usage = "pytest-llmperf ab [options] -- PYTEST_ARGUMENTS"
    builds = parser.add_argument_group(
        "builds", "each is the engine of the tests' marks with some words changed, such as "
        "executable=/venvs/main/bin/python, prefix_caching=false, url=http://host:8000; head with no word is as marked"
    )  # fmt: skip
    builds.add_argument(
        "--base", action="append", default=[], metavar="WORD=VALUE", help="of the base (may be repeated)"
    )
    builds.add_argument(
        "--head", action="append", default=[], metavar="WORD=VALUE", help="of the head (may be repeated)"
    )
    revisions = parser.add_argument_group(
        "revisions", "of an engine's checkout, each in a folder of its own; {build} in a word is that folder, as in "
        "--base executable={build}/.venv/bin/python"
    )  # fmt: skip
    revisions.add_argument("--checkout", type=Path, metavar="DIR", help="the engine's git checkout")
    revisions.add_argument("--base-rev", metavar="REV", help="revision of the base")
    revisions.add_argument("--head-rev", metavar="REV", help="revision of the head")
    revisions.add_argument("--install", metavar="COMMAND", help="run in each folder, by the shell, before measuring")
    revisions.add_argument(
        "--install-timeout", type=_seconds, default=3600.0, metavar="SECONDS",
        help="how long that may take (default: 3600)",
    )  # fmt: skip
    parser.add_argument("--runs", default="auto", metavar="N|auto", help="of each build, see pytest --llmperf-runs")
    parser.add_argument(
        "--servers", choices=("fresh", "both"), help="fresh: one server at a time, a fresh one for every run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result file there")
    parser.add_argument("pytest", nargs="*", metavar="PYTEST_ARGUMENTS", help="after --: tests, -k, -m, ...")


def _seconds(text: str) -> float:
    """Raises `argparse.ArgumentTypeError` for what is no positive number."""
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Measure and judge: 0 no regression, 1 a regression, 2 invalid or nothing judged, 3 a usage mistake."""
    problems = list(_problems(arguments))
    if problems:
        sys.stderr.writelines(f"pytest-llmperf ab: {problem}\n" for problem in problems)
        return exit_codes.USAGE
    out.flush()
    with tempfile.TemporaryDirectory(prefix="llmperf-ab-") as folder:
        folders = {"base": Path(folder, "base"), "head": Path(folder, "head")} if arguments.checkout else {}
        try:
            _check_out(arguments, folders)
            result = arguments.json or Path(folder, "result.json")
            code = subprocess.run(_command(arguments, folders, result.resolve()), check=False).returncode
            verdicts = _verdicts(result)
        except subprocess.TimeoutExpired as error:
            sys.stderr.write(
                f"pytest-llmperf ab: {_quoted(error.cmd)} had not ended after {error.timeout:g} s; mend it first\n"
            )
            return exit_codes.INVALID
        except subprocess.CalledProcessError as error:
            sys.stderr.write(
                f"pytest-llmperf ab: {_quoted(error.cmd)} ended with exit code {error.returncode}; mend it first\n"
            )
            return exit_codes.INVALID
        finally:
            _remove(arguments, folders)
    out.write(f"{_tally(verdicts)}\n")
    return _exit_code(code, verdicts)


def _problems(arguments: argparse.Namespace) -> Iterator[str]:
    revisions = (arguments.checkout, arguments.base_rev, arguments.head_rev)
    if any(revisions) and not all(revisions):
        yield "--checkout, --base-rev and --head-rev go together; give all three"
    problem = None if arguments.json is None else unwritable(arguments.json)
    if problem is not None:
        yield f"--json: {problem}"
    if arguments.install and not arguments.checkout:
        yield "--install needs the checkout to install from: --checkout DIR --base-rev REV --head-rev REV"
    if arguments.checkout is not None and not (arguments.checkout / ".git").exists():
        yield f"--checkout {arguments.checkout} is no git checkout"
    elif all(revisions):
        yield from (
            f"{arguments.checkout} has no revision {revision!r}"
            for revision in dict.fromkeys(revisions[1:])
            if not _has_revision(arguments.checkout, revision)
        )
    words = [*arguments.base, *arguments.head]
    yield from (
        f"{_quoted(word)!r}: expected WORD=VALUE, such as prefix_caching=false" for word in words if "=" not in word
    )
    yield from _with_credentials(words)
    if not words and not arguments.checkout:
        yield "the builds do not differ; say what one has with --base WORD=VALUE or --head WORD=VALUE"
    if "no:benchmark" in arguments.pytest:
        yield "the verdicts are read from pytest-benchmark's file; leave out -p no:benchmark"
    if arguments.checkout is not None and not any(_BUILD in word for word in arguments.base):
        example = f"--base executable={_BUILD}/.venv/bin/python"
        yield f"no word of the base has {_BUILD}, the folder of its revision; as in {example}"
    if not arguments.checkout and any(_BUILD in word for word in words):
        yield f"{_BUILD} is the folder of a revision; give --checkout DIR --base-rev REV --head-rev REV"


def _with_credentials(words: Sequence[str]) -> Iterator[str]:
    """They would be on the command line of pytest, for everybody on the machine to read."""
    for word in words:
        name, _, value = word.partition("=")
        if name in ("url", "router") and without_credentials(value) != value:
            yield f"{_quoted(word)!r} brings user, password or query; a server's key belongs into LLMPERF_API_KEY"


def _has_revision(checkout: Path, revision: str) -> bool:
    wanted = ("--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    command = ["git", "-C", str(checkout), "rev-parse", *wanted]
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, check=False, stdout=subprocess.DEVNULL, timeout=_GIT_S).returncode == 0
    return False


def _check_out(arguments: argparse.Namespace, folders: dict[str, Path]) -> None:
    """Each revision in its folder, installed. Raises `CalledProcessError` where that cannot be."""
    for name, where in folders.items():
        revision = getattr(arguments, f"{name}_rev")
        command = ["git", "-C", str(arguments.checkout), "worktree", "add", "--detach", str(where), revision]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_GIT_S)
        if arguments.install:
            sys.stdout.write(f"installing {name} ({revision}): {_quoted(arguments.install)}\n")
            sys.stdout.flush()
            subprocess.run(arguments.install, shell=True, cwd=where, check=True, timeout=arguments.install_timeout)


def _quoted(command: str | Sequence[str]) -> str:
    """A command as it may be shown: an index of packages has its password in the URL."""
    return without_credentials(command if isinstance(command, str) else shlex.join(command))


def _remove(arguments: argparse.Namespace, folders: dict[str, Path]) -> None:
    """Leave nothing of ours in the checkout."""
    for where in folders.values():
        if where.exists():
            command = ["git", "-C", str(arguments.checkout), "worktree", "remove", "--force", str(where)]
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, check=False, stdout=subprocess.DEVNULL, timeout=_GIT_S)


def _command(arguments: argparse.Namespace, folders: dict[str, Path], result: Path) -> list[str]:
    """pytest, in a process of its own, with the two builds as options."""
    options = [f"--llmperf-runs={arguments.runs}", f"--benchmark-json={result}"]
    for name, option in (("base", "--llmperf-base"), ("head", "--llmperf-head")):
        for word in getattr(arguments, name):
            filled = word.replace(_BUILD, str(folders[name])) if name in folders else word
            is_url = name == "head" and filled.startswith("url=")
            options += ["--llmperf-url", filled.removeprefix("url=")] if is_url else [option, filled]
    if arguments.servers:
        options.append(f"--llmperf-base-servers={arguments.servers}")
    return [sys.executable, "-m", "pytest", *_without_separator(arguments.pytest), *options]


def _without_separator(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[1:] if arguments[:1] == ["--"] else arguments


def _verdicts(result: Path) -> dict[str, str]:
    """Measurement to verdict, as the session's result file has them."""
    if not result.exists() or not os.path.getsize(result):
        return {}
    try:
        rows: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))["benchmarks"]
    except (OSError, ValueError) as error:
        sys.stderr.write(f"pytest-llmperf ab: {result} cannot be read: {error}\n")
        return {}
    about = [row["extra_info"].get("llmperf", {}) for row in rows]
    return {one["measurement"]: one["judgement"]["verdict"] for one in about if "judgement" in one}


def _tally(verdicts: dict[str, str]) -> str:
    counts = Counter(verdicts.values())
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "nothing was judged"


def _exit_code(code: int, verdicts: dict[str, str]) -> int:
    """pytest's exit code and the verdicts as one of ours; a test that failed for another reason is invalid."""
    if code in _PYTEST_USAGE:
        return exit_codes.USAGE
    if "REGRESSED" in verdicts.values():
        return exit_codes.REGRESSED
    if code != 0 or not verdicts or "INVALID_RUN" in verdicts.values():
        return exit_codes.INVALID
    return exit_codes.OK
