"""Several instances of a server: each on a GPU of its own on one host, or all on one GPU.

What a host carries beyond one instance is what a router and the host's processors let through. What a GPU carries
falls with every instance on it, as each keeps the weights once more, in memory and in every step's reading.
"""

from itertools import pairwise

import pytest

from pytest_llmperf import closed_loop, single_turn

COUNTS = (1, 2, 4)
MODEL = {"model": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 4_096}
TOKENS_PER_USER = 512 + 128


@pytest.mark.gpu(count=4, memory_gib=20)
def test_instances_on_one_host(llm_engine_factory, llm_perf):
    """The throughput grows nearly with the instances, and nobody waits much longer."""
    results = {}
    for count in COUNTS:
        asked = single_turn(requests=192 * count, input_tokens=512, output_tokens=128, seed=7)
        engine = llm_engine_factory("fleet", engine="vllm", replicas=count, **MODEL)
        load = closed_loop(24 * count)
        results[count] = llm_perf(engine, asked, load=load, cache="cold", name=f"{count} instances")
        engine.stop()

    for count in COUNTS:
        assert results[count].output_throughput > 0.8 * count * results[1].output_throughput
        assert results[count].ttft.p50 < 2 * results[1].ttft.p50


@pytest.mark.gpu(memory_gib=90)  # four times the weights take 60 GiB
def test_instances_on_one_gpu(llm_engine_factory, llm_perf):
    """The same memory, divided, holds fewer users; the same GPU, divided, is no faster."""
    asked = single_turn(requests=256, input_tokens=512, output_tokens=128, seed=7)
    results, users = {}, {}
    for count in COUNTS:
        engine = llm_engine_factory(
            "fleet", engine="vllm", replicas=count, gpus="0", gpu_memory_fraction=0.88 / count, **MODEL
        )
        name = f"{count} on one GPU"
        results[count] = llm_perf(engine, asked, load=closed_loop(32), cache="cold", name=name)
        users[count] = engine.users_that_fit(TOKENS_PER_USER)
        engine.stop()

    for fewer, more in pairwise(COUNTS):
        assert users[more] < users[fewer]
        assert results[more].output_throughput < 1.1 * results[fewer].output_throughput
