"""Replicas behind a router: whatever is asked of them, every request gets its tokens and every block comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulations import NEVER_NS, drain, fleet, is_locked, prompt, serve, tiers

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.engines.sim.blocks import answer_ids, block_hashes
from pytest_llmperf.engines.sim.timing import Step


@dataclass(frozen=True)
class Asked:
    """One request of a made-up load."""

    at_ns: int
    ids: np.ndarray
    out: int
    gone_ns: int | None
    """When its client loses patience."""


@st.composite
def worlds(draw):
    """An engine, mostly far too small, and what it is asked."""
    size = draw(st.sampled_from([1, 4, 16]))
    blocks = draw(st.integers(2, 12))
    budget = draw(st.sampled_from([3, 8, 40, 8192]))
    words = {
        "gpu_blocks": blocks,
        "host_blocks": draw(st.sampled_from([12, 60, 3, 0])),
        "replicas": draw(st.integers(1, 3)),
        "policy": draw(st.sampled_from(["round_robin", "least_loaded", "prefix_hash", "cache_aware"])),
        "prefix_caching": draw(st.sampled_from([True, True, True, False])),
        "block_tokens": size,
        "max_num_batched_tokens": budget,
        "max_num_seqs": draw(st.integers(1, 3)) if budget == 3 else draw(st.sampled_from([2, 8])),
        "admission": draw(st.sampled_from(["prompt", "whole"])),
        "transfer": draw(st.sampled_from(["overlapped", "blocking"])),
        "offload": draw(st.sampled_from(["write_through", "write_back"])),
    }
    random = draw(st.randoms(use_true_random=True))
    within_ns = draw(st.sampled_from([10**6, 10**8, 10**9]))
    load = []
    for _ in range(random.randint(1, 16)):
        length = random.randint(0, blocks * size - 2) // random.choice([1, 2, 4]) + 1
        ids = prompt(random.randint(0, 1), length)
        if random.random() < 0.5:  # parts ways with the others somewhere
            ids[random.randint(0, length - 1) :] += random.randint(1, 3)
        at_ns = random.choice([0, random.randint(0, within_ns)])
        gone_ns = at_ns + random.randint(0, within_ns) if random.random() < 0.1 else None
        load.append(Asked(at_ns, ids, random.randint(1, min(40, blocks * size - length)), gone_ns))
    return words, load


def driven(words, load):
    """A fleet that has been asked all this and has come to rest, its requests, and its timing."""
    made, timing = fleet(**words)
    events = [(asked.at_ns, 0, number) for number, asked in enumerate(load)]
    events += [(asked.gone_ns, 1, number) for number, asked in enumerate(load) if asked.gone_ns is not None]
    sequences, ended = {}, []
    for at_ns, is_cancel, number in sorted(events):
        ended += watched(made, at_ns)
        if not is_cancel:
            sequences[number] = made.submit(number, load[number].ids, load[number].out, at_ns)
        elif sequences[number] not in ended:
            made.cancel(sequences[number])
    ended += watched(made)
    return made, [sequences[number] for number in range(len(load))], ended, timing


def watched(made, until_ns=NEVER_NS):
    """What ends until then; whoever gets a token has the memory for it, and no more unless all was reserved."""
    ended = []
    while made.next_ns is not None and made.next_ns <= until_ns:
        ended += made.advance(made.next_ns)
        for replica in made.replicas:
            size = replica._size
            for sequence in replica._decoding:
                needed, has = replica._length(sequence), (sequence.blocks + sequence.reserved) * size
                assert needed <= has
                assert replica._whole or has - size < needed
    return ended


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(world=worlds())
def test_every_request_gets_its_tokens_and_every_block_comes_back(world):
    """No load and no size brings it to a halt, loses a token or a block, or makes the counts disagree."""
    words, load = world

    made, sequences, ended, timing = driven(words, load)

    gone = [asked.gone_ns is not None and one not in ended for asked, one in zip(load, sequences, strict=True)]
    for asked, sequence, is_gone in zip(load, sequences, gone, strict=True):
        times = sequence.times.tolist()
        assert sequence.done
        assert times == sorted(times)
        if not is_gone:
            assert len(times) == asked.out
            assert times[0] > asked.at_ns
    for replica in made.replicas:
        gpu, host = tiers(replica.cache)
        assert (replica.load, replica.cache.gpu_used, replica.cache.host_used) == (0, len(gpu), len(host))
        assert not is_locked(replica.cache)
        assert replica._context == 0
        assert words["prefix_caching"] or not gpu
    check_steps(words, timing.steps)
    if not any(gone):
        check_counts(made.counters(), sequences, load, timing.steps, prefix_caching=words["prefix_caching"])


def check_steps(words, steps):
    """No step takes more than fits in it."""
    for step in steps:
        assert 0 < step.new + step.decodes <= words["max_num_batched_tokens"]
        assert step.decodes + step.prefills <= words["max_num_seqs"]
        assert step.samples <= step.prefills <= step.new


def check_counts(counters, sequences, load, steps, *, prefix_caching):
    """What was counted is what was asked, found and computed."""
    prompts, tokens = sum(len(asked.ids) for asked in load), sum(asked.out for asked in load)
    hits = counters.from_gpu + counters.from_host
    assert (counters.prompt, counters.generated) == (prompts, tokens)
    assert counters.queried == (prompts if prefix_caching else 0)
    assert hits == sum(sequence.cached for sequence in sequences)
    assert counters.from_host == sum(sequence.restored for sequence in sequences)
    assert sum(step.decodes + step.samples for step in steps) == tokens
    if not counters.preemptions:
        # Each further token attends to the prompt, to those before it and to itself.
        pairs = sum(sum(range(len(asked.ids) + 1, len(asked.ids) + asked.out)) for asked in load)
        assert sum(step.context for step in steps) == pairs
        assert sum(step.new for step in steps) == prompts - hits


@settings(max_examples=40, deadline=None)
@given(world=worlds())
def test_the_same_input_gives_the_same_output(world):
    """To the nanosecond."""
    one, other = ([sequence.times for sequence in driven(*world)[1]] for _ in range(2))

    assert one == other


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 400),
    out=st.integers(1, 40),
    budget=st.sampled_from([8, 100, 8192]),
    prefix_caching=st.booleans(),
    admission=st.sampled_from(["prompt", "whole"]),
)
def test_a_request_alone_takes_what_its_steps_take(length, out, budget, prefix_caching, admission):
    """From the front, over its chunks, to its last token; nothing else takes time."""
    made, timing = fleet(
        40,
        prefix_caching=prefix_caching,
        max_num_batched_tokens=budget,
        max_num_seqs=8,
        admission=admission,
    )

    (sequence,) = serve(made, (prompt(0, length), out), at_ns=1000)

    now_ns, expected = 1000 + round(timing.request_s * NS_PER_S), []
    for done in range(0, length, budget):
        new = min(budget, length - done)
        last = done + new == length
        step = Step(prefills=1, new=new, pairs=new * (done + new / 2), read=done + new, samples=int(last))
        now_ns += round(timing.step_s(step) * NS_PER_S)
    expected.append(now_ns)
    for token in range(1, out):
        now_ns += round(timing.decode_s(1, length + token) * NS_PER_S)
        expected.append(now_ns)
    assert expected == sequence.times.tolist()


def ttft_s(sequence):
    return (sequence.times[0] - sequence.arrived_ns) / NS_PER_S


def on_host(transfer, offload, *, wait_ns=10**9):
    """A prompt of 20 blocks that is on the host only, asked for again; and its timing."""
    made, timing = fleet(24, 100, transfer=transfer, offload=offload)
    serve(made, (prompt(0, 321), 1))
    (flood,) = serve(made, (prompt(1, 380), 1), at_ns=10**9)
    (again,) = serve(made, (prompt(0, 321), 1), at_ns=flood.times[-1] + wait_ns)
    return made, timing, again


@pytest.mark.parametrize("transfer", ["overlapped", "blocking"])
def test_a_prefix_that_was_written_through_comes_back_in_the_time_of_its_bytes(transfer):
    """What others wrote out long ago delays nobody."""
    made, timing, again = on_host(transfer, "write_through")

    alone_s = timing.step_s(Step(prefills=1, new=1, pairs=320.5, read=321, samples=1))
    assert (20 * 16, 20) == (again.restored, made.counters().restored_blocks)
    assert ttft_s(again) == pytest.approx(timing.request_s + 20 * timing.block_s + alone_s, abs=1e-8)


@pytest.mark.parametrize("transfer", ["overlapped", "blocking"])
@pytest.mark.parametrize("shared", [320, 80])
def test_a_prefix_that_was_written_back_waits_for_what_gives_way_to_it(transfer, shared):
    """Both directions at once: the longer one counts."""
    made, timing = fleet(24, 100, transfer=transfer, offload="write_back")
    serve(made, (prompt(0, 321), 1))
    serve(made, (prompt(1, 380), 1), at_ns=10**9)
    ids = prompt(0, 321)
    ids[shared:] += 50
    before = made.replicas[0].cache.stored
    (again,) = serve(made, (ids, 1), at_ns=10**10)

    new = 321 - shared
    alone_s = timing.step_s(Step(prefills=1, new=new, pairs=new * (shared + new / 2), read=321, samples=1))
    assert shared == again.cached == again.restored
    assert 20 == made.replicas[0].cache.stored - before
    assert ttft_s(again) == pytest.approx(timing.request_s + 20 * timing.block_s + alone_s, abs=1e-8)


def test_others_go_on_while_blocks_are_loaded_and_wait_where_copies_block():
    """vLLM's connector loads beside the steps; in a blocking engine the next step includes the copy."""
    gaps = {}
    for transfer in ("overlapped", "blocking"):
        made, timing = fleet(60, 100, transfer=transfer)
        serve(made, (prompt(0, 321), 1))
        serve(made, (prompt(1, 900), 1), at_ns=10**9)
        running = made.submit(7, prompt(2, 16), 100, 2 * 10**9)
        made.submit(8, prompt(0, 321), 1, 2 * 10**9 + 10**8)
        drain(made)
        assert made.counters().from_host > 0
        gaps[transfer] = max(np.diff(running.times)) / NS_PER_S

    restored = made.counters().restored_blocks
    assert gaps["blocking"] - gaps["overlapped"] == pytest.approx(restored * timing.block_s, rel=0.01)


