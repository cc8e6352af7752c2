"""Prefix-aware routing over eight L4, after KubeAI's published runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from drive import Run, engine, run
from rows import Row, comparison
from workloads import cut_up_conversations

from pytest_llmperf import closed_loop, poisson
from pytest_llmperf.load import Load


@dataclass(frozen=True)
class Published:
    """One arm at one limit of concurrency; requests/s, ms."""

    concurrency: int
    policy: str
    requests_per_s: float
    ttft_ms: float
    tpot_ms: float | None
    duration_s: float
    p99_ttft_ms: float
    itl_ms: float


# At 800 the published page gives TTFT and tokens per second only: requests/s are those by 908.1 tokens a request; the
# time between tokens is taken to be that at 1,600.
PUBLISHED = (
    Published(800, "least_loaded", 45866.16 / 908.1, 817.18, None, 8000 * 908.1 / 45866.16, 0.0, 193.34),
    Published(800, "prefix_hash", 69407.79 / 908.1, 280.20, None, 8000 * 908.1 / 69407.79, 0.0, 79.20),
    Published(1600, "least_loaded", 52.28, 10579.01, 212.39, 153.02, 15514.10, 193.34),
    Published(1600, "prefix_hash", 72.73, 196.13, 78.51, 110.00, 492.33, 79.20),
    Published(3200, "least_loaded", 52.48, 24147.86, 211.98, 152.43, 46021.48, 192.94),
    Published(3200, "prefix_hash", 71.84, 213.92, 78.73, 111.37, 838.35, 78.49),
    Published(8000, "least_loaded", 52.43, 39163.80, 214.09, 152.59, 78489.26, 194.44),
    Published(8000, "prefix_hash", 74.15, 237.06, 79.99, 107.89, 619.65, 79.90),
)
# 16,384 tokens to a step: 4.2 GB for the logits of all of them, which vLLM of that time computed while profiling,
# 1.2 GB for the widest activations, and the usual 2 to 3 GB of context, graphs and fragments.
ENGINE_BYTES = 8e9
CLIENT_RATE = 134.0
"""Requests per second that the client lets go, as the run at 8,000 shows."""
_OUTPUT = 76


def load_of(arm: Published) -> Load:
    """How requests reached the servers, as far as the published figures tell.

    The baseline is saturated: up to 3,200 its concurrency is the limit; at 8,000 no limit was reached, and the arrivals
    end a longest wait and an answer before the run does. The prefix-aware arm is not: its client let requests go at the
    rate at which they were served, until a mean answer before the end.
    """
    if arm.policy == "least_loaded" and arm.concurrency < 8000:
        return closed_loop(arm.concurrency, ramp_s=arm.concurrency / CLIENT_RATE)
    first_ms = arm.p99_ttft_ms if arm.policy == "least_loaded" else arm.ttft_ms
    arriving_s = arm.duration_s - (first_ms + (_OUTPUT - 1) * arm.itl_ms) / 1e3
    return poisson(8000 / arriving_s, seed=1)


@cache
def simulated(arm: Published) -> Run:
    on = engine(
        model="llama-3.1-8b",
        part="l4",
        dtype="fp8",
        kv_cache_dtype="fp8",
        max_model_len=16_384,
        replicas=8,
        policy=arm.policy,
        args=["--max-num-batched-tokens=16384", "--gpu-memory-utilization=0.95"],
        constants={"engine_bytes": ENGINE_BYTES},
    )
    sessions = cut_up_conversations(
        prompts=800, requests=8000, mean_input=6656338 / 8000, mean_output=608447 / 8000, seed=5
    )
    return run(on, sessions, load_of(arm))


def rows() -> list[Row]:
    made: list[Row] = []
    for arm in PUBLISHED:
        got = simulated(arm)
        name = f"{arm.concurrency:,}, {arm.policy}"
        made += [
            Row(f"{name}: requests/s", arm.requests_per_s, got.requests_per_s, 0.3),
            Row(f"{name}: mean TTFT, ms", arm.ttft_ms, 1e3 * float(got.ttft.mean()), 0.3, "{:,.0f}".format),
        ]
        if arm.tpot_ms is not None:
            made.append(Row(f"{name}: mean TPOT, ms", arm.tpot_ms, 1e3 * float(got.tpot.mean()), 0.3, "{:.0f}".format))
    without, aware = (simulated(arm).ttft.mean() for arm in PUBLISHED[-2:])
    return [
        *made,
        Row("8,000: mean TTFT without / with", (50, float("inf")), float(without / aware), 0.0, "{:.0f}".format),
    ]


def hit_rates() -> str:
    return ", ".join(
        f"{arm.concurrency:,} {arm.policy}: {100 * (simulated(arm).cache.hit_rate or 0):.0f} %" for arm in PUBLISHED
    )


if __name__ == "__main__":
    print(comparison(rows()), hit_rates(), sep="\n\n")
