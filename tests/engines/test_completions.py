"""`engines/completions.py`: what is asked of a server, and what its stream of events adds up to."""

from __future__ import annotations

import json
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import CompletionsServer, Do, RawServer

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.client import Address, Exchange, Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines.answers import error_text, read_answer, shows_extensions
from pytest_llmperf.engines.base import Generation
from pytest_llmperf.engines.completions import CompletionsConnector, Dialect, as_text, request_body, text_request
from pytest_llmperf.engines.wording import Wording
from pytest_llmperf.records import EngineTimings, Failure, Remark

PLAIN, EXTENDED = Dialect(extended=False), Dialect(extended=True)
KEY = "sk-very-s3cret"
DONE = b"[DONE]"


def chunk(text="x", *, usage=None, **choice):
    """One event with one choice."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": None, **choice}], "usage": usage}


def usage(completion_tokens, prompt_tokens=32, **more):
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, **more}


def final(completion_tokens, **more):
    """The event that carries nothing but the usage."""
    return {"choices": [], "usage": usage(completion_tokens, **more)}


def delta(finish_reason=None, usage=None, **content):
    """One event of a chat."""
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}], "usage": usage}


def exchange(*fragments, status=200, **words):
    """A finished exchange whose body came in these pieces: `(at_ns, data)`, each exactly stamped."""
    pieces = [(at_ns, 0, True, data) for at_ns, data in fragments]
    given = {"tag": 3, "request": b"", "sent_ns": 1, "flushed_ns": 2, "end_ns": 999, "status": status}
    return Exchange(**{**given, **words}, _fragments=pieces)


def read(*events, replicas=()):
    """The answer made of events that arrive one by one at 10, 20, 30, ... ns."""
    payloads = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    return read_answer(
        exchange(*((10 * number, b"data: %b\n\n" % payload) for number, payload in enumerate(payloads, start=1))),
        replicas=replicas,
    )


@pytest.mark.parametrize(("model", "replica"), [("m#1", 1), ("m#0", 0), ("m", None), (None, None), (["m#1"], None)])
def test_who_answered_is_told_by_the_models_name(model, replica):
    """Where the engines behind a router have one each; any other name tells nothing."""
    answered = read(chunk(), {**final(1), "model": model}, replicas=("m#0", "m#1"))
    assert (replica, None) == (answered.replica, answered.failure)
    assert read(chunk(), {**final(1), "model": model}).replica is None


class TestRequestBody:
    """The JSON of a request."""

    def test_plain(self):
        """A plain server gets only what the OpenAI protocol has, and is asked for greedy tokens."""
        body = json.loads(request_body("m", Generation(range(1000, 1003), 7, return_token_ids=True), PLAIN))
        assert {
            "model": "m",
            "prompt": [1000, 1001, 1002],
            "max_tokens": 7,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        } == body

    def test_extended(self):
        """An extended server must not stop early, and counts in every chunk."""
        generation = Generation([1000], 7, return_token_ids=True)
        plain, extended = (json.loads(request_body("m", generation, dialect)) for dialect in (PLAIN, EXTENDED))
        options = {"include_usage": True, "continuous_usage_stats": True}
        more = {"ignore_eos": True, "return_token_ids": True, "stream_options": options}
        assert plain | more == extended

    def test_the_word_for_ids(self):
        """TensorRT-LLM gives ids instead of text, not beside it."""
        generation = Generation([1000], 7, return_token_ids=True)
        body = json.loads(request_body("m", generation, Dialect(extended=True, ids_word="detokenize")))
        assert (False, None) == (body["detokenize"], body.get("return_token_ids"))

    def test_text(self):
        """A server that wants text gets a word for each token id, on the same route."""
        generation = Generation(range(1000, 1032), 7, return_token_ids=False)
        plain, text = (
            json.loads(request_body("m", generation, Dialect(extended=True, prompts=form))) for form in ("ids", "text")
        )
        assert 32 == len(text["prompt"].split())
        assert plain == text | {"prompt": plain["prompt"]}

    def test_chat(self):
        """A chat has the same text as one user's message, and no prompt."""
        generation = Generation(range(1000, 1032), 7, return_token_ids=False)
        text, chat = (
            json.loads(request_body("m", generation, Dialect(extended=False, prompts=form)))
            for form in ("text", "chat")
        )
        assert [{"role": "user", "content": text.pop("prompt")}] == chat.pop("messages")
        assert text == chat

    @pytest.mark.parametrize("form", ["text", "chat"])
    def test_words_of_known_lengths(self, form):
        """Where they are known, the text is made of them; a text that is given goes as it is."""
        dialect = Dialect(extended=True, prompts=form, wording=Wording("the", (" a", " b"), 3))
        made = request_body("m", Generation([5, 4, 4, 0, 1, 1], 7, return_token_ids=False), dialect)
        body = json.loads(made)
        assert "the b a a" == (body["prompt"] if form == "text" else body["messages"][0]["content"])
        assert made == text_request("m", "the b a a", 7, dialect)

    def test_texts_differ_where_ids_do(self):
        """Other ids are another text, so that no prompt is another's beginning by accident."""
        assert as_text([1000, 1001]) != as_text([1001, 1000])
        assert as_text([1000, 1001]) == as_text([1000, 1001])

    def test_token_ids_only_when_needed(self):
        """Token ids are not asked for where no later turn continues from them."""
        body = json.loads(request_body("m", Generation([1000], 7, return_token_ids=False), EXTENDED))
        assert "return_token_ids" not in body


