"""`engines/completions.py`: what is asked of a server, and what its stream of events adds up to."""

from __future__ import annotations

import json

import pytest
from servers import CompletionsServer

from pytest_llmperf.client import Address, Exchange, HttpClient
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines.base import Generation
from pytest_llmperf.engines.completions import CompletionsChannel, Dialect, error_text, read_answer, request_body
from pytest_llmperf.records import Arrival, Failure

PLAIN, EXTENDED = Dialect(extended=False), Dialect(extended=True)
DONE = b"[DONE]"


def chunk(text="x", *, usage=None, **choice):
    """One event with one choice."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": None, **choice}], "usage": usage}


def usage(completion_tokens, prompt_tokens=32, **more):
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, **more}


def final(completion_tokens, **more):
    """The event that carries nothing but the usage."""
    return {"choices": [], "usage": usage(completion_tokens, **more)}


def read(*events):
    """The answer made of events that arrive one by one at 10, 20, 30, ... ns."""
    payloads = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    fragments = [(10 * number, b"data: %b\n\n" % payload) for number, payload in enumerate(payloads, start=1)]
    return read_answer(Exchange(tag=3, sent_ns=1, status=200, fragments=fragments, end_ns=999))


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

    def test_token_ids_only_when_needed(self):
        """Token ids are not asked for where no later turn continues from them."""
        body = json.loads(request_body("m", Generation([1000], 7, return_token_ids=False), EXTENDED))
        assert "return_token_ids" not in body


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
        answer = read_answer(Exchange(0, 1, status=200, fragments=[(10, body)], end_ns=11))
        assert (Arrival(10, 1), Arrival(10, 1)) == answer.arrivals

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

    def test_times_are_kept(self):
        """Tag, send and end are those of the exchange."""
        answer = read(chunk("a"), final(1), DONE)
        assert (3, 1, 999) == (answer.tag, answer.sent_ns, answer.end_ns)


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
        answer = read_answer(Exchange(0, 1, status=200, fragments=[(5, body)], end_ns=6))
        assert "no_tokens" == answer.failure.kind


class TestFailures:
    """What is wrong becomes the answer's failure; nothing raises."""

    def test_failed_exchange(self):
        """The failure of an exchange is that of its answer."""
        failure = Failure("connection_reset", "while receiving")
        answer = read_answer(Exchange(3, 1, status=200, fragments=[(5, b"data: {}\n\n")], end_ns=9, failure=failure))
        assert (failure, (), 1, 9) == (answer.failure, answer.arrivals, answer.sent_ns, answer.end_ns)

    @pytest.mark.parametrize("status", [204, 400, 401, 404, 429, 500, 503])
    def test_status(self, status):
        """Each status that is not 200 is a kind of its own, with the server's message."""
        exchange = Exchange(3, 1, status=status, fragments=[(5, b'{"error": {"mess'), (6, b'age": "busy"}}')], end_ns=9)
        assert Failure(f"http_{status}", "busy") == read_answer(exchange).failure

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


@pytest.mark.parametrize("wants_ids", [True, False])
def test_channel(wants_ids):
    """A channel sends generations over HTTP and hands their answers back by tag."""
    with CompletionsServer() as server:
        client = HttpClient(Address.parse(server.url), RealClock(), headers={}, silence_s=5)
        channel = CompletionsChannel(client, "tiny", EXTENDED)
        try:
            sent_ns = channel.send(9, Generation(range(1000, 1032), 4, return_token_ids=wants_ids))
            (answer,) = channel.wait(5)
        finally:
            channel.close()
    assert (9, sent_ns, None) == (answer.tag, answer.sent_ns, answer.failure)
    assert (32, 4) == (answer.prompt_tokens, answer.output_tokens)
    assert [1, 1, 1, 1] == [arrival.tokens for arrival in answer.arrivals]
    assert ((1001, 1002, 1003, 1004) if wants_ids else None) == answer.token_ids
    assert channel.busy_ns is client.busy_ns
    assert len(channel.busy_ns) > 0
