"""The worker: what it does with requests, whatever engine it holds. Real connections, an engine of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import RealClock, VirtualClock
from pytest_llmperf.engines.base import Generation
from pytest_llmperf.engines.in_process import channel as channels
from pytest_llmperf.engines.in_process.channel import InProcessConnector, Link, asked
from pytest_llmperf.engines.in_process.worker import Connection, message
from pytest_llmperf.errors import EngineAnswerError
from pytest_llmperf.records import EngineTimings


class Scripted:
    """Answers as the prompt says: each id is a pause in milliseconds before two tokens; a negative one is an error."""

    def __init__(self):
        self.ended = []
        self.resets = 0

    async def stream(self, prompt, output_tokens):
        try:
            for pause_ms in prompt if isinstance(prompt, list) else [1] * len(prompt.split()):
                if pause_ms < 0:
                    raise ValueError("no such token")
                await asyncio.sleep(pause_ms / 1000)
                yield SimpleNamespace(ids=[7, 8], prompt=prompt)
        finally:
            self.ended.append(len(prompt))

    def new_ids(self, output):
        return output.ids

    def told(self, output):
        timings = {"queue_ns": 3, "prefill_ns": 4}
        return {"prompt_tokens": len(output.prompt), "cached_tokens": 0, "timings": timings}

    def about(self):
        return {"max_model_len": 99}

    def metrics(self):
        return None

    def count(self, text):
        return len(text.split())

    async def reset(self):
        self.resets += 1
        return True


@pytest.fixture
def running():
    """A worker's server in a thread: its engine, and where it listens."""
    engine, loop, served = Scripted(), asyncio.new_event_loop(), set()

    async def serve(reader, writer):
        task = asyncio.current_task()
        served.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await Connection(engine, reader, writer).serve()
        served.discard(task)

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield SimpleNamespace(
        engine=engine, loop=loop, address=Address("127.0.0.1", server.sockets[0].getsockname()[1], tls=False, prefix="")
    )

    async def stop():
        server.close()
        for task in tuple(served):
            task.cancel()
        await asyncio.sleep(0.01)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def opened(running):
    """Open channels to it; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_one(text=False, **limits):
            connector = InProcessConnector(
                address=running.address, limits=Limits(**{"silence_s": 20.0, **limits}), text=text
            )
            channel = connector.open(RealClock())
            stack.callback(channel.close)
            return channel

        yield open_one


def send(channel, tag, *ids):
    channel.send(tag, channel.encode(Generation(ids, 2 * len(ids), return_token_ids=True)))


def ended(channel, count=1):
    """So many answers, by their tags."""
    replies, deadline = [], time.monotonic() + 10
    while len(replies) < count and time.monotonic() < deadline:
        channel.poll(0.1)
        replies += channel.ended()
    assert count == len(replies)
    return {reply.tag: reply.read() for reply in replies}


class TestAnswers:
    """What comes back."""

    def test_times_and_tokens(self, opened):
        """An arrival for each piece, in the order of its time, after the send and before the end."""
        channel = opened()
        send(channel, 4, 5, 20, 1)
        told = ended(channel)[4]
        assert ([2, 2, 2], (7, 8) * 3, None) == ([a.tokens for a in told.arrivals], told.token_ids, told.failure)
        assert (3, 6, 0, EngineTimings(queue_ns=3, prefill_ns=4)) == (
            told.prompt_tokens,
            told.output_tokens,
            told.cached_tokens,
            told.timings,
        )
        times = [told.sent_ns, *(a.at_ns for a in told.arrivals), told.end_ns]
        assert sorted(times) == times
        assert told.arrivals[1].at_ns - told.arrivals[0].at_ns >= 20_000_000
        assert [0] * 3 == [a.late_ns for a in told.arrivals]

    def test_many_at_a_time(self, opened):
        """Each has its own, whatever order they end in; tags may be used again."""
        channel = opened()
        for tag in range(20):
            send(channel, tag, *[20 - tag] * (tag + 1))
        told = ended(channel, 20)
        assert [2 * (tag + 1) for tag in range(20)] == [told[tag].output_tokens for tag in range(20)]
        send(channel, 0, 1, 1)
        assert 4 == ended(channel)[0].output_tokens

    def test_texts(self, opened):
        """A text that is sent as it is."""
        channel = opened(text=True)
        channel.send(1, channel.encode_text("two words", 4))
        assert 4 == ended(channel)[1].output_tokens

    def test_an_error(self, opened, running):
        """Is that request's failure, with what the engine said; the next one is answered."""
        channel = opened()
        send(channel, 1, 1, -1)
        send(channel, 2, 1)
        told = ended(channel, 2)
        assert ("engine_error", "ValueError: no such token") == (told[1].failure.kind, told[1].failure.detail)
        assert (None, None) == (told[1].token_ids, told[2].failure)
        assert [2, 1] == sorted(running.engine.ended, reverse=True)

    def test_nothing(self, opened):
        """An answer without a token is none."""
        channel = opened()
        send(channel, 1)
        assert "no_tokens" == ended(channel)[1].failure.kind


