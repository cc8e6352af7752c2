"""The real vLLM, on a small random-weight Llama; on a CPU where there is no GPU."""

from __future__ import annotations

import os
from statistics import median

import pytest
from engine_cases import answer, prompt, surroundings
from fakes import no_progress
from real_vllm import MARKS, START_TIMEOUT_S, WORDS

from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import make_engine, make_spec
from pytest_llmperf.errors import ConfigurationError, EngineStartError
from pytest_llmperf.load import closed_loop, round_robin
from pytest_llmperf.request import checked_request
from pytest_llmperf.results import Tokens
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import multi_round, shared_prefix, single_turn

pytestmark = MARKS


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    return surroundings(tmp_path_factory.mktemp("vllm"))


@pytest.fixture
def engine(real_vllm):
    """One server for the tests that only ask it things."""
    return real_vllm


def measured(engine, folder, workload, **words):
    given = {"load": None, "runs": 1, "warmup_runs": 0, "cache": "as_is", "prefill_context": False, "slo": None}
    request = checked_request(workload, **{**given, "name": None, **words})
    setting = Setting(
        test=os.environ["PYTEST_CURRENT_TEST"],
        hardware_key="test",
        clock=RealClock(),
        record_dir=folder,
        progress=no_progress,
        team=LocalTeam(RealClock()),
    )
    return measure(engine, request, setting)


@pytest.mark.timeout(START_TIMEOUT_S)
@pytest.mark.parametrize("barrier", [False, True])
def test_later_rounds_reuse_what_the_engine_really_produced(engine, tmp_path, barrier):
    """Each round's input is the last one, its answer and new tokens: only the new ones are computed."""
    users = multi_round(users=3, rounds=4, context_tokens=2_000, input_tokens=150, output_tokens=150, seed=1)

    result = measured(engine, tmp_path, users, load=round_robin(barrier=barrier), prefill_context=True)

    assert ({}, 12, True) == (result.errors, result.requests, bool(result.validity))
    assert 4 == len(result.by_round)
    assert all(one.ttft.count == 3 for one in result.by_round)
    assert result.cache.hit_rate > 0.85
    requests = [request for request in result.records[0].requests if request.turn == 3]
    assert {2_000 + 4 * 150 + 3 * 150} == {request.input_tokens for request in requests}
    # All but the new tokens, the answer before them that no prompt has held yet, and one block.
    assert all(request.cached_tokens >= request.input_tokens - 150 - 150 - 128 for request in requests)
    assert {"gpu", "recomputed"} <= {tier for tier, tokens in result.cache.tiers.items() if tokens}


@pytest.mark.timeout(120)
def test_a_declared_cold_cache_is_cold(engine, tmp_path):
    """`cache="cold"` serves no first turn from the cache, run after run."""
    users = multi_round(users=2, rounds=2, context_tokens=1_000, input_tokens=16, output_tokens=4, seed=1)

    result = measured(engine, tmp_path, users, cache="cold", runs=2)

    assert bool(result.validity)
    assert [0] * 4 == [r.cached_tokens for run in result.records for r in run.requests if r.turn == 0]
    assert all(r.cached_tokens > 0 for run in result.records for r in run.requests if r.turn == 1)


@pytest.mark.timeout(120)
def test_any_url_will_do(engine, around, tmp_path):
    """The kind `openai` reaches the same server by its URL and reads the same counters."""
    other = make_engine(make_spec("openai", {"url": f"{engine.url}/v1"}), around)
    prefixes = shared_prefix(prefixes=2, requests_per_prefix=4, prefix_tokens=512, input_tokens=20, output_tokens=4)

    result = measured(other, tmp_path, prefixes, load=closed_loop(4), prefill_context=True)

    assert ({}, 8) == (result.errors, result.requests)
    assert result.cache.hit_rate > 0.8
    assert (engine.model, engine.kv_capacity_tokens) == (other.model, other.kv_capacity_tokens)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", ["text", "chat"])
