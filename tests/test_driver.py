"""The driver, on an engine in virtual time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fakes import Script, VirtualChannel, VirtualEngine

from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.driver import Driver
from pytest_llmperf.engines.base import Answer
from pytest_llmperf.errors import EngineDiedError
from pytest_llmperf.load import closed_loop, round_robin
from pytest_llmperf.records import Arrival, Failure, Phase
from pytest_llmperf.workloads import Session, Turn, multi_round, single_turn

MS = 1_000_000


class Together(VirtualChannel):
    """Answers only what had been sent when it was asked, all of it at once and in reverse order."""

    def wait(self, timeout_s):
        return list(reversed(super().wait(timeout_s)))


class OneByOne(VirtualChannel):
    """Hands out one answer at a time, the last one sent first."""

    def wait(self, timeout_s):
        return [self._answers.pop()] if self._answers else []


def drive(workload, load, engine=None, channel=VirtualChannel, check=None):
    """The records of one run, in the order in which they were recorded."""
    engine = engine or VirtualEngine()
    sessions = list(workload)
    records = []
    driver = Driver(
        channel(engine),
        engine.clock,
        run=3,
        phase=Phase.MEASURED,
        check_engine=check or engine.check,
        record=records.append,
    )
    driver.drive(sessions, load.schedule([len(session.turns) for session in sessions]))
    return records


def order(records):
    return [(record.session, record.turn) for record in records]


def failing(*numbers):
    """A script in which the requests of these numbers fail."""
    return Script(fail=lambda number: Failure("timeout", f"request {number}") if number in numbers else None)


ROUNDS = multi_round(users=3, rounds=2, context_tokens=20, input_tokens=4, output_tokens=5)


def test_a_turn_continues_from_what_the_engine_really_said():
    """Each input is the previous input, the tokens answered to it, and the turn's new ids."""
    engine = VirtualEngine()
    (session,) = multi_round(users=1, rounds=3, context_tokens=20, input_tokens=4, output_tokens=5)

    drive([session], round_robin(), engine)

    first = [*session.context, *session.turns[0].new_ids.tolist()]
    second = [*first, 0, 1, 2, 3, 4, *session.turns[1].new_ids.tolist()]
    third = [*second, 0, 1, 2, 3, 4, *session.turns[2].new_ids.tolist()]
    assert [first, second, third] == [list(sent.token_ids) for sent in engine.sent]


def test_histories_of_interleaved_sessions_do_not_mix():
    """Whatever the order of sending, each session continues from its own history."""
    engine = VirtualEngine()
    sessions = list(ROUNDS)

    drive(sessions, round_robin(barrier=True), engine, Together)

    expected = [
        [*session.context, *session.turns[0].new_ids.tolist(), 0, 1, 2, 3, 4, *session.turns[1].new_ids.tolist()]
        for session in sessions
    ]
    assert sorted(expected) == sorted(list(sent.token_ids) for sent in engine.sent[3:])


def test_a_turn_with_a_prefix_of_its_own_starts_anew():
    """A later turn that brings its whole input does not get the history."""
    engine = VirtualEngine()
    turn = Turn(prefix=np.array([7, 8], np.int32), new_ids=np.array([9], np.int32), output_tokens=2)

    drive([Session(turns=(turn, turn))], round_robin(), engine)

    assert [[7, 8, 9], [7, 8, 9]] == [list(sent.token_ids) for sent in engine.sent]


def test_token_ids_are_asked_for_only_where_a_session_goes_on():
    """A session of one turn does not need to know what it was answered."""
    engine = VirtualEngine()

    drive([*single_turn(requests=1, input_tokens=4, output_tokens=2), *ROUNDS], round_robin(), engine)

    assert [False, True, True, True] == [sent.return_token_ids for sent in engine.sent[:4]]


def test_each_turn_asks_for_its_own_number_of_tokens():
    """The generation has the turn's output length."""
    engine = VirtualEngine()
    turns = tuple(
        Turn(prefix=np.array([1], np.int32), new_ids=np.array([2], np.int32), output_tokens=n) for n in (1, 5)
    )

    drive([Session(turns=turns)], round_robin(), engine)

    assert [1, 5] == [sent.output_tokens for sent in engine.sent]


