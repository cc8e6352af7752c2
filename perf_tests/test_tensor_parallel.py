"""More GPUs to one model: each answer comes faster, each GPU serves less than before.

LLMPerf's finding: the service processes more requests as the tensor-parallel size grows, but not in proportion to the
GPUs, so that the size should follow from the memory that is needed.
"""

from itertools import pairwise

import pytest

from pytest_llmperf import closed_loop, single_turn

SIZES = (1, 2, 4)


@pytest.mark.gpu(count=4, memory_gib=20)
def test_tensor_parallel(llm_engine_factory, llm_perf):
    """The time per token falls with the size; the throughput grows by less than the number of GPUs."""
    asked = single_turn(requests=256, input_tokens=512, output_tokens=128, seed=7)
    results = {}
    for size in SIZES:
        engine = llm_engine_factory(
            "vllm", model="meta-llama/Llama-3.1-8B-Instruct", tensor_parallel=size, max_model_len=4_096
        )
        results[size] = llm_perf(engine, asked, load=closed_loop(32), cache="cold", name=f"{size} GPUs")
        engine.stop()

    for fewer, more in pairwise(SIZES):
        assert results[more].tpot.p50 < results[fewer].tpot.p50
        assert results[more].output_throughput < more / fewer * results[fewer].output_throughput
