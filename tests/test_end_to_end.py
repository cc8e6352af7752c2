"""The whole job on the real vLLM, as a user does it: pytest in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import psutil
import pytest
from leftovers import mapped
from real_vllm import MARKS, START_TIMEOUT_S, WORDS

from pytest_llmperf.record_file import read_requests
from pytest_llmperf.records import Phase

pytestmark = MARKS

# What a user's directory looks like; contexts short enough for an impatient reader.
TEST = f"""
import pytest
from pytest_llmperf import multi_round, round_robin

pytestmark = [
    pytest.mark.llm_engine("vllm", **{WORDS!r}),
    pytest.mark.llm_gate(metric="ttft_p50", detect=3.0, min_effect=0.5),
]

def measured(llm_perf, llm_engine, rounds):
    users = multi_round(users=2, rounds=rounds, context_tokens=4000, input_tokens=64, output_tokens=8, seed=7)
    return llm_perf(llm_engine, users, load=round_robin(), prefill_context=True)

def test_first(llm_engine, llm_perf):
    assert len(measured(llm_perf, llm_engine, rounds=4).by_round) == 4
"""
NIGHTS = 4
"""How often a spoiled measurement is repeated: here the server and the client share two processors."""
LONG_TEST = """
def test_long(llm_engine, llm_perf):
    measured(llm_perf, llm_engine, rounds=40)
"""


def pytest_process(folder, *arguments):
    """pytest in a process of its own, as a user starts it."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llmperf-warmup-runs", "0", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_with_interrupts,  # noqa: PLW1509 - it only sets a signal, and no thread runs here
    )


def _with_interrupts():
    """A shell that runs the tests in the background has them ignore Ctrl-C, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(process):
    output, _ = process.communicate(timeout=START_TIMEOUT_S)
    return process.returncode, output


def valid_night(folder, *arguments):
    """One session; measured again where a neighbour of the client kept it from its processor, as it says itself."""
    code, output = 0, ""
    for _ in range(NIGHTS):
        code, output = finished(pytest_process(folder, "--llmperf-runs", "3", *arguments))
        if "the client itself may account for" not in output:
            break
    return code, output


@pytest.mark.timeout(3 * NIGHTS * START_TIMEOUT_S)
def test_a_lost_prefix_cache_is_a_regression(tmp_path):
    """The whole job: store, meet the level again, lose the prefix cache, fail."""
    (tmp_path / "test_user.py").write_text(TEST)

    stored, first = valid_night(tmp_path, "--llmperf-save-baseline", "main")
    again, same = valid_night(tmp_path)
    worse, slower = valid_night(tmp_path, "--llmperf-set", "prefix_caching=false", "--junitxml", "junit.xml")

    assert (0, 0, 1) == (stored, again, worse), first + same + slower
    assert "PASS test_user.py::test_first, against 0001_main.json (3 + 3 runs)" in same
    assert "REGRESSED test_user.py::test_first, against 0001_main.json (3 + 3 runs)" in slower
    assert "the engine differs: prefix_caching True -> False" in slower
    failure = ET.parse(tmp_path / "junit.xml").find(".//testcase/failure")
    assert "ttft_p50" in failure.text


def started_requests(folder, test):
    """Requests of one test that are on record so far."""
    paths = list(folder.glob(f".llmperf/*/records/*{test}*.jsonl"))
    return sum(1 for _ in read_requests(paths[0])) if paths else 0


def wait_for(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def survivors(processes):
    """Those that still run a little later."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.timeout(2 * START_TIMEOUT_S)
def test_an_engine_killed_in_mid_run_is_an_error_and_loses_nothing(tmp_path):
    """kill -9: the test errors with the log's tail, earlier results are in the JSON, nothing is left."""
    (tmp_path / "test_user.py").write_text(TEST + LONG_TEST)
    process = pytest_process(tmp_path, "--llmperf-runs", "2", "--benchmark-json", "out.json")
    wait_for(lambda: started_requests(tmp_path, "test_long") > 4 or process.poll() is not None, START_TIMEOUT_S)
    family = psutil.Process(process.pid).children(recursive=True)
    (server,) = [
        child
        for child in family
        if "api_server" in " ".join(child.cmdline()) and "guard.py" not in " ".join(child.cmdline())
    ][:1]

    os.kill(server.pid, signal.SIGKILL)
    code, output = finished(process)

    assert 1 == code
    assert "1 passed" in output
    assert "1 error" in output
    assert "EngineDiedError: the server has ended: killed by SIGKILL" in output
    assert "last lines of" in output
    rows = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert ["test_user.py::test_first::ttft_p50"] == [row["fullname"] for row in rows]
    assert started_requests(tmp_path, "test_long") > 4
    assert [] == survivors(family)


@pytest.mark.timeout(2 * START_TIMEOUT_S)
def test_an_interrupted_session_leaves_no_engine(tmp_path):
    """Ctrl-C in mid-run: pytest ends, what was measured is kept, no process is left."""
    (tmp_path / "test_user.py").write_text(TEST + LONG_TEST)
    process = pytest_process(tmp_path, "--llmperf-runs", "2", "--benchmark-json", "out.json", "-k", "long")
    wait_for(lambda: started_requests(tmp_path, "test_long") > 4 or process.poll() is not None, START_TIMEOUT_S)
    family = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGINT)
    code, _ = finished(process)

    assert pytest.ExitCode.INTERRUPTED == code
    (path,) = tmp_path.glob(".llmperf/*/records/*test_long*.jsonl")
    assert {Phase.PREPARE, Phase.MEASURED} == {request.phase for request in read_requests(path)}
    assert [] == survivors(family)


@pytest.fixture
def short_folder():
    """For temporary files: vLLM's sockets lie there, whose paths have room for 107 characters."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.mark.timeout(2 * START_TIMEOUT_S)
def test_a_session_that_was_killed_is_cleared_up_after_and_gone_on_from(tmp_path, short_folder, monkeypatch):
    """kill -9 of pytest and of the guard in mid-run: the next session ends vLLM, and counts the complete test."""
    monkeypatch.setenv("TMPDIR", str(short_folder))
    (tmp_path / "test_user.py").write_text(TEST + LONG_TEST)
    process = pytest_process(tmp_path, "--llmperf-runs", "2")
    wait_for(lambda: started_requests(tmp_path, "test_long") > 4 or process.poll() is not None, START_TIMEOUT_S)
    assert process.poll() is None, finished(process)
    family = psutil.Process(process.pid).children(recursive=True)
    (guard,) = [child for child in family if "guard.py" in " ".join(child.cmdline())]
    vllm = guard.children(recursive=True)
    shared = {path for child in vllm for path in mapped(child.pid)}

    guard.kill()
    process.kill()
    process.communicate()
    assert all(child.is_running() for child in vllm)
    code, output = finished(pytest_process(tmp_path, "--llmperf-runs", "2", "-k", "first", "--llmperf-resume"))

    assert 0 == code, output
    assert f"cleared up after a session that was killed (pid {process.pid}" in output
    assert f"ended {len(vllm)} process" in output
    assert "2 runs, all of them, were measured in the session" in output
    assert [] == survivors(family)
    assert [] == [path for path in shared if os.path.exists(path)]
    assert [] == [
        path for path in short_folder.rglob("*") if path.name.startswith("llmperf-") or path.suffix == ".json"
    ]
