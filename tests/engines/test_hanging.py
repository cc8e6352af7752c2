"""Engines that run and answer no more: their stacks, their ends, and what comes after."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest
from engine_cases import made, surroundings
from fakes import no_progress

from pytest_llmperf import round_robin, single_turn
from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import host, process, server
from pytest_llmperf.engines.in_process import channel
from pytest_llmperf.engines.process import ServerProcess
from pytest_llmperf.errors import ConfigurationError, EngineAnswerError, EngineDiedError, EngineStartError
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure

pytestmark = pytest.mark.real_time

HANGING = """
import sys, time
def waiting_for_the_gpu():
    print("re" + "ady", file=sys.stderr, flush=True)
    time.sleep(60)
waiting_for_the_gpu()
"""
SILENCE_S = 0.5


@pytest.fixture
def launch(tmp_path):
    """`launch(script)`: a server process of that Python script, which has said that it is ready."""
    started = []

    def start(script):
        one = ServerProcess([sys.executable, "-c", script], env={}, log=tmp_path / "it.log", clock=RealClock())
        started.append(one)
        one.wait_until(lambda: "ready" in one.log_tail(), 15, no_progress)
        return one

    yield start
    for one in started:
        one.stop()


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_server_that_hangs_says_where_it_stands(launch, is_stopped):
    """Also one that was stopped by a signal; it is gone afterwards."""
    hung = launch(HANGING)
    if is_stopped:
        os.kill(hung.pid, signal.SIGSTOP)

    told = hung.end_hung()

    assert "Fatal Python error: Aborted" in told
    assert " in waiting_for_the_gpu" in told
    assert hung.returncode == -signal.SIGABRT


def test_a_server_that_hangs_at_its_start_says_where_it_stands(launch):
    """The limit is over while it still loads, or waits for something that does not come."""
    hung = launch(HANGING)

    with pytest.raises(
        EngineStartError, match="not ready after 0 s and was stopped; --llmperf-start-timeout"
    ) as caught:
        hung.wait_until(lambda: False, 0.0, no_progress)

    assert " in waiting_for_the_gpu" in str(caught.value)
    assert caught.value.is_final
    assert hung.returncode == -signal.SIGABRT


@pytest.mark.slow
def test_no_core_file_is_written(launch):
    """That of an engine is as large as its memory. A limit of 1 keeps collectors from getting one, too."""
    limits = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\n"
    try:
        hung = launch(limits + HANGING)
    except EngineStartError:
        pytest.skip("core files are forbidden here anyway")

    process._forbid_cores(hung.pid)

    assert process.resource.prlimit(hung.pid, process.resource.RLIMIT_CORE)[0] == 1


def setting(tmp_path):
    clock = RealClock()
    return Setting(
        test="test_it", hardware_key="CPU", clock=clock, record_dir=tmp_path / "records", progress=no_progress,
        team=LocalTeam(clock),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "vllm-in-process"])
def test_a_measurement_on_an_engine_that_hangs_ends_with_its_stack(name, tmp_path, monkeypatch):
    """Long before every request has been waited for; what had been answered is on record, and the next start works."""
    for module in (server, sys.modules["pytest_llmperf.engines.in_process.server"]):
        monkeypatch.setattr(module, "HANGING_S", SILENCE_S)
    monkeypatch.setattr(channel, "_PATIENCE_NS", 0)
    monkeypatch.chdir(tmp_path)
    around = surroundings(tmp_path, limits=Limits(silence_s=SILENCE_S))
    workload = single_turn(requests=50, input_tokens=32, output_tokens=4, seed=1)
    asked = checked_request(
        workload, load=round_robin(), runs=1, warmup_runs=0, cache="as_is", prefill_context=False, slo=None, name=None
    )
    with made(name, tmp_path, around, env={"STUB_HANG": "prompt:5"}) as engine:
        with pytest.raises(EngineDiedError, match="hangs: it runs, and did not generate one token within") as caught:
            measure(engine, asked, setting(tmp_path))
        engine.start()

    assert re.search(r"stub_engine.py.*, line \d+,? in hang\b", str(caught.value))
    (records,) = (tmp_path / "records").glob("*.jsonl")
    rows = records.read_text().count('{"request":')
    assert 3 <= rows <= 6


def test_a_worker_that_shows_signs_of_life_and_does_not_answer_is_not_waited_for(monkeypatch):
    """Each of them would else begin the wait anew."""
    import socket
    import threading

    from pytest_llmperf.client import Address
    from pytest_llmperf.engines.in_process.worker import message

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def beat():
            connected, _ = listener.accept()
            with connected:
                while not done.wait(0.02):
                    connected.sendall(message({"is": "beat"}, b""))

        thread = threading.Thread(target=beat)
        thread.start()
        address = Address.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            with pytest.raises(EngineAnswerError, match=r"did not answer within 0\.3 s"):
                channel.asked(address, "about", 0.3)
        finally:
            done.set()
            thread.join()


@pytest.mark.slow
def test_a_python_that_does_not_say_what_it_has_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_FIND_TIMEOUT_S", 0.2)
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 20\n")
    slow.chmod(0o755)

    with (
        made("vllm", tmp_path, executable=str(slow)) as engine,
        pytest.raises(ConfigurationError, match=r"cannot be run: .* timed out after 0\.2 seconds"),
    ):
        engine.start()


def test_a_guard_that_does_not_start_is_not_waited_for(tmp_path, monkeypatch):
    """As where a process cannot be made for want of memory, or its program lies on a share that does not answer."""
    monkeypatch.setattr(process, "_STARTING_S", 0.0)

    with pytest.raises(EngineStartError, match="the server's process was not there after 0 s: "):
        ServerProcess(["sleep", "60"], env={}, log=tmp_path / "it.log", clock=RealClock())


def test_a_log_that_cannot_be_written_costs_no_server(tmp_path):
    """The server runs; whoever asks for the log is told why there is none."""
    (tmp_path / "taken").write_text("")
    one = ServerProcess(["sleep", "60"], env={}, log=tmp_path / "taken" / "it.log", clock=RealClock())
    try:
        assert one.returncode is None
        assert "it.log cannot be written: File exists" in one.report()
    finally:
        one.stop()