@pytest.mark.parametrize(
    ("load", "channel", "expected"),
    [
        (round_robin(), VirtualChannel, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]),
        (round_robin(barrier=True), VirtualChannel, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]),
        (round_robin(barrier=True), Together, [(2, 0), (1, 0), (0, 0), (2, 1), (1, 1), (0, 1)]),
        (closed_loop(1), VirtualChannel, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]),
        (closed_loop(2), VirtualChannel, [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]),
        (closed_loop(2), OneByOne, [(1, 0), (1, 1), (2, 0), (2, 1), (0, 0), (0, 1)]),
    ],
)
def test_requests_end_in_the_order_that_load_and_engine_make(load, channel, expected):
    """The record of each turn is written when it has ended."""
    assert expected == order(drive(ROUNDS, load, channel=channel))


@pytest.mark.parametrize("channel", [VirtualChannel, Together, OneByOne])
@pytest.mark.parametrize("load", [round_robin(), round_robin(barrier=True), closed_loop(2), closed_loop(9)])
def test_every_turn_is_recorded_exactly_once(load, channel):
    """However answers come back, nothing is lost and nothing is sent twice."""
    workload = multi_round(users=5, rounds=4, context_tokens=20, input_tokens=4, output_tokens=3)

    records = drive(workload, load, channel=channel)

    assert Counter({(user, turn): 1 for user in range(5) for turn in range(4)}) == Counter(order(records))


def test_a_record_has_what_was_asked_and_what_was_answered():
    """Lengths, counts and times of a request are all there."""
    engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.010, itl_s=0.002), clock=VirtualClock(1000))

    first, second = drive(
        multi_round(users=1, rounds=2, context_tokens=32, input_tokens=4, output_tokens=2), round_robin(), engine
    )

    assert (3, Phase.MEASURED, 0, 0) == (first.run, first.phase, first.session, first.turn)
    assert (1000, 1000, 1000 + 12 * MS) == (first.released_ns, first.sent_ns, first.end_ns)
    assert (Arrival(1000 + 10 * MS, 1), Arrival(1000 + 12 * MS, 1)) == first.arrivals
    assert (4, 36, 2) == (first.new_tokens, first.input_tokens, first.output_tokens_asked)
    assert (36, 2, 0) == (first.prompt_tokens, first.output_tokens, first.cached_tokens)
    assert (4, 42, 32, None) == (second.new_tokens, second.input_tokens, second.cached_tokens, second.failure)


def test_a_turn_is_released_by_the_end_of_the_answer_it_waited_for():
    """One user after another: each request is released when the one before has ended."""
    records = drive(ROUNDS, round_robin())

    assert [record.end_ns for record in records[:-1]] == [record.released_ns for record in records[1:]]


def test_the_first_turns_are_released_by_the_start_of_the_run():
    """With a barrier all of a round have one release, though the engine serves them in turn."""
    engine = VirtualEngine(clock=VirtualClock(77))

    records = drive(ROUNDS, round_robin(barrier=True), engine)

    assert [77, 77, 77] == [record.released_ns for record in records[:3]]
    assert [records[2].end_ns] * 3 == [record.released_ns for record in records[3:]]


def test_a_failed_turn_ends_its_session_and_the_others_go_on():
    """What could not continue is recorded as abandoned: never sent, with the turn that failed."""
    engine = VirtualEngine(failing(1))

    records = drive(
        multi_round(users=2, rounds=3, context_tokens=20, input_tokens=4, output_tokens=5), round_robin(), engine
    )

    assert [(0, 0), (1, 0), (1, 1), (1, 2), (0, 1), (0, 2)] == order(records)
    assert [None, "timeout", "abandoned", "abandoned", None, None] == [r.failure and r.failure.kind for r in records]
    assert "never sent, because turn 0 of the session failed" == records[2].failure.detail
    assert (None, (), 0, 4, 5) == (
        records[2].sent_ns,
        records[2].arrivals,
        records[2].input_tokens,
        records[2].new_tokens,
        records[2].output_tokens_asked,
    )
    assert 4 == len(engine.sent)


@pytest.mark.parametrize("load", [round_robin(), round_robin(barrier=True), closed_loop(2)])
def test_a_run_in_which_everything_fails_still_ends(load):
    """Every turn has a record, though only first turns were sent."""
    engine = VirtualEngine(failing(*range(100)))

    records = drive(ROUNDS, load, engine)

    assert {"timeout": 3, "abandoned": 3} == Counter(record.failure.kind for record in records)
    assert 3 == len(engine.sent)


def test_a_failure_of_the_last_turn_abandons_nothing():
    """There is nothing left of the session."""
    records = drive(
        multi_round(users=1, rounds=2, context_tokens=20, input_tokens=4, output_tokens=5),
        round_robin(),
        VirtualEngine(failing(1)),
    )

    assert [(0, 0), (0, 1)] == order(records)
    assert ["timeout"] == [record.failure.kind for record in records if record.failure]


