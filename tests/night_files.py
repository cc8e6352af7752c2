"""Stored nights, made by hand."""

from __future__ import annotations

import json
from datetime import date, timedelta

KEY = "NVIDIA-GH200-96GB"
TEST = "perf_tests/test_it.py::test_rounds[4]"
COMPARABLE = {"workload": "0123456789abcdef", "load": "round_robin()", "cache": "as_is", "engine": "vllm"}
HIGHER_IS_BETTER = ("output_throughput",)


def row(values, *, test=TEST, metric="ttft_p50", verdict=None, key=None, simulated=False, **comparable):
    """One benchmark of a result file; `values` in the metric's own unit."""
    inverted = metric in HIGHER_IS_BETTER
    about = {
        "measurement": test,
        "metric": metric,
        "comparable": {**COMPARABLE, **comparable, **({"simulated": True} if simulated else {})},
        "engine_words": {"kind": "vllm"},
    }
    if verdict is not None:
        about["judgement"] = {"verdict": verdict}
    if key is not None:
        about["provenance"] = {"hardware_key": key}
    return {
        "fullname": f"{test}::{metric}",
        "stats": {"data": [1 / value if inverted else value for value in values]},
        "extra_info": {"llmperf": about},
    }


def document(*rows, key=KEY, day="2025-11-01"):
    return {
        "machine_info": {"llmperf": {"schema_version": 1, "hardware_key": key}},
        "benchmarks": list(rows),
        "datetime": f"{day}T01:02:03+00:00",
    }


def put(folder, number, *rows, key=KEY, name="main", day=None):
    """A night in a folder of baselines, under the number that is asked for."""
    path = folder / key / f"{number:04d}_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    day = day or (date(2025, 1, 1) + timedelta(days=number)).isoformat()
    path.write_text(json.dumps(document(*rows, key=key, day=day)), encoding="utf-8")
    return path


def acknowledged(folder, *entries, key=KEY):
    """The file of accepted changes, each with these words in place of good ones."""
    good = {
        "test": TEST,
        "metric": "ttft_p50",
        "change": 0.08,
        "reason": "safer sampling",
        "since": 4,
        "expires": "2026-12-31",
    }
    path = folder / key / "acknowledged.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{**good, **entry} for entry in entries]), encoding="utf-8")
    return path
