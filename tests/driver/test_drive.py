"""The driver's loop, on an engine in virtual time."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fakes import ConcurrentChannel, Script, VirtualChannel, VirtualEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.driver import Driver, drive
from pytest_llmperf.errors import EngineDiedError
from pytest_llmperf.load import closed_loop, constant, poisson, replay, round_robin
from pytest_llmperf.records import Failure, Phase, Remark
from pytest_llmperf.workloads import Session, Turn, multi_round, single_turn

MS = 1_000_000
S = 1_000_000_000


class Together(VirtualChannel):
    """Hands out the answers that are there all at once and in reverse order."""

    def ended(self):
        return list(reversed(super().ended()))


class OneByOne(VirtualChannel):
    """Hands out one answer at a time, the last one sent first."""

    def ended(self):
        return [self._replies.pop()] if self._replies else []


class Deaf(VirtualChannel):
    """Never hears an answer."""

    def poll(self, timeout_s):
        self._engine.clock.sleep(timeout_s)
        return False

    def ended(self):
        return []


class Busy(ConcurrentChannel):
    """Every poll finds something, as long as anything is in flight."""

    def poll(self, timeout_s):
        super().poll(timeout_s or 0.001)
        return bool(self._coming or self._replies)


class Run:
    """A driver over a channel in virtual time, and what it has recorded, in order."""

    def __init__(self, workload, engine=None, channel=VirtualChannel, check=None, record=None):
        self.engine = engine or VirtualEngine()
        self.sessions = dict(enumerate(workload))
        self.records = []
        self.channel = channel(self.engine)
        self.driver = Driver(
            self.channel,
            self.engine.clock,
            run=3,
            phase=Phase.MEASURED,
            check_engine=check or self.engine.check,
            record=record or self.records.append,
        )

    def drive(self, load, start_ns=None, prepare=True):
        """Drive all sessions; returns the records."""
        if prepare:
            self.prepare()
        times = [[turn.at_s for turn in session.turns] for session in self.sessions.values()]
        self.driver.drive(load.schedule(times), start_ns)
        return self.records

    def prepare(self):
        self.driver.prepare(self.sessions, 1)

    def did(self, *kinds):
        """What was asked of the channel, as `send 0`, of these kinds."""
        return [f"{kind} {what}" for kind, what in self.channel.did if kind in kinds]


def driven(workload, load, engine=None, channel=VirtualChannel, **words):
    return Run(workload, engine, channel, **words).drive(load)


def order(records):
    return [(record.session, record.turn) for record in records]


def kinds(records):
    return Counter(record.failure.kind for record in records if record.failure)


def failing(*numbers, **words):
    """A script in which the requests of these numbers fail."""
    return Script(fail=lambda number: Failure("timeout", f"request {number}") if number in numbers else None, **words)


def steady(ttft_s=0.1, itl_s=0.0, **words):
    """A script in which every answer takes as long."""
    return Script(ttft_s=lambda computed, number: ttft_s, itl_s=itl_s, **words)


def rounds(users, count=2):
    return multi_round(users=users, rounds=count, context_tokens=20, input_tokens=4, output_tokens=5)


def singles(requests):
    return single_turn(requests=requests, input_tokens=4, output_tokens=2)


def ids(*numbers):
    return np.array(numbers, np.int32)


def turn(new, answer=None, after=None):
    """A turn of two tokens of answer that continues a session."""
    told = None if answer is None else ids(*answer)
    return Turn(prefix=None, new_ids=ids(*new), output_tokens=2, answer_ids=told, after=after)


def sent(engine):
    return [list(generation.token_ids) for generation in engine.sent]


ROUNDS = rounds(3)


class TestWhatIsSent:
    """Requests are what the workload says."""

    def test_a_turn_continues_from_what_the_engine_really_said(self):
        """Each input is the previous input, the tokens answered to it, and the turn's new ids."""
        engine = VirtualEngine()
        (session,) = rounds(1, 3)

        driven([session], round_robin(), engine)

        first = [*session.context, *session.turns[0].new_ids.tolist()]
        second = [*first, 0, 1, 2, 3, 4, *session.turns[1].new_ids.tolist()]
        third = [*second, 0, 1, 2, 3, 4, *session.turns[2].new_ids.tolist()]
        assert [first, second, third] == [list(sent.token_ids) for sent in engine.sent]

    @pytest.mark.parametrize("channel", [Together, ConcurrentChannel])
    def test_histories_of_interleaved_sessions_do_not_mix(self, channel):
        """Whatever the order of sending, each session continues from its own history."""
        engine = VirtualEngine()
        sessions = list(ROUNDS)

        driven(sessions, round_robin(barrier=True), engine, channel)

        expected = [
            [*session.context, *session.turns[0].new_ids.tolist(), 0, 1, 2, 3, 4, *session.turns[1].new_ids.tolist()]
            for session in sessions
        ]
        assert sorted(expected) == sorted(list(sent.token_ids) for sent in engine.sent[3:])

    def test_an_answer_belongs_to_the_session_of_its_tag(self):
        """The tag, not the order, says whose answer it is."""

        class Signing(VirtualEngine):
            def finished(self, answer):
                return replace(answer, token_ids=(answer.tag,))

        engine = Signing()

        driven(ROUNDS, round_robin(barrier=True), engine, Together)

        expected = {tuple(session.context): number for number, session in enumerate(ROUNDS)}
        assert expected == {tuple(sent.token_ids[:20]): sent.token_ids[24] for sent in engine.sent[3:]}

    def test_a_turn_with_a_prefix_of_its_own_starts_anew(self):
        """A later turn that brings its whole input does not get the history."""
        engine = VirtualEngine()
        turn = Turn(prefix=np.array([7, 8], np.int32), new_ids=np.array([9], np.int32), output_tokens=2)

        driven([Session(turns=(turn, turn))], round_robin(), engine)

        assert [[7, 8, 9], [7, 8, 9]] == [list(sent.token_ids) for sent in engine.sent]

    def test_a_recorded_answer_stands_for_the_real_one(self):
        """The history has what the workload tells, and the server need not say what it generated."""
        engine = VirtualEngine(Script(token_ids=False))
        turns = (turn([7], answer=[70, 71]), turn([8], answer=[80]), turn([9]))

        records = driven([Session(turns=(replace(turns[0], prefix=ids(5)), *turns[1:]))], round_robin(), engine)

        assert [[5, 7], [5, 7, 70, 71, 8], [5, 7, 70, 71, 8, 80, 9]] == sent(engine)
        assert [False] * 3 == [generation.return_token_ids for generation in engine.sent]
        assert {} == kinds(records)

    def test_forks_continue_from_the_same_turn(self):
        """Each from what had been exchanged when that turn ended, whatever came in between."""
        engine = VirtualEngine()
        turns = (replace(turn([7]), prefix=ids(5)), turn([8]), turn([9], after=0), turn([10], after=1))

        driven([Session(turns=turns)], round_robin(), engine)

        assert [[5, 7], [5, 7, 0, 1, 8], [5, 7, 0, 1, 9], [5, 7, 0, 1, 8, 0, 1, 10]] == sent(engine)
        assert [True, True, False, False] == [generation.return_token_ids for generation in engine.sent]

    def test_token_ids_are_asked_for_only_where_a_session_goes_on(self):
        """A session of one turn does not need to know what it was answered."""
        engine = VirtualEngine()

        driven([*singles(1), *ROUNDS], round_robin(), engine)

        assert [False, True, True, True] == [sent.return_token_ids for sent in engine.sent[:4]]

    def test_each_turn_asks_for_its_own_number_of_tokens(self):
        """The generation has the turn's output length."""
        engine = VirtualEngine()
        turns = tuple(
            Turn(prefix=np.array([1], np.int32), new_ids=np.array([2], np.int32), output_tokens=n) for n in (1, 5)
        )

        driven([Session(turns=turns)], round_robin(), engine)

        assert [1, 5] == [sent.output_tokens for sent in engine.sent]

    def test_without_sessions_nothing_is_sent(self):
        """An empty workload ends at once, without waiting."""
        engine = VirtualEngine()

        assert [] == driven([], round_robin(), engine)
        assert 0 == engine.clock.now_ns()