def test_who_was_admitted_last_is_preempted_and_gets_all_its_tokens():
    """Two that together outgrow the memory: the second is computed again, the first is not disturbed."""
    made, _ = fleet(8, prefix_caching=False, max_num_seqs=8)

    first, second, third = serve(made, (prompt(0, 40), 60), (prompt(1, 40), 60), (prompt(2, 100), 1))

    assert second.times[-1] < third.times[0]
    assert 1 == made.counters().preemptions
    assert (60, 60) == (len(first.times), len(second.times))
    assert first.times[-1] < second.times[-1]
    assert 121 == made.counters().generated


def test_what_a_preempted_request_had_is_found_again_as_far_as_it_is_left():
    """At 65 tokens, of whose four full blocks the other one takes one; the rest is not computed twice."""
    made, timing = fleet(8, max_num_seqs=8)

    serve(made, (prompt(0, 40), 30), (prompt(1, 40), 60))

    assert 1 == made.counters().preemptions
    assert 40 + 40 + (65 - 3 * 16) == sum(step.new for step in timing.steps)


def test_where_all_of_a_request_has_to_fit_nobody_is_preempted():
    """The second waits instead."""
    made, _ = fleet(8, prefix_caching=False, max_num_seqs=8, admission="whole")

    first, second = serve(made, (prompt(0, 40), 60), (prompt(1, 40), 60))

    assert 0 == made.counters().preemptions
    assert first.times[-1] < second.times[0]