class TestExtensions:
    """Whether a server has read what it was asked beyond the protocol."""

    @pytest.mark.parametrize(
        ("events", "shown"),
        [
            ([chunk(token_ids=[5]), final(1)], True),
            ([chunk(usage=usage(1)), final(1)], True),
            ([chunk(), final(1)], False),
            ([chunk(), chunk("", finish_reason="length", usage=usage(1))], False),
            ([chunk(token_ids=[]), {"choices": [3]}, {"choices": []}, {"choices": {}}, {}, 3, b"no JSON"], False),
        ],
    )
    def test_what_shows_it(self, events, shown):
        """Ids, or a usage beside each token; one beside the last token alone is within the protocol's habits."""
        payloads = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in [*events, DONE]]
        body = exchange(*((10 * number, b"data: %b\n\n" % payload) for number, payload in enumerate(payloads, 1)))
        assert shown is shows_extensions(body)


class TestCounting:
    """Where the number of tokens comes from."""

    def test_token_ids(self):
        """Token ids count, whatever the text and the number of chunks."""
        answer = read(chunk("a", token_ids=[5]), chunk("", token_ids=[6, 7]), chunk("", token_ids=[]), final(3), DONE)
        assert (Arrival(10, 1), Arrival(20, 2)) == answer.arrivals
        assert ((5, 6, 7), 3, 32) == (answer.token_ids, answer.output_tokens, answer.prompt_tokens)
        assert answer.failure is None

    def test_token_ids_against_usage(self):
        """Where both are there, token ids are what was received."""
        answer = read(chunk(token_ids=[5], usage=usage(2)), chunk(token_ids=[6], usage=usage(4)), DONE)
        assert (Arrival(10, 1), Arrival(20, 1)) == answer.arrivals
        assert 2 == answer.output_tokens

    def test_continuous_usage(self):
        """Usage in every chunk tells how many tokens each has brought."""
        answer = read(chunk("", usage=usage(0)), chunk(usage=usage(1)), chunk(usage=usage(4)), final(4), DONE)
        assert (Arrival(20, 1), Arrival(30, 3)) == answer.arrivals
        assert (None, 4, None) == (answer.token_ids, answer.output_tokens, answer.failure)

    def test_continuous_usage_of_invisible_tokens(self):
        """A token that has no text yet, as half a character has none, arrived all the same."""
        answer = read(chunk("", usage=usage(1)), chunk("é", usage=usage(2)), DONE)
        assert (Arrival(10, 1), Arrival(20, 1)) == answer.arrivals

    def test_final_usage_with_as_many_chunks(self):
        """A final count that equals the number of chunks means one token each."""
        answer = read(chunk("a"), chunk("b"), final(2), DONE)
        assert (Arrival(10, 1), Arrival(20, 1)) == answer.arrivals
        assert 2 == answer.output_tokens

    def test_final_usage_with_fewer_chunks(self):
        """A final count above the number of chunks leaves unknown which chunk held how many."""
        answer = read(chunk("ab"), chunk("c"), final(3), DONE)
        assert (Arrival(10, None), Arrival(20, None)) == answer.arrivals
        assert 3 == answer.output_tokens

    def test_no_usage(self):
        """Chunks are never taken for tokens: without ids and usage the number is unknown."""
        answer = read(chunk("a"), chunk("b"), DONE)
        assert (Arrival(10, None), Arrival(20, None)) == answer.arrivals
        assert (None, None) == (answer.output_tokens, answer.prompt_tokens)
        assert answer.failure is None

    def test_chunks_without_tokens(self):
        """Chunks with a role or no text, and events without choices, are no arrivals."""
        events = [
            {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
            {"id": "x"},
            {"choices": None},
            chunk(""),
        ]
        answer = read(*events, chunk("a"), final(1), DONE)
        assert (Arrival(50, 1),) == answer.arrivals

    def test_several_events_in_one_fragment(self):
        """Events that arrived together have one time and stay apart."""
        events = [chunk(token_ids=[5]), chunk(token_ids=[6])]
        body = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
        answer = read_answer(exchange((10, body)))
        assert [(10, 1), (10, 1)] == [(arrival.at_ns, arrival.tokens) for arrival in answer.arrivals]

    def test_how_late_they_may_be(self):
        """Of several events in one read only the last is exactly stamped; the others came since the last look."""
        events = [b"data: %b\n\n" % json.dumps(chunk(token_ids=[n])).encode() for n in range(3)]
        finished = exchange()
        finished._fragments += [(10, 4, True, events[0] + events[1]), (20, 15, False, events[2])]
        assert (Arrival(10, 1, 6), Arrival(10, 1, 0), Arrival(20, 1, 5)) == read_answer(finished).arrivals

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            ({"prompt_tokens_details": {"cached_tokens": 16}}, 16),
            ({"prompt_tokens_details": {"cached_tokens": 0}}, 0),
            ({"prompt_tokens_details": {"cached_tokens": None}}, None),
            ({"prompt_tokens_details": None}, None),
            ({}, None),
        ],
    )
    def test_cached_tokens(self, more, expected):
        """Cached tokens are the server's number, and unknown is not zero."""
        assert expected == read(chunk("a"), final(1, **more), DONE).cached_tokens

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            (
                {"queue_time_ms": 0.25, "time_to_first_token_ms": 68.5},
                EngineTimings(queue_ns=250_000, prefill_ns=68_500_000),
            ),
            ({"queue_time_ms": None, "time_to_first_token_ms": 2}, EngineTimings(prefill_ns=2_000_000)),
            ({"queue_time_ms": 0.0}, EngineTimings(queue_ns=0)),
            ({"queue_time_ms": -1.0, "time_to_first_token_ms": True}, None),
            ({"time_to_first_token_ms": 1e300}, None),
            ({"time_to_first_token_ms": "68"}, None),
            ({"speculative_decoding": {}}, None),
            ([], None),
            (None, None),
        ],
    )
    def test_how_the_server_timed_it(self, told, expected):
        """vLLM's own times beside the last usage; what is no duration says nothing."""
        assert expected == read(chunk(usage=usage(1)), {**final(1), "metrics": told}, DONE).timings

    @pytest.mark.slow
    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
    def test_times_of_any_form(self, odd):
        """Nothing that a server may send there breaks the answer."""
        told = read(chunk(usage=usage(1)), {**final(1), "metrics": {"queue_time_ms": odd}}, DONE)
        assert told.failure is None or told.failure.kind == "not_json"  # NaN is no JSON
        assert told.timings is None or told.timings.queue_ns >= 0

    def test_times_are_kept(self):
        """Tag, send, end and the making of a connection are those of the exchange."""
        body = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(chunk("a")).encode()
        answer, another = read_answer(exchange((5, body))), read_answer(exchange((5, body), connect_ns=7, flushed_ns=0))
        assert (3, 1, 2, None, 999) == (
            answer.tag,
            answer.sent_ns,
            answer.flushed_ns,
            answer.connect_ns,
            answer.end_ns,
        )
        assert (None, 7) == (another.flushed_ns, another.connect_ns)


