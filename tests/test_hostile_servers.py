"""Servers that answer as nobody should: each costs its own test, which says how, and no other."""

from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path

import pytest
from fakes import no_progress
from hostile_servers import ATTACKS, HostileServer, endless
from hypothesis import given
from hypothesis import strategies as st
from servers import CompletionsServer

from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.engines.completions import _ANSWER_BYTES
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.server_metrics import Metrics
from pytest_llmperf.errors import EngineStartError
from pytest_llmperf.records import CacheCounters

KEY = "sk-hostile-s3cret"
TEST = """
import json, os
import pytest
from pytest_llmperf import closed_loop, single_turn

URLS = json.loads(os.environ["URLS"])

# A server this fast is beyond what a client can measure; what is gated here does not depend on it.
@pytest.mark.llm_gate(metric="cache_hit_rate")
@pytest.mark.parametrize("name", URLS)
def test_it(llm_engine_factory, llm_perf, name):
    requests = single_turn(requests=2, input_tokens=8, output_tokens=4)
    llm_perf(llm_engine_factory("openai", url=URLS[name]), requests, load=closed_loop(1))
"""
OPTIONS = (
    *("-p", "no:cacheprovider", "-W", "ignore", "--llmperf-gate", "off", "--llmperf-runs", "1"),
    *("--llmperf-warmup-runs", "0", "--llmperf-timeout", "2", "--llmperf-request-timeout", "1"),
)


@pytest.fixture
def session(pytester, monkeypatch):
    """Runs one test on each of these servers; returns the result and what was printed."""
    monkeypatch.setattr("pytest_llmperf.run._DYING_S", 0)
    monkeypatch.setenv("LLMPERF_API_KEY", KEY)

    def run(urls, *arguments):
        monkeypatch.setenv("URLS", json.dumps(urls))
        pytester.makepyfile(test_it=TEST)
        result = pytester.runpytest_inprocess(*OPTIONS, *arguments)
        return result, result.stdout.str()

    return run


@pytest.mark.timeout(60)
def test_every_attack_is_counted_and_the_next_test_runs(session):
    """By its kind, as INVALID_RUN, in bounded memory; a redirect is told and not followed."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.ExitStack() as stack:
        good, elsewhere = stack.enter_context(CompletionsServer()), stack.enter_context(CompletionsServer())
        urls = {
            name: stack.enter_context(HostileServer(attack=attack, elsewhere=elsewhere.url)).url
            for name, (_, attack) in ATTACKS.items()
        }
        result, text = session({**urls, "a good one": good.url})
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024

    result.assert_outcomes(errors=len(ATTACKS), passed=1)
    counted = {name: f"2 of 2 requests failed: 2 {kind} (" for name, (kind, _) in ATTACKS.items()}
    sections = {name: text.partition(f"test_it[{name}] _")[2].partition("\n____")[0] for name in ATTACKS}
    assert {} == {name: sections[name][-800:] for name in ATTACKS if counted[name] not in sections[name]}
    assert [] == elsewhere.requests
    assert KEY not in text
    assert grown_mib < 20 * _ANSWER_BYTES / 2**20  # two answers at most are held at a time


def test_what_a_server_says_of_itself_steers_no_terminal(session, tmp_path):
    """A model's name, an error, a location: what would colour, retitle or clear is written out."""
    escape = "\x1b]0;owned\x07\x1b[2J"
    models = [{"id": f"tiny{escape}", "max_model_len": 4096}]
    body = json.dumps({"error": {"message": f"no{escape}"}}).encode()
    with CompletionsServer(models=models) as named, CompletionsServer(routes={"/v1/models": (500, body)}) as failing:
        files = ("--llmperf-markdown", str(tmp_path / "out.md"), "--junitxml", str(tmp_path / "out.xml"))
        result, text = session({"named": named.url, "failing": failing.url}, "-v", *files)

    result.assert_outcomes(passed=1, errors=1)
    shown = [text, (tmp_path / "out.md").read_text(), (tmp_path / "out.xml").read_text()]
    assert [False] * 3 == ["\x1b]0" in one or "\x07" in one for one in shown]


@pytest.mark.parametrize(
    ("path", "complaint"), [("/metrics", None), ("/version", None), ("/v1/models", "GET /v1/models: more than 4 MiB")]
)
def test_what_is_asked_beside_the_requests_is_bounded_too(monkeypatch, path, complaint):
    """Metrics without end are no metrics; a list of models without end is no server."""
    monkeypatch.setattr("pytest_llmperf.client.http.MOST_ANSWER_BYTES", 4 << 20)
    long = {path: (200, b"vllm:x 1\n" * (1 << 19))}
    with CompletionsServer(routes=long) as running, complaining(complaint):
        server = connected(running)
        assert (CacheCounters(), None) == (server.cache_counters(settled=True), server.version())


@pytest.mark.parametrize(
    "data",
    [[{"id": 5}], [{"id": ""}], [{"id": "x" * 5000}], [["id"]], {"id": "x"}, None, [{"id": ["x"]}], 10**400],
    ids=["number", "empty", "long", "list", "object", "null", "name-of-list", "digits"],
)
def test_a_list_of_models_that_is_none(data):
    body = json.dumps({"data": data}).encode()
    said = "/v1/models does not answer with a list of models: "
    with CompletionsServer(routes={"/v1/models": (200, body)}) as running, complaining(said):
        connected(running)


@pytest.mark.parametrize("length", [-1, 0, True, "4096", 2**80, 1.5])
def test_a_context_that_has_no_length_is_unknown(length):
    with CompletionsServer(models=[{"id": "tiny", "max_model_len": length}]) as running:
        assert connected(running).max_model_len is None


@pytest.mark.parametrize("value", ["-5", "1e308", "NaN", "+Inf", "9" * 400])
def test_counters_that_count_nothing_are_absent(value):
    """Neither a figure nor a run that cannot be written."""
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    info = f'vllm:cache_config_info{{block_size="{value}",num_gpu_blocks="{"9" * 5000}"}} 1.0\n'
    with CompletionsServer(metrics="".join(f"{name} {value}\n" for name in names) + info) as running:
        server = connected(running)
        assert CacheCounters() == server.cache_counters(settled=True)
        assert server.cache is not None
        assert (None, None) == (server.cache.capacities, server.cache.block_tokens)


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b'vllm:a{b="', b"\n", b"# TYPE vllm:a counter"]))))
def test_any_bytes_are_metrics_or_a_value_error(pieces):
    with contextlib.suppress(ValueError):
        Metrics.of(b"vllm:" + b"".join(pieces)).counters()


@contextlib.contextmanager
def complaining(complaint):
    """Expect that connecting fails, where there is something to complain about."""
    if complaint is None:
        yield
        return
    with pytest.raises(EngineStartError) as caught:
        yield
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 1000


def connected(running):
    """The connection to a server that somebody runs."""
    surroundings = Surroundings(
        clock=RealClock(),
        log_dir=Path("unused"),
        cache_dir=Path("unused"),
        start_timeout_s=5.0,
        limits=Limits(silence_s=5.0),
        api_key=None,
        progress=no_progress,
    )
    server = OpenAIServer(Address.parse(running.url), surroundings)
    server.connect(None)
    return server


def test_an_attack_without_end_would_not_end():
    """So that the tests above can fail."""
    assert all(next(pieces) for pieces in [endless(b"a", b"b")] for _ in range(1000))
