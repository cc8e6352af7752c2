"""Whole sessions on machines that spoil them: a stub of NVML under the real binding, a real server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nvml import GPUS, over_time

pytestmark = [pytest.mark.real_time, pytest.mark.slow, pytest.mark.timeout(120)]

IDLE, HEAT = 0x1, 0x40
STEPS = [(number * 0.05, number % 2) for number in range(400)]
"""Half of the time, whenever a run happens to be."""
WORKING = GPUS["h200"] | {
    "clock": {"graphics": 1980, "sm": 1980, "memory": 2619},
    "clock_reasons": 0,
    "utilisation": [80, 40],
    "memory_used_mib": 100_000,
}
THROTTLED = WORKING | {
    "clock_reasons": over_time(*((at_s, HEAT if odd else 0) for at_s, odd in STEPS)),
}
SLOWER = WORKING | {"clock": {"graphics": 1500, "sm": 1500, "memory": 2619}}
STRANGERS = [{"pid": os.getpid(), "memory_mib": 3_000}]

SAMPLED = ("--llmperf-telemetry", "100")

TEST = """
import pytest
from pytest_llmperf import closed_loop, single_turn

@pytest.mark.llm_gate(metric="ttft_p50", detect=4.0, min_effect=0.5)
def test_served(llm_engine, llm_perf):
    prompts = single_turn(requests=40, input_tokens=16, output_tokens=8, seed=7)
    llm_perf(llm_engine, prompts, load=closed_loop(4))
"""


@pytest.fixture(scope="module")
def serve():
    """`serve(ttft_ms)`: the URL of a server that answers as fast as that."""
    servers = []

    def start(ttft_ms):
        command = [Path(sys.executable).with_name("pytest-llmperf"), "serve", "--port", "0"]
        server = subprocess.Popen(
            [*command, "--ttft-ms", str(ttft_ms), "--itl-ms", "1"], stdout=subprocess.PIPE, text=True
        )
        servers.append(server)
        return next(word for line in server.stdout for word in line.split() if word.startswith("http://"))

    yield start
    for server in servers:
        server.terminate()
        server.communicate(timeout=10)


@pytest.fixture
def session(tmp_path, machine):
    """`session(url, gpu, *arguments)`: exit code and output of pytest on a machine with that GPU."""
    tmp_path.joinpath("test_it.py").write_text(TEST)

    def run(url, gpu, *arguments):
        options = ("--llmperf-url", url, "--llmperf-runs", "2", "--llmperf-warmup-runs", "0", *SAMPLED)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *arguments],
            cwd=tmp_path,
            env=os.environ | machine(gpu),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    return run


@pytest.fixture(scope="module")
def fast(serve):
    return serve(20)


@pytest.fixture(scope="module")
def slow(serve):
    return serve(200)


def test_a_slower_server_regresses_and_a_throttled_gpu_is_invalid(session, fast, slow):
    assert session(fast, WORKING, "--llmperf-save-baseline", "main")[0] == 0
    code, said = session(slow, WORKING)
    assert code == 1
    assert "REGRESSED" in said
    code, said = session(slow, THROTTLED)
    assert code == 1
    assert "was throttled by hardware, for heat" in said
    assert "INVALID_RUN" in said
    assert "REGRESSED" not in said


def test_other_clocks_than_the_baseline_s(session, fast):
    session(fast, WORKING, "--llmperf-save-baseline", "main")
    code, said = session(fast, SLOWER)
    assert code == 1
    line = (
        "INVALID_RUN test_it.py::test_served: the GPUs worked at 1500 MHz and at 1980 MHz when the baseline was stored"
    )
    assert line in " ".join(said.split())
    assert "doubt: the GPUs" not in said
    code, said = session(fast, SLOWER, "--llmperf-tolerate", "clocks")
    assert code == 0
    assert "doubt: tolerated: the GPUs worked at 1500 MHz and at 1980 MHz" in " ".join(said.split())


def test_what_is_tolerated_is_still_said(session, fast):
    code, said = session(fast, WORKING | {"pcie_width": 8}, "--llmperf-tolerate", "link", "-rA")
    assert "has 8 PCIe lanes of 16" in " ".join(said.split())
    assert "INVALID_RUN" not in said
    code, said = session(fast, WORKING | {"pcie_width": 8})
    assert code == 1
    assert "has 8 PCIe lanes of 16" in " ".join(said.split())


def test_an_unknown_rule(session, fast):
    code, _ = session(fast, WORKING, "--llmperf-tolerate", "heat")
    assert code == 4
