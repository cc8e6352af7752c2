"""What it costs to make a workload: processor time, memory, and how soon the first request is there.

    python benchmarks/workloads/generate.py [--traces FOLDER] [--json FILE]

Each row in a process of its own, so that its peak of memory is its own. `--traces` (or LLMPERF_TRACES) is a folder
with `mooncake/conversation_trace.jsonl`; without it those rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf import multi_round, trace
from pytest_llmperf.workloads import Session

CONVERSATIONS = Path("mooncake") / "conversation_trace.jsonl"


@dataclass(frozen=True)
class Case:
    """What is made, and what is wanted of that: names of `measured` and the most that they may be."""

    title: str
    make: Callable[[Path], tuple[str, dict[str, float]]]
    wanted: dict[str, float]


def drawn(sessions: Iterable[Session], began: float) -> tuple[str, dict[str, float]]:
    """Goes through the sessions and keeps none, as a driver of many workers does with the others'."""
    first_ms, ids = 0.0, 0
    for session in sessions:
        first_ms = first_ms or (time.process_time() - began) * 1e3
        ids += sum(turn.new_tokens + (0 if turn.prefix is None else len(turn.prefix)) for turn in session.turns)
    return f"{ids / 1e6:.1f} million ids", {"ms to the first request": first_ms}


def contexts(_: Path) -> tuple[str, dict[str, float]]:
    """8,000 users with 16,000 tokens each."""
    began = time.process_time()
    users = multi_round(users=8000, rounds=1, context_tokens=15_936, input_tokens=64, output_tokens=64, seed=1)
    return drawn(users, began)


def loading(traces: Path) -> tuple[str, dict[str, float]]:
    """The file, read and checked, and its hit rate."""
    read = trace(traces / CONVERSATIONS)
    return f"{read.requests:,} requests, hit rate {read.infinite_cache_hit_rate():.1%}, digest {read.digest}", {}


def replaying(traces: Path) -> tuple[str, dict[str, float]]:
    """The file and all of its ids."""
    began = time.process_time()
    return drawn(trace(traces / CONVERSATIONS), began)


CASES = {
    "contexts": Case(
        "8,000 sessions of 16,000 tokens", contexts, {"s of CPU": 2, "MB at most": 600, "ms to the first request": 50}
    ),
    "loading": Case("the Mooncake conversation trace loaded", loading, {"s of CPU": 1}),
    "replaying": Case("the same, loaded and all of its ids made", replaying, {}),
}


def made(case: Case, traces: Path) -> list[dict[str, object]]:
    """Makes it in this process; what was wanted and what was found."""
    began = time.process_time()
    about, measured = case.make(traces)
    measured["s of CPU"] = time.process_time() - began
    measured["MB at most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    shown = ", ".join(f"{value:.3g} {name}" for name, value in measured.items())
    print(f"{case.title}: {shown}; {about}")
    return [
        {
            "what": f"{case.title}: less than {most:g} {name}",
            "found": f"{measured[name]:.3g}",
            "ok": measured[name] < most,
        }
        for name, most in case.wanted.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMPERF_TRACES"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", choices=CASES, help="this one alone, in this process")
    arguments = parser.parse_args()
    traces = Path(arguments.traces or ".")
    verdicts: list[dict[str, object]] = []
    if arguments.case:
        verdicts = made(CASES[arguments.case], traces)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for name in CASES if arguments.traces else ["contexts"]:
                told = Path(folder, name)
                command = [sys.executable, __file__, "--traces", traces, "--case", name, "--json", told]
                subprocess.run(command, check=True)
                verdicts += json.loads(told.read_bytes())["verdicts"]
    if arguments.json:
        arguments.json.write_text(json.dumps({"verdicts": verdicts}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
