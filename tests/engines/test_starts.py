"""Starts that fail: what is said of them, which are tried once more, and what is said of those that came after."""

from __future__ import annotations

import pytest
from engine_cases import answer, made, prompt, surroundings

from pytest_llmperf.client import Limits
from pytest_llmperf.engines import process
from pytest_llmperf.engines.in_process import channel
from pytest_llmperf.engines.started import abridged
from pytest_llmperf.errors import ConfigurationError, EngineStartError

pytestmark = pytest.mark.real_time


def logs(folder):
    return sorted((folder / "log").glob("*.log"))


@pytest.mark.parametrize("name", ["vllm", pytest.param("fleet", marks=pytest.mark.slow)])
def test_a_start_that_dies_by_chance_is_tried_once_more(name, tmp_path):
    """For the next test that needs the engine, and what is then measured says so."""
    with made(name, tmp_path, env={"STUB_FAULT": f"once:{tmp_path / 'first'}"}) as engine:
        with pytest.raises(EngineStartError, match=r"exit code 1\n(.|\n)*the neighbour took the port"):
            engine.start()
        engine.start()
        assert answer(engine, prompt("again", 40)).failure is None
        (doubt,) = engine.describe()["doubts"]
    assert "the engine runs since a second start, the first one failed: " in doubt
    assert doubt.endswith("the server ended before it was ready: exit code 1")


def test_a_start_that_always_dies_is_tried_twice(tmp_path):
    """Then each test is told so at once, with the engine's words, its command and its log's place."""
    with made("vllm", tmp_path, env={"STUB_FAULT": "memory"}) as engine:
        for _ in range(2):
            with pytest.raises(EngineStartError, match="the server ended before it was ready: exit code 1"):
                engine.start()
        for _ in range(2):
            with pytest.raises(EngineStartError) as caught:
                engine.start()
    assert 2 == len(logs(tmp_path))
    lines = str(caught.value).splitlines()
    assert "not tried again after 2 starts failed: the server ended before it was ready: exit code 1" == lines[0]
    assert lines[1].startswith("command: ")
    assert f"last lines of {logs(tmp_path)[1]}:" == lines[2]
    assert "  | MemoryError: CUDA out of memory. Tried to allocate 140.00 GiB" == lines[-1]
    assert 5 == sum(line.startswith("  | ") for line in lines)


def test_a_mistake_is_not_tried_again(tmp_path):
    """It would be the same one."""
    with made("vllm", tmp_path, model="/nowhere") as engine:
        with pytest.raises(ConfigurationError, match="there is no model"):
            engine.start()
        with pytest.raises(EngineStartError, match="not tried again after its first start failed: vllm: there is no"):
            engine.start()
    assert [] == logs(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "vllm-in-process"])
def test_a_first_generation_that_hangs(name, tmp_path, monkeypatch):
    """It is ended, and says where it stood: without that nobody knows what it was waiting for."""
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    monkeypatch.setattr(channel, "_PATIENCE_NS", 0)
    monkeypatch.chdir(tmp_path)
    for module in ("server", "in_process.server"):
        monkeypatch.setattr(f"pytest_llmperf.engines.{module}.HANGING_S", 0.5)
    around = surroundings(tmp_path, limits=Limits(silence_s=0.5))
    with (
        made(name, tmp_path, around, env={"STUB_HANG": "prompt:1"}) as engine,
        pytest.raises(EngineStartError) as caught,
    ):
        engine.start()
    assert "Fatal Python error: Aborted" in str(caught.value)
    assert " in hang" in str(caught.value)


@pytest.mark.slow
def test_a_first_generation_that_is_refused(tmp_path, monkeypatch):
    """The server's log is quoted beside its answer: it says more."""
    with made("vllm", tmp_path, env={"STUB_ANSWERS": "0"}) as engine, pytest.raises(EngineStartError) as caught:
        engine.start()
    assert "cannot be used, POST /v1/completions: " in str(caught.value)
    assert "  | the stub has run out of answers" in str(caught.value)


def test_the_command_to_repeat(tmp_path):
    """Once, with the variables that it needs; what looks like a secret is none of them."""
    env = {"STUB_FAULT": "memory", "VLLM_CPU_KVCACHE_SPACE": "4", "MY_TOKEN": "abcdef", "OTHER": "hf_abcdefghijklm"}
    with made("vllm", tmp_path, env=env) as engine, pytest.raises(EngineStartError) as caught:
        engine.start()
    said = str(caught.value)
    (command,) = (line for line in said.splitlines() if "vllm.entrypoints" in line)
    assert {"STUB_FAULT=memory", "VLLM_CPU_KVCACHE_SPACE=4", "MY_TOKEN='***'", "OTHER='***'"} < set(command.split())
    assert "VLLM_SERVER_DEV_MODE=1" in command


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "fleet"])
def test_an_engine_that_contradicts_its_words(name, tmp_path):
    """What it says of itself is told beside what was asked of it."""
    with made(name, tmp_path, env={"STUB_UNCACHED": "1"}) as engine:
        told = engine.describe()
    assert ["prefix_caching=True was asked for, and the engine says that it is False"] == told["doubts"]


def test_what_is_told_again_of_a_failure():
    """All but the log, of which the last lines."""
    failure = "\n".join(["it died", "command: c", "last lines of l:", *(f"  | {number}" for number in range(40))])
    assert ["it died", "command: c", "last lines of l:", *(f"  | {n}" for n in range(35, 40))] == abridged(
        failure
    ).splitlines()
