"""`engines/openai.py` and `engines/server.py`: finding out what a server is, or why it cannot be used."""

from __future__ import annotations

import json
import pickle
import socket
import time
import traceback
from pathlib import Path

import pytest
from servers import CompletionsServer, Do, RawServer

from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import make_engine, make_spec, tiny_llama
from pytest_llmperf.engines import server as openai
from pytest_llmperf.engines.base import Generation, Surroundings
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.engines.started import ServedEngine
from pytest_llmperf.errors import ConfigurationError, EngineAnswerError, EngineDiedError, EngineStartError
from pytest_llmperf.records import CacheCounters
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import conversations

KEY = "sk-very-s3cret"
METRICS = """\
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 600.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="100",enable_prefix_caching="True"} 1.0
"""


class SleeplessClock(RealClock):
    """The real time, but for sleeps, which are only noted."""

    def __init__(self):
        self.slept_s = []

    def sleep(self, duration_s):
        self.slept_s.append(duration_s)


class Steps(list):
    """Notes the progress that an engine reports."""

    def __call__(self, step, detail="", done=None):
        self.append((step, detail))


def surroundings(**changes):
    """What an engine needs to know, without anything on disk."""
    known = {
        "clock": SleeplessClock(),
        "log_dir": Path("unused"),
        "cache_dir": Path("unused"),
        "start_timeout_s": 5.0,
        "limits": Limits(silence_s=5.0),
        "api_key": None,
        "progress": Steps(),
    }
    return Surroundings(**(known | changes))


def engine_at(url, *, model=None, prompts=None, tokenizer=None, **changes):
    spec = EngineSpec(kind="openai", url=url, model=model, prompts=prompts, tokenizer=tokenizer)
    return make_engine(spec, surroundings(**changes))


@pytest.fixture
def server():
    """A server that can all that vLLM can."""
    with CompletionsServer(metrics=METRICS) as running:
        yield running


