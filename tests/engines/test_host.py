"""`engines/host.py` and the recipes: what every engine whose server we start does, and their command lines."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
from pathlib import Path

import pytest
from fakes import no_progress
from stub_engine import installed

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import host, make_engine, make_spec
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.engines.host import Launch, served_by
from pytest_llmperf.engines.placement import Place
from pytest_llmperf.engines.sglang import RECIPE as SGLANG
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.engines.tensorrt_llm import llm_arguments, options
from pytest_llmperf.engines.vllm import RECIPE as VLLM
from pytest_llmperf.errors import ConfigurationError, EngineStartError

KINDS = ("vllm", "sglang", "tensorrt_llm")
IN_PROCESS = {"in_process": True}
FORMS = ("vllm", "tensorrt_llm")
"""Kinds that have a Python interface."""


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
        progress=no_progress,
    )


class TestBeforeAStart:
    """What can be known without one."""

    @pytest.mark.parametrize(
        ("kind", "form"), [*((kind, {}) for kind in KINDS), *((kind, IN_PROCESS) for kind in FORMS)]
    )
    def test_an_engine_that_is_not_installed(self, kind, form, around, tmp_path):
        """How to get it, and how to name the Python that has it."""
        bare = tmp_path / "python"
        bare.write_text("#!/bin/sh\necho null\n")
        bare.chmod(0o755)
        engine = make_engine(make_spec(kind, {"model": "m", "executable": str(bare), **form}), around)
        with pytest.raises(ConfigurationError) as caught:
            engine.start()
        assert f"{kind} is not installed for {bare}; install it there (pip install " in str(caught.value)
        assert not around.log_dir.exists()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("script", "said"),
        [
            ("echo 'ImportError: libtorch.so: cannot open shared object file' >&2; exit 1", "code 1.*\n.*libtorch.so"),
            ("echo 'command not found'", r"code 0.*\n  \| command not found"),
            ("exit 3", "exit code 3"),
        ],
    )
    def test_a_python_that_is_broken(self, kind, script, said, around, tmp_path):
        """Its own words; that a package is missing is not known."""
        broken = tmp_path / "python"
        broken.write_text(f"#!/bin/sh\n{script}\n")
        broken.chmod(0o755)
        engine = make_engine(make_spec(kind, {"model": "m", "executable": str(broken)}), around)
        with pytest.raises(ConfigurationError, match=f"^{kind}: executable='{broken}' did not say what it .*{said}"):
            engine.start()

    def test_a_python_that_says_more_than_it_was_asked(self, around, tmp_path, python):
        """A site's own words come before the answer."""
        chatty = tmp_path / "python"
        chatty.write_text(f'#!/bin/sh\necho welcome\nexec {python} "$@"\n')
        chatty.chmod(0o755)
        engine = make_engine(make_spec("vllm", {"model": "/nowhere", "executable": str(chatty)}), around)
        with pytest.raises(ConfigurationError, match="there is no model"):
            engine.start()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "version", "tried"),
        [
            ("vllm", "0.41.0", "0.26 to 0.33, of which 0.32 has run"),
            ("sglang", "0.6.1", "0.5.23"),
            ("tensorrt_llm", "1.3.0", "1.2"),
            ("vllm", "0.33.1", None),
        ],
    )
    def test_an_engine_that_is_newer_than_is_known(self, kind, version, tried, around, python):
        """It starts, with a doubt that names what was tried."""
        distribution(Path(python), kind, version)
        with contextlib.ExitStack() as stack:
            stack.callback(distribution, Path(python), kind, None)
            engine = make_engine(make_spec(kind, {"model": "m", "executable": python}), around)
            stack.callback(engine.stop)
            doubts = engine.describe().get("doubts", [])
        if tried is None:
            assert [] == doubts
        else:
            (doubt,) = doubts
            assert doubt.startswith(
                f"{kind} {version} is newer than the versions that its options and metrics are known"
            )
            assert tried in doubt

    @pytest.mark.parametrize(
        ("kind", "version", "wanted"),
        [("vllm", "0.10.2", "0.26"), ("sglang", "0.4.9", "0.5"), ("tensorrt_llm", "0.21", "1.0")],
    )
    def test_an_engine_that_is_too_old(self, kind, version, wanted, around, python):
        """Both versions and what to do about it; nothing is started."""
        distribution(Path(python), kind, version)
        engine = make_engine(make_spec(kind, {"model": "m", "executable": python}), around)
        try:
            with pytest.raises(ConfigurationError) as caught:
                engine.start()
        finally:
            distribution(Path(python), kind, None)
        said = f"{kind} {version} is installed for {python}, and {wanted} or newer is needed; upgrade it there (pip"
        assert said in str(caught.value)
        assert not around.log_dir.exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("version", ["0.26.0", "1.0", "0.1.dev1+gabcdef0", "main"])
    def test_an_engine_that_may_do(self, version, around, python):
        """Newer ones, and builds from source, which call themselves anything; the commit is told where it is known."""
        distribution(Path(python), "vllm", version)
        with contextlib.ExitStack() as stack:
            stack.callback(distribution, Path(python), "vllm", None)
            engine = make_engine(make_spec("vllm", {"model": "m", "executable": python}), around)
            stack.callback(engine.stop)
            told = engine.describe()
        assert f"vllm-stub {version}" == told["package"]
        assert ("abcdef0" if "gabcdef0" in version else None) == told.get("commit")

    @pytest.mark.parametrize("form", [{}, IN_PROCESS])
    @pytest.mark.parametrize("model", ["/nowhere/model", "./model", "~/no-such-model"])
    def test_a_model_that_is_not_there(self, model, form, around, python):
        """A path is not looked for on a hub."""
        engine = make_engine(make_spec("vllm", {"model": model, "executable": python, **form}), around)
        path = os.path.expanduser(model)
        with pytest.raises(ConfigurationError, match=f"there is no model at '{path}'; give the folder of a checkpoint"):
            engine.start()

    def test_a_port_that_is_taken(self, around, python):
        """What listens there would be measured in place of ours."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            spec = make_spec("vllm", {"model": "m", "executable": python})
            engine = served_by(VLLM, spec, around, Place(port=port))
            with pytest.raises(
                EngineStartError, match=f"port {port} cannot be listened on: Address already in use; give"
            ):
                engine.start()

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", FORMS)
    def test_a_port_that_is_taken_meanwhile(self, kind, around, python, monkeypatch):
        """The worker process says so, at once."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            monkeypatch.setattr(host, "free_port", lambda: other.getsockname()[1])
            engine = make_engine(make_spec(kind, {"model": "m", "executable": python, **IN_PROCESS}), around)
            with pytest.raises(EngineStartError, match=r"exit code 1\n(.|\n)*Address already in use"):
                engine.start()