class TestChat:
    """What a chat's chunks bring."""

    def test_a_role_is_no_token(self):
        """The chunk that opens the message has no content yet."""
        answer = read(delta(role="assistant", content=""), delta(content="a"), delta(content="b"), final(2), DONE)
        assert (Arrival(20, 1), Arrival(30, 1)) == answer.arrivals
        assert (2, (), None) == (answer.output_tokens, answer.remarks, answer.failure)

    @pytest.mark.parametrize("word", ["reasoning_content", "reasoning"])
    def test_thoughts_are_tokens(self, word):
        """A model that thinks first has generated its first token when it begins to think."""
        answer = read(delta(role="assistant"), delta(**{word: "hm"}), delta(content="a"), final(2), DONE)
        assert (Arrival(20, 1), Arrival(30, 1)) == answer.arrivals

    def test_tool_calls_are_tokens(self):
        """So are the arguments of a call."""
        answer = read(delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]), final(1), DONE)
        assert (Arrival(10, 1),) == answer.arrivals

    def test_the_usage_alone(self):
        """The last event has no choice, and is no token."""
        answer = read(delta(content="ab"), delta(content="c"), delta(finish_reason="length"), final(3), DONE)
        assert (Arrival(10, None), Arrival(20, None)) == answer.arrivals
        assert (3, 32) == (answer.output_tokens, answer.prompt_tokens)

    def test_continuous_usage(self):
        """A chat that counts in every chunk tells how many tokens each brings."""
        answer = read(
            delta(role="assistant", usage=usage(0)), delta(content="ab", usage=usage(3)), delta(usage=usage(4)), DONE
        )
        assert (Arrival(20, 3), Arrival(30, 1)) == answer.arrivals

    @pytest.mark.parametrize("content", [None, "", {}, 0])
    def test_nothing_is_no_token(self, content):
        """Whatever form it has."""
        assert (Arrival(20, 1),) == read(delta(content=content), delta(content="a"), final(1), DONE).arrivals

    @pytest.mark.parametrize("odd", [None, "text", 7, ["a"]])
    def test_a_delta_of_another_form(self, odd):
        """Is no token."""
        event = {"choices": [{"index": 0, "delta": odd}]}
        assert (Arrival(20, 1),) == read(event, delta(content="a"), final(1), DONE).arrivals


