"""Bytes and operations of a model on parts, against figures that were published or can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware import part_named
from pytest_llmperf.roofline import SHAPES, deployed
from pytest_llmperf.units import GIB

LLAMA = SHAPES["llama-3.1-8b"]
H100 = part_named("h100")


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ({}, 2 * 8_030_261_248),
        ({"dtype": "float16"}, 2 * 8_030_261_248),
        ({"dtype": "fp8"}, 6_979_321_856 + 2 * 2 * 525_336_576),
        ({"dtype": "awq"}, 0.52 * 6_979_321_856 + 2 * 2 * 525_336_576),
    ],
)
def test_weights_take_their_bytes_and_embeddings_stay_in_16_bits(words, size):
    """Norms, of a few hundred kilobytes, are left out."""
    assert deployed(LLAMA, H100, **words).weight_bytes == pytest.approx(size, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "dtype", "size"),
    [("llama-3.1-8b", None, 131_072), ("llama-3.1-8b", "fp8", 65_536), ("llama-3.1-70b", "fp8_e5m2", 163_840)],
)
def test_the_cache_of_a_token_is_its_keys_and_values(model, dtype, size):
    """Two for each layer, KV head and element."""
    assert size == deployed(SHAPES[model], H100, kv_cache_dtype=dtype, dtype="fp8").kv_bytes_per_token


@pytest.mark.parametrize(("gpus", "share"), [(1, 1), (2, 1 / 2), (8, 1 / 8), (16, 1 / 8)])
def test_heads_are_shared_down_to_one_for_each_gpu(gpus, share):
    """Eight KV heads on sixteen GPUs are held twice; weights and work are shared all the way."""
    alone, made = deployed(LLAMA, H100), deployed(LLAMA, H100, gpus=gpus)

    assert made.kv_bytes_per_token == share * alone.kv_bytes_per_token
    assert made.weight_bytes == alone.weight_bytes / gpus
    assert made.linear_flops_per_token == alone.linear_flops_per_token / gpus
    assert made.attention_flops_per_pair == alone.attention_flops_per_pair / gpus


def test_one_gpu_exchanges_nothing_and_more_exchange_more():
    """Two all-reduces a layer over a ring, whose bytes approach twice the activations."""
    alone, pair, eight = (deployed(LLAMA, H100, gpus=gpus) for gpus in (1, 2, 8))

    assert (0, 0) == (alone.all_reduces, alone.all_reduce_bytes_per_token)
    assert (64, 64 * 4096 * 2) == (pair.all_reduces, pair.all_reduce_bytes_per_token)
    assert 64 * 4096 * 2 * 1.75 == eight.all_reduce_bytes_per_token


def test_a_tied_head_is_stored_once_and_read_in_every_step():
    """An embedding of one's own is stored, and not read but for rows."""
    plain, tied = deployed(LLAMA, H100), deployed(replace(LLAMA, tied=True), H100)

    assert plain.weight_bytes - tied.weight_bytes == 2 * LLAMA.head_parameters
    assert plain.read_bytes == tied.read_bytes == tied.weight_bytes


def test_a_prompt_of_8_billion_weights_takes_16_billion_operations_a_token():
    """Less the embedding, and with the head once; attention grows with the square."""
    made = deployed(LLAMA, H100)

    linear = 2 * LLAMA.linear_parameters * 1000 + 2 * LLAMA.head_parameters
    assert made.prefill_flops(1000, 0) == linear + 4 * 32 * 32 * 128 * 500_000
    assert made.prefill_flops(1000, 2000) - made.prefill_flops(1000, 0) == 4 * 32 * 32 * 128 * 2_000_000


@pytest.mark.parametrize(
    ("dtype", "peak"), [("fp8", H100.flops_fp8), ("bfloat16", H100.flops_16bit), ("awq", H100.flops_16bit)]
)
def test_linear_layers_run_in_the_arithmetic_of_their_format(dtype, peak):
    """Four bits are unpacked to sixteen."""
    assert peak.value == deployed(LLAMA, H100, dtype=dtype).linear_peak


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_the_checkpoint_s_own_format_holds_unless_another_is_named(dtype):
    """A quantized checkpoint is not served in 16 bits by default."""
    awq = SHAPES["qwen2-72b-awq"]

    assert "int4" == deployed(awq, H100, dtype=dtype).weights.name
    assert "bfloat16" == deployed(LLAMA, H100, dtype=dtype).weights.name
    assert deployed(LLAMA, H100, kv_cache_dtype=dtype).kv_element_bytes == 2.0


def test_all_that_cannot_be_is_told_at_once():
    """Formats, and GPUs that heads cannot be shared between."""
    with pytest.raises(ConfigurationError) as caught:
        deployed(LLAMA, part_named("a100"), dtype="fp8", kv_cache_dtype="fp4", gpus=5)

    cache, fp8, heads = caught.value.problems
    assert fp8.startswith(
        "dtype 'fp8': NVIDIA-A100-SXM4-80GB has no FP8 arithmetic; in bfloat16 the weights need 3.0 GiB"
    )
    assert cache.startswith("unknown kv_cache_dtype 'fp4'; did you mean 'fp8'?")
    assert "tensor_parallel=5 does not divide the 32 attention heads of llama-3.1-8b" == heads


def test_a_deployment_says_what_is_assumed():
    """Whole sizes, over all GPUs."""
    made = deployed(SHAPES["llama-3.1-70b"], H100, dtype="fp8", kv_cache_dtype="fp8", gpus=2)

    assert (
        "llama-3.1-70b with fp8 weights (67.7 GiB) and 160 KiB of KV cache per token on 2 x NVIDIA-H100-80GB-HBM3"
        == made.describe()
    )
    assert made.memory_bytes / GIB == pytest.approx(79.6, abs=0.1)