@pytest.fixture
def short_limits(monkeypatch):
    """No request but a generation may take longer than 0.2 s, and that not longer than 0.4 s."""
    monkeypatch.setattr(openai, "CONTROL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(openai, "PROBE_TIMEOUT_S", 0.2)


def measured(engine, folder, workload):
    """What one run of a workload gives."""
    request = checked_request(
        workload, load=None, runs=1, warmup_runs=0, cache="as_is", prefill_context=False, slo=None, name=None
    )
    setting = Setting(
        test="t",
        hardware_key="test",
        clock=RealClock(),
        record_dir=folder,
        progress=Steps(),
        team=LocalTeam(RealClock()),
    )
    return measure(engine, request, setting)


def answer_of(engine, *, output_tokens=3):
    """The answer to one request through a channel of the engine."""
    channel = engine.connector().open(RealClock())
    try:
        channel.send(5, channel.encode(Generation(range(1000, 1020), output_tokens, return_token_ids=True)))
        replies, deadline = [], time.monotonic() + 5
        while not replies and time.monotonic() < deadline:
            channel.poll(0.1)
            replies += channel.ended()
    finally:
        channel.close()
    (reply,) = replies
    return reply.read()


class TestConnecting:
    """What is found out about a server."""

    def test_capable_server(self, server):
        """A vLLM-like server tells its model, its limits, its capacity and its tokens."""
        engine = engine_at(server.url)
        assert "tiny" == engine.model
        assert 4096 == engine.max_model_len
        assert 1600 == engine.kv_capacity_tokens
        assert engine.returns_token_ids is True
        assert engine.is_ours is False
        assert server.url == engine.url

    def test_on_first_need(self, server):
        """Nothing is sent before an attribute needs it, and then only once."""
        engine = engine_at(server.url)
        assert [] == server.requests
        assert "tiny" == engine.model == engine.model
        engine.start()
        assert ["/v1/models", "/v1/completions", "/metrics"] == server.paths()

    def test_after_stop(self, server):
        """A stopped engine connects anew when it is needed again."""
        engine = engine_at(server.url)
        engine.start()
        engine.stop()
        engine.stop()
        server.models = [{"id": "other"}]
        assert "other" == engine.model

    def test_progress(self, server):
        """Connecting is reported."""
        steps = Steps()
        engine_at(server.url, progress=steps).start()
        assert [(f"connecting to {server.url}", "")] == steps

    @pytest.mark.parametrize("suffix", ["/", "/v1", "/v1/"])
    def test_suffix(self, server, suffix):
        """The URL may end in /v1, as OpenAI's own clients want it."""
        engine = engine_at(server.url + suffix)
        engine.start()
        assert server.url == engine.url
        assert ["/v1/models", "/v1/completions", "/metrics"] == server.paths()

    def test_prefix(self, server):
        """Any other path stays in front of the routes."""
        server.routes["/team/v1/models"] = (200, b'{"data": []}')
        with pytest.raises(ConfigurationError, match="/team serves no model"):
            engine_at(f"{server.url}/team/v1").start()

    def test_probe(self, server):
        """The first prompt is long enough not to be special, and generates more than one token."""
        engine_at(server.url).start()
        body = server.requests[1].body
        assert list(range(1000, 1032)) == body["prompt"]
        assert 4 == body["max_tokens"]
        assert body["ignore_eos"] is True

    def test_no_token_ids(self, server):
        """A server that passes over `return_token_ids` returns none, and is usable."""
        server.token_ids = False
        engine = engine_at(server.url)
        assert engine.returns_token_ids is False
        answer = answer_of(engine)
        assert (None, 3, None) == (answer.token_ids, answer.output_tokens, answer.failure)

    @pytest.mark.parametrize("running_usage", [True, False])
    def test_a_router_that_drops_the_running_usage(self, server, running_usage):
        """Then tokens are told by their ids, also where no later turn needs them."""
        server.running_usage = running_usage
        channel = engine_at(server.url).connector().open(RealClock())
        request = channel.encode(Generation(range(1000, 1020), 3, return_token_ids=False))
        channel.close()
        assert running_usage is (b"return_token_ids" not in request)

    @pytest.mark.parametrize("status", [400, 422])
    def test_extensions_refused(self, server, status):
        """A server that refuses vLLM's words is asked without them, from then on."""
        server.refuse_extensions = status
        engine = engine_at(server.url)
        engine.start()
        assert engine.returns_token_ids is False
        answer = answer_of(engine)
        assert (3, None) == (answer.output_tokens, answer.failure)
        bodies = [request.body for request in server.requests if request.path == "/v1/completions"]
        assert [True, True, False, False] == ["ignore_eos" in body for body in bodies]

    def test_without_metrics(self, server):
        """A server without /metrics leaves capacity and counters unknown, and nothing waits for them."""
        server.metrics = None
        clock = SleeplessClock()
        engine = engine_at(server.url, clock=clock)
        assert engine.kv_capacity_tokens is None
        assert CacheCounters() == engine.cache_counters()
        assert [] == clock.slept_s

    @pytest.mark.parametrize("text", ["<html>dashboard</html>", "sglang:num_running_reqs 0.0\n", ""])
    def test_other_metrics(self, server, text):
        """A /metrics that is not vLLM's, or no metrics at all, tells nothing."""
        server.metrics = text
        engine = engine_at(server.url)
        assert engine.kv_capacity_tokens is None
        assert CacheCounters() == engine.cache_counters()

    def test_binary_metrics(self, server):
        """A /metrics that is not even text tells nothing."""
        server.routes["/metrics"] = (200, b"\xff\xfe")
        assert engine_at(server.url).kv_capacity_tokens is None

    def test_no_max_model_len(self, server):
        """A server that does not tell its longest sequence has an unknown one."""
        server.models = [{"id": "tiny", "max_model_len": None}]
        assert engine_at(server.url).max_model_len is None

    def test_channel(self, server):
        """A channel's answers carry the tokens that were asked for."""
        answer = answer_of(engine_at(server.url))
        assert (5, 20, 3, (1001, 1002, 1003)) == (
            answer.tag,
            answer.prompt_tokens,
            answer.output_tokens,
            answer.token_ids,
        )

    def test_cache_counters(self, server):
        """Counters are read after they had time to appear."""
        clock = SleeplessClock()
        counters = engine_at(server.url, clock=clock).cache_counters()
        assert (1000, 600) == (counters.queried_tokens, counters.hit_tokens)
        assert [openai.SETTLE_S] == clock.slept_s

    def test_metrics_vanish(self, server):
        """Counters that cannot be read any more are unknown."""
        engine = engine_at(server.url)
        engine.start()
        server.metrics = None
        assert CacheCounters() == engine.cache_counters()

    def test_cache_is_left_alone(self, server):
        """The cache of somebody else's server is not emptied."""
        engine = engine_at(server.url)
        assert engine.reset_cache() is False
        assert not any("reset" in path for path in server.paths())

    def test_check(self, server):
        """There is no process of ours that could have died."""
        assert engine_at(server.url).check() is None


class TestPrompts:
    """In which form prompts are sent."""

    @pytest.mark.parametrize(
        ("prompts", "path", "form"),
        [
            (None, "/v1/completions", "prompt"),
            ("ids", "/v1/completions", "prompt"),
            ("text", "/v1/completions", "prompt"),
            ("chat", "/v1/chat/completions", "messages"),
        ],
    )
    def test_the_word_decides(self, server, prompts, path, form):
        """The probe goes the way of the measured requests, and counts are the server's."""
        engine = engine_at(server.url, prompts=prompts)
        answer = answer_of(engine)
        before, after = server.paths()[:3], server.paths()[3:]
        assert ["/v1/models", path, "/metrics"] == before
        assert {path} == {*after} - {"/tokenize"}
        assert (None, 3, 20) == (answer.failure, answer.output_tokens, answer.prompt_tokens)
        assert all(form in request.body for request in server.requests if request.path == path)
        assert isinstance(server.requests[1].body.get("prompt", ""), list) == (prompts in (None, "ids"))

    @pytest.mark.parametrize(("prompts", "continues"), [(None, True), ("ids", True), ("text", False), ("chat", False)])
    def test_only_ids_can_be_continued(self, server, prompts, continues):
        """A text that is made of ids is not what a session would go on from, whatever the server returns."""
        assert continues is engine_at(server.url, prompts=prompts).returns_token_ids

    def test_a_chat_without_extensions(self, server):
        """A server that refuses vLLM's words in a chat is asked without them."""
        server.refuse_extensions = 400
        answer = answer_of(engine_at(server.url, prompts="chat"))
        assert (None, 3) == (answer.failure, answer.output_tokens)
        bodies = [request.body for request in server.requests if request.path == "/v1/chat/completions"]
        asked = ["ignore_eos" in body for body in bodies]
        assert (True, True, {False}) == (*asked[:2], {*asked[2:]})

    def test_a_server_without_that_route(self, server):
        """The complaint names it."""
        server.routes["/v1/chat/completions"] = (404, b'{"detail": "Not Found"}')
        with pytest.raises(
            EngineStartError, match=r"POST /v1/chat/completions answered 404: Not Found\. Expected the base"
        ):
            engine_at(server.url, prompts="chat").start()

    def test_an_unknown_form(self):
        """The error lists those that there are."""
        with pytest.raises(ConfigurationError) as caught:
            make_spec("openai", {"url": "http://localhost:1", "prompts": "tokens"})
        assert "openai: prompts='tokens'; expected one of ids, text, chat" == str(caught.value)

    def test_it_is_no_word_of_every_engine(self):
        """Ids are what an engine of ours takes, unless it has a reason to offer more."""
        with pytest.raises(ConfigurationError, match="sglang: unknown word 'prompts'"):
            make_spec("sglang", {"model": "m", "prompts": "text"})

    def test_it_is_part_of_what_is_compared(self):
        """Text and chat are other requests than ids, which need not be named."""
        words = [{}, {"prompts": "ids"}, {"prompts": "chat"}]
        specs = [make_spec("openai", {"url": "http://localhost:1", **given}) for given in words]
        assert [None, None, "chat"] == [spec.identity()["prompts"] for spec in specs]


class TestPromptLengths:
    """Whether texts have the tokens asked for, and how that is known."""

    @staticmethod
    def lengths(engine):
        about = engine.describe()
        return about["prompt_lengths"], about.get("prompt_overhead")

    @pytest.mark.parametrize(("prompts", "overhead"), [("text", 3), ("chat", 12)])
    def test_the_server_s_own_tokenizer(self, server, prompts, overhead):
        """It is asked while connecting, two prompts are served to be sure, and then no more."""
        server.count = server.tokenize = lambda text: 2 + len(text.split())
        server.template_tokens = 9
        engine = engine_at(server.url, prompts=prompts)
        assert ("server tokenizer", overhead) == self.lengths(engine)
        assert overhead == engine.prompt_overhead
        assert 6 == server.paths().count("/tokenize")
        asked = len(server.requests)
        assert 20 == answer_of(engine).prompt_tokens
        assert asked + 1 == len(server.requests)
        assert 3 == sum("completions" in path for path in server.paths()[:asked])

    def test_a_chat_is_tokenized_as_it_is_served(self, server):
        """With what makes the assistant speak."""
        server.tokenize = server.count
        engine_at(server.url, prompts="chat", model="tiny").start()
        body = next(request.body for request in server.requests if request.path == "/tokenize")
        assert ("tiny", True) == (body["model"], body["add_generation_prompt"])
        assert ["user"] == [message["role"] for message in body["messages"]]

    @pytest.mark.parametrize("prompts", ["text", "chat"])
    def test_the_server_s_usage(self, server, prompts):
        """A server without a tokenizer to ask is asked for single tokens."""
        server.template_tokens = 9
        engine = engine_at(server.url, prompts=prompts)
        assert ("server usage", 10 if prompts == "chat" else 1) == self.lengths(engine)
        assert 20 == answer_of(engine).prompt_tokens
        assert 2 == server.paths().count("/tokenize")
        bodies = [request.body for request in server.requests if "completions" in request.path]
        assert [4, 1, 1, 1, 1, 1, 1, 3] == [body["max_tokens"] for body in bodies]

    @pytest.mark.parametrize("prompts", ["text", "chat"])
    def test_a_tokenizer_of_our_own(self, server, prompts, tmp_path):
        """Where the server offers none; what the server puts around a text is taken from its usage."""
        pytest.importorskip("tokenizers")
        folder = tiny_llama.ensure(tmp_path)
        server.count = len  # as it is for the characters that are tokens of their own
        server.template_tokens = 9
        engine = engine_at(server.url, prompts=prompts, tokenizer=str(folder))
        assert ("local tokenizer", 10 if prompts == "chat" else 1) == self.lengths(engine)
        assert 20 == answer_of(engine).prompt_tokens

    def test_conversations_whose_answers_are_given(self, server, tmp_path):
        """Every turn of a chat has the tokens that it should, its history among them; real answers are refused."""
        said = [{"from": who, "value": "what there is to say " * 9} for who in ("human", "gpt") * 3]
        (tmp_path / "talks.json").write_text(json.dumps([{"conversations": said}] * 2))
        server.tokenize = server.count
        server.template_tokens = 9
        engine = engine_at(server.url, prompts="chat")

        result = measured(engine, tmp_path, conversations(tmp_path / "talks.json", answers="recorded"))

        assert 6 == result.requests
        sent = [(request.input_tokens, request.prompt_tokens) for request in result.records[0].requests]
        assert all(asked == served for asked, served in sent)
        assert 3 == len({*sent})
        with pytest.raises(ConfigurationError, match="does not return token ids"):
            measured(engine, tmp_path, conversations(tmp_path / "talks.json", answers="real"))

    def test_a_tokenizer_that_is_not_there(self, server, tmp_path):
        """Nothing is sent."""
        with pytest.raises(ConfigurationError, match="tokenizer: there is no"):
            engine_at(server.url, prompts="text", tokenizer=str(tmp_path)).start()
        assert [] == server.requests

    def test_a_tokenizer_for_ids(self):
        """They need none."""
        with pytest.raises(ConfigurationError, match="give prompts='text' or 'chat', too, or leave it out"):
            make_spec("openai", {"url": "http://localhost:1", "tokenizer": "folder"})

    @pytest.mark.parametrize(
        "answer", [(500, b"{}"), (200, b"<html>"), (200, b"[]"), (200, b'{"tokens": [1]}'), (200, b'{"count": "many"}')]
    )
    def test_a_route_that_is_something_else(self, server, answer):
        """As if it were not there."""
        server.routes["/tokenize"] = answer
        assert ("server usage", 1) == self.lengths(engine_at(server.url, prompts="text"))

    def test_a_tokenizer_of_another_model(self, server):
        """A gateway may ask the wrong one; what is served counts."""
        server.tokenize = len
        engine = engine_at(server.url, prompts="text")
        assert ("server usage", 1) == self.lengths(engine)

    @pytest.mark.parametrize("prompts", ["text", "chat"])
    def test_lengths_that_cannot_be_known(self, server, prompts):
        """Words are sent as they are, one for each token asked for."""
        server.usage = False
        engine = engine_at(server.url, prompts=prompts)
        assert ("unknown", None, 0) == (*self.lengths(engine), engine.prompt_overhead)
        assert answer_of(engine).failure is None
        body = server.requests[-2].body if server.paths()[-1] == "/version" else server.requests[-1].body
        text = body["prompt"] if prompts == "text" else body["messages"][0]["content"]
        assert 20 == len(text.split())

    @pytest.mark.parametrize(
        ("token_ids", "usage", "forced"), [(True, False, True), (False, True, True), (False, False, False)]
    )
    def test_whether_answers_are_as_long_as_asked(self, server, token_ids, usage, forced):
        """A server that takes our words and shows no sign of having read them may end an answer."""
        server.token_ids, server.usage = token_ids, usage
        assert forced is engine_at(server.url).forces_lengths

    def test_a_server_that_refuses_our_words_ends_answers_as_it_likes(self, server):
        server.refuse_extensions = 400
        assert engine_at(server.url).forces_lengths is False


class TestConnector:
    """What opens channels, here or elsewhere."""

    def test_in_another_process(self, server):
        """It can be sent there, and knows all that a channel needs: limits, model, what the server understands."""
        limits = Limits(silence_s=7.0, exchange_s=70.0)
        server.refuse_extensions = 400
        connector = engine_at(server.url, limits=limits).connector()
        copy = pickle.loads(pickle.dumps(connector))
        assert connector == copy
        assert (limits, "tiny", False) == (copy.limits, copy.model, copy.dialect.extended)

    @pytest.mark.slow
    def test_limits_reach_the_requests(self, server):
        """A server that stays silent for longer than the limit fails the request, not the run."""
        models = b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"data": [{"id": "tiny"}]}'
        event = b'data: {"choices": [{"text": "x"}]}\n\ndata: [DONE]\n\n'
        probe = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(event), event)
        none = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        start = [models, probe, none, none]
        with RawServer(*([Do.RECEIVE, answer] for answer in start), [Do.RECEIVE, Do.HOLD]) as raw:
            answer = answer_of(engine_at(raw.url, limits=Limits(silence_s=0.6)))
        assert ("timeout", "no byte for 0.6 s") == (answer.failure.kind, answer.failure.detail)