def test_an_answer_without_token_ids_cannot_be_continued():
    """Where a later turn needs them, their absence is a failure of its own kind, times kept."""
    records = drive(ROUNDS, round_robin(), VirtualEngine(Script(token_ids=False)))

    assert {"no_token_ids": 3, "abandoned": 3} == Counter(record.failure.kind for record in records)
    assert 5 == len(records[0].arrivals)


def test_the_last_turn_needs_no_token_ids():
    """A session of one turn is answered completely without them."""
    workload = single_turn(requests=2, input_tokens=4, output_tokens=2)

    records = drive(workload, round_robin(), VirtualEngine(Script(token_ids=False)))

    assert [True, True] == [record.ok for record in records]


@pytest.mark.parametrize("channel", [VirtualChannel, Together])
def test_when_the_engine_has_died_all_that_had_ended_is_recorded(channel):
    """The error of the check comes through after every answer, failed ones included, was written."""
    engine = VirtualEngine(failing(1, 2), dies_after=2)
    records = []
    sessions = list(ROUNDS)
    driver = Driver(
        channel(engine),
        engine.clock,
        run=0,
        phase=Phase.MEASURED,
        check_engine=engine.check,
        record=records.append,
    )

    with pytest.raises(EngineDiedError, match="killed by SIGKILL"):
        driver.drive(sessions, round_robin(barrier=True).schedule([2, 2, 2]))

    assert {(0, 0): None, (1, 0): "timeout", (2, 0): "timeout", (1, 1): "abandoned", (2, 1): "abandoned"} == {
        (record.session, record.turn): record.failure and record.failure.kind for record in records
    }


def test_nothing_is_sent_to_an_engine_that_has_died():
    """After a failed request the engine is looked after before the next one is sent."""
    engine = VirtualEngine(failing(0), dies_after=0)

    with pytest.raises(EngineDiedError):
        drive(ROUNDS, round_robin(), engine)

    assert 1 == len(engine.sent)


def test_an_engine_that_stays_silent_is_looked_after():
    """When no answer comes for a while, the engine is checked, and its error comes through."""

    class Silent(VirtualChannel):
        def wait(self, timeout_s):
            return []

    def check():
        raise EngineDiedError("gone")

    with pytest.raises(EngineDiedError, match="gone"):
        drive(ROUNDS, round_robin(), channel=Silent, check=check)


def test_a_slow_engine_is_waited_for():
    """Silence alone is no failure: as long as the engine lives, the driver waits on."""

    class Slow(VirtualChannel):
        waits = 0

        def wait(self, timeout_s):
            Slow.waits += 1
            return super().wait(timeout_s) if Slow.waits % 3 == 0 else []

    checks = []

    records = drive(ROUNDS, round_robin(), channel=Slow, check=lambda: checks.append("alive"))

    assert [True] * 6 == [record.ok for record in records]
    assert ["alive"] * 12 == checks


def test_no_answer_is_taken_late_because_another_one_is_written():
    """Of answers that come together, all are continued before any is recorded."""
    engine = VirtualEngine()
    sent_when_recorded = []
    sessions = list(multi_round(users=2, rounds=2, context_tokens=20, input_tokens=4, output_tokens=5))
    driver = Driver(
        Together(engine),
        engine.clock,
        run=0,
        phase=Phase.MEASURED,
        check_engine=engine.check,
        record=lambda record: sent_when_recorded.append(len(engine.sent)),
    )

    driver.drive(sessions, closed_loop(2).schedule([2, 2]))

    assert [4, 4, 4, 4] == sent_when_recorded


def test_an_answer_belongs_to_the_session_of_its_tag():
    """The tag, not the order, says whose answer it is."""

    class Signed(Together):
        def send(self, tag, generation):
            at_ns = self._engine.clock.now_ns()
            self._engine.sent.append(generation)
            self._answers.append(
                Answer(tag=tag, sent_ns=at_ns, end_ns=at_ns, arrivals=(Arrival(at_ns, 1),), token_ids=(tag,))
            )
            return at_ns

    engine = VirtualEngine()

    drive(ROUNDS, round_robin(barrier=True), engine, Signed)

    expected = {tuple(session.context): number for number, session in enumerate(ROUNDS)}
    assert expected == {tuple(sent.token_ids[:20]): sent.token_ids[24] for sent in engine.sent[3:]}


def test_without_sessions_nothing_is_sent():
    """An empty workload ends at once, without waiting."""
    assert [] == drive([], round_robin())
