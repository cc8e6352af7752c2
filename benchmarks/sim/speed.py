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
        found[f"{size:,} requests, us each"] = on_eight(sessions, poisson(400, seed=1)) / size * 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMPERF_TRACES"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, float] = {
        "10 users x 10 rounds, s (wanted: 0.2)": seed_case(),
        "8,000 requests over 8 x L4, s (wanted: 5)": kubeai_case(),
    }
    if arguments.traces:
        sessions = list(mooncake(Path(arguments.traces)))
        found["12,031 requests of the Mooncake trace, s (wanted: 10)"] = on_eight(sessions, replay())
    found |= growth()
    for name, value in found.items():
        print(f"{name:58} {value:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
