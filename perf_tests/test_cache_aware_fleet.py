"""Two replicas behind a router: each turn to where its conversation was, or simply to the next one.

On GPUs with an 8B model, without one with a small random-weight Llama, each replica on half of the processors.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

from pytest_llmperf import closed_loop, multi_round

# An odd number of users: with an even one, taking turns over two replicas would bring each back to its own.
USERS = 7
USERS_ON_PROCESSORS = 5


@pytest.mark.gpu(count=2, memory_gib=40)
def test_cache_aware_routing(llm_engine_factory, llm_perf):
    """Conversations that come back to their cache find more in it, and wait for their first token a third less."""
    sessions = multi_round(users=USERS, rounds=6, context_tokens=8_000, input_tokens=64, output_tokens=64, seed=7)
    words = {"model": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 20_000}
    both_policies(llm_engine_factory, llm_perf, words, sessions, USERS)


# Looks for routing that is lost, a factor, on machines as noisy as a laptop: not for a few percent.
@pytest.mark.llm_gate(metric="ttft_p50", detect=1.0, min_effect=0.25)
@pytest.mark.llm_gate(metric="ratio:cache_aware_gain", detect=1.0, min_effect=0.25)
def test_cache_aware_routing_on_processors(llm_engine_factory, llm_perf, gpu):
    """The same with a small model, which computes a context of 3,000 tokens in a third of a second."""
    if gpu.gpus:
        pytest.skip("on a GPU the small model's prefill is lost among the fixed costs of a request")
    if not shutil.which("vllm-router", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        pytest.skip("no vllm-router beside this Python or on PATH; pip install vllm-router")
    sessions = multi_round(
        users=USERS_ON_PROCESSORS, rounds=5, context_tokens=3_000, input_tokens=64, output_tokens=16, seed=7
    )
    words = {
        "model": "tiny-llama",
        "prefix_caching": True,  # where vLLM's own default depends on the processor
        "max_model_len": 20_000,
        "args": ["--enforce-eager", "--max-num-seqs", "32"],
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        "cpus": halves(sorted(os.sched_getaffinity(0))),
    }
    both_policies(llm_engine_factory, llm_perf, words, sessions, USERS_ON_PROCESSORS)


def both_policies(llm_engine_factory, llm_perf, words, sessions, users):
    """Measure by turns and cache-aware, all users at once; the gain, and what explains it, hold."""
    results = {}
    for policy in ("round_robin", "cache_aware"):
        engine = llm_engine_factory("fleet", engine="vllm", replicas=2, policy=policy, **words)
        results[policy] = llm_perf(engine, sessions, load=closed_loop(users), cache="cold", name=policy)
        engine.stop()

    by_turns, aware = results["round_robin"], results["cache_aware"]
    by_turns_s, aware_s = by_turns.later_rounds.ttft.mean, aware.later_rounds.ttft.mean
    llm_perf.ratio("cache_aware_gain", by_turns_s, aware_s)
    assert aware.cache.hit_rate > by_turns.cache.hit_rate + 0.1
    for replica in aware.cache.replicas:  # one that was given nothing has no hit rate
        assert replica.hit_rate is None or replica.hit_rate > by_turns.cache.hit_rate
    assert by_turns_s > 1.5 * aware_s


def halves(processors):
    """The processors for each of two replicas; one is everybody's."""
    middle = len(processors) // 2
    groups = (processors[:middle], processors[middle:]) if middle else (processors, processors)
    return "|".join(",".join(map(str, group)) for group in groups)