def test_texts_have_exactly_the_tokens_asked_for(engine, around, tmp_path, form):
    """Also where a chat template stands around them, as the server counts the prompts that it serves."""
    other = make_engine(make_spec("openai", {"url": engine.url, "prompts": form}), around)
    prefixes = shared_prefix(prefixes=2, requests_per_prefix=4, prefix_tokens=512, input_tokens=20, output_tokens=4)

    result = measured(other, tmp_path, prefixes, load=closed_loop(4), cache="cold")

    about = result.provenance.engine
    assert ("server tokenizer", {"text": 1, "chat": 13}[form]) == (about["prompt_lengths"], about["prompt_overhead"])
    assert {532} == {request.prompt_tokens for request in result.records[0].requests}
    assert (Tokens(8 * 532, 8 * 532), Tokens(8 * 4, 8 * 4)) == (result.input_tokens, result.output_tokens)
    assert not any("tokens as the server counts them" in reason for reason in result.validity.reasons)
    # What is shared as ids is shared as texts, too; four at a time may begin before it is there.
    assert sum(request.cached_tokens >= 384 for request in result.records[0].requests) >= 4
    if form == "chat":
        with pytest.raises(ConfigurationError, match=r"single_turn has a prompt of 12 tokens, but every prompt"):
            measured(other, tmp_path, single_turn(requests=1, input_tokens=12, output_tokens=1))


@pytest.mark.timeout(60)
def test_what_the_server_cannot_serve_is_said_before_it_is_sent(engine, around, tmp_path):
    """Too long a context, and a model that is not there: one sentence each."""
    long = multi_round(users=1, rounds=1, context_tokens=20_000, input_tokens=1, output_tokens=1)
    with pytest.raises(ConfigurationError, match=r"multi_round grows to 20002 tokens.*takes 20000"):
        measured(engine, tmp_path, long)
    with pytest.raises(ConfigurationError, match="does not have the model 'gpt-7'; it serves 'tiny-llama'"):
        make_engine(make_spec("openai", {"url": engine.url, "model": "gpt-7"}), around).start()


@pytest.mark.timeout(2 * START_TIMEOUT_S)
def test_the_server_beside_the_engine_in_process(real_vllm, real_vllm_in_process, capsys):
    """What lies between the engine core's own times and the client's is less without HTTP; the median of 20 in turn."""
    engines = {"server": real_vllm, "in process": real_vllm_in_process}
    ttft_ms, around_ms = ({name: [] for name in engines} for _ in range(2))
    for number in range(21):
        for name, engine in engines.items():
            told = answer(engine, prompt(number, 1_000), 8)
            assert (None, 1_000, 8) == (told.failure, told.prompt_tokens, told.output_tokens)
            seen_ns = told.arrivals[0].at_ns - told.sent_ns
            core_ns = told.timings.queue_ns + told.timings.prefill_ns
            if number:  # the first pays for both
                ttft_ms[name].append(seen_ns / 1e6)
                around_ms[name].append((seen_ns - core_ns) / 1e6)
    with capsys.disabled():
        for name in engines:
            shown = f"TTFT {median(ttft_ms[name]):.1f} ms, of which {median(around_ms[name]):.2f} ms outside the core"
            print(f"\n{name}: {shown}")  # noqa: T201 - this is what one wants to see
    assert median(around_ms["in process"]) < median(around_ms["server"])


@pytest.mark.timeout(2 * START_TIMEOUT_S)
@pytest.mark.parametrize("barrier", [False, True])
def test_rounds_in_process(real_vllm_in_process, tmp_path, barrier):
    """A whole measurement: sessions that continue, several at a time, the cache's state checked."""
    users = multi_round(users=3, rounds=3, context_tokens=1_000, input_tokens=150, output_tokens=50, seed=1)

    result = measured(real_vllm_in_process, tmp_path, users, load=round_robin(barrier=barrier), prefill_context=True)

    assert ({}, 9, ()) == (result.errors, result.requests, result.validity.reasons)
    assert result.cache.hit_rate > 0.7
    assert 9 == result.engine_times.queue.count == result.engine_times.prefill.count
    assert result.engine_times.prefill.p50 < result.engine_times.ttft.p50 <= result.ttft.p50


@pytest.mark.timeout(START_TIMEOUT_S)
def test_a_failed_start_shows_the_engines_own_words(around):
    """Command, exit code and the log's last lines; nothing is left running."""
    engine = make_engine(make_spec("vllm", {**WORDS, "args": ["--no-such-flag"]}), around)

    with pytest.raises(EngineStartError) as caught:
        engine.start()

    text = str(caught.value)
    assert "the server ended before it was ready: exit code 2" in text
    assert "command: VLLM_SERVER_DEV_MODE=1" in text
    assert "unrecognized arguments: --no-such-flag" in text
