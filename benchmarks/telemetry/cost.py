"""What sampling costs: CPU seconds of its thread per second, as a share of one core.

    python benchmarks/telemetry/cost.py [--gpus 8] [--part gh200] [--rate 10] [--seconds 20] [--real]

By default over the stub of NVML that the tests have, which answers at once: what is measured is ours,
the binding's and the stub's own. Of a GH200 GPM is asked, too, once a second; that is in the share and not in
the times of single samples. `--real` samples the GPUs of this machine, the driver's time included.
The target is 1 % of a core for eight GPUs at 10 Hz.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from machines import here, stubbed

from pytest_llmperf.clock import RealClock
from pytest_llmperf.hardware.nvml import session
from pytest_llmperf.telemetry import Plan
from pytest_llmperf.telemetry.gpu import GpuAddress, GpuSensor

TARGET = 0.01
READS = 300


def shares(gpus: Sequence[GpuAddress], rate_hz: float, seconds: float, folder: Path, repeats: int) -> list[float]:
    """The share of one core, of each of some runs."""
    clock = RealClock()
    path = folder / "cost.telemetry.ndjson"
    sampler = Plan(rate_hz, tuple(gpus)).start(clock, path, {"measurement": "cost"})
    found = []
    try:
        for index in range(repeats):
            sampler.begin(index)
            start_ns = clock.now_ns()
            time.sleep(seconds)
            end_ns = clock.now_ns()
            sampler.end()
            summary = sampler.summary((start_ns, end_ns))
            if summary.cost_share is None or summary.problems:
                sys.exit("; ".join(summary.problems) or "nothing was sampled")
            taken = sum(gpu.samples for gpu in summary.gpus) / len(gpus) / seconds
            print(f"run {index}: {summary.cost_share:.3%} of a core, {taken:.2f} samples a second of each GPU")
            found.append(summary.cost_share)
    finally:
        sampler.close()
    print(f"series: {path.stat().st_size / repeats / seconds / 1000:.1f} kB/s")
    return found


def single(gpus: Sequence[GpuAddress]) -> dict[str, float]:
    """Microseconds of one sample of one GPU, one right after another."""
    with session() as nvml, closing(GpuSensor(nvml, gpus[0])) as sensor:
        took = {}
        for name, everything in (("often", False), ("everything", True)):
            times = []
            for _ in range(READS):
                start = time.perf_counter()
                sensor.read(0, everything=everything)
                times.append(time.perf_counter() - start)
            took[name] = statistics.median(times) * 1e6
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8, help="made-up ones (default: 8)")
    parser.add_argument("--part", default="h100", help="which, by the tests' names (default: h100)")
    parser.add_argument("--rate", type=float, default=10.0, help="Hz (default: 10)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (default: 20)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="the GPUs of this machine")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gpus = here() if arguments.real else stubbed(Path(folder), arguments.gpus, arguments.part)
        took = single(gpus)
        print(f"{len(gpus)} x {gpus[0].name}: {', '.join(f'{name} {us:.0f} us' for name, us in took.items())} a GPU")
        found = shares(gpus, arguments.rate, arguments.seconds, Path(folder), arguments.repeats)
    share = statistics.median(found)
    print(f"median {share:.3%} of a core at {arguments.rate:g} Hz: {'within' if share <= TARGET else 'beyond'} 1 %")
    if arguments.json:
        verdict = {
            "what": f"sampling {len(gpus)} x {gpus[0].name} at {arguments.rate:g} Hz: less than {TARGET:.0%} of a core",
            "found": f"{share:.2%} (median of {len(found)} runs, {min(found):.2%} to {max(found):.2%})",
            "ok": share < TARGET,
        }
        about = {"single_us": took, "shares": found, "verdicts": [verdict]}
        arguments.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
