"""Prefix caching on a small model: runs on any machine that has vLLM."""

import pytest

from pytest_llmperf import multi_round, round_robin

pytestmark = pytest.mark.llm_engine(
    "vllm",
    model="tiny-llama",
    prefix_caching=True,
    max_model_len=20_000,
    args=["--enforce-eager", "--max-num-seqs", "32"],
    env={"VLLM_CPU_KVCACHE_SPACE": "1"},
)


@pytest.mark.llm_gate(metric="ttft_p50", detect=0.5)
def test_later_rounds_find_their_context_cached(llm_engine, llm_perf):
    conversations = multi_round(users=6, rounds=5, context_tokens=8_000, input_tokens=64, output_tokens=16, seed=7)
    cold = llm_perf(llm_engine, conversations, load=round_robin(), cache="cold", name="cold", runs=2)
    primed = llm_perf(llm_engine, conversations, load=round_robin(), prefill_context=True, name="primed")
    assert primed.cache.hit_rate > 0.9
    assert primed.ttft.p50 * 10 < cold.by_round[0].ttft.p50