class TestModel:
    """Which model is used."""

    def test_named(self, server):
        """A model that is named is taken from among several."""
        server.models = [{"id": "a"}, {"id": "b", "max_model_len": 7}]
        engine = engine_at(server.url, model="b")
        assert ("b", 7) == (engine.model, engine.max_model_len)

    def test_several_without_a_name(self, server):
        """Several models and no name are a mistake that names them all."""
        server.models = [{"id": "a"}, {"id": "b"}]
        with pytest.raises(ConfigurationError) as caught:
            engine_at(server.url).start()
        expected = f"{server.url} serves 'a', 'b'; say which one with model=... or --llmperf-model"
        assert expected == str(caught.value)

    def test_none(self, server):
        """A server without models cannot be used."""
        server.models = []
        with pytest.raises(ConfigurationError, match="serves no model; say which one"):
            engine_at(server.url).start()

    def test_unknown(self, server):
        """A name that the server does not have is quoted beside those that it has."""
        with pytest.raises(ConfigurationError) as caught:
            engine_at(server.url, model="big").start()
        expected = f"{server.url} does not have the model 'big'; it serves 'tiny' (--llmperf-model sets it)"
        assert expected == str(caught.value)

    @pytest.mark.parametrize(
        "body", [b"<html>", b"[]", b"{}", b'{"data": null}', b'{"data": ["tiny"]}', b'{"data": [{"name": "tiny"}]}']
    )
    def test_no_list(self, server, body):
        """An answer that is not a list of models is quoted."""
        server.routes["/v1/models"] = (200, body)
        with pytest.raises(EngineStartError) as caught:
            engine_at(server.url).start()
        expected = f"{server.url}/v1/models does not answer with a list of models: {body.decode()}"
        assert expected == str(caught.value)