class TestAhead:
    """What can be done before the start is done before it."""

    def test_first_requests_are_encoded_before_the_run_and_later_ones_in_it(self):
        """Preparing encodes a request for each session; driving encodes only what continues an answer."""
        run = Run(ROUNDS)

        run.prepare()
        ahead = run.did("encode", "send")
        run.drive(round_robin(), prepare=False)

        assert ["encode 24"] * 3 == ahead
        assert ["send 0", "send 1", "send 2", "encode 33", "send 0", "encode 33", "send 1", "encode 33", "send 2"] == (
            run.did("encode", "send")[3:]
        )

    def test_what_does_not_fit_into_memory_is_encoded_when_it_is_sent(self, monkeypatch):
        """A workload larger than the room for requests is prepared in part, and sent in full."""
        monkeypatch.setattr(drive, "_ENCODED_AHEAD_BYTES", 60)
        run = Run(singles(4))  # some 24 bytes each

        run.prepare()
        ahead = run.did("encode")
        records = run.drive(round_robin(), prepare=False)

        assert ["encode 4"] * 2 == ahead
        assert ["encode 4"] * 4 == run.did("encode")
        assert [True] * 4 == [record.ok for record in records]

    def test_connections_are_made_before_the_run(self):
        """As many as were asked for."""
        run = Run(singles(1))

        run.driver.prepare(run.sessions, 7)

        assert (7, []) == (run.channel.opened, run.did("send"))


