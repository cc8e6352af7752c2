"""A100 against RTX 4090 and the reuse of prefixes, after LLMPerf (Emerging-AI).

Its data and the lengths of its two tasks are not published. Short: 200 tokens in, 16 out; long: 1,500 in and 500 out,
up to 3,000 in and 1,000 out.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from drive import Run, engine, run
from rows import Row, comparison, table

from pytest_llmperf import closed_loop, poisson, single_turn

TASKS = {"short": (200, 16), "long": (1_500, 500), "longer": (3_000, 1_000)}
MODELS = {1: "qwen2-7b", 4: "qwen2-72b-awq"}
_SATURATING = 512
_REQUESTS = 1_500
_ROUNDING = 0.05
"""The published ranges have whole numbers for ends."""


@cache
def capacity(part: str, gpus: int, task: str) -> float:
    """Requests per second at most."""
    tokens_in, tokens_out = TASKS[task]
    asked = single_turn(requests=_REQUESTS, input_tokens=tokens_in, output_tokens=tokens_out, seed=3)
    on = engine(model=MODELS[gpus], part=part, tensor_parallel=gpus)
    return run(on, asked, closed_loop(_SATURATING)).requests_per_s


def gain(gpus: int, task: str) -> float:
    """A100 over RTX 4090."""
    return capacity("a100", gpus, task) / capacity("rtx4090", gpus, task)


@cache
def passes() -> tuple[tuple[Run, Run], tuple[Run, Run]]:
    """The long task twice, then again from its cached prefixes: at 1 request/s, and as fast as it goes."""
    tokens_in, tokens_out = TASKS["long"]
    asked = list(single_turn(requests=400, input_tokens=tokens_in, output_tokens=tokens_out, seed=3))
    made = []
    for load in (poisson(1.0, seed=1), closed_loop(_SATURATING)):
        on = engine(model=MODELS[1], part="a100")
        made.append((run(on, asked, load), run(on, asked, load)))
    return made[0], made[1]


def rows() -> list[Row]:
    below, at_limit = passes()
    return [
        Row("one GPU, short: A100 / RTX 4090", 1.6, gain(1, "short"), 0.15),
        Row("one GPU, long: A100 / RTX 4090", (2.0, 3.0), gain(1, "long"), _ROUNDING),
        Row("one GPU, longer: A100 / RTX 4090", (2.0, 3.0), gain(1, "longer"), _ROUNDING),
        Row("four GPUs, long: A100 / RTX 4090", (3.0, 4.0), gain(4, "long"), _ROUNDING),
        Row("four GPUs, longer: A100 / RTX 4090", (3.0, 4.0), gain(4, "longer"), _ROUNDING),
        Row("four GPUs, short: A100 / RTX 4090", 1.6, gain(4, "short"), 0.15),
        Row("execution time below saturation, first pass / repeated", (1.0, 1.1), _execution(below), 0.05),
        Row("requests/s at saturation, repeated / first pass", (1.1, 10.0), 1 / _throughput(at_limit)),
    ]


def _execution(pair: tuple[Run, Run]) -> float:
    first, again = pair
    return float(np.median(first.e2e) / np.median(again.e2e))


def _throughput(pair: tuple[Run, Run]) -> float:
    first, again = pair
    return first.requests_per_s / again.requests_per_s


def capacities() -> str:
    header = ("GPUs, model", "task, tokens in / out", "A100, requests/s", "RTX 4090, requests/s", "ratio")
    lines = [
        (
            f"{gpus}, {MODELS[gpus]}",
            "{:,} / {:,}".format(*TASKS[task]),
            f"{capacity('a100', gpus, task):.3g}",
            f"{capacity('rtx4090', gpus, task):.3g}",
            f"{gain(gpus, task):.2f}",
        )
        for gpus in MODELS
        for task in TASKS
    ]
    return table(header, lines)


if __name__ == "__main__":
    print(comparison(rows()), capacities(), sep="\n\n")