class TestLimits:
    """What takes too long."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("limits", "ids", "said"),
        [
            ({"silence_s": 0.3}, (1, 9000), "no token for 0.3 s"),
            ({"silence_s": 5.0, "exchange_s": 0.3}, (50,) * 200, "not finished within 0.3 s"),
        ],
    )
    def test_given_up(self, opened, running, limits, ids, said):
        """Fails with the limit, and is cancelled in the engine; the tokens that came stand beside it."""
        channel = opened(**limits)
        send(channel, 1, *ids)
        told = ended(channel)[1]
        assert ("timeout", said) == (told.failure.kind, told.failure.detail)
        assert len(told.arrivals) >= 1
        assert [len(ids)] == running.engine.ended

    def test_closing_cancels(self, opened, running):
        """What was under way on a channel ends in the engine."""
        channel = opened()
        send(channel, 1, 9000)
        ask = asked(running.address, "about", 5)
        assert {"max_model_len": 99} == ask
        channel.close()
        deadline = time.monotonic() + 5
        while not running.engine.ended and time.monotonic() < deadline:
            time.sleep(0.005)
        assert [1] == running.engine.ended

    @pytest.mark.slow
    def test_a_loop_that_stands_still(self, opened, running, monkeypatch):
        """Shows no sign of life, which is told from an answer that takes long."""
        monkeypatch.setattr(channels, "_PATIENCE_NS", 0)
        channel, free = opened(silence_s=0.4), threading.Event()
        send(channel, 1, 9000)
        running.loop.call_soon_threadsafe(free.wait, 10)
        told = ended(channel)[1]
        free.set()
        assert told.failure.detail.startswith("no sign of life from the worker process for 0.")


class TestLosing:
    """A worker that goes."""

    def test_under_way(self, running):
        """Every request under way has failed, and so does the next."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = Address("127.0.0.1", listener.getsockname()[1], tls=False, prefix="")
            channel = InProcessConnector(address=address, limits=Limits(silence_s=20.0)).open(RealClock())
            send(channel, 1, 1)
            send(channel, 2, 1)
            listener.accept()[0].close()
        told = ended(channel, 2)
        assert {"connection_closed"} <= {one.failure.kind for one in told.values()} <= {"connection_closed"}
        send(channel, 3, 1)
        assert "connection_closed" == ended(channel)[3].failure.kind
        channel.close()

    def test_a_question_that_the_engine_fails_at(self, running, capfd):
        """Has no answer; why is in the worker's log, and the next one has one."""
        running.engine.metrics = None
        assert asked(running.address, "metrics", 5) is None
        assert "'NoneType' object is not callable" in capfd.readouterr().err
        assert 2 == asked(running.address, "count", 5, text="two words")

    def test_waiting_for_nothing(self, running):
        """A channel whose worker is gone does not keep a processor busy until the next send."""
        connector = InProcessConnector(address=running.address, limits=Limits(silence_s=5.0))
        channel = connector.open(VirtualClock())
        assert 0 == channel.poll(2.0)
        assert 2_000_000_000 == channel._clock.now_ns()

    def test_questions(self):
        """Nobody there to ask is said in a sentence."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = Address("127.0.0.1", listener.getsockname()[1], tls=False, prefix="")
            with pytest.raises(EngineAnswerError, match=r"did not answer within 0\.1 s"):
                asked(address, "about", 0.1)
        with pytest.raises(EngineAnswerError, match=r"does not answer: .*refused"):
            asked(address, "about", 0.1)


def test_it_can_be_sent_to_another_process(running):
    """Several workers may send to one engine."""
    connector = InProcessConnector(address=running.address, limits=Limits(silence_s=3.0))
    copy = pickle.loads(pickle.dumps(connector))
    assert connector == copy
    channel = copy.open(RealClock())
    with contextlib.closing(channel):
        send(channel, 1, 1)
        assert ended(channel)[1].failure is None


HEADERS = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20), max_size=4)


@pytest.mark.slow
@given(st.lists(st.tuples(HEADERS, st.binary(max_size=300)), max_size=6), st.lists(st.integers(1, 50), min_size=1))
def test_messages_in_any_pieces(messages, sizes):
    """Come out whole and in order, however they were cut on the way."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours)
        data = b"".join(message(header, body) for header, body in messages)
        found, number = [], 0
        while data:
            size = sizes[number % len(sizes)]
            theirs.sendall(data[:size])
            data, number = data[size:], number + 1
            found += link.receive(1.0)
        assert messages == found