class TestRemarks:
    """What is odd about an answer that stands."""

    def test_no_usage(self):
        """Without usage and ids nobody knows how many tokens there were."""
        detail = "no usage and no token ids: how many tokens were generated is unknown"
        assert (Remark("no_usage", detail),) == read(chunk("a"), chunk("b"), DONE).remarks

    def test_usage_against_ids(self):
        """The ids are what was received; that the server counts otherwise is told."""
        answer = read(chunk(token_ids=[5]), chunk(token_ids=[6]), final(4), DONE)
        detail = "usage says 4 tokens were generated, the token ids are 2"
        assert (2, (Remark("wrong_usage", detail),)) == (answer.output_tokens, answer.remarks)

    def test_usage_against_chunks(self):
        """More chunks with text than tokens cannot be."""
        detail = "usage says 2 tokens were generated, but 3 chunks brought some"
        answer = read(chunk("a"), chunk("b"), chunk("c"), final(2), DONE)
        assert (2, (Remark("wrong_usage", detail),)) == (answer.output_tokens, answer.remarks)

    @pytest.mark.parametrize(
        "events",
        [
            [chunk(token_ids=[5]), chunk(token_ids=[6, 7]), final(3), DONE],
            [chunk(token_ids=[5]), DONE],
            [chunk("ab"), chunk("c"), final(3), DONE],
            [chunk("a", usage=usage(1)), chunk("b", usage=usage(2)), DONE],
        ],
    )
    def test_nothing_odd(self, events):
        """Counts that fit, and fewer chunks than tokens, need no remark."""
        assert () == read(*events).remarks

    def test_of_a_failed_answer(self):
        """A failure says enough."""
        assert () == read(chunk("a")).remarks


