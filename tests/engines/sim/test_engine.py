"""The simulated engine behind the protocol that all engines have."""

from __future__ import annotations

import pytest
from simulations import prompt

from pytest_llmperf.client import Limits
from pytest_llmperf.engines import make_spec
from pytest_llmperf.engines.base import Generation
from pytest_llmperf.engines.sim.engine import SimulatedEngine
from pytest_llmperf.errors import ConfigurationError

BLOCK_BYTES = 16 * 131_072


def engine(**words):
    given = {"model": "llama-3.1-8b", "part": "h100", "constants": {"block_tokens": 16, "memory_utilization": 0.25}}
    return SimulatedEngine(make_spec("sim", given | words), Limits(silence_s=300, exchange_s=3600))


def answered(on, *requests):
    """Send these one after another; the answers."""
    channel, done = on.connector().open(on.clock), []
    for tag, (tokens, out) in enumerate(requests):
        channel.send(tag, channel.encode(Generation(tokens, out, return_token_ids=False)))
        channel.poll(1000.0)
        done += [reply.read() for reply in channel.ended()]
    channel.close()
    return done


def test_it_says_what_it_is():
    """The address names the part, the model is that of the specification, and nothing is hidden."""
    made = engine()
    told = made.describe()

    assert ("sim:h100", "llama-3.1-8b", True, True) == (made.url, made.model, made.is_simulated, made.is_ours)
    assert (True, "h100", 16, True) == (
        told["simulated"], told["part"], told["kv_block_tokens"], told["prefix_caching"],
    )  # fmt: skip
    assert told["kv_capacity_tokens"] == made.kv_capacity_tokens
    assert "llama-3.1-8b with bfloat16 weights (15.0 GiB) and 128 KiB of KV cache per token on" in told["deployment"]


def test_users_fit_by_their_whole_blocks():
    """Two of more than half the blocks do not share the rest; replicas add up."""
    made, several = engine(), engine(replicas=3)
    capacity = made.kv_capacity_tokens

    assert 1 == made.users_that_fit(capacity // 2 + 16)
    assert 2 == made.users_that_fit(capacity // 2 // 16 * 16)
    assert capacity // 16 == made.users_that_fit(1) == made.users_that_fit(16)
    assert 3 * capacity == several.kv_capacity_tokens
    assert 3 == several.users_that_fit(capacity)
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        made.users_that_fit(0)


def test_counters_say_where_prompts_came_from():
    """Recomputed, found on the device, brought back from the host; in bytes as well."""
    made = engine(kv_offload_gib=64)
    capacity = made.kv_capacity_tokens
    flood = [(prompt(5 + n, 3200), 1) for n in range(capacity // 3200 + 1)]
    answered(made, (prompt(0, 321), 1), (prompt(0, 321), 1), *flood)
    before = made.cache_counters()

    (again,) = answered(made, (prompt(0, 321), 1))

    after = made.cache_counters()
    cache = after.since(before)
    assert 320 == again.cached_tokens == cache.hit_tokens
    assert (321, {"recomputed": 1, "gpu": 0, "host": 320}) == (cache.queried_tokens, cache.tokens_by_tier)
    assert 20 * BLOCK_BYTES == cache.restored_bytes
    assert (320, 0) == (before.tokens_by_tier["gpu"], before.restored_bytes)
    assert before.offloaded_bytes >= (20 + 200 * len(flood)) * BLOCK_BYTES


def test_without_offload_nothing_is_said_of_it():
    """What was not asked for is absent, not 0."""
    made = engine()
    answered(made, (prompt(0, 321), 1))

    cache = made.cache_counters()

    assert (None, None) == (cache.offloaded_bytes, cache.restored_bytes)
    assert {"recomputed": 321, "gpu": 0} == cache.tokens_by_tier


def test_without_prefix_caching_nothing_is_queried():
    """And the hit rate is 0, not unknown."""
    made = engine(prefix_caching=False)
    answered(made, (prompt(0, 321), 1), (prompt(0, 321), 1))

    cache = made.cache_counters()

    assert (0, 0, 0.0) == (cache.queried_tokens, cache.hit_tokens, cache.hit_rate)


def test_a_reset_empties_the_cache_and_keeps_the_counters():
    """The next request finds nothing."""
    made = engine()
    answered(made, (prompt(0, 321), 1))

    assert made.reset_cache()

    (again,) = answered(made, (prompt(0, 321), 1))
    assert (0, 642) == (again.cached_tokens, made.cache_counters().queried_tokens)


def test_a_start_after_a_stop_begins_anew():
    """A second start without a stop does not."""
    made = engine()
    answered(made, (prompt(0, 321), 1))
    made.start()
    assert 321 == made.cache_counters().queried_tokens

    made.stop()
    made.stop()

    assert 0 == made.cache_counters().queried_tokens


def test_engines_of_one_specification_are_independent():
    """Each has caches and a clock of its own."""
    one, other = engine(), engine()
    answered(one, (prompt(0, 321), 1))

    assert 0 == other.cache_counters().queried_tokens
    assert one.clock is not other.clock
    assert one.spec == other.spec
