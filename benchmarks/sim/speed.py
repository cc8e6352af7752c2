"""How fast the simulated engine is: CPU seconds of one core, driver and records included.

    python benchmarks/sim/speed.py [--traces FOLDER] [--json FILE]

`--traces` (or LLMPERF_TRACES) is a folder with `mooncake/conversation_trace.jsonl`; without it that row is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from drive import contexts, engine, run
from workloads import cut_up_conversations, mooncake

from pytest_llmperf import closed_loop, multi_round, poisson, replay, round_robin, single_turn
from pytest_llmperf.load import Load
from pytest_llmperf.workloads import Session

SIZES = (1_000, 10_000, 100_000)
ALIKE = 1.5
"""By what factor the time of a request may grow from the fewest to the most of them and still be called linear."""


def cpu_s(drive: Callable[[], object]) -> float:
    """CPU seconds that this takes."""
    began = time.process_time()
    drive()
    return time.process_time() - began


def seed_case() -> float:
    """Ten rounds with ten users, contexts included, on a GH200."""
    on = engine(
        model="llama-3.1-70b", part="gh200", dtype="fp8", kv_cache_dtype="fp8", kv_offload_gib=64, max_model_len=17_800
    )
    users = multi_round(users=10, rounds=10, context_tokens=16_000, input_tokens=64, output_tokens=64, seed=7)

    def drive() -> None:
        run(on, contexts(users), round_robin())
        run(on, users, round_robin())

    return cpu_s(drive)


def kubeai_case() -> float:
    """8,000 requests over eight L4."""
    sessions = cut_up_conversations(prompts=800, requests=8000, mean_input=832, mean_output=76, seed=5)
    on = engine(model="llama-3.1-8b", part="l4", dtype="fp8", kv_cache_dtype="fp8", replicas=8, policy="least_loaded")
    return cpu_s(lambda: run(on, sessions, closed_loop(1600)))


def on_eight(sessions: Iterable[Session], load: Load) -> float:
    """Eight replicas of a small model on H100, prefix-aware."""
    on = engine(model="llama-3.1-8b", part="h100", replicas=8, policy="cache_aware")
    return cpu_s(lambda: run(on, sessions, load))


def growth() -> dict[str, float]:
    """Requests of 256 + 32 tokens at a steady rate: CPU microseconds per request by their number."""
    found = {}
    for size in SIZES:
        sessions = list(single_turn(requests=size, input_tokens=256, output_tokens=32, seed=1))
        found[f"{size:,} requests"] = on_eight(sessions, poisson(400, seed=1)) / size * 1e6
    return found


def judged(took: dict[str, tuple[float, float]], each: dict[str, float]) -> list[dict[str, object]]:
    """`took`: CPU seconds, and how many are wanted; `each`: of one request, microseconds."""
    verdicts: list[dict[str, object]] = [
        {"what": f"{name} take less than {wanted:g} s of one core", "found": f"{found:.2f} s", "ok": found < wanted}
        for name, (found, wanted) in took.items()
    ]
    ratio = each[f"{SIZES[-1]:,} requests"] / each[f"{SIZES[0]:,} requests"]
    what = f"time is linear in requests: one of {SIZES[-1]:,} costs less than {ALIKE:g} times one of {SIZES[0]:,}"
    shown = ", ".join(f"{found:.0f} us each of {name}" for name, found in each.items())
    return [*verdicts, {"what": what, "found": f"{ratio:.2f} times: {shown}", "ok": ratio < ALIKE}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMPERF_TRACES"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    took = {
        "10 users with 10 rounds each": (seed_case(), 0.2),
        "8,000 requests over eight L4": (kubeai_case(), 5.0),
    }
    if arguments.traces:
        sessions = list(mooncake(Path(arguments.traces)))
        took["12,031 requests of the Mooncake trace"] = (on_eight(sessions, replay()), 10.0)
    verdicts = judged(took, growth())
    for verdict in verdicts:
        print(f"{verdict['what']}: {verdict['found']}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"verdicts": verdicts}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
