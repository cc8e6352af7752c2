"""Multi-user multi-round serving of Llama-3.1-70B with KV offload to host memory.

The experiment of TensorRT-LLM's `benchmarks/python/kv_cache_offload`: each user has a context of
16,000 tokens whose KV cache is there before the clock starts, and asks ten times. With few users
all caches stay on the GPU; with more, each turn's comes back over the host link.
"""

import pytest

from pytest_llmperf import multi_round, round_robin

TOKENS_PER_USER = 16_000 + 10 * (64 + 64)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("gh200", marks=pytest.mark.gh200),
        pytest.param("h100", marks=pytest.mark.h100),
        pytest.param("h200", marks=pytest.mark.h200),
    ],
)
@pytest.mark.llm_engine(
    "vllm",
    model="meta-llama/Llama-3.1-70B-Instruct",
    dtype="fp8",
    kv_cache_dtype="fp8",
    prefix_caching=True,
    kv_offload_gib=64,  # 16 users take 42 GiB of FP8 KV cache
    max_model_len=17_800,
    # Of an H100's 80 GiB the weights take 68; at the default of 0.9 not one user's cache fits.
    args=["--gpu-memory-utilization", "0.95"],
)
@pytest.mark.parametrize("users", range(2, 17))
def test_kv_offload(part, users, llm_engine, llm_perf):
    """Every user's context is found again, on the GPU or in host memory; none is computed anew."""
    sessions = multi_round(users=users, rounds=10, context_tokens=16_000, input_tokens=64, output_tokens=64, seed=7)

    result = llm_perf(llm_engine, sessions, load=round_robin(), prefill_context=True)

    assert result.cache.hit_rate > 0.9
    if users > llm_engine.users_that_fit(TOKENS_PER_USER):
        assert result.cache.restored_bytes > 0