def test_an_answer_is_that_of_its_prompt_also_after_a_preemption():
    """A conversation goes on with the same ids, whatever happened in between."""
    made, _ = fleet(8, max_num_seqs=8)
    prompts = [prompt(0, 40), prompt(1, 40)]

    sequences = serve(made, *((ids, 60) for ids in prompts))

    assert made.counters().preemptions > 0
    for ids, sequence in zip(prompts, sequences, strict=True):
        assert answer_ids(ids, block_hashes(ids, 16), 16, 60).tolist() == sequence.generated.tolist()


def test_a_second_turn_finds_the_first_one_and_its_answer():
    """All full blocks of prompt and answer, but the last token, which is not in the cache yet."""
    made, _ = fleet(100)
    (first,) = serve(made, (prompt(0, 40), 24))
    ids = prompt(0, 40)
    answer = answer_ids(ids, block_hashes(ids, 16), 16, 24)

    (second,) = serve(made, (np.concatenate([ids, answer, prompt(3, 8)]), 1), at_ns=10**9)

    assert (0, 48) == (first.cached, second.cached)


def test_only_an_idle_cache_is_reset():
    """What runs keeps its blocks."""
    made, _ = fleet(100)
    made.submit(0, prompt(0, 40), 50, 0)
    made.advance(10**7)

    assert not made.reset_cache()
    drain(made)
    assert made.reset_cache()
    (again,) = serve(made, (prompt(0, 40), 1), at_ns=10**10)
    assert 0 == again.cached


def test_a_pace_stretches_steps_and_not_what_is_in_front_of_them():
    """The factor of a run's noise."""
    made, timing = fleet(100)
    slow, _ = fleet(100)
    slow.pace(2.0)

    (one,), (other,) = (serve(engine, (prompt(0, 40), 5)) for engine in (made, slow))

    front_s = timing.request_s
    assert ttft_s(other) - front_s == pytest.approx(2 * (ttft_s(one) - front_s), rel=1e-6)
    assert np.diff(other.times) == pytest.approx(2 * np.diff(one.times), rel=1e-6)