def distribution(python: Path, kind: str, version: str | None):
    """Have a stub belong to a distribution of this version; None: to none again."""
    site = python.parent.parent / "site"
    for before in site.glob(f"{kind}_stub-*"):
        shutil.rmtree(before)
    if version is not None:
        folder = site / f"{kind}_stub-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {kind}-stub\nVersion: {version}\n")
        (folder / "top_level.txt").write_text(f"{kind}\n")


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
        assert f"--enable-prompt-tokens-details --enable-per-request-metrics{expected}" == command(VLLM, **words)

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

    @pytest.mark.slow
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
            "perf_metrics_max_requests": 100_000,
            "kv_cache_config": cache,
        } == json.loads(file.read_text())

    def test_tensorrt_llm_as_it_comes(self):
        """Words that are not given are left to the engine."""
        assert {
            "return_perf_metrics": True,
            "enable_iter_perf_stats": True,
            "perf_metrics_max_requests": 100_000,
        } == options(EngineSpec(kind="tensorrt_llm", model="m"))

    def test_tensorrt_llm_in_process(self):
        """The same words as arguments of `LLM`; what else it takes comes as a JSON object."""
        words = {"model": "m", "max_model_len": 9, "tensor_parallel": 2, "kv_offload_gib": 2.0, "prefix_caching": False}
        spec = make_spec("tensorrt_llm", {**words, **IN_PROCESS, "args": ['{"max_batch_size": 8}']})
        assert {
            "model": "m",
            "engine_folder": False,
            "max_seq_len": 9,
            "tensor_parallel_size": 2,
            "kv_cache_config": {"enable_block_reuse": False, "host_cache_size": 2**30},
            "return_perf_metrics": True,
            "enable_iter_perf_stats": True,
            "max_batch_size": 8,
        } == llm_arguments(spec, "m")
        with pytest.raises(ConfigurationError, match=r"args=\['--tp_size'\]: with in_process=True they are one JSON"):
            make_spec("tensorrt_llm", {"model": "m", **IN_PROCESS, "args": ["--tp_size"]})

    @pytest.mark.slow
    @pytest.mark.parametrize("form", [{}, IN_PROCESS])
    def test_a_folder_of_tensorrt_engines(self, form, around, python, tmp_path):
        """It needs a tokenizer, and takes nothing that was settled when it was built."""
        (tmp_path / "built").mkdir()
        (tmp_path / "built" / "rank0.engine").write_bytes(b"")
        built = {"model": str(tmp_path / "built"), "executable": python, **form}
        with pytest.raises(ConfigurationError) as caught:
            make_spec("tensorrt_llm", {**built, "dtype": "bfloat16", "tensor_parallel": 2})
        assert ["dtype:", "tensor_parallel:", "tokenizer"] == [one.split()[1] for one in caught.value.problems]
        engine = make_engine(make_spec("tensorrt_llm", {**built, "tokenizer": "t"}), around)
        try:
            told = engine.describe()["command"]
        finally:
            engine.stop()
        assert ('"engine_folder": true' if form else "--backend tensorrt --tokenizer t ") in told

    def test_a_tokenizer_beside_a_checkpoint(self):
        """It has its own."""
        with pytest.raises(ConfigurationError, match="is for a folder of built engines; 'm' has its own"):
            make_spec("tensorrt_llm", {"model": "m", "tokenizer": "t"})

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ({"in_process": True, "prompts": "chat"}, "takes prompts='ids' or 'text'"),
            ({"in_process": True, "prompts": "text", "tokenizer": "t"}, "the engine's own counts"),
            ({"tokenizer": "t"}, "token ids need none"),
        ],
    )
    def test_words_that_do_not_go_together(self, words, said):
        """Said before anything starts."""
        with pytest.raises(ConfigurationError, match=said):
            make_spec("vllm", {"model": "m", **words})

    def test_without_statistics(self):
        """The flag for times per request refuses the one against statistics."""
        assert "--enable-prompt-tokens-details --disable-log-stats" == command(VLLM, args=("--disable-log-stats",))

    def test_tensorrt_llm_does_not_quantise(self):
        """Weights in FP8 are a checkpoint's, which is said before anything starts."""
        with pytest.raises(ConfigurationError, match="name a checkpoint whose weights are FP8"):
            make_spec("tensorrt_llm", {"model": "m", "dtype": "fp8"})

    @pytest.mark.parametrize("share", [0, 1.1, True, "half"])
    def test_a_share_is_one(self, share):
        """The word for memory takes nothing else."""
        with pytest.raises(ConfigurationError, match=r"expected a share of at most 1, such as 0\.45"):
            make_spec("sglang", {"model": "m", "gpu_memory_fraction": share})
