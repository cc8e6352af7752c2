"""What holds for every engine, whatever runs it: started, asked, emptied, cancelled, stopped, started again.

The programs of engines that need a GPU are stubs; vLLM is the real one beside its stub, where there is one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

import pytest
from engine_cases import CASES, answer, as_text, cases, made, prompt, surroundings
from fakes import no_progress
from stub_engine import LONG

from pytest_llmperf.client import Limits
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import process
from pytest_llmperf.engines.base import Generation
from pytest_llmperf.engines.in_process import channel as in_process_channel
from pytest_llmperf.errors import EngineDiedError, EngineStartError
from pytest_llmperf.load import round_robin
from pytest_llmperf.records import EngineTimings
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import multi_round

pytestmark = pytest.mark.real_time

BLOCKS = 10


@pytest.fixture(scope="module", params=cases())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module")
def engine(name, folder, request):
    """One started engine for the tests that only ask it things."""
    if name.startswith("real-"):
        yield request.getfixturevalue(name.replace("-", "_"))
        return
    with made(name, folder) as engine:
        engine.start()
        yield engine


@pytest.fixture
def ids(request, engine):
    """A prompt of whole blocks that no other test has."""
    return prompt(request.node.name, BLOCKS * block_of(engine))


def block_of(engine):
    return engine.describe()["kv_block_tokens"]


def processes(engine):
    """The server processes behind an engine."""
    if engine.spec.kind == "fleet":
        return [engine.host._router, *(replica.host._process for replica in engine.replicas)]
    return [engine.host._process]


class TestAsking:
    """An engine that runs."""

    @pytest.mark.slow
    def test_ready(self, engine, case):
        """It knows its model and limits; starting it again changes nothing."""
        url, model = engine.url, engine.model
        engine.start()
        assert (url, model) == (engine.url, engine.model)
        assert "tiny-llama" in model
        assert engine.max_model_len >= 2048
        assert (case.is_ours, case.kind == "sim") == (engine.is_ours, engine.is_simulated)
        assert (True, True, 0) == (engine.returns_token_ids, engine.forces_lengths, engine.prompt_overhead)
        assert engine.check() is None

    def test_capacity(self, engine, case):
        """In tokens, and in sequences of whole blocks, each of which lives in one replica."""
        block, each = block_of(engine), engine.kv_capacity_tokens // case.replicas
        assert each > 8 * block
        assert case.replicas * (each // (8 * block)) == engine.users_that_fit(8 * block)
        assert engine.users_that_fit(8 * block) == engine.users_that_fit(7 * block + 1)

    def test_by_token_ids(self, engine, ids):
        """Exactly the tokens asked for: counted, timed, and with their ids."""
        told = answer(engine, ids, 12)
        assert (5, None, ()) == (told.tag, told.failure, told.remarks)
        assert (len(ids), 12, 12) == (told.prompt_tokens, told.output_tokens, len(told.token_ids))
        assert 12 == sum(arrival.tokens for arrival in told.arrivals)
        assert told.sent_ns <= told.arrivals[0].at_ns <= told.arrivals[-1].at_ns <= told.end_ns
        assert all(0 <= token_id < 2**31 for token_id in told.token_ids)

    def test_without_ids_back(self, engine, ids):
        """Where no later turn needs them, the counts are there all the same."""
        told = answer(engine, ids, 4, ids_back=False)
        assert (None, len(ids), 4) == (told.failure, told.prompt_tokens, told.output_tokens)

    def test_by_text(self, engine, case, folder, ids):
        """Texts have as many tokens as the ids would."""
        if not case.has_text:
            pytest.skip("it takes ids only: in virtual time, or behind a router that knows no models")
        texts = as_text(engine, surroundings(folder))
        told = answer(texts, ids, 4, ids_back=False)
        assert (None, len(ids), 4) == (told.failure, told.prompt_tokens, told.output_tokens)
        assert (False, True) == (texts.returns_token_ids, texts.prompt_overhead >= 0)
        assert texts.describe()["prompt_lengths"] in ("server tokenizer", "engine tokenizer", "server usage")

    def test_cached_tokens(self, engine, case, ids):
        """The same prompt again comes from the cache, but for its last block, in every replica that has had it."""
        told = [answer(engine, ids) for _ in range(2 * case.replicas)]
        block = block_of(engine)
        assert [0, (BLOCKS - 1) * block] == [told[0].cached_tokens, told[-1].cached_tokens]

    @pytest.mark.slow
    def test_counters(self, engine, case, ids):
        """What the engine has counted is what its answers say; an engine that does not count says nothing."""
        before = engine.cache_counters()
        told = [answer(engine, ids) for _ in range(2 * case.replicas)]
        counted = engine.cache_counters().since(before)
        if case.counts:
            assert (len(ids) * len(told), sum(one.cached_tokens for one in told)) == (
                counted.queried_tokens,
                counted.hit_tokens,
            )
        else:
            assert (None, None) == (counted.queried_tokens, counted.hit_tokens)

    @pytest.mark.slow
    def test_emptied(self, engine, case, ids):
        """After a reset nothing is found, by the counters, too; an engine that cannot says so and keeps it."""
        for _ in range(case.replicas):
            answer(engine, ids)
        before = engine.cache_counters()
        assert case.empties is engine.reset_cache()
        hits = [answer(engine, ids).cached_tokens for _ in range(case.replicas)]
        assert [0 if case.empties else (BLOCKS - 1) * block_of(engine)] * case.replicas == hits
        if case.counts:
            assert sum(hits) == engine.cache_counters().since(before).hit_tokens

    @pytest.mark.slow
    def test_primed(self, engine, folder, request):
        """Contexts that were sent ahead are found, in whole blocks, by each first turn."""
        block = block_of(engine)
        result = primed(engine, folder, request.node.name, block)
        assert () == result.validity.reasons
        assert [4 * block] * 2 == [one.cached_tokens for one in result.records[0].requests]

    def test_cancelled(self, engine, case, ids):
        """A request whose channel is closed ends in the engine, too: a cache in use would refuse to be emptied."""
        channel = engine.connector().open(engine.clock)
        channel.send(1, channel.encode(Generation(ids, 2 * LONG, return_token_ids=False)))
        channel.poll(0.05)
        assert not channel.ended()
        channel.close()
        assert case.empties is engine.reset_cache()
        assert answer(engine, ids, 2).failure is None

    def test_a_mistake_is_one_request_s(self, engine, case):
        """What the engine refuses is that request's failure; the next one is answered."""
        if case.kind == "openai" or (case.is_stub and "in_process" not in case.words):
            pytest.skip("it checks no ids")
        told = answer(engine, prompt("much too long", 40_000) if case.kind == "sim" else [200_000] * 20)
        assert told.failure is not None
        assert (None, (), None) == (told.output_tokens, tuple(told.arrivals), told.token_ids)
        assert answer(engine, prompt("good again", 40)).failure is None

    def test_its_own_times(self, engine, case, ids):
        """How the engine itself timed a request lies within what the client saw; else nothing is said."""
        engine.request_timings()
        told = answer(engine, ids)
        apart = engine.request_timings()
        assert case.times_apart is bool(apart)
        if apart:
            assert (EngineTimings(queue_ns=250_000, prefill_ns=1_500_000, ttft_ns=1_750_000),) == apart
            assert () == engine.request_timings()
        if not case.times:
            assert told.timings is None
            return
        assert told.timings.queue_ns >= 0
        assert told.timings.prefill_ns > 0
        if not case.is_stub:
            seen_ns = told.arrivals[0].at_ns - told.sent_ns
            assert told.timings.queue_ns + told.timings.prefill_ns <= (told.timings.ttft_ns or seen_ns) <= seen_ns

    def test_what_it_tells(self, engine, case):
        """Model, capacity, version; of an engine of ours the whole command and the model's digest, too."""
        told = engine.describe()
        assert engine.model == told["model"]
        assert {"returns_token_ids", "kv_capacity_tokens", "kv_block_tokens"} <= told.keys()
        assert case.kind == "sim" or "in_process" in case.words or told["version"]
        if case.has_process:
            each = told["replicas"] if case.kind == "fleet" else [told]
            for one in each:
                assert "tiny-llama" in one["command"]
                assert 64 == len(one["model_digest"])
                assert 0 < one["start_s"] < 600

    def test_its_log(self, engine, case):
        """It begins with the command, and goes on with what the engine prints."""
        if not case.has_process:
            pytest.skip("nothing of ours runs")
        for one in processes(engine):
            lines = one.log.read_text().splitlines()
            assert f"$ {one.command_line}" == lines[0]
            assert len(lines) > 1