class TestEveryTurn:
    """Nothing is lost and nothing is sent twice."""

    @pytest.mark.parametrize(
        ("load", "channel", "expected"),
        [
            (round_robin(), VirtualChannel, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]),
            (round_robin(barrier=True), VirtualChannel, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]),
            (round_robin(barrier=True), Together, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]),
            (closed_loop(1), VirtualChannel, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]),
            (closed_loop(2), VirtualChannel, [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]),
        ],
    )
    def test_requests_end_in_the_order_that_load_and_engine_make(self, load, channel, expected):
        """Whatever is recorded first, the times say who was answered first."""
        records = driven(ROUNDS, load, channel=channel)

        assert expected == order(sorted(records, key=lambda record: record.end_ns))

    @pytest.mark.parametrize("channel", [VirtualChannel, Together, OneByOne, ConcurrentChannel])
    @pytest.mark.parametrize(
        "load", [round_robin(), round_robin(barrier=True), closed_loop(2), closed_loop(9), constant(50), poisson(9)]
    )
    def test_every_turn_is_recorded_exactly_once(self, load, channel):
        """However answers come back."""
        records = driven(rounds(5, 4), load, channel=channel)

        assert Counter((user, turn) for user in range(5) for turn in range(4)) == Counter(order(records))

    @given(
        counts=st.lists(st.integers(1, 4), max_size=6),
        load=st.sampled_from([round_robin(barrier=True), closed_loop(2), constant(40), poisson(100), replay()]),
        times_s=st.lists(st.sampled_from([0.001, 0.01, 0.5]), min_size=1, max_size=5),
        failed=st.sets(st.integers(0, 20), max_size=4),
        read_s=st.sampled_from([0.0, 0.0005, 0.02]),
    )
    @settings(deadline=None, max_examples=60)
    def test_every_turn_has_one_record_whatever_happens(self, counts, load, times_s, failed, read_s):
        """Answered, failed, or never sent because an earlier one failed."""
        script = failing(*failed, ttft_s=lambda computed, number: times_s[number % len(times_s)], read_s=read_s)
        sessions = [session for count in counts for session in rounds(1, count)]

        records = driven(sessions, load, VirtualEngine(script), ConcurrentChannel)

        assert sorted((n, turn) for n, count in enumerate(counts) for turn in range(count)) == sorted(order(records))
        for record in records:
            earlier = [r for r in records if r.session == record.session and r.turn < record.turn]
            abandoned = record.failure is not None and record.failure.kind == "abandoned"
            assert abandoned == any(not r.ok for r in earlier)
            assert abandoned or all(r.end_ns <= record.sent_ns for r in earlier)

    def test_a_load_that_is_cut_short_abandons_nothing(self):
        """Turns that the load has no time or no number for were never meant to be sent."""
        for load in (closed_loop(2, duration_s=0.25), closed_loop(2, max_requests=6), constant(10, max_requests=4)):
            records = driven(rounds(4, 9), load, VirtualEngine(steady()), ConcurrentChannel)

            assert 0 < len(records) < 36
            assert {None} == {record.failure for record in records}

    def test_a_failure_in_a_load_that_is_cut_short_abandons_its_own_session(self):
        """The session's further turns are missing because of the failure, whatever else was cut."""
        records = driven(rounds(2, 3), closed_loop(1, max_requests=2), VirtualEngine(failing(0)), ConcurrentChannel)

        assert [(0, 0), (0, 1), (0, 2), (1, 0)] == order(records)
        assert {"timeout": 1, "abandoned": 2} == kinds(records)


