"""How long the gate takes over 1,000 results of 50 metrics each: `python benchmarks/gate/speed.py [--json FILE]`.

Each result is judged against the history of 6 nights of 5 runs, all in one family of 50,000, as if one
session had measured them. Processor seconds, beside those of as many bare two-sample t tests of SciPy.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

from pytest_llmperf.baselines import Baselines
from pytest_llmperf.gate import Criterion, Gate
from pytest_llmperf.judged import Judged, Provenance, Validity
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.result_file import SCHEMA_VERSION, comparable

RESULTS, NIGHTS, RUNS = 1000, 6, 5
WANTED_S = 2.0
METRIC_NAMES = tuple(METRICS)
MEASUREMENTS = 50 // len(METRIC_NAMES) + 1


class Given(Judged):
    """A result whose values were made up."""

    def __init__(self, test: str, random: np.random.Generator) -> None:
        super().__init__(provenance(test), Validity())
        self._values = {name: np.exp(random.normal(-2, 0.02, RUNS)).tolist() for name in METRIC_NAMES}

    def __len__(self) -> int:
        return RUNS

    def values(self, name: str) -> list[float | None]:
        return list(self._values[name])


def provenance(test: str) -> Provenance:
    return Provenance(
        test=test, name=None, hardware_key="K", workload="w", workload_digest="d", load="l", open_load=False,
        cache="as_is", engine_kind="vllm", engine_identity={}, engine_words={}, engine={},
    )  # fmt: skip


def row(test: str, metric: str, random: np.random.Generator) -> dict[str, object]:
    of = provenance(test)
    data = [METRICS[metric].stored(value) for value in np.exp(random.normal(-2, 0.02, RUNS)).tolist()]
    about = {"measurement": test, "metric": metric, "comparable": comparable(of), "engine_words": {}}
    return {"fullname": f"{test}::{metric}", "stats": {"data": data}, "extra_info": {"llmperf": about}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    random = np.random.default_rng(1)
    names = [METRIC_NAMES[i % len(METRIC_NAMES)] for i in range(50)]
    tests = [f"test_{i // len(METRIC_NAMES)}" for i in range(50)]
    machine = {"llmperf": {"schema_version": SCHEMA_VERSION, "hardware_key": "K"}}
    with tempfile.TemporaryDirectory() as folder:
        store = Baselines(Path(folder))
        for _ in range(NIGHTS):
            rows = [row(test, name, random) for test, name in zip(tests, names, strict=True)]
            store.save("night", "K", {"machine_info": machine, "benchmarks": rows})
        per_test = [sum(test == f"test_{i}" for test in tests) for i in range(MEASUREMENTS)]
        # One session judges a test once, so each result has a gate of its own, and they share the store.
        results = [[Given(f"test_{i}", random) for i in range(MEASUREMENTS)] for _ in range(RESULTS)]
        started = time.process_time()
        baselines = Baselines(Path(folder))
        for group in results:
            gate = Gate(baselines, RESULTS * 50)
            for number, result in enumerate(group):
                gate.judge(result, [Criterion(name) for name in METRIC_NAMES[: per_test[number]]])
        ours = time.process_time() - started
    pairs = [(np.array(g[0].values("ttft_p50"), float), np.array(g[0].values("ttft_p99"), float)) for g in results]
    started = time.process_time()
    for one, other in pairs:
        stats.ttest_ind(np.log(one), np.log(other))
    bare = (time.process_time() - started) * 50
    found = f"{ours:.2f} s of processor time, {1e6 * ours / RESULTS / 50:.0f} us a metric"
    print(f"{RESULTS:,} results of 50 metrics: {found}")
    print(f"as many scipy.stats.ttest_ind: {bare:.2f} s, {bare / ours:.1f} times as long")
    assert math.isfinite(ours)
    if arguments.json:
        what = f"{RESULTS:,} results of 50 metrics are judged in less than {WANTED_S:g} s"
        verdicts = [{"what": what, "found": found, "ok": ours < WANTED_S}]
        arguments.json.write_text(json.dumps({"verdicts": verdicts}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
