"""Two real vLLM replicas on the processors, behind the real router."""

from __future__ import annotations

import os

import pytest
from fakes import no_progress
from real_routers import router
from real_vllm import MARKS, START_TIMEOUT_S, WORDS

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import Surroundings, make_engine, make_spec
from pytest_llmperf.load import closed_loop
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import multi_round

ROUTER = router("vllm-router")

pytestmark = [
    *MARKS,
    pytest.mark.slow,
    pytest.mark.skipif(ROUTER is None, reason="no vllm-router; LLMPERF_TEST_ROUTERS=FOLDER names where it is"),
]
# An odd number of users: with an even one, taking turns over two replicas would always bring each back to its own.
USERS = {"users": 5, "rounds": 5, "context_tokens": 3_000, "input_tokens": 64, "output_tokens": 16, "seed": 7}


@pytest.fixture
def fleet(tmp_path):
    """Make fleets; what still runs is stopped after the test."""
    around = Surroundings(
        clock=RealClock(),
        log_dir=tmp_path / "log",
        cache_dir=tmp_path / "cache",
        start_timeout_s=START_TIMEOUT_S,
        limits=Limits(silence_s=60),
        api_key=None,
        progress=no_progress,
    )
    made = []

    def make(**words):
        two = {"replicas": 2, "router": ROUTER, "cpus": "0|1" if len(os.sched_getaffinity(0)) > 1 else "0"}
        made.append(make_engine(make_spec("fleet", {**WORDS, **two, **words}), around))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def measured(engine, folder):
    """All users at once, each waiting for its own answers only."""
    request = checked_request(
        multi_round(**USERS),
        load=closed_loop(USERS["users"]),
        runs=2,
        warmup_runs=0,
        cache="cold",
        prefill_context=False,
        slo=None,
        name=engine.spec.policy,
    )
    setting = Setting(
        test=os.environ["PYTEST_CURRENT_TEST"],
        hardware_key="test",
        clock=RealClock(),
        record_dir=folder,
        progress=no_progress,
        team=LocalTeam(RealClock()),
    )
    return measure(engine, request, setting)


def moves(result):
    """How often a conversation went on at another replica than before, of all times that it went on."""
    served = {(one.run, one.session, one.turn): one.replica for one in result.later_rounds.requests}
    assert None not in served.values()
    pairs = [(served[run, user, turn - 1], replica) for (run, user, turn), replica in served.items() if turn > 1]
    return sum(before != after for before, after in pairs) / len(pairs)


@pytest.mark.timeout(2 * START_TIMEOUT_S)
def test_a_router_that_knows_prefixes_is_worth_it(fleet, tmp_path):
    """Sent back to where it was, a conversation finds its cache, and waits less than half as long for an answer."""
    results = {}
    for policy in ("round_robin", "cache_aware"):
        engine = fleet(policy=policy)
        results[policy] = measured(engine, tmp_path)
        capacities = [replica.kv_capacity_tokens for replica in engine.replicas]
        assert [sum(capacities)] * 2 == [engine.kv_capacity_tokens, engine.describe()["kv_capacity_tokens"]]
        assert all(capacities)
        assert 2 == sum(replica.cache_counters().queried_tokens > 10_000 for replica in engine.replicas)
        assert engine.reset_cache()
        engine.stop()

    by_turns, aware = results["round_robin"], results["cache_aware"]
    assert (True, True) == (bool(by_turns.validity), bool(aware.validity))
    assert aware.cache.hit_rate > by_turns.cache.hit_rate + 0.1
    assert moves(by_turns) > 2 * moves(aware)
    assert by_turns.later_rounds.ttft.mean > 1.5 * aware.later_rounds.ttft.mean