class TestRecords:
    """What is written of a request."""

    def test_a_record_has_what_was_asked_and_what_was_answered(self):
        """Lengths, counts and times of a request are all there."""
        engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.010, itl_s=0.002), clock=VirtualClock(1000))
        workload = multi_round(users=1, rounds=2, context_tokens=32, input_tokens=4, output_tokens=2)

        first, second = driven(workload, round_robin(), engine)

        assert (3, Phase.MEASURED, 0, 0) == (first.run, first.phase, first.session, first.turn)
        assert (1000, 1000, 1000 + 12 * MS) == (first.released_ns, first.sent_ns, first.end_ns)
        assert (Arrival(1000 + 10 * MS, 1), Arrival(1000 + 12 * MS, 1)) == first.arrivals
        assert (4, 36, 2) == (first.new_tokens, first.input_tokens, first.output_tokens_asked)
        assert (36, 2, 0) == (first.prompt_tokens, first.output_tokens, first.cached_tokens)
        assert (4, 42, 32, None) == (second.new_tokens, second.input_tokens, second.cached_tokens, second.failure)

    def test_a_record_has_what_the_channel_saw_of_the_sending(self):
        """When the last byte had left, what connecting took, and what was odd about the answer."""
        remark = Remark("no_usage", "it did not count")

        class Telling(VirtualEngine):
            def finished(self, answer):
                return replace(answer, connect_ns=7 * answer.tag, remarks=(remark,))

        records = driven(singles(2), closed_loop(1), Telling(steady(send_s=0.003)))

        assert [3 * MS, 3 * MS] == [record.flushed_ns - record.sent_ns for record in records]
        assert [0, 7] == [record.connect_ns for record in records]
        assert [(remark,), (remark,)] == [record.remarks for record in records]

    def test_a_turn_is_released_by_the_end_of_the_answer_it_waited_for(self):
        """One user after another: each request is released when the one before has ended."""
        records = driven(ROUNDS, round_robin())

        assert [record.end_ns for record in records[:-1]] == [record.released_ns for record in records[1:]]

    def test_the_time_that_the_client_takes_comes_after_the_release(self):
        """Reading an answer that a later turn needs delays the send, not the release."""
        first, second = driven(rounds(1), round_robin(), VirtualEngine(steady(read_s=0.002)))

        assert (first.end_ns, first.end_ns + 2 * MS) == (second.released_ns, second.sent_ns)

    def test_the_first_turns_are_released_by_the_start_of_the_run(self):
        """With a barrier all of a round have one release, though the engine serves them in turn."""
        engine = VirtualEngine(clock=VirtualClock(77))

        records = driven(ROUNDS, round_robin(barrier=True), engine)

        assert [77, 77, 77] == [record.released_ns for record in records[:3]]
        assert [records[2].end_ns] * 3 == [record.released_ns for record in records[3:]]

    def test_nothing_is_sent_before_a_start_that_was_agreed(self):
        """All times of the schedule count from it."""
        engine = VirtualEngine(steady(), clock=VirtualClock(5 * S))

        records = Run(singles(2), engine, ConcurrentChannel).drive(constant(1), start_ns=7 * S)

        assert [7 * S, 8 * S] == [record.sent_ns for record in records]
        assert [7 * S, 8 * S] == [record.released_ns for record in records]

    def test_a_start_that_has_passed_makes_sends_late(self):
        """A worker that comes late does not move the schedule."""
        engine = VirtualEngine(steady(), clock=VirtualClock(5 * S))

        records = Run(singles(2), engine, ConcurrentChannel).drive(constant(1), start_ns=4 * S + 1)

        assert [4 * S + 1, 5 * S + 1] == [record.released_ns for record in records]
        assert [5 * S, 5 * S + 1] == [record.sent_ns for record in records]


