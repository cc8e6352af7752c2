"""A GPU driver that does not answer: real calls of the binding that never come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from nvml import DETECT, GPUS

from pytest_llmperf.clock import RealClock
from pytest_llmperf.errors import NvmlError, OverdueError
from pytest_llmperf.hardware.nvml import look, uses
from pytest_llmperf.overdue import within
from pytest_llmperf.telemetry import sampler
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.plan import Plan

H200 = GPUS["h200"]
ADDRESS = GpuAddress(gpu=0, index=0, uuid="GPU-0", name="NVIDIA H200")


@pytest.mark.slow
@pytest.mark.parametrize("lines", [{"init_hangs": 1}, {}], ids=["at its start", "at a GPU"])
def test_detection_says_that_the_driver_does_not_answer(machine, lines):
    """And the process goes on and ends, although a call never comes back."""
    gpu = H200 if lines else {**H200, "hangs_at": 0}
    code = DETECT.replace("detect()", "detect(0.5)")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **machine(gpu, **lines)},
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
    )

    told = json.loads(done.stdout)
    assert told["problem"] == (
        "the GPU driver (NVML) did not answer for 0.5 s; look at dmesg for an Xid, then reset the GPU or reboot"
    )
    assert told["marks"] == []


@pytest.mark.slow
def test_the_tests_after_one_that_needs_the_gpu_are_run(machine, tmp_path):
    """The one is skipped, saying why; the session does not wait for the CI's own limit."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.h200\ndef test_gpu(): ...\n\ndef test_other(gpu): assert gpu.problem\n"
    )
    words = ["-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin", "-p", "no:cacheprovider", "-rs"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--llmperf-nvml-timeout", "0.5", str(tmp_path)], cwd=tmp_path,
        env={**os.environ, **machine(H200, init_hangs=1), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=18, check=False,
    )  # fmt: skip

    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "the GPU driver (NVML) did not answer for 0.5 s; look at dmesg" in " ".join(done.stdout.split())


@pytest.mark.parametrize("call", [look, lambda timeout_s: uses(["GPU-0"], timeout_s)])
def test_each_question_is_bounded(nvml_here, call):
    nvml_here({**H200, "hangs_at": 0})

    with pytest.raises(NvmlError, match=r"the GPU driver \(NVML\) did not answer for 0\.2 s; look"):
        call(0.2)


def test_sampling_stops_in_mid_run_and_says_what_to_do(nvml_here, tmp_path, monkeypatch):
    """The run goes on; what it saw of the GPU is absent; at which call the driver stands is beside the records."""
    monkeypatch.setattr(sampler, "_ANSWERING_S", 0.3)
    stub = nvml_here({**H200, "hangs_at": 5})
    one = Plan(10.0, (ADDRESS,)).start(RealClock(), tmp_path / "it.telemetry.ndjson", {})
    one.begin(0)
    stub.advance(10)
    one.end()
    one.close()

    summary = one.summary((0, 1))
    assert summary.problems == (
        "the GPU driver (NVML) did not answer for 0.3 s, so what the GPUs did is not known; look at dmesg for an Xid, "
        "then reset the GPU or reboot",
    )
    assert summary.advice == (
        "the GPU driver (NVML) does not answer; look at dmesg for an Xid, then reset the GPU or reboot"
    )
    assert " < read (gpu.py:" in (tmp_path / "it.telemetry.stack.txt").read_text(encoding="utf-8")
    assert summary.gpus == ()


def test_what_a_call_returns_or_raises_is_passed_on():
    def fail():
        raise KeyError("name")

    assert within(5.0, "it", lambda: 7) == 7
    assert within(5.0, "it", lambda: None) is None
    with pytest.raises(KeyError, match="name"):
        within(5.0, "it", fail)


def test_an_overdue_call_is_named(threads_end, caplog):
    """In a user's words; where it stands is in the log."""
    with (
        caplog.at_level("INFO", logger="pytest_llmperf"),
        pytest.raises(OverdueError, match=r"^the driver did not answer for 0\.05 s$"),
    ):
        within(0.05, "the driver", threads_end.wait)

    assert "the driver stands in wait (threading.py:" in caplog.text


@pytest.fixture
def threads_end():
    """Lets the calls that were left behind come back after all."""
    import threading

    event = threading.Event()
    yield event
    event.set()
