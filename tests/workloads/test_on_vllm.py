"""Every workload on the real vLLM, by pytest in a process of its own: one server, many tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from real_vllm import MARKS, START_TIMEOUT_S, WORDS

pytestmark = MARKS

TEST = f"""
import json
import pytest
from pytest_llmperf import (
    closed_loop, conversations, knowledge_graph, multi_round, multiple_choice, poisson, replay, round_robin, trace,
)

pytestmark = [
    pytest.mark.llm_engine("vllm", **{WORDS!r}),
    # Client and server may share two processors: nothing is looked for but a factor.
    pytest.mark.llm_gate(metric="request_throughput", detect=3.0),
]
USERS = {{"users": 3, "rounds": 3, "context_tokens": 1024, "input_tokens": 32, "output_tokens": 8, "seed": 7}}


@pytest.mark.parametrize(
    "load",
    [round_robin(), round_robin(barrier=True), round_robin(order="random", seed=3), closed_loop(3)],
    ids=["in turn", "barrier", "random", "free"],
)
def test_orderings(llm_engine, llm_perf, load):
    result = llm_perf(llm_engine, multi_round(**USERS), load=load, prefill_context=True)
    assert result.requests == 2 * 9
    assert result.cache.hit_rate > 0.8


def test_forks_find_what_they_share(llm_engine, llm_perf):
    result = llm_perf(llm_engine, multi_round(**USERS, forks=2), load=round_robin(), prefill_context=True)
    assert result.requests == 2 * 3 * 5
    assert result.cache.hit_rate > 0.8


@pytest.mark.parametrize("answers", ["real", "recorded"])
def test_conversations(llm_engine, llm_perf, tmp_path, answers):
    talk = [["human", "What is a roofline? " * 40], ["gpt", "A bound. " * 5], ["human", "Of what?"], ["gpt", "Speed."]]
    rows = [
        {{"conversations": [{{"from": who, "value": f"{{number}} {{text}}"}} for who, text in talk]}}
        for number in range(4)
    ]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    talks = conversations(tmp_path / "talks.json", answers=answers)
    # As many at a time as there are: the run has no tail that would not count.
    result = llm_perf(llm_engine, talks, load=closed_loop(len(rows)))
    assert result.requests == 2 * 4 * 2
    assert not result.errors


def test_a_slice_of_a_trace_reuses_what_its_blocks_say(llm_engine, llm_perf, tmp_path):
    shared = [0, 1]
    rows = [
        {{"timestamp": 200 * n, "input_length": 1300 + 10 * n, "output_length": 4, "hash_ids": [*shared, 10 + n]}}
        for n in range(6)
    ]
    (tmp_path / "slice.jsonl").write_text("\\n".join(map(json.dumps, rows)))
    asked = trace(tmp_path / "slice.jsonl")
    one_by_one = llm_perf(llm_engine, asked, load=round_robin(), name="one by one")
    block = llm_engine.describe()["kv_block_tokens"]
    assert one_by_one.cache.hit_rate == pytest.approx(asked.infinite_cache_hit_rate(block), abs=1e-9)
    timed = llm_perf(llm_engine, asked, load=replay(), name="at its times")
    assert timed.requests == 2 * 6


def test_the_two_tasks(llm_engine, llm_perf):
    choice = llm_perf(llm_engine, multiple_choice(requests=20, seed=1), load=poisson(10.0, seed=1), name="MC")
    facts = knowledge_graph(requests=4, facts=40, output_tokens=40, seed=1)
    graph = llm_perf(llm_engine, facts, load=poisson(2.0, seed=1), name="TKG")
    assert choice.e2e.p50 < graph.e2e.p50
"""


@pytest.mark.timeout(4 * START_TIMEOUT_S)
def test_every_workload(tmp_path):
    """They run, nothing fails, and the cache shows what the workload says is shared."""
    (tmp_path / "test_user.py").write_text(TEST)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--llmperf-runs", "2",
        "--llmperf-warmup-runs", "0", "--llmperf-gate", "off",
    ]  # fmt: skip

    finished = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=3 * START_TIMEOUT_S,
        check=False,
    )

    assert "9 passed" in finished.stdout, finished.stdout