class TestComplaints:
    """What is said of a server that cannot be used, and what to do."""

    def complaint(self, url, **changes):
        with pytest.raises(EngineStartError) as caught:
            engine_at(url, **changes).start()
        return str(caught.value)

    def test_url_missing(self):
        """An engine without a URL says how to give one."""
        with pytest.raises(ConfigurationError) as caught:
            make_spec("openai", {})
        assert "openai: url is missing; give url=... in the mark or --llmperf-url URL" == str(caught.value)

    def test_bad_url(self):
        """A bad URL is found before anything is sent."""
        with pytest.raises(ConfigurationError, match="not a server's URL: 'localhost:8000'"):
            engine_at("localhost:8000")

    def test_refused(self):
        """A port on which nothing listens is named, with what to look at."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        expected = (
            f"{url} cannot be used, GET /v1/models: nothing listens at {url}. "
            "Is the server running, and is the URL right?"
        )
        assert expected == self.complaint(url)

    def test_hangs(self, short_limits):
        """A server that accepts and says nothing is given up."""
        with RawServer([Do.RECEIVE, Do.HOLD]) as raw:
            assert "GET /v1/models: did not finish within 0.2 s. Is the server running" in self.complaint(raw.url)

    def test_not_http(self):
        """A server of another protocol is told from one that is not there."""
        with RawServer([b"SSH-2.0-OpenSSH_9.6\r\n", Do.HOLD]) as raw:
            assert "GET /v1/models: HttpParserError: " in self.complaint(raw.url)

    def test_generation_hangs(self, short_limits):
        """A server that lists its models and then generates nothing is given up."""
        models = b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"data": [{"id": "tiny"}]}'
        with RawServer([Do.RECEIVE, models], [Do.RECEIVE, Do.HOLD]) as raw:
            assert "POST /v1/completions: did not finish within 0.2 s. Is the server" in self.complaint(raw.url)

    def test_generation_drips(self, short_limits):
        """A server that only sends signs of life is given up as well."""
        models = b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"data": [{"id": "tiny"}]}'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        pings = [step for _ in range(20) for step in (b": ping\n\n", 0.05)]
        with RawServer([Do.RECEIVE, models], [Do.RECEIVE, head, *pings]) as raw:
            assert "POST /v1/completions: did not finish within 0.2 s. Is the server" in self.complaint(raw.url)

    @pytest.mark.parametrize(("key", "verb"), [(None, "is not"), ("wrong-key", "is")])
    def test_unauthorized(self, server, key, verb):
        """A 401 says whether a key was sent, but not which."""
        server.api_key = KEY
        text = self.complaint(server.url, api_key=key)
        assert (
            f"{server.url} cannot be used, GET /v1/models answered 401: Unauthorized. "
            f"It wants an API key: LLMPERF_API_KEY {verb} set in the environment."
        ) == text

    @pytest.mark.parametrize(
        ("status", "advice"),
        [
            (403, "It refuses this API key: LLMPERF_API_KEY is not set in the environment."),
            (404, "Expected the base URL of an OpenAI-compatible server, such as http://HOST:8000."),
            (429, "It is limiting requests; a performance test needs a server without a rate limit."),
            (500, "The server's own log says more."),
            (503, "The server's own log says more."),
        ],
    )
    @pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/completions")])
    def test_status(self, server, method, path, status, advice):
        """Each status comes with what the server said and with what to do."""
        server.routes[path] = (status, b'{"error": {"message": "so it is"}}')
        expected = f"{server.url} cannot be used, {method} {path} answered {status}: so it is. {advice}"
        assert expected == self.complaint(server.url)

    def test_plain_request_refused_too(self, server):
        """A server that refuses the plain request as well is quoted."""
        server.routes["/v1/completions"] = (400, b'{"message": "prompt must be a string"}')
        assert "POST /v1/completions answered 400: prompt must be a string." in self.complaint(server.url)

    def test_no_stream(self, server):
        """A server that answers without generating a token cannot be used."""
        server.routes["/v1/completions"] = (200, b"{}")
        assert "answered 200: the stream ended without a generated token." in self.complaint(server.url)

    def test_retried(self, server):
        """An engine that could not connect tries again when it is next needed."""
        server.routes["/v1/models"] = (503, b"loading")
        engine = engine_at(server.url)
        with pytest.raises(EngineStartError):
            engine.start()
        del server.routes["/v1/models"]
        assert "tiny" == engine.model


class TestApiKey:
    """The key goes to the server and nowhere else."""

    def test_sent(self, server):
        """Every request carries the key."""
        server.api_key = KEY
        engine = engine_at(server.url, api_key=KEY)
        answer = answer_of(engine)
        engine.cache_counters()
        engine.describe()
        assert answer.failure is None
        assert {f"Bearer {KEY}"} == {request.headers["authorization"] for request in server.requests}

    def test_not_sent(self, server):
        """Without a key no request has the header."""
        engine_at(server.url).start()
        assert not any("authorization" in request.headers for request in server.requests)

    def test_not_shown(self, server):
        """Nothing that is printed or stored shows the key."""
        context = surroundings(api_key=KEY)
        engine = make_engine(EngineSpec(kind="openai", url=server.url), context)
        engine.start()
        connector = engine.connector()
        channel = connector.open(RealClock())
        channel.close()
        shown = [
            context,
            engine,
            engine.spec,
            engine.server,
            connector,
            channel,
            engine.describe(),
            engine.spec.words(),
        ]
        assert not any(KEY in repr(thing) + str(thing) for thing in shown)

    def test_not_in_errors(self, server):
        """No error shows the key, its traceback included."""
        server.routes["/v1/models"] = (403, b"forbidden")
        with pytest.raises(EngineStartError) as caught:
            engine_at(server.url, api_key=KEY).start()
        assert "LLMPERF_API_KEY is set" in str(caught.value)
        assert KEY not in "".join(traceback.format_exception(caught.value))


class TestUsersThatFit:
    """How many sequences the device's KV cache holds."""

    @pytest.mark.parametrize(
        ("tokens", "users"), [(1, 100), (16, 100), (17, 50), (160, 10), (161, 9), (1600, 1), (1601, 0)]
    )
    def test_whole_blocks(self, server, tokens, users):
        """Each sequence takes whole blocks: 100 of 16 tokens are there."""
        assert users == engine_at(server.url).users_that_fit(tokens)

    def test_unknown_block(self, server):
        """Without a known block size tokens are counted."""
        server.metrics = 'vllm:cache_config_info{kv_cache_size_tokens="1000"} 1.0\n'
        assert 58 == engine_at(server.url).users_that_fit(17)

    @pytest.mark.parametrize("text", [None, 'vllm:cache_config_info{block_size="16"} 1.0\n'])
    def test_unknown_capacity(self, server, text):
        """A server that does not tell its capacity is not guessed at."""
        server.metrics = text
        with pytest.raises(EngineAnswerError) as caught:
            engine_at(server.url).users_that_fit(17)
        assert f"{server.url} does not say how many tokens its KV cache holds; give the number of users instead" == str(
            caught.value
        )

    @pytest.mark.parametrize("tokens", [0, -1])
    def test_no_tokens(self, server, tokens):
        """A user without tokens is a mistake."""
        with pytest.raises(ConfigurationError, match=f"tokens_per_user must be at least 1, got {tokens}"):
            engine_at(server.url).users_that_fit(tokens)