class TestEndings:
    """What a complete stream is."""

    @pytest.mark.parametrize(
        "ending",
        [[DONE], [final(2)], [final(2), DONE]],
        ids=["done", "usage", "both"],
    )
    def test_complete(self, ending):
        """A stream ends with [DONE] or a final usage."""
        assert read(chunk("a"), chunk("b"), *ending).failure is None

    def test_complete_by_finish_reason(self):
        """A stream that gives the reason for its end has ended."""
        assert read(chunk("a"), chunk("b", finish_reason="length")).failure is None

    @pytest.mark.parametrize("more", [{}, {"usage": usage(1)}, {"token_ids": [5]}])
    def test_truncated(self, more):
        """A stream that just stops is truncated, with usage in its chunks too: that is the count so far."""
        failure = read(chunk("a", **more)).failure
        assert Failure("truncated", "the stream ended without [DONE], a finish_reason or a final usage") == failure

    @pytest.mark.parametrize("events", [[], [DONE], [chunk("", usage=usage(0)), final(0), DONE]])
    def test_no_tokens(self, events):
        """An answer without a token has no first token, and fails."""
        assert Failure("no_tokens", "the stream ended without a generated token") == read(*events).failure

    def test_no_stream(self):
        """A server that ignores `stream` and answers in one piece has sent no tokens that could be timed."""
        body = json.dumps({"choices": [{"text": "abc"}], "usage": usage(3)}).encode()
        answer = read_answer(exchange((5, body)))
        assert "no_tokens" == answer.failure.kind


class TestFailures:
    """What is wrong becomes the answer's failure; nothing raises."""

    def test_failed_exchange(self):
        """The failure of an exchange is that of its answer."""
        failure = Failure("connection_reset", "while receiving")
        answer = read_answer(exchange((5, b"data: {}\n\n"), failure=failure))
        assert (failure, (), 1, 999) == (answer.failure, answer.arrivals, answer.sent_ns, answer.end_ns)

    @pytest.mark.parametrize("status", [204, 400, 401, 404, 429, 500, 503])
    def test_status(self, status):
        """Each status that is not 200 is a kind of its own, with the server's message."""
        refused = exchange((5, b'{"error": {"mess'), (6, b'age": "busy"}}'), status=status)
        assert Failure(f"http_{status}", "busy") == read_answer(refused).failure

    @pytest.mark.parametrize(
        ("status", "headers", "detail"),
        [
            (429, {"retry-after": "30", "content-type": "text/plain"}, "slow down; retry-after: 30"),
            (307, {"location": "http://other:8000/v1"}, "slow down; location: http://other:8000/v1"),
            (503, {"retry-after": "5", "location": "/x"}, "slow down; retry-after: 5; location: /x"),
        ],
    )
    def test_what_the_headers_say(self, status, headers, detail):
        """When to come back, or where to go, is told with the refusal."""
        refused = exchange((5, b'{"message": "slow down"}'), status=status, headers=headers)
        assert Failure(f"http_{status}", detail) == read_answer(refused).failure

    @pytest.mark.parametrize(
        "event", [{"error": {"message": "out of memory", "code": 500}}, {"error": "out of memory"}]
    )
    def test_error_event(self, event):
        """An error within a stream fails the answer, even if tokens came before and [DONE] after."""
        answer = read(chunk(token_ids=[5]), event, DONE)
        assert Failure("stream_error", "out of memory") == answer.failure
        assert (Arrival(10, 1),) == answer.arrivals

    def test_null_error(self):
        """An error field without an error is none."""
        assert read(chunk("a") | {"error": None}, final(1), DONE).failure is None

    @pytest.mark.parametrize("event", [b"oops", b'{"choices": [', b"\xff\xfe"])
    def test_not_json(self, event):
        """An event that is not JSON fails the answer and is quoted."""
        failure = read(chunk("a"), event, DONE).failure
        assert ("not_json", event.decode(errors="replace")) == (failure.kind, failure.detail)

    @pytest.mark.parametrize("event", [b"[]", b"null", b"7", b'"text"'])
    def test_not_an_object(self, event):
        """JSON that is not an object is no event of this protocol."""
        assert Failure("stream_error", event.decode()) == read(chunk("a"), event, DONE).failure

    @pytest.mark.parametrize(
        "choices", [["x"], [None], {"text": "x"}, "x", 7, [{"text": "x", "token_ids": 7}], [{"token_ids": "abc"}]]
    )
    def test_not_completions(self, choices):
        """Choices of another form fail the answer instead of the run."""
        event = {"choices": choices}
        assert Failure("not_completions", json.dumps(event)) == read(chunk("a"), event, DONE).failure

    @pytest.mark.parametrize("number", [2**31, 2**62, -5])
    def test_absurd_counts(self, number):
        """A count that no chunk can hold fails the answer or counts for nothing; it does not end the run."""
        answer = read(chunk("a", usage=usage(number)), DONE)
        assert answer.failure is not None
        assert () == answer.arrivals

    def test_first_failure_stays(self):
        """The first thing that went wrong is the one that is told."""
        assert "not_json" == read(b"oops", {"error": "later"}, DONE).failure.kind

    def test_counts_survive(self):
        """What a failed answer had counted is kept for the reader."""
        answer = read(chunk(token_ids=[5]), final(1), b"oops")
        assert (1, 32) == (answer.output_tokens, answer.prompt_tokens)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"message": "too long", "type": "BadRequestError"}}', "too long"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": "unauthorized"}', "unauthorized"),
        (b'{"error": {"detail": "nested"}}', "nested"),
        (b'{"detail": [{"msg": "field required"}]}', '{"detail": [{"msg": "field required"}]}'),
        (b'{"error": {"message": 5}}', '{"error": {"message": 5}}'),
        (b'{"error": null}', '{"error": null}'),
        (b'["a"]', '["a"]'),
        (b"  <html>Bad Gateway</html>\n", "<html>Bad Gateway</html>"),
        (b"caf\xc3\xa9 \xff", "café \N{REPLACEMENT CHARACTER}"),
        (b"", "(empty body)"),
        (b" \n", "(empty body)"),
        (b"x" * 1000, "x" * 300),
    ],
)
def test_error_text(body, expected):
    """The message of an error is found in every usual form; anything else is quoted, but not endlessly."""
    assert expected == error_text(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
WORDS = (
    "choices usage error index text delta token_ids finish_reason completion_tokens prompt_tokens_details cached_tokens"
)
EVENTS = st.recursive(
    JSON,
    lambda inner: st.lists(inner, min_size=1, max_size=2) | st.dictionaries(st.sampled_from(WORDS.split()), inner),
    max_leaves=8,
)


@pytest.mark.slow
@given(events=st.lists(EVENTS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=9), max_size=5))
@settings(deadline=None, max_examples=300)
def test_whatever_a_server_sends_becomes_an_answer(events):
    """Nothing raises: what cannot be understood is a failure."""
    answer = read(*events, DONE)
    assert answer.failure is not None or len(answer.arrivals)


