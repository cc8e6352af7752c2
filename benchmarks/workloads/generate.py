"""What it costs to make a workload: processor time, memory, and how soon the first request is there.

    python benchmarks/workloads/generate.py [--traces FOLDER]

Each row in a process of its own, so that its peak of memory is its own. `--traces` (or LLMPERF_TRACES) is a folder
with `mooncake/conversation_trace.jsonl`; without it those rows are left out.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pytest_llmperf import multi_round, trace
from pytest_llmperf.workloads import Session

CONVERSATIONS = Path("mooncake") / "conversation_trace.jsonl"


def drawn(sessions: Iterable[Session], began: float) -> str:
    """Goes through the sessions and keeps none, as a driver of many workers does with the others'."""
    first_ms, ids = 0.0, 0
    for session in sessions:
        first_ms = first_ms or (time.process_time() - began) * 1e3
        ids += sum(turn.new_tokens + (0 if turn.prefix is None else len(turn.prefix)) for turn in session.turns)
    return f"{ids / 1e6:.1f} million ids, the first request after {first_ms:.1f} ms"


def contexts(_: Path) -> str:
    """8,000 users with 16,000 tokens each."""
    began = time.process_time()
    users = multi_round(users=8000, rounds=1, context_tokens=15_936, input_tokens=64, output_tokens=64, seed=1)
    return drawn(users, began)


def loading(traces: Path) -> str:
    """The file, read and checked, and its hit rate."""
    read = trace(traces / CONVERSATIONS)
    return f"{read.requests:,} requests, hit rate {read.infinite_cache_hit_rate():.1%}, digest {read.digest}"


def replaying(traces: Path) -> str:
    """The file and all of its ids."""
    began = time.process_time()
    return drawn(trace(traces / CONVERSATIONS), began)


CASES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "contexts": ("8,000 sessions of 16,000 tokens (wanted: 2 s, 600 MB, 50 ms)", contexts),
    "loading": ("the Mooncake conversation trace loaded (wanted: 1 s)", loading),
    "replaying": ("the same, loaded and all of its ids made", replaying),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMPERF_TRACES"))
    parser.add_argument("--case", choices=CASES)
    arguments = parser.parse_args()
    if arguments.case:
        name, measured = CASES[arguments.case]
        began = time.process_time()
        found = measured(Path(arguments.traces or "."))
        cpu_s = time.process_time() - began
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"{name}: {cpu_s:.2f} s of CPU, peak {peak_mb:.0f} MB; {found}")
        return
    for case in CASES if arguments.traces else ["contexts"]:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--case", case], check=True)


if __name__ == "__main__":
    main()
