"""Telemetry as a user meets it: pytest in a process of its own, beside a server on this machine."""

from __future__ import annotations

import json

import pytest
from nvml import GPUS
from servers import CompletionsServer

from pytest_llmperf.telemetry import read_samples

pytestmark = pytest.mark.real_time

TEST = """
import pytest
from pytest_llmperf import constant, single_turn

@pytest.mark.llm_gate(metric="joules_per_token")
@pytest.mark.llm_engine("openai")
def test_energy(llm_engine, llm_perf):
    work = single_turn(requests=20, input_tokens=16, output_tokens=4)
    result = llm_perf(llm_engine, work, load=constant(40.0))
    print("GPU:", result.gpu)
"""


@pytest.fixture
def session(pytester, machine, monkeypatch):
    """`session(*arguments)`: the run's output, and the rows of its result file; the server has two GPUs."""

    def run(*arguments, gpu="h200"):
        for name, value in machine(gpu, "h200").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        pytester.makepyfile(test_it=TEST)
        alike = ("-p", "no:cacheprovider", "-s", "--llmperf-runs", "2", "--llmperf-warmup-runs", "0")
        with CompletionsServer() as server:
            done = pytester.runpytest_subprocess(
                *alike, "--llmperf-url", server.url, "--benchmark-json", "night.json", *arguments
            )
        path = pytester.path / "night.json"
        return done, json.loads(path.read_text())["benchmarks"] if path.exists() else []

    return run


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_every_run_is_sampled_and_energy_is_gated(session, pytester):
    """In the summary, in the result, and in a file beside the records."""
    done, (row,) = session("--llmperf-telemetry", "50")

    done.stdout.fnmatch_lines(["*gpu: * J/token, 140 W*"])
    assert done.parseoutcomes()["passed"] == 1
    about = row["extra_info"]["llmperf"]
    assert (about["metric"], about["unit"], len(row["stats"]["data"])) == ("joules_per_token", "J/token", 2)
    assert [len(run["gpus"]) for run in about["result"]["telemetry"]] == [2, 2]
    assert about["result"]["gpu"]["mean_power_w"] == pytest.approx(140)
    (series,) = pytester.path.glob(".llmperf/*/records/*.telemetry.ndjson")
    assert {sample.gpu for sample in read_samples(series) if hasattr(sample, "gpu")} == {0, 1}


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_switched_off_nothing_is_sampled(session, pytester):
    """Neither in the result nor on disk; a test that gates energy cannot be judged, and says so."""
    done, found = session("--llmperf-telemetry", "off")

    why = "measured in 0 of 2 runs, so it cannot be judged: nothing was sampled, as --llmperf-telemetry is off, or"
    done.stdout.fnmatch_lines(["*GPU: None*", f"*joules_per_token: {why}*"])
    done.assert_outcomes(errors=1)
    assert found == []
    assert not list(pytester.path.glob(".llmperf/*/records/*.telemetry.ndjson"))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_driver_that_hangs_in_mid_run_is_said_in_the_end(session, pytester):
    """In the table, why there is no energy; in the last line, what to do; our frames only beside the records."""
    done, _ = session("--llmperf-gate", "fail", gpu=GPUS["h200"] | {"hangs_at": 2.5})

    why = "the GPU driver (NVML) did not answer for 2 s, so what the GPUs did is not known; look at dmesg for an Xid, *"
    done.stdout.fnmatch_lines([f"*joules_per_token: measured in * of 2 runs, so it cannot be judged: {why}"])
    done.stdout.fnmatch_lines(["llmperf: 1 INVALID_RUN; what to do: *the GPU driver (NVML) does not answer; look at *"])
    done.stdout.no_fnmatch_line("*pynvml.py*")
    (stack,) = pytester.path.glob(".llmperf/*/records/*.telemetry.stack.txt")
    assert "read (gpu.py:" in stack.read_text(encoding="utf-8")