stubs = pytest.mark.parametrize("name", cases(lambda case: case.is_stub))


@pytest.mark.slow
@stubs
def test_stopped_and_started_again(name, tmp_path):
    """Nothing of it is left; when it is needed again it starts, with an empty cache and a log of its own."""
    with made(name, tmp_path) as engine:
        engine.start()
        ids = prompt("again", 10 * block_of(engine))
        assert answer(engine, ids).failure is None
        before = processes(engine)
        address = engine.server.address
        engine.stop()
        engine.stop()
        for one in before:
            with pytest.raises(ProcessLookupError):
                os.killpg(one.pid, 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address.host, address.port))
        engine.start()
        assert 0 == answer(engine, ids).cached_tokens
        assert not {one.log for one in before} & {one.log for one in processes(engine)}


@pytest.mark.slow
@stubs
def test_it_dies(name, tmp_path):
    """A request under way fails, and the engine is said to be dead, with its log's last lines; it can be replaced."""
    with made(name, tmp_path) as engine:
        engine.start()
        channel = engine.connector().open(engine.clock)
        channel.send(1, channel.encode(Generation(prompt("dies", 40), 2 * LONG, return_token_ids=False)))
        channel.poll(0.05)
        for one in processes(engine):
            os.killpg(one.pid, signal.SIGKILL)
        told = ended(channel)
        assert told.failure.kind in ("connection_closed", "connection_reset", "truncated")
        with pytest.raises(EngineDiedError, match=r"killed by SIGKILL\n(.|\n)*last lines of"):
            until_dead(engine)
        engine.start()
        assert answer(engine, prompt("dies", 40)).failure is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "vllm-in-process"])
