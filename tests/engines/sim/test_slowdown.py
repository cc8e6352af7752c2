"""Slowdowns: how they are written, and what each of them touches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulations import DEPLOYMENT

from pytest_llmperf.engines.sim.settings import Settings
from pytest_llmperf.engines.sim.slowdown import RATES, SWITCHES, TIMES, Slowdown, parse_slowdown
from pytest_llmperf.engines.sim.timing import Step, Timing
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware import part_named
from pytest_llmperf.roofline import SHAPES, deployed

PREFILL = Step(prefills=1, new=1000, pairs=500_000, read=1000, samples=1)
DECODE = Step(decodes=8, context=8000)
PAIR = deployed(SHAPES["llama-3.1-8b"], part_named("h100"), gpus=2)


def durations(text, deployment=DEPLOYMENT, **constants):
    """What a slowdown does to a prefill, a decode, the front, and a block's transfer."""
    timing = Timing(deployment, Settings(**constants), parse_slowdown(text))
    return timing.step_s(PREFILL), timing.step_s(DECODE), timing.request_s, timing.block_s


def test_nothing_said_is_no_slowdown():
    """Neither by None nor by an empty text."""
    assert Slowdown() == parse_slowdown(None) == parse_slowdown("") == parse_slowdown(" , ")


def test_several_are_separated_by_commas():
    """With or without spaces; times grow, rates shrink, switches go off."""
    found = parse_slowdown("decode:+5%, host_link : -30%,prefix_cache:off")

    assert {"decode": 1.05, "host_link": 0.7} == pytest.approx(found.factors)
    assert {"prefix_cache"} == found.off
    assert 1.0 == found.factor("prefill")


def test_a_change_is_given_once():
    """Two of the same part would have to be added up or multiplied: nobody can guess which."""
    with pytest.raises(ConfigurationError, match=r"decode is given twice; expected one change of it"):
        parse_slowdown("decode:+5%,decode:+7%")


def test_all_mistakes_are_reported_at_once():
    """Each with what would have been right."""
    with pytest.raises(ConfigurationError) as caught:
        parse_slowdown("decod:+5%,decode:5%,host_link:-100%,kv_offload:-10%,decode:off,memory:+x%")

    assert [
        "slow: unknown part of the engine 'decod'; did you mean 'decode'? accepted: "
        + ", ".join([*TIMES, *RATES, *SWITCHES]),
        "slow='decode:5%': expected a change in percent, above -100 %, such as decode:+5%",
        "slow='host_link:-100%': expected a change in percent, above -100 %, such as host_link:-30%",
        "slow='kv_offload:-10%': expected kv_offload:off",
        "slow='decode:off': expected a change in percent, above -100 %, such as decode:+5%",
        "slow='memory:+x%': expected a change in percent, above -100 %, such as memory:-30%",
    ] == list(caught.value.problems)


@given(st.sampled_from([*TIMES, *RATES]), st.floats(-99, 900))
def test_every_change_that_leaves_something_is_read(name, percent):
    """Up or down, with or without a fraction."""
    found = parse_slowdown(f"{name}:{percent:+.3f}%")

    assert found.factor(name) == pytest.approx(1 + round(percent, 3) / 100)


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("prefill:+10%", (1.1, 1, 1, 1)),
        ("decode:+10%", (1, 1.1, 1, 1)),
        ("request_overhead:+10%", (1, 1, 1.1, 1)),
        ("host_link:-20%", (1, 1, 1, 1.25)),
        ("kv_capacity:-20%", (1, 1, 1, 1)),
        ("gpu_link:-20%", (1, 1, 1, 1)),
    ],
)
def test_a_slowdown_moves_what_it_names_and_nothing_else(text, factors):
    """By exactly as much."""
    plain, slow = durations(None), durations(text)

    assert factors == pytest.approx([now / before for now, before in zip(slow, plain, strict=True)])


def test_the_fixed_time_of_a_step_is_in_every_step():
    """And grows in each by the same."""
    plain, slow = durations(None, step_overhead_s=0.01), durations("step_overhead:+10%", step_overhead_s=0.01)

    assert (0.001, 0.001) == pytest.approx((slow[0] - plain[0], slow[1] - plain[1]))


def test_slower_arithmetic_is_felt_by_prompts_and_slower_memory_by_decoding():
    """Each by most of what is taken away, on the side that is bound by it."""
    plain = durations(None)
    compute, memory = durations("compute:-50%"), durations("memory:-50%")

    assert 1.5 < compute[0] / plain[0] <= 2
    assert 1.5 < memory[1] / plain[1] <= 2
    assert compute[1] / plain[1] < 1.2
    assert memory[0] / plain[0] < compute[0] / plain[0]


def test_a_slower_link_between_gpus_is_felt_where_there_are_several():
    """By what passes it."""
    plain, slow = durations(None, PAIR), durations("gpu_link:-50%", PAIR)

    passed_s = 1000 * PAIR.all_reduce_bytes_per_token / (PAIR.part.gpu_link.value * Settings().gpu_link_efficiency)
    assert passed_s == pytest.approx(slow[0] - plain[0])