class TestDescribe:
    """What the result says of the engine."""

    def test_all(self, server):
        """All that is known is told."""
        server.routes["/version"] = (200, b'{"version": "0.33.0"}')
        assert {
            "model": "tiny",
            "version": "0.33.0",
            "max_model_len": 4096,
            "returns_token_ids": True,
            "prompt_lengths": "ids",
            "kv_capacity_tokens": 1600,
            "kv_block_tokens": 16,
            "prefix_caching": True,
            "url": server.url,
        } == engine_at(server.url).describe()

    def test_words_that_nobody_has_verified(self, server):
        """What the test says of a server that was not started here, and the server does not."""
        words = {"url": server.url, "prefix_caching": True, "max_model_len": 4096, "dtype": "bfloat16", "args": ["-x"]}
        told = make_engine(make_spec("openai", words), surroundings()).describe()
        assert ["dtype", "args"] == told["unverified"]
        (doubt,) = told["doubts"]
        assert f"dtype, args: as the test says; the server at {server.url} was not started here" in doubt

    def test_nothing_is_known_of_its_cache(self, server):
        """Then the word for it is unverified, too."""
        server.metrics = None
        words = {"url": server.url, "prefix_caching": True}
        assert ["prefix_caching"] == make_engine(make_spec("openai", words), surroundings()).describe()["unverified"]

    @pytest.mark.parametrize(("word", "asked", "is_"), [("prefix_caching", False, True), ("max_model_len", 2048, 4096)])
    def test_words_that_it_contradicts(self, server, word, asked, is_):
        """Both are told."""
        told = make_engine(make_spec("openai", {"url": server.url, word: asked}), surroundings()).describe()
        assert [f"{word}={asked!r} was asked for, and the engine says that it is {is_!r}"] == told["doubts"]
        assert is_ == told[word]
        assert "unverified" not in told

    def test_little(self, server):
        """What is not known is left out."""
        server.metrics, server.models = None, [{"id": "tiny"}]
        expected = {"model": "tiny", "returns_token_ids": True, "prompt_lengths": "ids", "url": server.url}
        assert expected == engine_at(server.url).describe()

    @pytest.mark.parametrize("body", [b"0.33", b"oops", b'{"version": 33}', b"[]"])
    def test_odd_version(self, server, body):
        """A version of another form is unknown."""
        server.routes["/version"] = (200, body)
        assert "version" not in engine_at(server.url).describe()


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False), (404, False)])
def test_is_healthy(server, status, expected):
    """A server is healthy if it says so at this moment."""
    server.routes["/health"] = (status, b"")
    assert expected is OpenAIServer(openai.Address.parse(server.url), surroundings()).is_healthy()


