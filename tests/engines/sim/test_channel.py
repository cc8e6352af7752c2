"""The way into the simulated engine: the protocol of a connection, in virtual time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from simulations import fleet, ids, prompt

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import NS_PER_S, VirtualClock
from pytest_llmperf.engines.base import Generation
from pytest_llmperf.engines.sim.blocks import answer_ids, block_hashes
from pytest_llmperf.engines.sim.channel import SimConnector
from pytest_llmperf.engines.sim.noise import Noise
from pytest_llmperf.records import Failure

LIMITS = Limits(silence_s=300, exchange_s=3600)

START_NS = 5 * NS_PER_S


def connected(*, blocks=200, noise=None, max_model_len=1000, limits=LIMITS, **words):
    """An open channel, its clock and its fleet."""
    made, _ = fleet(blocks, **words)
    clock = VirtualClock(START_NS)
    connector = SimConnector(made, clock, lambda: noise or Noise(0, 0.0, 0.0), max_model_len, limits)
    channel = connector.open(clock)
    channel.open(4)
    return channel, clock, made


def send(channel, tag, tokens, out, *, return_token_ids=False):
    channel.send(tag, channel.encode(Generation(tokens, out, return_token_ids)))


def answers(channel, count, timeout_s=60.0):
    """So many answers in the order in which they ended."""
    replies = []
    while len(replies) < count:
        assert channel.poll(timeout_s)
        replies += channel.ended()
    return [reply.read() for reply in replies]


def test_an_answer_says_what_was_sent_what_came_and_when():
    """Counts are the engine's, times those of the clock, which stands where the answer ended."""
    channel, clock, _ = connected()
    send(channel, 7, prompt(0, 40), 5)

    (answer,) = answers(channel, 1)

    assert (7, START_NS, START_NS, None) == (answer.tag, answer.sent_ns, answer.flushed_ns, answer.failure)
    assert (40, 5, 0, None) == (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens, answer.token_ids)
    times = [arrival.at_ns for arrival in answer.arrivals]
    assert times == sorted(set(times))
    assert 5 == len(times) == sum(arrival.tokens for arrival in answer.arrivals)
    assert START_NS < times[0] < times[-1] == answer.end_ns == clock.now_ns()


def test_the_ids_are_told_where_they_are_asked_for():
    """They are those that the engine keeps in its cache."""
    channel, _, _ = connected()
    send(channel, 0, prompt(0, 40), 5, return_token_ids=True)

    (answer,) = answers(channel, 1)

    hashes = block_hashes(prompt(0, 40), 16)
    assert answer_ids(prompt(0, 40), hashes, 16, 5).tolist() == list(answer.token_ids)


def test_answers_come_in_the_order_of_their_ends():
    """Not in that of their sends, and each with the clock at its end."""
    channel, clock, _ = connected()
    for tag, out in ((0, 30), (1, 10), (2, 20)):
        send(channel, tag, prompt(tag, 40), out)
    seen = []

    while len(seen) < 3:
        channel.poll(60.0)
        seen += [(reply.tag, reply.end_ns == clock.now_ns(), reply.pieces) for reply in channel.ended()]

    assert [(1, True, 10), (2, True, 20), (0, True, 30)] == seen


def test_waiting_ends_when_it_is_over():
    """The clock has moved by as much, and what was sent meanwhile is not lost."""
    channel, clock, _ = connected()
    send(channel, 0, prompt(0, 40), 500)

    assert 0 == channel.poll(0.001)

    assert START_NS + NS_PER_S // 1000 == clock.now_ns()
    assert [] == list(channel.ended())
    assert 500 == answers(channel, 1)[0].output_tokens


def test_waiting_for_nothing_lets_the_time_pass():
    """As a socket would."""
    channel, clock, _ = connected()

    assert 0 == channel.poll(2.5)

    assert START_NS + 2.5 * NS_PER_S == clock.now_ns()


def test_a_request_longer_than_the_context_is_refused_at_once():
    """Like a server's status 400; the engine has not seen it."""
    channel, clock, made = connected(max_model_len=100)
    send(channel, 3, prompt(0, 90), 11)
    send(channel, 4, prompt(0, 90), 10)

    refused, served = answers(channel, 2)

    assert (3, "http_400", START_NS) == (refused.tag, refused.failure.kind, refused.end_ns)
    assert "the request needs 101 tokens and the context is 100" == refused.failure.detail
    assert (4, None) == (served.tag, served.failure)
    assert 90 == made.counters().prompt
    assert clock.now_ns() > START_NS


