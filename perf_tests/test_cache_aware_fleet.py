"""Two replicas behind a router: each turn to where its conversation was, or simply to the next one."""

import pytest

from pytest_llmperf import closed_loop, multi_round

FLEET = {"engine": "vllm", "replicas": 2, "model": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 20_000}
# An odd number of users: with an even one, taking turns over two replicas would bring each back to its own.
USERS = 7


@pytest.mark.gpu(count=2, memory_gib=40)
def test_cache_aware_routing(llm_engine_factory, llm_perf):
    """Conversations that come back to their cache find more in it, and wait for their first token a third less."""
    sessions = multi_round(users=USERS, rounds=6, context_tokens=8_000, input_tokens=64, output_tokens=64, seed=7)
    results = {}
    for policy in ("round_robin", "cache_aware"):
        engine = llm_engine_factory("fleet", policy=policy, **FLEET)
        results[policy] = llm_perf(engine, sessions, load=closed_loop(USERS), cache="cold", name=policy)
        engine.stop()

    by_turns, aware = results["round_robin"], results["cache_aware"]
    assert aware.cache.hit_rate > by_turns.cache.hit_rate
    assert warm_ttft_s(by_turns) > 1.5 * warm_ttft_s(aware)


def warm_ttft_s(result):
    """Mean over the rounds in which there is something to be found again."""
    rounds = result.by_round[1:]
    return sum(each.ttft.mean for each in rounds) / len(rounds)
