"""The gate on a real vLLM: healthy sessions, and two slowdowns that are put in on purpose.

    python benchmarks/gate/on_vllm.py --python VENV/bin/python [--healthy 20] [--json FILE]

One server is started and stays up for the stored nights and the healthy sessions, which are judged
one by one as separate pytest sessions would be. Then prefix caching is switched off, and then the
model has to share the processor of the server and the client. Measurements are the plugin's own, and
so are the verdicts. What stored nights cannot tell on a noisy machine, `pytest-llmperf ab` can.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_llmperf import multi_round, round_robin
from pytest_llmperf.baselines import Baselines
from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import team_of
from pytest_llmperf.engines import Surroundings, make_engine, make_spec
from pytest_llmperf.engines.base import Engine
from pytest_llmperf.gate import Criterion, Gate
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.request import checked_request
from pytest_llmperf.result_file import SCHEMA_VERSION, comparable
from pytest_llmperf.results import PerfResult
from pytest_llmperf.session import Setting, measure

KEY = "CPU"
NIGHTS, RUNS = 6, 5
CRITERIA = [
    Criterion("ttft_gmean", detect=0.3),
    Criterion("tpot_p50", detect=0.3),
    Criterion("output_throughput", detect=0.3),
]
WORDS: dict[str, Any] = {
    "model": "tiny-llama",
    "prefix_caching": True,
    "max_model_len": 8192,
    "args": ["--enforce-eager", "--max-num-seqs", "16"],
    "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "1"},  # a processor of its own
}
SLOWER = {
    "prefix cache off": {"prefix_caching": False},
    "no processor of its own": {"env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0"}},
}


class Bench:
    """Sessions of one workload on engines of one kind."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.clock = RealClock()
        self.team = team_of(1, self.clock)

    def engine(self, **words: Any) -> Engine:
        cache = Path("~/.cache/pytest-llmperf").expanduser()
        around = Surroundings(
            clock=self.clock, log_dir=self.folder, cache_dir=cache, start_timeout_s=600, limits=Limits(silence_s=60),
            api_key=None, progress=lambda *_: None,
        )  # fmt: skip
        return make_engine(make_spec("vllm", {**WORDS, **words, "executable": self.python}), around)

    def session(self, engine: Engine, number: int) -> PerfResult:
        """One night of one test."""
        users = multi_round(users=4, rounds=3, context_tokens=1000, input_tokens=64, output_tokens=16, seed=7)
        request = checked_request(
            users, load=round_robin(), runs=RUNS, warmup_runs=1, cache="primed", prefill_context=False, slo=None,
            name=None,
        )  # fmt: skip
        setting = Setting(
            test="test_rounds", hardware_key=KEY, clock=self.clock, record_dir=self.folder / f"{number}",
            progress=lambda *_: None, team=self.team,
        )  # fmt: skip
        return measure(engine, request, setting)

    def store(self, result: PerfResult) -> None:
        rows = [self._row(result, one.metric) for one in CRITERIA]
        about = {"llmperf": {"schema_version": SCHEMA_VERSION, "hardware_key": KEY}}
        Baselines(self.folder / "baselines").save("night", KEY, {"machine_info": about, "benchmarks": rows})

    def _row(self, result: PerfResult, metric: str) -> dict[str, Any]:
        alike = comparable(result.provenance)
        about = {"measurement": "test_rounds", "metric": metric, "comparable": alike, "engine_words": {}}
        data = [METRICS[metric].stored(value) for value in result.values(metric) if value]
        return {"fullname": f"test_rounds::{metric}", "stats": {"data": data}, "extra_info": {"llmperf": about}}

    def judged(self, result: PerfResult) -> dict[str, Any]:
        gate = Gate(Baselines(self.folder / "baselines"), len(CRITERIA))
        judgement = gate.judge(result, CRITERIA)
        return {
            "verdict": judgement.verdict.value,
            "metrics": {f.metric.name: [f.verdict.value, f.change, f.detectable] for f in judgement.findings},
            "reasons": list(result.validity.reasons),
        }


def report(bench: Bench, healthy: int) -> Iterator[tuple[str, dict[str, Any]]]:
    engine = bench.engine()
    try:
        for night in range(NIGHTS):
            bench.store(bench.session(engine, night))
        for number in range(healthy):
            yield "healthy", bench.judged(bench.session(engine, 100 + number))
    finally:
        engine.stop()
    for name, words in SLOWER.items():
        engine = bench.engine(**words)
        try:
            yield name, bench.judged(bench.session(engine, 1000))
        finally:
            engine.stop()


def verdicts(sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was wanted of the sessions, and what they came to."""
    healthy = [one["verdict"] for one in sessions if one["session"] == "healthy"]
    told = [{
        "what": f"none of {len(healthy)} healthy sessions on a real vLLM is REGRESSED",
        "found": ", ".join(f"{number} {verdict}" for verdict, number in Counter(healthy).items()),
        "ok": "REGRESSED" not in healthy,
    }]  # fmt: skip
    for one in sessions:
        if one["session"] != "healthy":
            changes = (f"{name} {change:+.0%}" for name, (_, change, _) in one["metrics"].items() if change is not None)
            found = f"{one['verdict']}: {', '.join(changes)}"
            what = f"{one['session']} is REGRESSED on a real vLLM"
            told.append({"what": what, "found": found, "ok": one["verdict"] == "REGRESSED"})
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="a Python that has vLLM")
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, outcome in report(Bench(arguments.python, Path(folder)), arguments.healthy):
            found.append({"session": name, **outcome})
            known = {name: found for name, found in outcome["metrics"].items() if found[1] is not None}
            shown = {name: f"{change:+.1%} {verdict}" for name, (verdict, change, _) in known.items()}
            print(name, outcome["verdict"], shown, *outcome["reasons"], flush=True)
    print(dict(Counter(one["verdict"] for one in found if one["session"] == "healthy")))
    if arguments.json:
        arguments.json.write_text(json.dumps({"sessions": found, "verdicts": verdicts(found)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