@pytest.mark.parametrize(("length", "out"), [(0, 5), (5, 0)])
def test_a_request_without_input_or_output_is_refused(length, out):
    """It would never end."""
    channel, _, _ = connected()
    send(channel, 0, prompt(0, length), out)

    (answer,) = answers(channel, 1)

    assert ("http_400", "a request needs at least one token of input and one of output") == (
        answer.failure.kind,
        answer.failure.detail,
    )


def test_closing_gives_up_what_still_runs():
    """Its blocks come back, and the next channel is not disturbed."""
    channel, clock, made = connected()
    for tag in range(3):
        send(channel, tag, prompt(tag, 40), 500)
    channel.poll(0.1)
    assert made.replicas[0].load == 3

    channel.close()

    assert made.replicas[0].load == 0
    channel = SimConnector(made, clock, lambda: Noise(0, 0.0, 0.0), 1000, LIMITS).open(clock)
    send(channel, 0, prompt(5, 40), 5)
    assert [(0, 5)] == [(answer.tag, answer.output_tokens) for answer in answers(channel, 1)]


def test_an_answer_that_is_late_is_so_with_all_its_tokens():
    """Every time since the send is longer by the same factor, and the clock waits for its end."""
    seen = []
    for noise in (Noise(3, 0.0, 0.0), Noise(3, 0.0, 0.5)):
        channel, clock, _ = connected(noise=noise)
        send(channel, 0, prompt(0, 40), 20)
        (answer,) = answers(channel, 1)
        assert answer.end_ns == clock.now_ns() == answer.arrivals[-1].at_ns
        seen.append(np.array([arrival.at_ns - START_NS for arrival in answer.arrivals]))

    factors = seen[1] / seen[0]
    assert factors[0] > 1.0
    assert factors == pytest.approx(factors[0], rel=1e-6)


def test_a_late_answer_lets_others_pass():
    """Whoever ends first is told first, also if the engine was done with it later."""
    ends = []
    for seed in range(20):
        channel, _, _ = connected(noise=Noise(seed, 0.0, 1.0))
        for tag in range(3):
            send(channel, tag, prompt(tag, 40), 10 + tag)
        told = answers(channel, 3)
        assert sorted(answer.end_ns for answer in told) == [answer.end_ns for answer in told]
        ends.append([answer.tag for answer in told])

    assert [0, 1, 2] in ends
    assert any(tags != [0, 1, 2] for tags in ends)


def test_ids_may_come_in_a_list():
    """As a test of one's own might send them."""
    channel, _, _ = connected()
    channel.send(0, channel.encode(Generation([1000, 1001, 1002], 2, return_token_ids=True)))
    channel.send(1, channel.encode(Generation(ids(1000, 1001, 1002), 2, return_token_ids=True)))

    one, other = answers(channel, 2)

    assert one.token_ids == other.token_ids


def test_another_clock_is_refused():
    """Two clocks would never agree on when something was sent."""
    made, _ = fleet(10)

    with pytest.raises(AssertionError, match="driven by its own clock"):
        SimConnector(made, VirtualClock(), lambda: Noise(0, 0.0, 0.0), 100, LIMITS).open(VirtualClock())


@pytest.mark.parametrize(
    ("limits", "detail", "at_s"),
    [
        (Limits(silence_s=0.002, exchange_s=10.0), "no byte for 0.002 s", 0.002),
        (Limits(silence_s=10.0, exchange_s=0.5), "not finished within 0.5 s", 0.5),
    ],
)
def test_a_client_waits_as_long_as_it_would_for_a_real_server(limits, detail, at_s):
    """In virtual time: the request fails then, and leaves nothing behind."""
    channel, clock, made = connected(limits=limits)

    send(channel, 3, prompt(0, 200), 700)
    (answer,) = answers(channel, 1)

    assert (3, Failure("timeout", detail)) == (answer.tag, answer.failure)
    assert START_NS + round(at_s * NS_PER_S) == answer.end_ns == clock.now_ns()
    assert 0 == made.replicas[0].load


def test_a_request_in_time_is_not_given_up():
    """Silence counts from the last token."""
    channel, *_ = connected()
    send(channel, 0, prompt(0, 20), 200)
    (slow,) = answers(channel, 1)
    times = [START_NS, *(arrival.at_ns for arrival in slow.arrivals)]
    longest_s = max(later - sooner for sooner, later in pairwise(times)) / NS_PER_S
    lasted_s = (slow.end_ns - START_NS) / NS_PER_S
    assert lasted_s > 10 * longest_s

    channel, *_ = connected(limits=Limits(silence_s=1.01 * longest_s, exchange_s=1.01 * lasted_s))
    send(channel, 0, prompt(0, 20), 200)
    (answer,) = answers(channel, 1)

    assert answer.failure is None
