"""Engines started and stopped over and over: nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from engine_cases import answer, made, prompt, surroundings
from leftovers import Held
from real_vllm import MARKS, START_TIMEOUT_S

from pytest_llmperf.clock import seconds_between
from pytest_llmperf.engines import tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process holds is looked up in /proc"),
]

STUB_CYCLES = 20
REAL_CYCLES = int(os.environ.get("LLMPERF_TEST_CYCLES", "20"))
"""Of the real vLLM, which takes its time; the server and in process in turn."""


@pytest.fixture
def temporary(monkeypatch):
    """The folder for temporary files, empty and with a short name: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def cycle(engine, number, *, kill=False):
    """One start, one answer, one stop: what it held, and how long it was from ready to the first answer.

    `kill`: the server itself dies first. Its shared memory is then removed by a helper, which is given the time for it.
    """
    engine.start()
    told = answer(engine, prompt(number, 64))
    assert told.failure is None
    held = Held.by(engine.host._process, engine.server.address)
    assert held.pids
    start_s = engine.describe()["start_s"]
    first_s = seconds_between(engine.ready_ns, told.arrivals[0].at_ns)
    line = f"{engine.url}: ready after {start_s:.1f} s, the first token {1e3 * first_s:.0f} ms after that"
    if kill:
        os.kill(engine.host._process.pid, signal.SIGKILL)
    engine.stop()
    return held, line


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["vllm", "vllm-in-process"])
def test_again_and_again(name, tmp_path, temporary):
    """Twenty times in a row, of the same engine."""
    around = surroundings(tmp_path)
    tiny_llama.ensure(around.cache_dir)
    with made(name, tmp_path, around) as engine:
        before = set(temporary.iterdir())
        for number in range(STUB_CYCLES):
            held, _ = cycle(engine, number, kill=number % 5 == 4)
            assert [str(path) for path in before] == held.left(temporary)


class TestReal:
    """The real vLLM."""

    pytestmark = MARKS

    @pytest.mark.exhaustive
    @pytest.mark.timeout(START_TIMEOUT_S * REAL_CYCLES)
    def test_again_and_again(self, tmp_path, temporary, capsys):
        """No process, port, file or shared memory is left, start after start; the last one is killed."""
        names = ["real-vllm", "real-vllm-in-process"]
        for number in range(REAL_CYCLES):
            with made(names[number % 2], tmp_path) as engine:
                held, line = cycle(engine, number, kill=number + 1 == REAL_CYCLES)
                with capsys.disabled():
                    print(f"\n{number + 1}: {line}, shared memory: {len(held.shared)}")  # noqa: T201 - asked for
                assert held.shared
                assert [] == held.left(temporary)
