"""Performance tests that several processes share: one measurement at a time on a device, one result of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pytest_llmperf.origin import OriginProcess

pytestmark = pytest.mark.real_time

TESTS = """
import pytest
from pytest_llmperf import closed_loop, single_turn

pytestmark = pytest.mark.llm_gate(metric="ttft_p50", detect=50.0)  # whatever else this machine is doing

@pytest.mark.parametrize("number", range(4))
def test_it(llm_engine, llm_perf, number):
    workload = single_turn(requests=10, input_tokens=8, output_tokens=4, seed=number)
    llm_perf(llm_engine, workload, load=closed_loop(2), runs=3, warmup_runs=0)
"""
SIMULATED = '@pytest.mark.gh200\n@pytest.mark.llm_engine("vllm", model="llama-3.1-8b")\n'
FIRST_TWO = ("test_it.py::test_it[0]", "test_it.py::test_it[1]")


@pytest.fixture
def origin():
    """A server that counts how many requests it had at a time."""
    with OriginProcess(ttft_s=0.02, itl_s=0.002) as server:
        yield server


@pytest.fixture
def tests(pytester):
    """A folder with four performance tests."""
    pytester.makepyfile(test_it=TESTS)
    return pytester


def arguments(origin, *more):
    return ("-p", "no:cacheprovider", "--llmperf-url", origin.url, "--llmperf-telemetry", "off", *more)


@pytest.mark.slow
def test_several_workers_go_on_from_nothing(tests, origin):
    """Each would look for the newest session, which may be that of the other; nothing is measured."""
    refused = tests.runpytest_subprocess(*arguments(origin, "-n", "1", "--llmperf-resume"), *FIRST_TWO)

    refused.assert_outcomes(errors=2)
    refused.stdout.fnmatch_lines(["--llmperf-resume goes on in one process, *; leave out -n, or give -n 0"])
    assert not list(tests.path.glob(".llmperf/*/records"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_at_a_time_and_one_result(tests, origin):
    """Two workers on one server: never both; stored, judged, and told together, as in one process."""
    origin.reset()
    stored = tests.runpytest_subprocess(*arguments(origin, "-n", "2", "--llmperf-save-baseline", "main"))
    peak = origin.stats()["peak"]

    judged = tests.runpytest_subprocess(
        *arguments(origin, "-n", "2", "--benchmark-json", "out.json", "--llmperf-markdown", "out.md"),
        *FIRST_TWO,
    )

    assert 2 == peak, "each has two streams, and no two have four"
    stored.assert_outcomes(passed=4)
    (baseline,) = tests.path.glob("baselines/*/*.json")
    told = {f"test_it.py::test_it[{number}]" for number in range(4)}
    assert told == {row["extra_info"]["llmperf"]["provenance"]["test"] for row in rows(baseline)}
    written = rows(tests.path / "out.json")
    assert set(FIRST_TWO) == {row["extra_info"]["llmperf"]["provenance"]["test"] for row in written}
    assert all("judgement" in row["extra_info"]["llmperf"] for row in written)
    assert "hardware_key" in json.loads((tests.path / "out.json").read_bytes())["machine_info"]["llmperf"]
    report = (tests.path / "out.md").read_text()
    assert all(name in report for name in FIRST_TWO)
    stored.stdout.fnmatch_lines(["*= llmperf on *", "stored as baseline: *0001_main.json", "llmperf: 4 NO_BASELINE;*"])
    for name in FIRST_TWO:
        assert any(f"{name}, against 0001_main.json (3 + 3 runs)" in line for line in judged.outlines)
    assert "Benchmarks are automatically disabled" not in str(stored.stderr) + str(judged.stderr)


def rows(path):
    return json.loads(path.read_bytes())["benchmarks"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_sessions_take_turns(tests, origin):
    """Two pytest sessions on one machine at the same time: nobody told either of the other."""
    origin.reset()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    sessions = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", *arguments(origin, *FIRST_TWO, "--llmperf-save-baseline", name)],
            cwd=tests.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "another")
    ]
    outputs = [session.communicate(timeout=250)[0] for session in sessions]

    assert [0, 0] == [session.returncode for session in sessions], outputs
    assert 2 == origin.stats()["peak"]
    assert ["0001", "0002"] == sorted(path.name.partition("_")[0] for path in tests.path.glob("baselines/*/*.json"))


@pytest.mark.slow
def test_a_device_that_does_not_become_free(tests, origin, tmp_path, monkeypatch):
    """The test is an error, as nothing was measured, and names who has it."""
    from pytest_llmperf.clock import RealClock
    from pytest_llmperf.hardware import DeviceLocks

    monkeypatch.setenv("LLMPERF_LOCKS", str(tmp_path))
    holder = DeviceLocks(tmp_path, clock=RealClock(), wait_s=1, told=print)
    holder.hold(["CPU"])
    try:
        result = tests.runpytest(*arguments(origin, FIRST_TWO[0], "--llmperf-lock-wait", "0.3"))
    finally:
        holder.let_go()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*DeviceBusyError: CPU was not free within 0.3 s: process {os.getpid()} of *"])


def test_in_virtual_time_nothing_is_waited_for(pytester, tmp_path, monkeypatch):
    """A simulated engine uses no device: its tests run side by side, also with measurements."""
    from pytest_llmperf.clock import RealClock
    from pytest_llmperf.hardware import DeviceLocks

    monkeypatch.setenv("LLMPERF_LOCKS", str(tmp_path))
    pytester.makepyfile(
        test_it="import pytest\n"
        + TESTS.replace("@pytest", '@pytest.mark.gh200\n@pytest.mark.llm_engine("vllm", model="llama-3.1-8b")\n@pytest')
    )
    holder = DeviceLocks(tmp_path, clock=RealClock(), wait_s=1, told=print)
    holder.hold(["CPU"])
    try:
        result = pytester.runpytest(
            FIRST_TWO[0], "--llmperf-hardware", "sim:gh200", "--llmperf-lock-wait", "0.3", "-W", "ignore"
        )
    finally:
        holder.let_go()

    result.assert_outcomes(passed=1)
