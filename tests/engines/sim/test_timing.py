"""The time of a step: what it is made of, whatever the constants are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulations import DEPLOYMENT

from pytest_llmperf.engines.sim.settings import Settings
from pytest_llmperf.engines.sim.slowdown import Slowdown
from pytest_llmperf.engines.sim.timing import Step, Timing
from pytest_llmperf.hardware import part_named
from pytest_llmperf.roofline import SHAPES, deployed

IDEAL = Settings(
    compute_efficiency=1,
    memory_efficiency=1,
    link_efficiency=1,
    step_overhead_s=0,
    sequence_overhead_s=0,
    request_overhead_s=0,
)
COUNTS = st.integers(0, 10_000)


def timing(deployment=DEPLOYMENT, settings=IDEAL):
    return Timing(deployment, settings, Slowdown())


@given(decodes=st.integers(1, 256), new=st.integers(0, 8192), sharers=st.integers(2, 8))
def test_who_shares_a_gpu_has_a_part_of_it(decodes, new, sharers):
    """Arithmetic, memory and link: each takes as many times as long."""
    step = Step(decodes=decodes, context=1000 * decodes, prefills=1, new=new, pairs=new**2 / 2, read=new, samples=1)
    alone, beside = timing(), timing(replace(DEPLOYMENT, sharers=sharers))
    assert beside.step_s(step) == pytest.approx(sharers * alone.step_s(step))
    assert beside.block_s == pytest.approx(sharers * alone.block_s)


def test_a_prompt_takes_its_operations_and_the_reading_of_the_weights():
    """At full efficiency and without overheads, from the model's shape and the part's peaks alone."""
    took_s = timing().step_s(Step(prefills=1, new=1000, pairs=500_000, read=1000, samples=1))

    shape, part = DEPLOYMENT.model, DEPLOYMENT.part
    weights = shape.linear_parameters + shape.head_parameters
    flops = 2 * shape.linear_parameters * 1000 + 2 * shape.head_parameters + 4 * 32 * 4096 * 500_000
    read = 2 * weights + 1000 * 131_072
    assert took_s == pytest.approx(flops / part.flops_16bit.value + read / part.bandwidth.value)


def test_a_token_takes_the_reading_of_weights_and_cache():
    """And the operations for one token."""
    took_s = timing().decode_s(1, 5000)

    shape, part = DEPLOYMENT.model, DEPLOYMENT.part
    weights = shape.linear_parameters + shape.head_parameters
    flops = 2 * weights + 4 * 32 * 4096 * 5000
    assert took_s == pytest.approx(
        flops / part.flops_16bit.value + (2 * weights + 5000 * 131_072) / part.bandwidth.value
    )


def test_a_block_takes_its_bytes_over_the_host_link():
    """16 tokens of 128 KiB."""
    assert timing().block_s == pytest.approx(16 * 131_072 / DEPLOYMENT.part.host_link.value)


@given(decodes=st.integers(1, 500), context=COUNTS, new=COUNTS)
def test_a_step_takes_as_long_as_its_decodes_and_its_prompts(decodes, context, new):
    """Weights are read once for both."""
    made = timing(settings=Settings())
    both = Step(decodes=decodes, context=context, prefills=1, new=new, pairs=new, read=new)
    prompts = Step(prefills=1, new=new, pairs=new, read=new)

    weights_s = made.step_s(Step())
    expected_s = made.decode_s(decodes, context) + made.step_s(prompts) - weights_s
    assert made.step_s(both) == pytest.approx(expected_s)
    assert made.step_s(Step(decodes=decodes, context=context)) == made.decode_s(decodes, context)


def test_more_gpus_share_the_work_and_pay_for_the_exchange():
    """Two take more than half of the time of one; without a link's cost, half of what scales."""
    pair = deployed(SHAPES["llama-3.1-8b"], part_named("h100"), gpus=2)
    free = Settings(**{name: getattr(IDEAL, name) for name in IDEAL.__slots__} | {"all_reduce_latency_s": 0})

    one, two = (timing(deployment, free).decode_s(64, 64_000) for deployment in (DEPLOYMENT, pair))

    exchanged_s = 64 * pair.all_reduce_bytes_per_token / (pair.part.gpu_link.value * free.gpu_link_efficiency)
    assert two == pytest.approx(one / 2 + exchanged_s)
    assert timing(pair, IDEAL).decode_s(64, 64_000) > two


def test_parts_without_peer_access_exchange_through_the_host():
    """Every byte crosses the link twice."""
    part = part_named("rtx4090")
    pair = deployed(SHAPES["llama-3.1-8b"], part, gpus=2)
    settings = Settings(gpu_link_efficiency=1)

    with_new, without = (timing(pair, settings).step_s(Step(new=new)) for new in (1000, 0))

    computed_s = 1000 * pair.linear_flops_per_token / (part.flops_16bit.value * settings.geforce_efficiency)
    exchanged_s = 1000 * pair.all_reduce_bytes_per_token / part.gpu_link.value
    assert with_new - without == pytest.approx(computed_s + 2 * exchanged_s)
