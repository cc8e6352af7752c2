"""Does a cached context save its prefill? On a small random-weight Llama: runs wherever vLLM does."""

import pytest

from pytest_llmperf import multi_round, round_robin


@pytest.mark.llm_engine(
    "vllm",
    model="tiny-llama",
    prefix_caching=True,
    max_model_len=20_000,
    args=["--enforce-eager", "--max-num-seqs", "32"],
    env={"VLLM_CPU_KVCACHE_SPACE": "1"},  # GiB; read on machines without a GPU only
)
# Looks for caching that is lost, a factor of 30, on machines as noisy as a laptop: not for a few percent.
@pytest.mark.llm_gate(metric="ttft_p50", detect=1.0, min_effect=0.1)
def test_cached_context(llm_engine, llm_perf):
    """With their contexts cached, users wait at least ten times less for the first token."""
    users = {"users": 6, "context_tokens": 8_000, "input_tokens": 64, "output_tokens": 16, "seed": 7}

    cold = llm_perf(llm_engine, multi_round(rounds=1, **users), load=round_robin(), cache="cold", name="cold")
    primed = llm_perf(
        llm_engine, multi_round(rounds=5, **users), load=round_robin(), prefill_context=True, name="primed"
    )

    assert primed.cache.hit_rate > 0.9
    assert cold.ttft.p50 > 10 * primed.ttft.p50
