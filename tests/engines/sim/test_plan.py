"""What a specification comes to, and every reason why it cannot be."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf.engines import make_spec
from pytest_llmperf.engines.sim.plan import planned
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.units import GIB, MIB

EXACT = {"memory_utilization": 0.9, "engine_bytes": 2e9, "block_tokens": 16}


def plan(**words):
    return planned(make_spec("sim", {"model": "llama-3.1-8b", "part": "h100", "constants": EXACT} | words))


def problems(**words):
    with pytest.raises(ConfigurationError) as caught:
        plan(**words)
    return list(caught.value.problems)


def test_what_weights_and_engine_leave_is_kv_cache():
    """Of an H100: 0.9 of 81,559 MiB, less 8.03e9 weights of two bytes, less the engine; in blocks of 2 MiB."""
    made = plan()

    room = 0.9 * 81_559 * MIB - made.deployment.weight_bytes - 2e9
    assert made.gpu_blocks == room // (16 * 131_072)
    assert made.kv_capacity_tokens == 16 * made.gpu_blocks
    assert 0 == made.host_blocks


def test_a_share_of_what_is_free_leaves_more_than_a_share_of_all():
    """TensorRT-LLM's rule beside vLLM's."""
    of_free = plan(constants=EXACT | {"memory_rule": "of_free"})

    assert of_free.gpu_blocks == 0.9 * (81_559 * MIB - of_free.deployment.weight_bytes - 2e9) // (16 * 131_072)


def test_offloaded_blocks_are_those_of_the_memory_that_was_asked_for():
    """8 GiB in blocks of 2 MiB."""
    assert 4096 == plan(kv_offload_gib=8).host_blocks
    assert 0 == plan(kv_offload_gib=8, slow="kv_offload:off").host_blocks


def test_a_replica_s_gpus_share_what_is_offloaded():
    """As their blocks are smaller, there are as many."""
    assert 4096 == plan(kv_offload_gib=8, tensor_parallel=2).host_blocks


def test_a_smaller_cache_is_smaller_by_what_was_taken_away():
    """In blocks."""
    assert plan(slow="kv_capacity:-30%").gpu_blocks == pytest.approx(0.7 * plan().gpu_blocks, abs=1)


def test_replicas_that_share_a_gpu_keep_the_weights_each():
    """Of the same memory, less is left for KV cache: the more, the less."""
    shared = [
        plan(replicas=count, gpus="0", gpu_memory_fraction=0.8 / count, constants={"engine_bytes": 0})
        for count in (1, 2, 4)
    ]

    room = [0.8 / count * 81_559 * MIB - 2 * 8.03e9 for count in (1, 2, 4)]
    for made, bytes_each in zip(shared, room, strict=True):
        assert made.gpu_blocks == pytest.approx(max(bytes_each, 0) // (16 * 131_072), abs=5)


def test_a_share_of_what_is_free_is_of_what_all_leave_free():
    """The weights of the others are not there for anybody."""
    words = {"gpus": "0", "gpu_memory_fraction": 0.4, "constants": {"memory_rule": "of_free", "engine_bytes": 0}}
    made = plan(replicas=2, **words)

    assert made.gpu_blocks == 0.4 * (81_559 * MIB - 2 * made.deployment.weight_bytes) // (16 * 131_072)


def test_too_many_on_one_gpu():
    """As a real fleet, it is told what each may take."""
    assert ["gpus='0': 2 replicas share a GPU; say what share of its memory each may take: gpu_memory_fraction=... of "
            "at most 0.5"] == problems(replicas=2, gpus="0")  # fmt: skip


@pytest.mark.parametrize(
    ("like", "arguments"),
    [
        ("vllm", ["--max-num-seqs", "7", "--gpu-memory-utilization", "0.7", "--block-size", "32"]),
        ("sglang", ["--max-running-requests", "7", "--mem-fraction-static", "0.7", "--page-size", "32"]),
        ("tensorrt_llm", ["--max_batch_size=7", "--free_gpu_memory_fraction=0.7"]),
    ],
)
def test_each_engine_s_own_arguments_are_understood(like, arguments):
    """Those that mean something here."""
    settings = plan(like=like, args=arguments, constants={}).settings
    assert (7, 0.7) == (settings.max_num_seqs, settings.memory_utilization)
    assert {"vllm": 32, "sglang": 32, "tensorrt_llm": 64}[like] == settings.block_tokens


@pytest.mark.parametrize(
    ("words", "caching"),
    [
        ({}, True),
        ({"prefix_caching": True}, True),
        ({"prefix_caching": False}, False),
        ({"slow": "prefix_cache:off"}, False),
    ],
)
def test_prefixes_are_cached_unless_that_is_switched_off(words, caching):
    """By the word, or by mistake."""
    assert caching is plan(**words).prefix_caching


def test_the_longest_sequence_is_the_model_s_as_far_as_the_cache_holds_it():
    """Or what was asked for."""
    small = plan(part="rtx4090")

    assert 131_072 == plan().max_model_len
    assert small.kv_capacity_tokens == small.max_model_len < 131_072
    assert 5000 == plan(max_model_len=5000).max_model_len


def test_a_model_that_does_not_fit_says_what_it_needs():
    """And what would help."""
    (problem,) = problems(model="llama-3.1-70b")

    assert problem.startswith("llama-3.1-70b does not fit on 1 x NVIDIA-H100-80GB-HBM3: its bfloat16 weights need 131.")
    assert "use more GPUs (tensor_parallel) or a smaller dtype" in problem
    assert plan(model="llama-3.1-70b", tensor_parallel=4).gpu_blocks > 0


def test_a_context_beyond_model_and_memory_says_both():
    """One sentence each."""
    model, memory = problems(part="rtx4090", max_model_len=200_000)

    assert "max_model_len=200000: llama-3.1-8b was made for 131072" == model
    assert memory.startswith("max_model_len=200000: one such sequence needs 24.41 GiB of KV cache on each GPU, and ")


def test_all_that_can_be_told_is_told_at_once():
    """Each mistake in a sentence of its own."""
    found = problems(
        like="vlm", policy="random", slow="decod:+5%", constants={"block_token": 16}, dtype="fp9",
        kv_cache_dtype="int3", tensor_parallel=3,
    )  # fmt: skip

    for start in (
        "like: unknown engine 'vlm'; did you mean 'vllm'?",
        "policy: unknown routing policy 'random'",
        "slow: unknown part of the engine 'decod'; did you mean 'decode'?",
        "unknown dtype 'fp9'",
        "unknown kv_cache_dtype 'int3'",
        "tensor_parallel=3 does not divide the 32 attention heads of llama-3.1-8b",
        "unknown constant of the simulation 'block_token'; did you mean 'block_tokens'?",
    ):
        assert 1 == len([problem for problem in found if problem.startswith(start)]), start
    assert 7 == len(found)


def test_an_unknown_part_and_an_unknown_model_are_both_told():
    """With what is known."""
    part, model = problems(part="h10", model="llama-3.1-9b")

    assert part.startswith("unknown part 'h10'; did you mean 'h100'?")
    assert model.startswith("unknown model 'llama-3.1-9b'; did you mean 'llama-3.1-8b'?")
    assert model.endswith("or a folder with the model's config.json")


def test_fp8_needs_a_part_that_has_it():
    """The sentence says what 16 bits would take."""
    (problem,) = problems(part="a100", dtype="fp8")

    assert (
        "dtype 'fp8': NVIDIA-A100-SXM4-80GB has no FP8 arithmetic; in bfloat16 the weights need 15.0 GiB of each GPU's "
        "80.0 GiB"
    ) == problem


def test_a_model_in_a_folder_is_read_there(tmp_path):
    """Its shape counts, whatever it is called."""
    config = {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 512,
    }  # fmt: skip
    tmp_path.joinpath("config.json").write_text(json.dumps(config), encoding="utf-8")

    made = plan(model=str(tmp_path))

    assert 512 == made.max_model_len
    assert 2 * 2 * 2 * 16 * 2 == made.deployment.kv_bytes_per_token


def test_the_generated_model_needs_no_folder():
    """Tests on it run on a machine that has never made it."""
    assert plan(model="tiny-llama").deployment.weight_bytes < 0.1 * GIB
