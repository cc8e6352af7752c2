"""`engines/host.py` and the recipes: what every engine whose server we start does, and their command lines."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from stub_engine import BLOCK, CAPACITY, installed

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import make_engine, make_spec
from pytest_llmperf.engines.base import EngineSpec, Generation, Surroundings
from pytest_llmperf.engines.host import Launch
from pytest_llmperf.engines.sglang import RECIPE as SGLANG
from pytest_llmperf.engines.tensorrt_llm import options
from pytest_llmperf.engines.vllm import RECIPE as VLLM
from pytest_llmperf.errors import ConfigurationError, EngineDiedError, EngineStartError

KINDS = ("vllm", "sglang", "tensorrt_llm")
CAN_BE_EMPTIED = ("vllm", "sglang")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that has a stub of each engine."""
    return installed(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def around(tmp_path):
    return Surroundings(
        clock=RealClock(),
        log_dir=tmp_path / "log",
        cache_dir=tmp_path / "cache",
        start_timeout_s=15.0,
        limits=Limits(silence_s=5.0),
        api_key=None,
        progress=lambda step, detail="": None,
    )


@pytest.fixture(params=KINDS)
def engine(request, python, around):
    """Each engine in turn, not yet started."""
    words = {"model": "some/model", "executable": python, "max_model_len": 2048, "prefix_caching": True}
    made = make_engine(make_spec(request.param, words), around)
    yield made
    made.stop()


def answer(engine, ids, output_tokens=3):
    channel = engine.connector().open(RealClock())
    try:
        channel.send(0, channel.encode(Generation(ids, output_tokens, return_token_ids=True)))
        replies = []
        while not replies:
            channel.poll(1.0)
            replies += channel.ended()
        return replies[0].read()
    finally:
        channel.close()


def until_dead(engine):
    """Its end is seen a moment after it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        engine.check()
        time.sleep(0.01)


class TestContract:
    """What holds for each of them, whatever its words for it are."""

    def test_a_whole_life(self, engine):
        """Ready, ids and counts in the answers, what is cached and counted, emptied where it can be, gone."""
        engine.start()
        ids = list(range(1100, 1100 + 10 * BLOCK))  # not the first prompt of all, which connecting sends

        first, again = answer(engine, ids), answer(engine, ids)

        assert (True, False) == (engine.is_ours, engine.is_simulated)
        assert (None, ()) == (again.failure, again.remarks)
        assert (1001, 1002, 1003) == again.token_ids
        assert (10 * BLOCK, 3) == (again.prompt_tokens, again.output_tokens)
        assert (0, 9 * BLOCK) == (first.cached_tokens, again.cached_tokens)
        before = engine.cache_counters()
        emptied = engine.reset_cache()
        assert (engine.spec.kind in CAN_BE_EMPTIED) is emptied
        assert (0 if emptied else 9 * BLOCK) == answer(engine, ids).cached_tokens
        counted = engine.cache_counters().since(before)
        assert (10 * BLOCK, 0 if emptied else 9 * BLOCK) == (counted.queried_tokens, counted.hit_tokens)
        pid = engine.host._process.pid
        engine.stop()
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)

    def test_what_it_tells(self, engine):
        """Model, limits, capacity, version and command."""
        assert engine.returns_token_ids
        assert (2048, CAPACITY) == (engine.max_model_len, engine.kv_capacity_tokens)
        assert CAPACITY // (2 * BLOCK) == engine.users_that_fit(BLOCK + 1)
        told = engine.describe()
        assert ("0.0-stub", BLOCK) == (told["version"], told["kv_block_tokens"])
        assert str(engine.host._process.log.parent.parent) not in told["model"]
        assert "some/model" in told["command"]

    def test_it_dies(self, engine):
        """A dead server is said to be dead, with its log's last lines."""
        engine.start()
        os.killpg(engine.host._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDiedError, match=r"killed by SIGKILL\n(.|\n)*CUDA_VISIBLE_DEVICES"):
            until_dead(engine)

    def test_words_that_the_server_does_not_know(self, python, around):
        """The server's own complaint is quoted, and it is not tried again."""
        engine = make_engine(
            make_spec("sglang", {"model": "m", "executable": python, "args": ["--no-such-flag"]}), around
        )
        with pytest.raises(EngineStartError, match="unrecognized arguments: --no-such-flag"):
            engine.start()
        with pytest.raises(EngineStartError, match="not tried again"):
            engine.start()

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_engine_that_is_not_installed(self, kind, around, tmp_path):
        """How to get it, and how to name the Python that has it."""
        bare = tmp_path / "python"
        bare.write_text("#!/bin/sh\nexit 1\n")
        bare.chmod(0o755)
        engine = make_engine(make_spec(kind, {"model": "m", "executable": str(bare)}), around)
        with pytest.raises(ConfigurationError) as caught:
            engine.start()
        assert f"{kind} is not installed for {bare}; install it there (pip install " in str(caught.value)
        assert not around.log_dir.exists()


def command(recipe, **words):
    """The command line behind what every start has."""
    spec = EngineSpec(kind=recipe.kind, model="m", **words)
    launch = Launch(spec=spec, python="python", model="m", served_name="m", port=1, log=Path("log"))
    return shlex.join(recipe.command(launch)).partition(" --port 1 ")[2]


class TestCommands:
    """The words of a specification in each engine's own."""

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ({}, ""),
            ({"dtype": "fp8", "kv_cache_dtype": "fp8"}, " --quantization fp8 --kv-cache-dtype fp8"),
            ({"kv_offload_gib": 64, "tensor_parallel": 2}, " --tensor-parallel-size 2 --kv-offloading-size 64"),
            ({"prefix_caching": False}, " --no-enable-prefix-caching"),
            ({"gpu_memory_fraction": 0.4, "args": ("--a",)}, " --gpu-memory-utilization 0.4 --a"),
        ],
    )
    def test_vllm(self, words, expected):
        """As of 0.26 to 0.33."""
        assert f"--enable-prompt-tokens-details{expected}" == command(VLLM, **words)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ({}, ""),
            ({"dtype": "fp8", "kv_cache_dtype": "fp8"}, " --quantization fp8 --kv-cache-dtype fp8_e4m3"),
            ({"dtype": "bfloat16", "kv_cache_dtype": "float16"}, " --dtype bfloat16 --kv-cache-dtype auto"),
            (
                {"kv_offload_gib": 64, "tensor_parallel": 2},
                " --tensor-parallel-size 2 --enable-hierarchical-cache --hicache-size 35",
            ),
            ({"prefix_caching": False}, " --disable-radix-cache"),
            ({"prefix_caching": True, "max_model_len": 7}, " --context-length 7"),
            ({"gpu_memory_fraction": 0.4, "args": ("--a",)}, " --mem-fraction-static 0.4 --a"),
        ],
    )
    def test_sglang(self, words, expected):
        """As of 0.5.23."""
        assert f"--enable-metrics --enable-cache-report{expected}" == command(SGLANG, **words)

    def test_tensorrt_llm(self, python, around):
        """What has an option is on the command line, the rest in a file beside the log."""
        words = {"model": "m", "executable": python, "max_model_len": 9, "kv_offload_gib": 2.0, "tensor_parallel": 2}
        engine = make_engine(
            make_spec("tensorrt_llm", {**words, "kv_cache_dtype": "fp8", "prefix_caching": False}), around
        )
        try:
            told = engine.describe()["command"]
            (file,) = around.log_dir.glob("*.yaml")
        finally:
            engine.stop()
        assert told.endswith(f"--max_seq_len 9 --tp_size 2 --extra_llm_api_options {file}")
        cache = {"enable_block_reuse": False, "host_cache_size": 2**30, "dtype": "fp8"}
        assert {
            "return_perf_metrics": True,
            "enable_iter_perf_stats": True,
            "kv_cache_config": cache,
        } == json.loads(file.read_text())

    def test_tensorrt_llm_as_it_comes(self):
        """Words that are not given are left to the engine."""
        assert {"return_perf_metrics": True, "enable_iter_perf_stats": True} == options(
            EngineSpec(kind="tensorrt_llm", model="m")
        )

    def test_tensorrt_llm_does_not_quantise(self):
        """Weights in FP8 are a checkpoint's, which is said before anything starts."""
        with pytest.raises(ConfigurationError, match="name a checkpoint whose weights are FP8"):
            make_spec("tensorrt_llm", {"model": "m", "dtype": "fp8"})

    @pytest.mark.parametrize("share", [0, 1.1, True, "half"])
    def test_a_share_is_one(self, share):
        """The word for memory takes nothing else."""
        with pytest.raises(ConfigurationError, match=r"expected a share of at most 1, such as 0\.45"):
            make_spec("sglang", {"model": "m", "gpu_memory_fraction": share})
