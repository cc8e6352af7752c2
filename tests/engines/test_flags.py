"""Options in `args` that a start sets itself, and words that an engine takes otherwise than they are said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_llmperf.engines import make_spec
from pytest_llmperf.engines.sglang import RECIPE as SGLANG
from pytest_llmperf.errors import ConfigurationError


def problems(kind, **words):
    """What is wrong with these words, before anything starts."""
    with pytest.raises(ConfigurationError) as caught:
        make_spec(kind, {"model": "m", **words})
    return caught.value.problems


def written(flag, form):
    """An option with a value, as one argument or as two."""
    return [f"{flag}=1"] if form == "=" else [flag, "1"]


@pytest.mark.parametrize("form", ["=", " "])
@pytest.mark.parametrize(
    ("kind", "flag", "instead"),
    [
        ("vllm", "--port", "it gets a free one"),
        ("vllm", "--host", "listens on loopback only"),
        ("vllm", "--model", "say model=..."),
        ("vllm", "--served-model-name", "by the name of model=..."),
        ("vllm", "--served_model_name", "by the name of model=..."),
        ("sglang", "--port", "it gets a free one"),
        ("sglang", "--model", "say model=..."),
        ("sglang", "--model-path", "say model=..."),
        ("tensorrt_llm", "--host", "listens on loopback only"),
        ("tensorrt_llm", "--port", "it gets a free one"),
        ("fleet", "--port", "in a fleet the one that ports=[...] says"),
    ],
)
def test_options_of_every_start(kind, flag, instead, form):
    """Refused, with what there is in their place."""
    (problem,) = problems(kind, args=["--enforce-eager", *written(flag, form)])
    assert f"args has {flag}, which is set here; " in problem
    assert instead in problem


@pytest.mark.parametrize("form", ["=", " "])
@pytest.mark.parametrize(
    ("kind", "words", "flag"),
    [
        ("vllm", {"dtype": "bfloat16"}, "--dtype"),
        ("vllm", {"dtype": "fp8"}, "--quantization"),
        ("vllm", {"max_model_len": 8}, "--max_model_len"),
        ("vllm", {"tensor_parallel": 2}, "-tp"),
        ("vllm", {"prefix_caching": True}, "--no-enable-prefix-caching"),
        ("vllm", {"kv_offload_gib": 2}, "--kv-offloading-size"),
        ("vllm", {"gpu_memory_fraction": 0.5}, "--gpu-memory-utilization"),
        ("vllm", {"max_model_len": 8, "in_process": True}, "--max-model-len"),
        ("sglang", {"max_model_len": 8}, "--context-length"),
        ("sglang", {"tensor_parallel": 2}, "--tp-size"),
        ("sglang", {"kv_offload_gib": 2}, "--hicache-size"),
        ("tensorrt_llm", {"tensor_parallel": 2}, "--tp_size"),
        ("tensorrt_llm", {"max_model_len": 8}, "--max_seq_len"),
    ],
)
def test_options_that_a_word_has_become(kind, words, flag, form):
    """Refused beside the word: the last one of a command wins, and the result would tell the other."""
    word, value = next(iter(words.items()))
    (problem,) = problems(kind, **words, args=written(flag, form))
    assert f"args has {flag}, which {word}={value!r} sets, too; say it by {word}=... only" in problem


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("vllm", {"args": ["--dtype", "half", "--gpu-memory-utilization=0.9", "-tp", "2", "--max-model-len", "8"]}),
        ("vllm", {"dtype": "bfloat16", "args": ["--quantization", "fp8"]}),
        ("vllm", {"dtype": "fp8", "args": ["--dtype", "bfloat16"]}),
        ("vllm", {"args": ["--model-impl", "vllm", "--override-generation-config", "--port-like"]}),
        ("sglang", {"args": ["--context-length=8"], "prefix_caching": True}),
        ("tensorrt_llm", {"args": ["--tp_size", "2", "--extra_llm_api_options", "mine.yaml"]}),
        ("tensorrt_llm", {"in_process": True, "args": ['{"kv_cache_config": {"enable_block_reuse": false}}']}),
    ],
)
def test_options_that_nobody_else_sets(kind, words):
    """They are passed on as they are."""
    assert tuple(words["args"]) == make_spec(kind, {"model": "m", **words}).args


def test_arguments_of_an_interface():
    """Those that are words, or would take the place of several."""
    given = '{"model": "other", "kv_cache_config": {}, "max_seq_len": 3}'
    found = problems("tensorrt_llm", in_process=True, args=[given], prefix_caching=True, max_model_len=8)
    assert ["'model'", "'max_seq_len'", "'kv_cache_config'"] == [one.split()[3].rstrip(",") for one in found]
    assert "say it by prefix_caching=..., kv_offload_gib=..." in found[2]


@pytest.mark.parametrize("form", ["=", " "])
@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--port", "a free one"),
        ("--host", "loopback"),
        ("--policy", "say policy=..."),
        ("--worker-urls", "replicas=..."),
        ("--prometheus-port", "a free one"),
    ],
)
def test_options_of_the_router(flag, instead, form):
    """The same in `router_args`."""
    (problem,) = problems("fleet", router_args=written(flag, form))
    assert problem.startswith(f"fleet: router_args has {flag}, which is set here; ")
    assert instead in problem


def test_a_fleet_is_not_in_process():
    """Said in words, with the engine that can be."""
    (problem,) = problems("fleet", in_process=True, replicas=2)
    assert "fleet: in_process=True: what stands behind a router is a server; leave it out" in problem
    assert "llm_engine('vllm', in_process=True, ...)" in problem


@pytest.mark.parametrize("words", [{"prefix_caching": False}, {"args": ["--disable-radix-cache"]}])
@pytest.mark.parametrize("kind", ["sglang", "fleet"])
def test_hicache_needs_radix_attention(kind, words):
    """It is its outer tier."""
    fleet = {"engine": "sglang"} if kind == "fleet" else {}
    (problem,) = problems(kind, kv_offload_gib=4, **words, **fleet)
    assert "sglang: kv_offload_gib=4 without prefix caching: HiCache is the outer tier of RadixAttention" in problem


@pytest.mark.parametrize(
    ("gib", "gpus", "said"),
    [
        (64, 1, None),  # 69 GB, 0.4 % more
        (1, 1, "kv_offload_gib=1 became 1.863 GiB: HiCache is sized in whole GB for each GPU, here 2 for each of 1"),
        (64, 4, "kv_offload_gib=64 became 67.06 GiB: .* here 18 for each of 4"),
    ],
)
def test_a_size_that_is_rounded(gib, gpus, said):
    """A doubt where it is more than 1 %."""
    spec = make_spec("sglang", {"model": "m", "kv_offload_gib": gib, "tensor_parallel": gpus})
    doubts = list(SGLANG.doubts(spec, "python"))
    assert ([] == doubts) if said is None else re.fullmatch(said, *doubts)


@pytest.mark.parametrize(
    ("kind", "word"), [("vllm", "model"), ("vllm", "executable"), ("fleet", "router"), ("tensorrt_llm", "model")]
)
def test_a_home_folder(kind, word, monkeypatch, tmp_path):
    """`~` is what a shell makes of it: the engine gets a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = make_spec(kind, {"model": "m", word: "~/x/vllm-router"})
    assert str(tmp_path / "x" / "vllm-router") == getattr(spec, word)


def test_a_home_folder_of_a_tokenizer(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = {"url": "http://h:1", "prompts": "text", "tokenizer": Path("~/t")}
    assert str(tmp_path / "t") == make_spec("openai", words).tokenizer