def test_is_not_there():
    """A server that is not there is not healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = openai.Address("127.0.0.1", probe.getsockname()[1], False, "")
    assert OpenAIServer(address, surroundings()).is_healthy() is False


def test_control(server):
    """A control request is one exchange on a connection of its own."""
    server.routes["/reset"] = (200, json.dumps({"success": True}).encode())
    exchange = OpenAIServer(openai.Address.parse(server.url), surroundings()).control("POST", "/reset")
    assert (200, b'{"success": true}', None) == (exchange.status, exchange.body, exchange.failure)
    assert ["POST"] == [request.method for request in server.requests]


class MortalHost:
    """A host whose server is one of these, until it is said to be dead."""

    is_ours = True

    def __init__(self, url):
        self.address = Address.parse(url)
        self.launches = 0
        self.alive = False

    def launch(self):
        self.launches += 1
        self.alive = True
        return self.address

    def wait_until_ready(self, is_healthy):
        pass

    def is_running(self):
        return self.alive

    def check(self):
        if not self.alive:
            raise EngineDiedError("the server has ended")

    def stop(self):
        self.alive = False

    def reset_cache(self, server):
        return False

    def completed(self, counters):
        return counters

    def describe(self):
        return {}


def test_a_server_that_died_is_not_replaced_until_the_next_start():
    """Else what a run asks of the engine at its end brings up a new one, and nobody hears of the death."""
    with CompletionsServer(metrics=METRICS) as server:
        host = MortalHost(server.url)
        engine = ServedEngine(EngineSpec(kind="vllm", model="tiny"), host, None, surroundings())
        engine.start()
        host.alive = False

        engine.cache_counters()

        assert 1 == host.launches
        with pytest.raises(EngineDiedError):
            engine.check()
        engine.start()
        assert 2 == host.launches