# None of these is an event, though some of them together are values of JSON, as many as there are.
BROKEN = [b"1,2", b'{"a":1},{"b":2}', b"1],[2", b'"x', b'y"', b'{"choices":[', b"]}", b"", b"1 2", b"[1", b"2]", b"},{"]


@pytest.mark.slow
@given(events=st.lists(st.integers(0, 9) | st.sampled_from(BROKEN), min_size=1, max_size=8))
@settings(deadline=None, max_examples=300)
def test_a_broken_event_never_shifts_the_others(events):
    """Each event is read by itself, whatever stands before and after it."""
    payloads = [json.dumps(chunk(token_ids=[event])).encode() if isinstance(event, int) else event for event in events]
    expected = [(10 * at, event) for at, event in enumerate(events, start=1) if isinstance(event, int)]
    answer = read(*payloads)
    assert expected == [(a.at_ns, n) for a, n in zip(answer.arrivals, answer.token_ids or (), strict=True)]
    assert (len(expected) < len(events)) == (answer.failure.kind in ("not_json", "stream_error"))


def answers_over(server, dialect, generation, *, count=1, connections=1, **words):
    """What a channel to the server makes of some equal requests, and the channel."""
    limits = Limits(silence_s=5)
    connector = CompletionsConnector(
        address=Address.parse(server.url), model="tiny", dialect=dialect, limits=limits, **words
    )
    channel = pickle.loads(pickle.dumps(connector)).open(RealClock())
    try:
        channel.open(connections)
        request = channel.encode(generation)
        for tag in range(count):
            channel.send(tag, request)
        replies, deadline = [], time.monotonic() + 5
        while len(replies) < count and time.monotonic() < deadline:
            channel.poll(0.1)
            replies += channel.ended()
        return {reply.tag: reply.read() for reply in replies}, channel
    finally:
        channel.close()


