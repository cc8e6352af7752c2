"""Writes `docs/numbers.md`: what the benchmarks were to show, and what they showed.

    python benchmarks/numbers/page.py                    the page, of what was measured last
    python benchmarks/numbers/page.py --run              every benchmark anew, then the page; some hours
    python benchmarks/numbers/page.py --run gate-speed   these anew
    python benchmarks/numbers/page.py --check            whether the page is up to date; exit code 1 if not

What a benchmark needs that is not here (`--vllm PYTHON`, `--traces FOLDER`) leaves it out, with its last figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from catalogue import BENCHMARKS, Benchmark

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURED = Path(__file__).with_name("measured")
PAGE = REPOSITORY / "docs" / "numbers.md"
INTRODUCTION = """\
# Numbers

What was wanted of the plugin itself, and what was measured. Each figure comes from a script under `benchmarks/`, which
is run on purpose and not as a test: on a machine that others use, too, a timed test fails for no reason. This page is
written by

    python benchmarks/numbers/page.py --run

from what these scripts say; nothing in it is typed in. Simulated GPUs are held against published figures in
[Simulation](simulation.md).
"""


def machine() -> str:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} logical cores, Linux {platform.release()}, Python {platform.python_version()}"


def measure(name: str, benchmark: Benchmark, given: Mapping[str, str]) -> None:
    """Run one and keep what it says. Raises `CalledProcessError` if it says nothing."""
    words = [word.format_map(given) for word in benchmark.arguments]
    command = ["python", f"benchmarks/{benchmark.script}", *words]
    shown = shlex.join(["python", f"benchmarks/{benchmark.script}", *benchmark.arguments])
    print(f"numbers: {name}, some {benchmark.minutes:g} min", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "told.json")
        load, began, before = os.getloadavg()[0], time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *command[1:], "--json", told],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if not told.exists():
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
        verdicts = json.loads(told.read_bytes())["verdicts"]
    content = {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "machine": machine(),
        "load_before": round(load, 2),
        "command": shown,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "verdicts": verdicts,
        "printed": done.stdout.strip(),
    }
    (MEASURED / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def page(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole of it."""
    return "\n".join(
        [INTRODUCTION, *_overview(stored), *(line for name in stored for line in _section(name, stored[name]))]
    )


def _overview(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    verdicts = [verdict for one in stored.values() for verdict in one["verdicts"]]
    missed = [verdict["what"] for verdict in verdicts if not verdict["ok"]]
    yield f"{len(verdicts) - len(missed)} of {len(verdicts)} were met when they were last measured.\n"
    yield "| wanted | measured | met | date |"
    yield "| --- | --- | --- | --- |"
    for one in stored.values():
        for verdict in one["verdicts"]:
            cells = [verdict["what"], verdict["found"], "yes" if verdict["ok"] else "**no**", one["date"]]
            yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _section(name: str, one: Mapping[str, Any]) -> Iterator[str]:
    benchmark = BENCHMARKS[name]
    yield f"## {benchmark.title}\n"
    if any(not verdict["ok"] for verdict in one["verdicts"]):
        yield f"{benchmark.missed or 'Why a target is missed here has not been looked into yet.'}\n"
    yield f"`{one['command']}`; {one['date']}; {one['machine']}; {_took(one)}.\n"
    yield f"```text\n{one['printed']}\n```\n"


def _took(one: Mapping[str, Any]) -> str:
    if "wall_s" not in one:
        return "how long that took was not kept"
    return f"{one['wall_s']:,.0f} s, {one['cpu_s']:,.0f} s of processor time, load {one['load_before']} before it"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--vllm", default=os.environ.get("LLMPERF_TEST_VLLM"), help="a Python that has vLLM")
    parser.add_argument("--traces", default=os.environ.get("LLMPERF_TRACES"), help="a folder with the Mooncake traces")
    arguments = parser.parse_args()
    given = {name: value for name in ("vllm", "traces") if (value := getattr(arguments, name))}
    if arguments.run is not None:
        for name in arguments.run or BENCHMARKS:
            if missing := BENCHMARKS[name].needs - given.keys():
                print(f"numbers: {name} is left out, it needs --{' --'.join(sorted(missing))}", file=sys.stderr)
            else:
                measure(name, BENCHMARKS[name], given)
    paths = {name: MEASURED / f"{name}.json" for name in BENCHMARKS}
    written = page({name: json.loads(path.read_bytes()) for name, path in paths.items() if path.exists()})
    if arguments.check:
        return int(PAGE.read_text(encoding="utf-8") != written)
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
