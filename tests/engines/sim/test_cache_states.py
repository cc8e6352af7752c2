"""Cold, primed and evicted on the simulated engine, told by its counters as on a real one."""

from __future__ import annotations

import pytest
from fakes import setting

from pytest_llmperf.client import Limits
from pytest_llmperf.engines import make_spec
from pytest_llmperf.engines.sim.engine import SimulatedEngine
from pytest_llmperf.load import round_robin
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import measure
from pytest_llmperf.workloads import multi_round

BLOCK = 16
CONTEXT, INPUT, ANSWER = 4_000, 64, 2
# Room for some 57,000 tokens on the device.
WORDS = {
    "model": "llama-3.1-8b",
    "part": "gh200",
    "prefix_caching": True,
    "max_model_len": 8_192,
    "constants": {"memory_utilization": 0.25},
}
OFFLOAD = {"kv_offload_gib": 64}


def engine(**words):
    return SimulatedEngine(make_spec("sim", {**WORDS, **words}), Limits(silence_s=600))


def measured(made, folder, users, cache):
    workload = multi_round(users=users, rounds=1, context_tokens=CONTEXT, input_tokens=INPUT, output_tokens=ANSWER)
    request = checked_request(
        workload,
        load=round_robin(),
        runs=1,
        warmup_runs=0,
        cache=cache,
        prefill_context=False,
        slo=None,
        name=None,
    )
    return measure(made, request, setting(folder, made.clock))


@pytest.mark.parametrize(
    ("cache", "offload", "found"),
    [
        ("cold", {}, None),
        ("cold", OFFLOAD, None),
        ("primed", {}, "gpu"),
        ("primed", OFFLOAD, "gpu"),
        ("evicted", {}, None),
        ("evicted", OFFLOAD, "host"),
    ],
)
def test_where_contexts_are_found(tmp_path, cache, offload, found):
    """All of them, in one place: on the device, on the host where there is a tier, or nowhere."""
    result = measured(engine(**offload), tmp_path, 3, cache)
    everything, contexts = 3 * (CONTEXT + INPUT), 3 * (CONTEXT // BLOCK * BLOCK)
    expected = {"recomputed": everything} if found is None else {"recomputed": everything - contexts, found: contexts}
    assert result.validity
    assert expected == {tier: tokens for tier, tokens in result.cache.tiers.items() if tokens}
    if offload:
        assert (result.cache.restored_bytes > 0) is (found == "host")


def test_ttft_tells_the_tiers_apart(tmp_path):
    """The device is faster than the host, which is faster than computing."""
    made = engine(**OFFLOAD)
    device, host, computed = (measured(made, tmp_path, 3, cache).ttft.p50 for cache in ("primed", "evicted", "cold"))
    assert device < host < computed


def test_as_many_users_as_fit(tmp_path):
    """They keep their contexts; with one more, in turn, what is asked for next has just given way."""
    made = engine()
    fit = made.users_that_fit(CONTEXT + INPUT + ANSWER)
    contexts = CONTEXT // BLOCK * BLOCK
    assert fit * contexts == measured(made, tmp_path, fit, "primed").cache.tiers["gpu"]
    assert measured(made, tmp_path, fit + 1, "primed").cache.tiers["gpu"] < 0.5 * fit * contexts
