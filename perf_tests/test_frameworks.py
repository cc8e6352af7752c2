"""Two frameworks side by side: the same words, the same users, one body. Each has its own baseline.

`pytest perf_tests/test_frameworks.py -m h100` measures both on one machine, each in an environment of its own:
`--llmperf-set executable=PATH` names the Python of the one that `-k` picks.
"""

import pytest

from pytest_llmperf import closed_loop, multi_round

WORDS = {"model": "meta-llama/Llama-3.1-8B-Instruct", "prefix_caching": True, "max_model_len": 20_000}
USERS = 6


@pytest.mark.gpu(memory_gib=40)
@pytest.mark.parametrize(
    "framework",
    [
        pytest.param("vllm", marks=pytest.mark.llm_engine("vllm", **WORDS)),
        pytest.param("sglang", marks=pytest.mark.llm_engine("sglang", **WORDS)),
    ],
)
def test_frameworks(framework, llm_engine, llm_perf):
    """Either finds the contexts again, answers within half a second, and faster than anybody reads."""
    sessions = multi_round(users=USERS, rounds=5, context_tokens=8_000, input_tokens=64, output_tokens=64, seed=7)

    result = llm_perf(llm_engine, sessions, load=closed_loop(USERS), prefill_context=True)

    assert result.cache.hit_rate > 0.9
    assert result.ttft.p99 < 0.5
    assert result.tpot.p50 < 0.05
