"""Sessions with other plugins really at work; each where it is installed: pip install -e '.[dev,beside]'."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from servers import CompletionsServer
from stub_engine import installed

pytestmark = [pytest.mark.real_time, pytest.mark.exhaustive, pytest.mark.timeout(120)]

CONFTEST = """
import os
import pytest
from fakes import in_virtual_time, noisy_engine
from pytest_llmperf.clock import VirtualClock

CLOCK = VirtualClock()

def pytest_configure(config):
    in_virtual_time(config, CLOCK)

@pytest.fixture
def engine(request):
    return noisy_engine(CLOCK, float(os.environ.get("SLOW", "1")))
"""
TEST = """
from pytest_llmperf import multi_round, round_robin

def measured(engine, llm_perf):
    conversations = multi_round(users=4, rounds=2, context_tokens=256, input_tokens=16, output_tokens=8, seed=7)
    return llm_perf(engine, conversations, load=round_robin())

def test_first(engine, llm_perf):
    assert measured(engine, llm_perf).ttft.p50 > 0

def test_second(engine, llm_perf):
    assert measured(engine, llm_perf).ttft.p50 > 0
"""


def beside(plugin):
    """Skips where a plugin is not installed."""
    missing = importlib.util.find_spec(plugin) is None
    return pytest.mark.skipif(missing, reason=f"{plugin} is not installed: pip install -e '.[dev,beside]'")


@pytest.fixture
def session(tmp_path):
    """Runs the tests above, with the other plugins that are asked for and no more."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)

    def run(*arguments, plugins=(), **environment):
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        given = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path, **environment}
        load = [word for one in ("pytest_benchmark.plugin", "pytest_llmperf.plugin", *plugins) for word in ("-p", one)]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", *load, *arguments]
        alike = ("--llmperf-night-spread", "0")
        done = subprocess.run([*command, *alike], cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def workloads(path):
    """What each test of a result file sent, by its name."""
    rows = json.loads(path.read_text())["benchmarks"]
    about = [row["extra_info"]["llmperf"] for row in rows]
    return {one["measurement"]: (one["comparable"]["workload"], one["result"]["ttft"]["p50"]) for one in about}


@beside("pytest_randomly")
def test_randomly_moves_no_workload(session, tmp_path):
    """Another order and another seed for the tests; the same prompts, the same figures."""
    found = []
    for seed in ("1", "2"):
        code, text = session(f"--randomly-seed={seed}", "--benchmark-json", f"{seed}.json",
                             plugins=["pytest_randomly"])  # fmt: skip
        assert code == 0, text
        found.append(workloads(tmp_path / f"{seed}.json"))

    assert len(found[0]) == 2
    assert found[0].keys() == found[1].keys()
    assert [digest for digest, _ in found[0].values()] == [digest for digest, _ in found[1].values()]


@beside("pytest_rerunfailures")
def test_a_regression_is_not_run_again(session):
    """With several chances a slow build would pass more often than stated; `--llmperf-confirm` is for doubts."""
    code, text = session("--llmperf-save-baseline", "main")
    assert code == 0, text
    code, text = session("--reruns", "2", plugins=["pytest_rerunfailures"], SLOW="1.2")

    assert code == 1
    assert "2 failed" in text
    assert "rerun" not in text.rpartition("\n=")[2]


@beside("pytest_rerunfailures")
def test_any_other_failure_is_run_again(session, tmp_path):
    """The last attempt is what is recorded."""
    (tmp_path / "test_it.py").write_text(TEST.replace("ttft.p50 > 0", "ttft.p50 < 0", 1))
    code, text = session("--reruns", "2", plugins=["pytest_rerunfailures"])

    assert code == 1
    assert "1 failed, 1 passed, 2 rerun" in text


@beside("pytest_cov")
def test_coverage_of_a_measured_session(session):
    """It makes the client slower, which the client says itself of every figure; nothing else differs."""
    code, text = session("--cov=conftest", plugins=["pytest_cov.plugin"])

    assert code == 0, text
    assert "2 passed" in text
    assert "2 NO_BASELINE" in text


@beside("pytest_asyncio")
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_asynchronous_tests_beside_measured_ones(session, tmp_path, mode):
    """Each runs as its plugin has it."""
    (tmp_path / "test_async.py").write_text(
        "import asyncio, pytest\n\n@pytest.mark.asyncio\nasync def test_waits():\n    await asyncio.sleep(0)\n"
    )
    code, text = session(f"--asyncio-mode={mode}", plugins=["pytest_asyncio.plugin"])

    assert code == 0, text
    assert "3 passed" in text


TIMED = """
import os
import pytest
from pytest_llmperf import closed_loop, single_turn

pytestmark = pytest.mark.llm_gate(metric="cache_hit_rate")
REQUESTS = single_turn(requests=2, input_tokens=8, output_tokens=300)
WORDS = {"model": "m", "executable": os.environ["STUB_PYTHON"], "max_model_len": 2048}

@pytest.mark.timeout(12, func_only=True)
@pytest.mark.llm_engine("vllm", **WORDS)
def test_is_cut_off(llm_engine, llm_perf):
    llm_perf(llm_engine, REQUESTS, load=closed_loop(1), runs=99)

@pytest.mark.llm_engine("openai", url=os.environ["GOOD"])
def test_next(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=2, input_tokens=8, output_tokens=4), load=closed_loop(1), runs=1)
"""


@beside("pytest_timeout")
@pytest.mark.parametrize(("method", "passed"), [("signal", True), ("thread", False)])
def test_a_timeout_in_mid_run(session, tmp_path, method, passed):
    """By signal the test fails and the next one runs; by thread pytest itself ends. No engine is left either way."""
    (tmp_path / "conftest.py").write_text("")
    (tmp_path / "test_it.py").write_text(TIMED)
    stub = installed(tmp_path / "engines")
    with CompletionsServer() as good:
        code, text = session(
            *("--timeout-method", method, "--llmperf-gate", "off", "--llmperf-warmup-runs", "0"),
            plugins=["pytest_timeout"], STUB_PYTHON=stub, GOOD=good.url,
        )  # fmt: skip

    assert code != 0
    assert "Timeout" in text
    assert ("1 failed, 1 passed" in text) == passed
    records = [path for path in tmp_path.rglob("records/*.jsonl") if "cut_off" in path.name]
    assert records
    assert b'{"request":' in records[0].read_bytes()
    _, alive = psutil.wait_procs([one for one in psutil.process_iter() if _is_of(one, stub)], timeout=40)
    assert [] == alive


def _is_of(process, stub):
    try:
        return stub in process.cmdline()
    except psutil.Error:
        return False
