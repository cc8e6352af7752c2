"""Multi-user multi-round serving with KV offload, after TensorRT-LLM's `benchmarks/python/kv_cache_offload`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import fmean

from drive import Run, contexts, engine, run
from rows import Row, comparison, table

from pytest_llmperf import multi_round, round_robin
from pytest_llmperf.engines.sim.engine import SimulatedEngine

USERS = range(2, 17)
FULL = 16_000 + 10 * (64 + 64)
MODEL = {"model": "llama-3.1-70b", "dtype": "fp8", "kv_cache_dtype": "fp8", "like": "tensorrt_llm"}
LENGTHS = (1_000, 2_000, 4_000, 6_000, 8_000, 12_000, 16_000, 32_000)


@dataclass(frozen=True)
class Point:
    """One number of users on one part, seconds."""

    fits: int
    ttft_s: float
    """Of a turn whose user is alone: one user after another."""
    e2e_s: float
    """Of the ten rounds, all users of a round at once."""


@cache
def point(part: str, users: int) -> Point:
    alone, at_once = (_rounds(part, users, barrier=barrier) for barrier in (False, True))
    return Point(alone[0].users_that_fit(FULL), float(alone[1].ttft.mean()), at_once[1].duration_s)


def _rounds(part: str, users: int, *, barrier: bool) -> tuple[SimulatedEngine, Run]:
    on = engine(**MODEL, part=part, kv_offload_gib=51.2, max_model_len=17_800)
    asked = multi_round(users=users, rounds=10, context_tokens=16_000, input_tokens=64, output_tokens=64, seed=7)
    run(on, contexts(asked), round_robin())
    return on, run(on, asked, round_robin(barrier=barrier))


def ratio(users: int, figure: str) -> float:
    """H100 over GH200."""
    return getattr(point("h100", users), figure) / getattr(point("gh200", users), figure)


def rows() -> list[Row]:
    beyond = [users for users in USERS if users > 7]
    gains = {users: ratio(users, "e2e_s") for users in USERS}
    return [
        Row("users resident on an H100 80 GB", 2, point("h100", 2).fits),
        Row("users resident on a GH200 96 GB", 7, point("gh200", 2).fits),
        Row("users at which the gain peaks", 7, max(gains, key=gains.__getitem__)),
        Row("TTFT, H100 / GH200, mean over 8 to 16 users", 1.9, fmean(ratio(u, "ttft_s") for u in beyond), 0.15),
        Row("10 rounds, H100 / GH200, mean over 8 to 16 users", 3.0, fmean(gains[u] for u in beyond), 0.15),
    ]


def by_users() -> str:
    header = ("users", "H100 TTFT, ms", "GH200 TTFT, ms", "ratio", "H100 10 rounds, s", "GH200 10 rounds, s", "ratio")
    lines = []
    for users in USERS:
        h100, gh200 = point("h100", users), point("gh200", users)
        lines.append(
            (
                str(users), f"{1e3 * h100.ttft_s:.1f}", f"{1e3 * gh200.ttft_s:.1f}", f"{ratio(users, 'ttft_s'):.2f}",
                f"{h100.e2e_s:.1f}", f"{gh200.e2e_s:.1f}", f"{ratio(users, 'e2e_s'):.2f}",
            )
        )  # fmt: skip
    return table(header, lines)


@cache
def restored(part: str, length: int, dtype: str, gpus: int, *, offload: bool) -> float:
    """TTFT of 64 new tokens after a context that was pushed out of the GPU, seconds."""
    words = MODEL | {"dtype": dtype, "kv_cache_dtype": dtype, "part": part, "tensor_parallel": gpus}
    on = engine(**words, kv_offload_gib=2000 if offload else None)
    users = 2 * on.users_that_fit(length)
    asked = multi_round(users=users, rounds=1, context_tokens=length, input_tokens=64, output_tokens=1, seed=7)
    run(on, contexts(asked), round_robin())
    return float(run(on, asked, round_robin()).ttft.mean())


def offload_gain(length: int, dtype: str, gpus: int) -> float:
    """Computing it again over bringing it back, on H100."""
    again, back = (restored("h100", length, dtype, gpus, offload=offload) for offload in (False, True))
    return again / back


def gain_rows() -> list[Row]:
    formats = {"fp8": 1, "bfloat16": 2}
    return [
        *(
            Row(
                f"offload against recompute on H100, {dtype}, length at which 14x is reached, tokens",
                (4_000, 16_000),
                next(n for n in range(1_000, 33_000, 500) if offload_gain(n, dtype, gpus) >= 14),
                shown="{:,.0f}".format,
            )
            for dtype, gpus in formats.items()
        ),
        Row("TTFT, H100 / GH200, context of 16,000 tokens in host memory", 2.0, _link_gain(16_000), 0.15),
    ]


def _link_gain(length: int) -> float:
    return restored("h100", length, "fp8", 1, offload=True) / restored("gh200", length, "fp8", 1, offload=True)


def by_length() -> str:
    header = ("context, tokens", "FP8 on 1 x H100: recompute, ms", "from host, ms", "gain", "BF16 on 2 x H100: gain",
              "FP8 from host, H100 / GH200")  # fmt: skip
    lines = []
    for length in LENGTHS:
        again, back = (restored("h100", length, "fp8", 1, offload=offload) for offload in (False, True))
        lines.append(
            (
                f"{length:,}", f"{1e3 * again:.0f}", f"{1e3 * back:.0f}", f"{again / back:.1f}",
                f"{offload_gain(length, 'bfloat16', 2):.1f}", f"{_link_gain(length):.2f}",
            )
        )  # fmt: skip
    return table(header, lines)


if __name__ == "__main__":
    print(comparison([*rows(), *gain_rows()]), by_users(), by_length(), sep="\n\n")
