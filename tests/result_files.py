"""Result files by hand: documents as pytest-llmperf and pytest-benchmark write them, to be changed at will."""

from __future__ import annotations

import json
import math

KEY = "NVIDIA-GH200-96GB"
TEST = "perf_tests/test_it.py::test_rounds[4]"
LEVEL_S = 0.1
# Five runs whose logarithms have a standard deviation of exactly 1.
SHAPE = tuple(value / math.sqrt(2.5) for value in (-2, -1, 0, 1, 2))
COMPARABLE = {
    "workload": "0123456789abcdef",
    "load": "round_robin()",
    "cache": "as_is",
    "engine": "vllm",
    "engine model": "m",
    "engine dtype": None,
}


def runs(level=LEVEL_S, spread=0.005):
    """Values of five runs around a level, in seconds."""
    return [level * math.exp(spread * one) for one in SHAPE]


def benchmark(values=None, metric="ttft_p50", test=TEST, words=None, criterion=None, **comparable):
    """One row of a file: a metric of a measurement, values as they are stored."""
    return {
        "fullname": f"{test}::{metric}",
        "stats": {"data": runs() if values is None else list(values)},
        "extra_info": {
            "llmperf": {
                "measurement": test,
                "metric": metric,
                "unit": "s",
                "stored_as": "value",
                "comparable": {**COMPARABLE, **comparable},
                "engine_words": {"kind": "vllm", "model": "m", **(words or {})},
                "criterion": {"detect": 0.1, "min_effect": 0.0, **(criterion or {})},
            }
        },
    }


def document(*rows, key=KEY, **words):
    """A whole file of ours."""
    return {
        "machine_info": {"llmperf": {"schema_version": 1, "hardware_key": key}},
        "benchmarks": list(rows),
        "datetime": "",
        **words,
    }


def plain_benchmark(values=None, test="tests/test_sort.py::test_sort"):
    """One row of a test that only pytest-benchmark knows."""
    return {"fullname": test, "stats": {"data": runs() if values is None else list(values)}, "extra_info": {}}


def plain(*rows):
    """A whole file that pytest-benchmark wrote of other tests."""
    return {
        "machine_info": {"node": "host", "cpu": {"count": 2}},
        "benchmarks": list(rows),
        "datetime": "2026-11-20T01:02:03.123456+00:00",
        "version": "5.2.0",
    }


def written(path, content):
    """The file with this content: an object, or text as it is to stand there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
