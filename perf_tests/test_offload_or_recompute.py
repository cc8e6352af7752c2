"""KV offload against recomputing: what it saves to bring a context back from host memory instead of computing it again.

NVIDIA states up to 14x for Llama 3 70B on an H100, without a length; this runs over lengths.
"""

import pytest

from pytest_llmperf import multi_round, round_robin

PARTS = [
    pytest.param("gh200", marks=pytest.mark.gh200),
    pytest.param("h100", marks=pytest.mark.h100),
    pytest.param("h200", marks=pytest.mark.h200),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.llm_engine(
    "vllm",
    model="meta-llama/Llama-3.1-70B-Instruct",
    dtype="fp8",
    kv_cache_dtype="fp8",
    prefix_caching=True,
    kv_offload_gib=160,  # more than the GPU holds, or what pushes the contexts out of it takes their place here, too
    max_model_len=17_800,
    args=["--gpu-memory-utilization", "0.95"],
)
@pytest.mark.llm_gate(metric="ttft_p50")
@pytest.mark.parametrize("context_tokens", [1_000, 4_000, 8_000, 16_000])
def test_offload_or_recompute(part, context_tokens, llm_engine, llm_perf):
    """A context that was pushed out of the GPU comes back faster than it is computed."""
    users = multi_round(users=4, rounds=1, context_tokens=context_tokens, input_tokens=64, output_tokens=2, seed=7)

    recomputed, restored = recomputed_and_restored(llm_engine, llm_perf, users)

    assert restored.cache.restored_bytes > 0
    assert recomputed.ttft.p50 > (2 if context_tokens < 4_000 else 5) * restored.ttft.p50


@pytest.mark.llm_engine(
    "vllm",
    model="tiny-llama",
    prefix_caching=True,
    kv_offload_gib=1,
    kv_offload_backend="disk",
    max_model_len=8_000,
    # Two contexts fit on the device, so that it does not take long to push them out.
    args=["--enforce-eager", "--max-num-seqs", "32", "--num-gpu-blocks-override", "64"],
    env={"VLLM_CPU_KVCACHE_SPACE": "1"},  # GiB; read on machines without a GPU only
)
# Looks for a tier that is lost, a factor, on machines as noisy as a laptop: not for a few percent.
@pytest.mark.llm_gate(metric="ttft_p50", detect=1.0, min_effect=0.25)
@pytest.mark.llm_gate(metric="ratio:offload_gain", detect=1.0, min_effect=0.25)
def test_offload_or_recompute_on_a_processor(llm_engine, llm_perf, gpu):
    """The same with a tier on disk, for prompts that end in the block that their context ends in."""
    if gpu.gpus:
        pytest.skip("vLLM's example of a tier on disk is for machines without a GPU; with one there is a better tier")
    users = multi_round(users=2, rounds=1, context_tokens=3_600, input_tokens=16, output_tokens=2, seed=7)

    recomputed, restored = recomputed_and_restored(llm_engine, llm_perf, users)
    llm_perf.ratio("offload_gain", recomputed.ttft.p50, restored.ttft.p50)

    assert restored.cache.tiers["disk"] > 0.9 * restored.input_tokens.served
    assert recomputed.ttft.p50 > 3 * restored.ttft.p50


def recomputed_and_restored(llm_engine, llm_perf, users):
    """The same users with empty caches, and with their contexts in the outer tier only."""
    recomputed = llm_perf(llm_engine, users, load=round_robin(), cache="cold", name="recomputed")
    restored = llm_perf(llm_engine, users, load=round_robin(), cache="evicted", name="restored")
    return recomputed, restored
