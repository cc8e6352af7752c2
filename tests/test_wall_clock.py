"""The wall clock is set while a measurement runs: no duration knows of it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_llmperf
from pytest_llmperf.origin import OriginProcess

pytestmark = pytest.mark.real_time

SOURCE = Path(__file__).with_name("wall_clock_stub.c")
TTFT_S, ITL_S = 0.05, 0.01
HOUR = 3600
MEASURED = """
import datetime, json, sys, time
from pathlib import Path
from fakes import no_progress
from pytest_llmperf import round_robin, single_turn
from pytest_llmperf.clock import RealClock
from pytest_llmperf.client import Limits
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import make_engine, make_spec
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure

clock, folder = RealClock(), Path(sys.argv[2])
around = Surroundings(
    clock=clock, log_dir=folder, cache_dir=folder, start_timeout_s=5.0, limits=Limits(silence_s=5.0), api_key=None,
    progress=no_progress,
)
workload = single_turn(requests=8, input_tokens=16, output_tokens=10, seed=1)
asked = checked_request(
    workload, load=round_robin(), runs=2, warmup_runs=0, cache="as_is", prefill_context=False, slo=None, name=None
)
setting = Setting(
    test="it", hardware_key="CPU", clock=clock, record_dir=folder, progress=no_progress, team=LocalTeam(clock)
)
walls, began = [time.time()], time.monotonic()
result = measure(make_engine(make_spec("openai", {"url": sys.argv[1]}), around), asked, setting)
print(json.dumps({
    "ttft": [result.ttft.p50, result.ttft.p99],
    "e2e": [result.e2e.p50, result.e2e.p99],
    "longest": max(r.end_ns - r.sent_ns for run in result.records for r in run.requests) / 1e9,
    "order": all(r.sent_ns <= r.arrivals[0].at_ns <= r.end_ns for run in result.records for r in run.requests),
    "duration": result.duration_s,
    "took": time.monotonic() - began,
    "failed": len(result.errors),
    "steps": sum(run.client.clock_steps for run in result.records),
    "doubts": list(result.doubts),
}))
"""


@pytest.fixture(scope="module")
def set_clock(tmp_path_factory):
    """`set_clock(jump_s, after_s)`: the environment of a process whose wall clock is set again and again."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler (gcc, cc) to set a process's wall clock")
    library = tmp_path_factory.mktemp("clock") / "wall_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)

    def make(jump_s, after_s):
        return {**os.environ, "LD_PRELOAD": str(library), "WALL_JUMP": str(jump_s), "WALL_AFTER": str(after_s)}

    return make


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("jump_s", [HOUR, -HOUR])
def test_a_wall_clock_that_is_set_moves_no_duration(set_clock, tmp_path, jump_s):
    """A measurement against a server with a known answer, the clock set by an hour several times a second."""
    with OriginProcess(ttft_s=TTFT_S, itl_s=ITL_S) as origin:
        words = [sys.executable, "-c", MEASURED, origin.url, str(tmp_path)]
        known = set_clock(jump_s, 0.3)
        known["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), known.get("PYTHONPATH", "")])
        done = subprocess.run(words, env=known, capture_output=True, text=True, timeout=50, check=False)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["failed"] == 0
    assert told["order"]
    assert told["steps"] > 0, "the clock was not set while it was measured"
    assert any("the wall clock was set" in doubt for doubt in told["doubts"])
    assert TTFT_S - 0.001 <= told["ttft"][0] < 1.0
    assert told["ttft"][1] < 2.0
    assert TTFT_S + 9 * ITL_S - 0.002 <= told["e2e"][0] < 2.0
    assert told["longest"] < 3.0
    assert told["duration"] < told["took"]


@pytest.mark.slow
def test_nobody_but_the_clock_reads_the_time():
    """Nor a calendar; guard, worker and origin run in processes of their own, have nothing of ours, and no wall clock.

    The origin alone reads that, to convert the kernel's stamps.
    """
    root = Path(pytest_llmperf.__file__).parent
    apart = {"clock.py", "origin", "guard.py", "worker.py"}
    found = {
        f"{path.relative_to(root)}: {reading}"
        for path in root.rglob("*.py")
        for reading in _readings(ast.parse(path.read_text(encoding="utf-8")))
        if not apart & {path.name, *path.relative_to(root).parts} or (reading in WALL and path.parts[-2] != "origin")
        if path.name != "clock.py"
    }
    assert found == set()


WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
READERS = WALL | {"time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns", "time.sleep"}


def _readings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in READERS:
                yield name