def test_it_hangs(name, tmp_path, monkeypatch):
    """A request to an engine that stands still fails after its limit; it can be stopped all the same."""
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    monkeypatch.setattr(in_process_channel, "_PATIENCE_NS", 0)
    with made(name, tmp_path, surroundings(tmp_path, limits=Limits(silence_s=0.8))) as engine:
        engine.start()
        (one,) = processes(engine)
        channel = engine.connector().open(engine.clock)
        channel.send(1, channel.encode(Generation(prompt("hangs", 40), 2 * LONG, return_token_ids=False)))
        channel.poll(0.05)
        os.killpg(one.pid, signal.SIGSTOP)
        assert "timeout" == ended(channel).failure.kind
        engine.stop()
        with pytest.raises(ProcessLookupError):
            os.killpg(one.pid, 0)


@pytest.mark.slow
@stubs
def test_words_that_it_does_not_know(name, tmp_path):
    """The engine's own complaint is quoted, with its log's place, and again where it is not tried any more."""
    has_usage = name != "tensorrt_llm-in-process"  # which gets a TypeError, as anything might be
    wrong = ["--no-such-flag"] if has_usage else ['{"no_such_flag": 1}']
    said = r"unrecognized arguments: --no-such-flag|no_such_flag'"
    with made(name, tmp_path, args=wrong) as engine:
        for _ in range(1 if has_usage else 2):
            with pytest.raises(EngineStartError, match=said):
                engine.start()
        logs = len(list((tmp_path / "log").glob("*.log")))
        again = rf"not tried again after (its first start|2 starts) failed: (.|\n)*last lines of .*\.log(.|\n)*({said})"
        with pytest.raises(EngineStartError, match=again):
            engine.start()
        assert logs == len(list((tmp_path / "log").glob("*.log")))


@pytest.mark.slow
@stubs
def test_out_of_memory_at_start(name, tmp_path):
    """The engine's own words are in the error."""
    said = r"exit code 1\n(.|\n)*CUDA out of memory"
    with made(name, tmp_path, env={"STUB_FAULT": "memory"}) as engine, pytest.raises(EngineStartError, match=said):
        engine.start()


@pytest.mark.slow
@stubs
def test_it_hangs_at_start(name, tmp_path, monkeypatch):
    """It is given up after the limit, which can be set, and stopped."""
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    around = surroundings(tmp_path, start_timeout_s=0.3)
    said = r"not ready after 0\.3 s and was stopped; --llmperf-start-timeout"
    with (
        made(name, tmp_path, around, env={"STUB_FAULT": "hang"}) as engine,
        pytest.raises(EngineStartError, match=said),
    ):
        engine.start()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "fleet"])
def test_a_cache_that_is_off_is_not_primed(name, tmp_path):
    """Whatever was asked for: that nothing was found is a doubt, and what the engine says of itself is one."""
    with made(name, tmp_path, env={"STUB_UNCACHED": "1"}) as engine:
        result = primed(engine, tmp_path, "off", block_of(engine))
    assert not result.is_level
    said = "the cache was declared primed, but the engine found nothing of the contexts"
    assert any(doubt.startswith(said) for doubt in result.doubts)
    assert "prefix_caching=True was asked for, and the engine says that it is False" in result.doubts


def primed(engine, folder, test, block):
    """One run with two users whose contexts have been sent ahead."""
    workload = multi_round(users=2, rounds=1, context_tokens=4 * block, input_tokens=block, output_tokens=2, seed=1)
    words = {"load": round_robin(), "runs": 1, "warmup_runs": 0, "prefill_context": False, "slo": None, "name": None}
    setting = Setting(
        test=test, hardware_key="test", clock=engine.clock, record_dir=folder / "records", progress=no_progress,
        team=LocalTeam(engine.clock),
    )  # fmt: skip
    return measure(engine, checked_request(workload, cache="primed", **words), setting)


def ended(channel):
    """What the one request under way came to."""
    with contextlib.closing(channel):
        replies, deadline = [], time.monotonic() + 10
        while not replies and time.monotonic() < deadline:
            channel.poll(0.1)
            replies += channel.ended()
        (reply,) = replies
        return reply.read()


def until_dead(engine):
    """Its end is seen a moment after it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        engine.check()
        time.sleep(0.01)
