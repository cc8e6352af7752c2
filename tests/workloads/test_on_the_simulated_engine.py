"""Each workload through whole sessions: what it says of its cache is what an engine does with it."""

from __future__ import annotations

import json

import pytest

TESTS = """
import pytest
from pytest_llmperf import (
    closed_loop, conversations, knowledge_graph, multi_round, multiple_choice, poisson, round_robin
)

engine = pytest.mark.llm_engine("sim", part="a100", model="qwen2-7b")
caches = pytest.mark.parametrize("cache", ["cold", "primed", "evicted"])

@engine
@caches
@pytest.mark.parametrize("words", [{}, {"answers": "recorded"}, {"cut": True}])
def test_conversations(llm_engine, llm_perf, cache, words):
    load = round_robin(order="random", think_s=0.1)
    result = llm_perf(llm_engine, conversations("talks.json", **words), load=load, cache=cache, runs=1, warmup_runs=0)
    assert result.cache.hit_rate > 0.5

@engine
@caches
def test_rounds(llm_engine, llm_perf, cache):
    users = multi_round(
        users=min(5, llm_engine.users_that_fit(3000)), rounds=3, forks=2, context_tokens=1000,
        shared_context_tokens=600, input_tokens=16, input_growth=16, output_tokens=8, output_growth=4,
    )
    result = llm_perf(llm_engine, users, load=closed_loop(2), cache=cache, runs=1, warmup_runs=0)
    assert 5 == len(result.by_round)
    assert result.cache.hit_rate > (0.9 if cache == "primed" else 0.8)

@engine
@caches
def test_choices(llm_engine, llm_perf, cache):
    workload, load = multiple_choice(requests=150), poisson(10, duration_s=10)
    result = llm_perf(llm_engine, workload, load=load, cache=cache, runs=1, warmup_runs=0)
    assert 9.5 < result.duration_s < 11
    assert 0 < result.e2e.p50 <= result.e2e.p99 < 1

@engine
@caches
def test_graph(llm_engine, llm_perf, cache):
    workload = knowledge_graph(requests=30, facts=100, output_tokens=64, times=10)
    result = llm_perf(llm_engine, workload, load=poisson(2, duration_s=10), cache=cache, runs=1, warmup_runs=0)
    assert 0.3 < result.cache.hit_rate
    assert 0.5 < result.e2e.p50 < 3
"""
RULES = "Answer politely and in full sentences, please, whoever asks, whatever it is about, and at any time of the day."


def talk(number):
    said = [
        ("human", f"Question {number // 2} " * 20),
        ("gpt", "word " * 20),
        ("human", "more " * 20),
        ("gpt", "no " * 9),
    ]
    return {"conversations": [{"from": who, "value": text} for who, text in [("system", RULES), *said]]}


@pytest.mark.slow
def test_no_workload_is_served_more_from_the_cache_than_it_says(pytester, monkeypatch):
    """A run with a cache declared cold or evicted is invalid if a first turn finds more there than it shares."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.path.joinpath("talks.json").write_text(json.dumps([talk(number) for number in range(20)]))
    pytester.makepyfile(test_it=TESTS)

    result = pytester.runpytest_inprocess(
        "-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin", "-p", "no:cacheprovider", "-W", "default"
    )

    result.assert_outcomes(passed=18, warnings=18)


@pytest.mark.parametrize("name", ["conversations", "knowledge_graph", "multi_round", "multiple_choice"])
def test_every_workload_is_a_public_name(name):
    """Imported from the package itself."""
    import pytest_llmperf

    assert callable(getattr(pytest_llmperf, name))