class TestOpenLoads:
    """Sends that do not wait for answers."""

    def test_requests_are_sent_at_their_times_although_answers_are_missing(self):
        """A server that takes three seconds gets a request every tenth of one."""
        records = driven(singles(20), constant(10), VirtualEngine(steady(3.0)), ConcurrentChannel)

        assert [n * S // 10 for n in range(20)] == [record.sent_ns for record in records]
        assert [record.released_ns for record in records] == [record.sent_ns for record in records]
        assert records[0].end_ns > records[-1].sent_ns

    def test_a_late_send_keeps_the_time_for_which_it_was_meant(self):
        """A client that takes 30 ms for a send falls behind 100 requests a second, and the records show it."""
        records = driven(singles(10), constant(100), VirtualEngine(steady(send_s=0.030)), ConcurrentChannel)

        assert [n * 10 * MS for n in range(10)] == [record.released_ns for record in records]
        assert [n * 30 * MS for n in range(10)] == [record.sent_ns for record in records]

    def test_a_recorded_turn_that_has_to_wait_for_its_answer_is_late(self):
        """It keeps the time of the recording."""
        turns = [
            Turn(prefix=np.array([1], np.int32), new_ids=np.array([2], np.int32), output_tokens=1, at_s=at_s)
            for at_s in (0.0, 0.5)
        ]

        first, second = driven([Session(turns=tuple(turns))], replay(), VirtualEngine(steady(2.0)), ConcurrentChannel)

        assert (2 * S, S // 2, 2 * S) == (first.end_ns, second.released_ns, second.sent_ns)

    def test_a_turn_that_follows_an_answer_is_sent_after_the_think_time(self):
        """Its time counts from the answer's end, however many others are in flight."""
        records = driven(rounds(2), constant(1, think_s=0.25), VirtualEngine(steady(0.1)), ConcurrentChannel)

        sent = {(record.session, record.turn): record.sent_ns for record in records}
        assert {(0, 0): 0, (0, 1): 350 * MS, (1, 0): S, (1, 1): 1350 * MS} == sent

    @pytest.mark.parametrize("read_s", [0.0, 0.0009])
    def test_reading_answers_does_not_delay_a_send(self, read_s):
        """As long as reading takes less than a millisecond, what is due is sent when it is due."""
        engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.0003 + number % 7 * 0.001, read_s=read_s))

        records = driven(singles(200), poisson(400, seed=3), engine, ConcurrentChannel)

        assert 200 == len(records)
        assert [0] * 200 == [record.sent_ns - record.released_ns for record in records]


