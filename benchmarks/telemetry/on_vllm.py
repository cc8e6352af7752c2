"""Does telemetry change what it stands beside? TTFT of one vLLM server, with it and without it in turn.

    python benchmarks/telemetry/on_vllm.py --python VENV/bin/python [--pairs 30] [--rate 10] [--json FILE]

One server stays up; each pair is a run with telemetry and one without, in an order drawn by a fixed
seed. Printed is the change of the runs' median TTFT and TPOT with its 95 % interval, from the pairs'
differences of logarithms. Sampled are the GPUs of this machine (`--real`), or by default eight made-up
ones of the tests' stub, which costs the client what real ones would, without the driver's own time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machines import here, stubbed
from scipy import stats

from pytest_llmperf import closed_loop, single_turn
from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import team_of
from pytest_llmperf.engines import Surroundings, make_engine, make_spec
from pytest_llmperf.engines.base import Engine
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.telemetry import Plan

WORDS: dict[str, Any] = {"model": "tiny-llama", "max_model_len": 4096}
ON_A_CPU = {
    "args": ["--enforce-eager", "--max-num-seqs", "16"],
    "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "1"},  # a processor of its own
}
METRICS = ("ttft_p50", "tpot_p50")


class Bench:
    """Runs of one workload on one server."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.clock = RealClock()
        self.team = team_of(1, self.clock)
        self.gpus = here() if arguments.real else stubbed(folder, arguments.gpus)
        self.requests = arguments.requests
        self.engine = self._engine(arguments)

    def _engine(self, arguments: argparse.Namespace) -> Engine:
        around = Surroundings(
            clock=self.clock, log_dir=self.folder, cache_dir=Path("~/.cache/pytest-llmperf").expanduser(),
            start_timeout_s=600, limits=Limits(silence_s=60), api_key=None, progress=lambda *_: None,
        )  # fmt: skip
        words = {**WORDS, **({} if arguments.real else ON_A_CPU), "executable": arguments.python}
        return make_engine(make_spec("vllm", words), around)

    def run(self, number: int, rate_hz: float | None) -> dict[str, float]:
        """The metrics of one run, and what the sampling cost."""
        work = single_turn(requests=self.requests, input_tokens=256, output_tokens=16, seed=7)
        request = checked_request(
            work, load=closed_loop(4), runs=1, warmup_runs=0, cache="cold", prefill_context=False, slo=None, name=None
        )
        setting = Setting(
            test="telemetry", hardware_key="any", clock=self.clock, record_dir=self.folder / f"{number}",
            progress=lambda *_: None, team=self.team, telemetry=None if rate_hz is None else Plan(rate_hz, self.gpus),
        )  # fmt: skip
        result = measure(self.engine, request, setting)
        found = {name: value for name in METRICS for value in result.values(name) if value is not None}
        telemetry = result.records[0].telemetry
        if telemetry is not None and telemetry.cost_share is not None:
            found["cost_share"] = telemetry.cost_share
        return found


def pairs(bench: Bench, count: int, rate_hz: float) -> Iterator[dict[str, dict[str, float]]]:
    """Of each pair the figures with telemetry and without."""
    draw = random.Random(1)
    for number in range(2):
        bench.run(number, rate_hz)  # nothing is compiled or cached anew after that
    for number in range(count):
        order = [("on", rate_hz), ("off", None)]
        draw.shuffle(order)
        yield {name: bench.run(10 + 2 * number + place, rate) for place, (name, rate) in enumerate(order)}


def change(found: Sequence[dict[str, dict[str, float]]], metric: str) -> tuple[float, float, float]:
    """With telemetry over without, less one, and its 95 % interval."""
    logs = [math.log(pair["on"][metric] / pair["off"][metric]) for pair in found]
    mean, error = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    reach = stats.t.ppf(0.975, len(logs) - 1) * error
    low, middle, high = (math.expm1(value) for value in (mean - reach, mean, mean + reach))
    return low, middle, high


def judged(name: str, interval: tuple[float, float, float], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether what telemetry changes is lost in the noise from run to run."""
    low, middle, high = interval
    noise = statistics.stdev(math.log(pair["off"][name]) for pair in found)
    return {
        "what": f"sampling eight GPUs at 10 Hz changes the {name} of a vLLM beside it by less than its noise",
        "found": f"{middle:+.1%}, 95 % of {low:+.1%} to {high:+.1%}, {len(found)} pairs; from run to run {noise:.1%}",
        "ok": abs(math.log1p(middle)) < noise,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="a Python that has vLLM")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--requests", type=int, default=100, help="of each run (default: 100)")
    parser.add_argument("--rate", type=float, default=10.0, help="Hz (default: 10)")
    parser.add_argument("--gpus", type=int, default=8, help="made-up ones (default: 8)")
    parser.add_argument("--real", action="store_true", help="the GPUs of this machine, with vLLM on them")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error(f"--pairs: expected at least 2, for an interval, got {arguments.pairs}")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        try:
            for pair in pairs(bench, arguments.pairs, arguments.rate):
                found.append(pair)
                print(*(f"{name} {pair['on'][name] * 1e3:.3f} {pair['off'][name] * 1e3:.3f} ms" for name in METRICS))
        finally:
            bench.engine.stop()
    changes = {name: change(found, name) for name in METRICS}
    for name, (low, middle, high) in changes.items():
        print(f"{name}: {middle:+.2%} with telemetry, 95 % of {low:+.2%} to {high:+.2%}, {len(found)} pairs")
    print(f"sampling took {statistics.median(pair['on']['cost_share'] for pair in found):.2%} of a core")
    if arguments.json:
        verdicts = [judged(name, changes[name], found) for name in METRICS]
        content = {"pairs": found, "changes": changes, "verdicts": verdicts}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
