"""A fleet in whole pytest runs: what is told of its replicas, and of one that is lost. The servers are stubs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_routers import router
from stub_engine import installed

pytestmark = pytest.mark.real_time

TEST = """
import pytest
from pytest_llmperf import closed_loop, multi_round, single_turn

pytestmark = [
    pytest.mark.llm_engine("fleet", **{words!r}),
    pytest.mark.llm_gate(metric="cache_hit_rate"),  # a stub answers in no time, which no client can measure
]

def test_turns(llm_engine, llm_perf):
    users = multi_round(users=3, rounds=3, context_tokens=64, input_tokens=16, output_tokens=4, seed=1)
    result = llm_perf(llm_engine, users, cache="cold")
    assert [4, 5] == sorted(len(replica.requests) for replica in result.by_replica)
    served = {{(one.session, one.turn): one.replica for one in result.records[0].requests}}
    # Taking turns, with an odd number of users: each is back after two rounds, and finds what the first one left.
    assert all(served[user, 0] == served[user, 2] != served[user, 1] for user in range(3))
    assert all(0 < replica.hit_rate < 0.5 for replica in result.cache.replicas)

def test_long(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=40, input_tokens=64, output_tokens=4, seed=1), load=closed_loop(2))

def test_next(llm_engine, llm_perf):
    assert not llm_perf(llm_engine, single_turn(requests=4, input_tokens=64, output_tokens=4, seed=1)).errors
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def run(pytester, python):
    """One pytest run of the tests above, behind a router; each replica has so many answers before it dies."""

    def go(program, answers, *arguments):
        words = {"model": "m", "replicas": 2, "executable": python, "router": program, "max_model_len": 2048}
        words["env"] = {"STUB_ANSWERS": str(answers)}
        pytester.makepyfile(test_it=TEST.format(words=words))
        once = ("--llmperf-runs", "1", "--llmperf-warmup-runs", "0", "--llmperf-gate", "off")
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "default", *once, *arguments)

    return go


@pytest.mark.slow
def test_each_replica_by_itself(run, python, pytester):
    """Who answered which turn, and what each found in its cache: in the test, in the file, on the terminal."""
    result = run(str(Path(python).parent / "vllm-router"), 10**6, "-k", "turns", "--benchmark-json", "out.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*cache of each replica: hit rate * %, hit rate * %"])
    about = json.loads((pytester.path / "out.json").read_text())["benchmarks"][0]["extra_info"]["llmperf"]
    assert [["hit_rate"]] * 2 == [list(replica) for replica in about["result"]["cache"]["replicas"]]
    (rows,) = pytester.path.glob(".llmperf/*/records/*.jsonl")
    served = [json.loads(line).get("request", {}).get("replica") for line in rows.read_text().splitlines()]
    assert [4, 5] == sorted(served.count(number) for number in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True], ids=["a stub of a router", "vllm-router"])
def test_a_replica_is_lost_in_mid_run(run, python, real):
    """Its test has an error with what it was, its own last words and its command; the next one has a new fleet."""
    program = router("vllm-router") if real else str(Path(python).parent / "vllm-router")
    if program is None:
        pytest.skip("no vllm-router: pip install vllm-router, or LLMPERF_TEST_ROUTERS=FOLDER")
    result = run(program, 12, "-k", "long or next")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*EngineDiedError: replica [12] of 2 (vllm): the server has ended: exit code 9",
            "*command: *STUB_ANSWERS=* -m vllm.entrypoints.openai.api_server --model m *",
            "*last lines of *vllm-*.log:",
            "*| the stub has run out of answers",
        ]
    )