class TestReading:
    """Answers are read when nothing waits."""

    def test_answers_that_nothing_waits_for_are_read_when_it_is_quiet(self):
        """While others are on their way and none is there, one after another is read."""
        run = Run(
            singles(3),
            VirtualEngine(Script(ttft_s=lambda computed, number: [0.1, 0.1, 9.0][number])),
            ConcurrentChannel,
        )

        run.drive(closed_loop(3))

        assert ["send 0", "send 1", "send 2", "read 0", "read 1", "read 2"] == run.did("send", "read")
        assert 9 * S > run.records[1].end_ns

    @pytest.mark.parametrize(("tokens", "waits"), [(2, False), (500, False), (501, True)])
    def test_only_long_ones_wait_for_quiet_sockets(self, tokens, waits):
        """A short one is read between two looks at them, one at a time; a long one would keep the loop away."""

        recorded_ns = []
        engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.1 * (number + 1), itl_s=0.0))
        workload = single_turn(requests=6, input_tokens=4, output_tokens=tokens)
        run = Run(workload, engine, Busy, record=lambda record: recorded_ns.append(engine.clock.now_ns()))

        run.drive(closed_loop(6))

        assert [f"read {n}" for n in range(6)] == run.did("read")
        assert waits == all(at_ns >= 600 * MS for at_ns in recorded_ns)
        assert waits or all(100 * MS * (n + 1) <= at < 102 * MS * (n + 1) for n, at in enumerate(recorded_ns))

    def test_a_send_that_is_due_soon_goes_before_reading(self):
        """With the next send less than a millisecond away, answers stay unread until it is out."""
        run = Run(singles(50), VirtualEngine(steady(0.0001)), ConcurrentChannel)

        run.drive(constant(1250))

        assert [f"send {n}" for n in range(50)] == run.did("send", "read")[:50]

    def test_with_time_to_spare_they_are_read_between_sends(self):
        """With ten milliseconds between sends each answer is read before the next send."""
        run = Run(singles(3), VirtualEngine(steady(0.001)), ConcurrentChannel)

        run.drive(constant(100))

        assert ["send 0", "read 0", "send 1", "read 1", "send 2", "read 2"] == run.did("send", "read")

    def test_no_more_are_kept_unread_than_a_bound(self, monkeypatch):
        """A client that is never quiet reads all the same, or its memory would fill; the bound is on pieces."""
        monkeypatch.setattr(drive, "_UNREAD", 10)
        most = 0

        class Counting(VirtualEngine):
            def finished(self, answer):
                nonlocal most
                most = max(most, len(self.sent) - len(run.records))
                return answer

        run = Run(singles(50), Counting(steady(0.0001)), ConcurrentChannel)

        run.drive(constant(1250))

        assert 50 == len(run.records)
        assert 5 < most <= 8

    def test_beyond_it_long_ones_do_not_wait_either(self, monkeypatch):
        """Although the sockets are never quiet."""
        monkeypatch.setattr(drive, "_UNREAD", 2 * 501)
        recorded_ns = []
        engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.1 * (number + 1), itl_s=0.0))
        workload = single_turn(requests=6, input_tokens=4, output_tokens=501)
        run = Run(workload, engine, Busy, record=lambda record: recorded_ns.append(engine.clock.now_ns() // MS))

        run.drive(closed_loop(6))

        assert [300, 400, 500] == [at_ms // 10 * 10 for at_ms in recorded_ns[:3]]
        assert all(at_ms >= 600 for at_ms in recorded_ns[3:])

    def test_an_answer_that_a_later_turn_needs_is_read_at_once(self):
        """Between its end and the next send of its session nothing else is read."""
        run = Run([*singles(1), *rounds(1, 3)], VirtualEngine(steady()), ConcurrentChannel)

        run.drive(closed_loop(2))

        assert ["send 0", "send 1", "read 1", "send 1", "read 0", "read 1", "send 1", "read 1"] == (
            run.did("send", "read")
        )

    def test_no_answer_is_taken_late_because_another_one_is_recorded(self):
        """Answers of last turns are recorded only after everything that they made due was sent."""
        sent_when_recorded = []
        run = Run(
            singles(4), VirtualEngine(), Together, record=lambda record: sent_when_recorded.append(len(run.engine.sent))
        )

        run.drive(closed_loop(2))

        assert [4, 4, 4, 4] == sent_when_recorded


class TestFailures:
    """What goes wrong with requests is recorded."""

    def test_a_failed_turn_ends_its_session_and_the_others_go_on(self):
        """What could not continue is recorded as abandoned: never sent, with the turn that failed."""
        engine = VirtualEngine(failing(1))

        records = driven(rounds(2, 3), round_robin(), engine)

        assert [(0, 0), (1, 0), (1, 1), (1, 2), (0, 1), (0, 2)] == order(records)
        assert [None, "timeout", "abandoned", "abandoned", None, None] == [
            r.failure and r.failure.kind for r in records
        ]
        assert "never sent, because turn 0 of the session failed" == records[2].failure.detail
        assert (None, (), 0, 4, 5) == (
            records[2].sent_ns,
            records[2].arrivals,
            records[2].input_tokens,
            records[2].new_tokens,
            records[2].output_tokens_asked,
        )
        assert 4 == len(engine.sent)

    @pytest.mark.parametrize("channel", [VirtualChannel, ConcurrentChannel])
    @pytest.mark.parametrize(
        "load", [round_robin(), round_robin(barrier=True), closed_loop(2), constant(10), poisson(10)]
    )
    def test_a_run_in_which_everything_fails_still_ends(self, load, channel):
        """Every turn has a record, though only first turns were sent."""
        engine = VirtualEngine(failing(*range(100)))

        records = driven(ROUNDS, load, engine, channel)

        assert {"timeout": 3, "abandoned": 3} == kinds(records)
        assert 3 == len(engine.sent)

    def test_a_failure_of_the_last_turn_abandons_nothing(self):
        """There is nothing left of the session."""
        records = driven(rounds(1), round_robin(), VirtualEngine(failing(1)))

        assert [(0, 0), (0, 1)] == order(records)
        assert {"timeout": 1} == kinds(records)

    def test_an_answer_without_token_ids_cannot_be_continued(self):
        """Where a later turn needs them, their absence is a failure of its own kind, times kept."""
        records = driven(ROUNDS, round_robin(), VirtualEngine(Script(token_ids=False)))

        assert {"no_token_ids": 3, "abandoned": 3} == kinds(records)
        assert 5 == len(records[0].arrivals)

    def test_the_last_turn_needs_no_token_ids(self):
        """A session of one turn is answered completely without them."""
        records = driven(singles(2), round_robin(), VirtualEngine(Script(token_ids=False)))

        assert [True, True] == [record.ok for record in records]


class TestTheEngine:
    """Whether it lives is looked at when nothing else is to be done."""

    @pytest.mark.parametrize("channel", [VirtualChannel, Together, ConcurrentChannel])
    def test_when_it_has_died_all_that_had_ended_is_recorded(self, channel):
        """The error of the check comes through after every answer, failed ones included, was written."""
        run = Run(ROUNDS, VirtualEngine(failing(1, 2), dies_after=2), channel)

        with pytest.raises(EngineDiedError, match="killed by SIGKILL"):
            run.drive(round_robin(barrier=True))

        assert {
            (0, 0): None,
            (1, 0): "timeout",
            (2, 0): "timeout",
            (1, 1): "abandoned",
            (2, 1): "abandoned",
        }.items() <= {
            (record.session, record.turn): record.failure and record.failure.kind for record in run.records
        }.items()

    def test_answers_that_were_not_yet_read_are_recorded_before_the_error(self):
        """What had ended is not lost with the engine, though nobody had looked at it."""
        script = Script(ttft_s=lambda computed, number: 0.1 if number < 4 else 1e6, read_s=0.01)
        run = Run(singles(5), VirtualEngine(script, dies_after=4), ConcurrentChannel)

        with pytest.raises(EngineDiedError):
            run.drive(constant(1000))

        assert [(n, 0) for n in range(4)] == order(run.records)
        assert run.engine.clock.now_ns() < 10 * S

    def test_what_is_unread_when_a_check_raises_is_recorded(self, monkeypatch):
        """Also where the error comes in the middle of a busy time."""
        monkeypatch.setattr(drive, "WAIT_S", 0.0005)
        unread = []

        def check():
            unread.append(len(run.engine.sent) - len(run.records))
            if len(unread) == 3:
                raise EngineDiedError("gone")

        run = Run(singles(9), VirtualEngine(steady(0.0001)), ConcurrentChannel, check=check)

        with pytest.raises(EngineDiedError):
            run.drive(constant(1250))

        assert 3 <= unread[-1] == len(run.records) == len(run.engine.sent) < 9

    def test_after_a_failure_it_is_looked_after_as_soon_as_it_is_quiet(self):
        """Not only a second later."""
        at_ns = []
        engine = VirtualEngine(Script(fail=lambda number: Failure("reset", "") if number == 0 else None))
        run = Run(singles(2), engine, ConcurrentChannel, check=lambda: at_ns.append(engine.clock.now_ns()))

        run.drive(constant(2))

        assert at_ns[0] < S // 2 < at_ns[1]

    def test_one_that_stays_silent_is_looked_after(self):
        """When no answer comes for a while, the engine is checked, and its error comes through."""

        def check():
            raise EngineDiedError("gone")

        run = Run(ROUNDS, channel=Deaf, check=check)

        with pytest.raises(EngineDiedError, match="gone"):
            run.drive(round_robin())

        assert run.engine.clock.now_ns() <= 3 * S

    def test_a_slow_one_is_waited_for(self):
        """Silence alone is no failure: as long as the engine lives, the driver waits on, looking every few seconds."""
        checks = []

        records = driven(
            singles(2), closed_loop(1), VirtualEngine(steady(30.0)), ConcurrentChannel, check=lambda: checks.append(1)
        )

        assert [True] * 2 == [record.ok for record in records]
        assert 20 <= len(checks) <= 61

    def test_it_is_looked_after_at_the_end(self):
        """A run in which it was never quiet still ends with a look."""
        checks = []

        driven(singles(1), round_robin(), check=lambda: checks.append("alive"))

        assert ["alive"] == checks


class TestTheCollector:
    """The cyclic garbage collector does not stop the loop."""

    @pytest.fixture(autouse=True)
    def enabled(self):
        """Whatever the test does, it is on afterwards."""
        gc.enable()
        yield
        gc.enable()

    def test_it_is_off_while_the_loop_runs_and_on_again_afterwards(self):
        """Sends and reads happen without it."""
        seen = []

        class Looking(VirtualEngine):
            def finished(self, answer):
                seen.append(gc.isenabled())
                return answer

        driven(ROUNDS, closed_loop(2), Looking())

        assert [False] * 6 == seen
        assert gc.isenabled()

    @pytest.mark.parametrize("error", [EngineDiedError("gone"), KeyboardInterrupt()])
    def test_it_is_on_again_after_an_error(self, error):
        """Whatever ends the run."""

        def check():
            assert not gc.isenabled()
            raise error

        with pytest.raises(type(error)):
            driven(ROUNDS, round_robin(), channel=Deaf, check=check)

        assert gc.isenabled()

    def test_where_it_was_off_it_stays_off(self):
        """Someone else's setting is left alone."""
        gc.disable()

        driven(ROUNDS, round_robin())

        assert not gc.isenabled()


def test_records_are_in_the_order_of_the_ends_of_each_session():
    """Within a session a turn is recorded before the next."""
    records = driven(rounds(4, 5), poisson(30), VirtualEngine(Script(read_s=0.001)), ConcurrentChannel)

    for user in range(4):
        mine = [record for record in records if record.session == user]
        assert all(a.turn + 1 == b.turn and a.end_ns <= b.released_ns for a, b in pairwise(mine))
