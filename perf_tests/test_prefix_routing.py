"""Eight replicas behind a router: requests that begin alike to the same replica, or to the least loaded one.

KubeAI's experiment, with eight L4: prefix-aware routing keeps each conversation's prefix in one replica's cache, where
otherwise all eight hold copies of all of them and none for long. No router that a fleet of real engines can have knows
this policy; here they are simulated, whatever the tests run on.
"""

import pytest

from pytest_llmperf import closed_loop, shared_prefix

FLEET = {
    "part": "l4",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "dtype": "fp8",
    "kv_cache_dtype": "fp8",
    "max_model_len": 16_384,
    "replicas": 8,
    "args": ["--max-num-batched-tokens", "16384"],
}


# Which replica gets a prefix is drawn anew in each run.
@pytest.mark.llm_gate(metric="ttft_p50", detect=1.0)
@pytest.mark.llm_gate(metric="output_throughput", detect=0.25)
@pytest.mark.parametrize("concurrency", [200, 800])
def test_prefix_routing(concurrency, llm_engine_factory, llm_perf):
    """Prefix-aware routing finds more in the caches, serves more, and far sooner."""
    # 199 has no factor in common with 8: nobody routes by accident.
    asked = shared_prefix(
        prefixes=199, requests_per_prefix=8, prefix_tokens=1_200, input_tokens=64, output_tokens=76, seed=7
    )
    load = closed_loop(concurrency)

    found = {
        policy: llm_perf(llm_engine_factory("sim", **FLEET, policy=policy), asked, load=load, cache="cold", name=policy)
        for policy in ("least_loaded", "prefix_hash")
    }

    without, aware = found["least_loaded"], found["prefix_hash"]
    assert aware.cache.hit_rate > without.cache.hit_rate
    assert aware.output_throughput > 1.2 * without.output_throughput
    assert without.ttft.mean > 1.5 * aware.ttft.mean