class TestChannel:
    """Generations over HTTP."""

    def test_a_key_that_is_sent_back_is_not_quoted(self):
        """Not even in part, where the text is cut short."""
        key = "sk-" + 40 * "secret"
        body = json.dumps({"error": {"message": 200 * "x" + f" {key} is not a key"}}).encode()
        with CompletionsServer(routes={"/v1/completions": (401, body)}) as server:
            answers, _ = answers_over(server, Dialect(extended=False), Generation([1], 1, False), api_key=key)
        detail = answers[0].failure.detail
        assert "*** is not a key" in detail
        assert "secret" not in detail

    @pytest.mark.parametrize("wants_ids", [True, False])
    def test_answers(self, wants_ids):
        """A channel, made in another process or here, hands answers back by tag."""
        generation = Generation(range(1000, 1032), 4, return_token_ids=wants_ids)
        with CompletionsServer() as server:
            answers, channel = answers_over(server, EXTENDED, generation, count=3, connections=2)
        assert [0, 1, 2] == sorted(answers)
        for answer in answers.values():
            assert (32, 4, None, ()) == (
                answer.prompt_tokens,
                answer.output_tokens,
                answer.failure,
                answer.remarks,
            )
            assert [1, 1, 1, 1] == [arrival.tokens for arrival in answer.arrivals]
            assert ((1001, 1002, 1003, 1004) if wants_ids else None) == answer.token_ids
            assert answer.sent_ns <= min(answer.flushed_ns, answer.arrivals[0].at_ns)
            assert answer.arrivals[-1].at_ns <= answer.end_ns
        assert [False, False, True] == sorted(answer.connect_ns is not None for answer in answers.values())
        assert 3 == channel.stats.connects.count

    @pytest.mark.parametrize(
        ("prompts", "path"), [("ids", "/v1/completions"), ("text", "/v1/completions"), ("chat", "/v1/chat/completions")]
    )
    @pytest.mark.parametrize("extended", [True, False])
    def test_forms_of_prompts(self, prompts, path, extended):
        """Each goes where it belongs, and its answer counts."""
        dialect = Dialect(extended=extended, prompts=prompts)
        with CompletionsServer() as server:
            answers, _ = answers_over(server, dialect, Generation(range(1000, 1032), 4, return_token_ids=False))
        assert [path] == server.paths()
        answer = answers[0]
        assert (32, 4, None) == (answer.prompt_tokens, answer.output_tokens, answer.failure)
        assert [1, 1, 1, 1] == [arrival.tokens for arrival in answer.arrivals]

    def test_key(self):
        """It goes with every request, and is not shown."""
        with CompletionsServer(api_key=KEY) as server:
            answers, channel = answers_over(server, PLAIN, Generation([1000], 2, return_token_ids=False), api_key=KEY)
            refused, _ = answers_over(server, PLAIN, Generation([1000], 2, return_token_ids=False))
        assert (None, "http_401") == (answers[0].failure, refused[0].failure.kind)
        assert KEY not in repr(channel)

    @pytest.mark.parametrize(
        ("head", "failure"),
        [
            (b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\n", Failure("http_429", "busy; retry-after: 30")),
            (
                b"HTTP/1.1 308 Permanent Redirect\r\nLocation: https://other/v1\r\n",
                Failure("http_308", "busy; location: https://other/v1"),
            ),
        ],
    )
    def test_refusals(self, head, failure):
        """Nothing is sent again, neither later nor elsewhere: that is told."""
        with RawServer([Do.RECEIVE, head + b"Content-Length: 4\r\n\r\nbusy"]) as server:
            answers, _ = answers_over(server, PLAIN, Generation([1000], 2, return_token_ids=False))
        assert (failure, 1) == (answers[0].failure, len(server.requests))

    def test_a_stream_without_an_end(self):
        """[DONE], usage and finish_reason missing: the answer is cut off, whatever HTTP says."""
        event = b"data: %b\n\n" % json.dumps(chunk("a")).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
        with RawServer([Do.RECEIVE, head + body]) as server:
            answers, _ = answers_over(server, PLAIN, Generation([1000], 2, return_token_ids=False))
        assert ("truncated", 1) == (answers[0].failure.kind, len(answers[0].arrivals))
