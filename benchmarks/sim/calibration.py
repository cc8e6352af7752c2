"""What the constants were set by: aiconfigurator's estimates from measured kernels.

`aiconfigurator` 0.12.0, `cli_estimate`, vLLM, one GPU, 16,000 tokens of input; once with none of them cached, once with
15,360. One request at a time, so that no queue is in it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from drive import Run, engine, run, single
from rows import Row, comparison

from pytest_llmperf import round_robin

# Part, model and dtypes; TTFT with nothing and with 15,360 tokens cached, TPOT, all in ms.
ESTIMATES = (
    ("h100", "llama-3.1-70b", "fp8", 2416, 212, 29.8),
    ("h200", "llama-3.1-70b", "fp8", 2360, 206, 23.1),
    ("h100", "llama-3.1-8b", "bfloat16", 454, 47, 7.0),
    ("l40s", "llama-3.1-8b", "bfloat16", 1592, 105, 24.0),
)
_ALLOWED = 0.30
_INPUT = 16_000


@cache
def estimated(part: str, model: str, dtype: str, cached: int) -> Run:
    on = engine(
        model=model, part=part, dtype=dtype, kv_cache_dtype=dtype, max_model_len=17_000,
        args=["--gpu-memory-utilization=0.95", "--max-num-batched-tokens=16384"],
    )  # fmt: skip
    ids = np.resize(np.arange(1000, 2048, dtype=np.int32), _INPUT)
    if cached:
        run(on, [single(ids[:cached], 1)], round_robin())
    return run(on, [single(ids, 64)], round_robin())


def rows() -> list[Row]:
    made = []
    for part, model, dtype, fresh_ms, cached_ms, tpot_ms in ESTIMATES:
        fresh, cached = (estimated(part, model, dtype, tokens) for tokens in (0, 15_360))
        name = f"{model} {dtype} on {part}"
        made += [
            Row(f"{name}: TTFT, ms", fresh_ms, 1e3 * fresh.ttft.mean(), _ALLOWED, "{:,.0f}".format),
            Row(f"{name}: TTFT with 15,360 cached, ms", cached_ms, 1e3 * cached.ttft.mean(), _ALLOWED, "{:.0f}".format),
            Row(f"{name}: TPOT, ms", tpot_ms, 1e3 * fresh.tpot.mean(), _ALLOWED),
        ]
    return made


if __name__ == "__main__":
    print(comparison(rows()))
