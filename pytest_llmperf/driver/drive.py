"""One loop: send what is due, receive what is there, tell the load what has ended.

Between an answer and the next send only the session's history is put together. Answers that nothing
waits for are read in the pauses between two looks at the sockets, and nothing is written but then.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_llmperf.clock import NS_PER_MS, NS_PER_S, Clock
from pytest_llmperf.engines.base import Answer, Channel, Generation, Reply
from pytest_llmperf.load import Release, Schedule
from pytest_llmperf.records import ABANDONED, Failure, Phase, RequestRecord
from pytest_llmperf.workloads import Session, Turn
from pytest_llmperf.workloads.base import Ids

WAIT_S = 1.0
"""How long to wait before looking again whether the engine is alive."""
_READING_PAUSE_S = 500e-6
"""How long to see whether the sockets are quiet, with answers to read."""
_READING_NS = NS_PER_MS + int(_READING_PAUSE_S * NS_PER_S)
"""That pause, and more than reading an answer mostly takes; a send that is due earlier goes first."""
_AWAY_NS = NS_PER_MS
"""How long the sockets wait at most while answers that have ended are continued."""
_FEW = 8
"""Sockets served at a time by a client with time to spare. Reading between looks costs a busy one half its speed."""
_SHORT = 500
"""Pieces of an answer that are read in a millisecond or two; a longer one waits until the sockets are quiet."""
_UNREAD = 500_000
"""Pieces kept unread while the client is busy, some 170 MB; beyond that reading goes first."""
_ENCODED_AHEAD_BYTES = 256 << 20


_NOTHING: Ids = np.empty(0, np.int32)


@dataclass(slots=True)
class _Progress:
    """Where one session stands."""

    session: Session
    turn: int = 0
    histories: dict[int, Ids] = field(default_factory=dict)
    """What had been exchanged at the end of a turn; of the last one only, unless the session forks."""
    released_ns: int = 0
    sent: Ids = field(default_factory=lambda: _NOTHING)
    request: Any = None
    """Its next request, where that was encoded ahead."""

    @property
    def next_turn(self) -> Turn:
        return self.session.turns[self.turn]

    @property
    def is_last(self) -> bool:
        return self.turn + 1 == len(self.session.turns)

    def encode(self, channel: Channel) -> Any:
        """Its next request, and what that sends."""
        turn, session = self.next_turn, self.session
        self.sent = turn.input_after(_NOTHING if self.turn == 0 else self.histories[session.continued(self.turn)])
        needed = self.turn in session.continued_from
        return channel.encode(Generation(self.sent, turn.output_tokens, return_token_ids=needed))

    def remember(self, answer_ids: tuple[int, ...] | None) -> None:
        """Keep what the session has come to with this answer, for the turns that continue from it."""
        told = self.next_turn.answer_ids
        said = np.array(answer_ids or (), np.int32) if told is None else told
        if not self.session.has_forks:
            self.histories.clear()
        self.histories[self.turn] = np.concatenate([self.sent, said])

    def lacks(self, answer_ids: tuple[int, ...] | None) -> bool:
        """Whether a later turn needs the answer's ids and they are not there."""
        return answer_ids is None and self.turn in self.session.continued_from


class Driver:
    """Drives one run: some sessions, one channel, one schedule."""

    def __init__(
        self,
        channel: Channel,
        clock: Clock,
        *,
        run: int,
        phase: Phase,
        check_engine: Callable[[], None],
        record: Callable[[RequestRecord], None],
    ) -> None:
        """`check_engine` raises when the engine has died; `record` takes each request once it has been read."""
        self._channel = channel
        self._clock = clock
        self._run = run
        self._phase = phase
        self._check_engine = check_engine
        self._record = record
        self._states: dict[int, _Progress] = {}
        self._unread: deque[tuple[Reply, _Progress]] = deque()
        self._pieces = 0
        self._ended: deque[Reply] = deque()
        self._in_flight = 0
        self.sent = 0
        """Turns that the schedule has let go so far."""
        self._start_ns = 0
        self._checked_ns = 0
        self._troubled = False

    def prepare(self, sessions: Mapping[int, Session], connections: int) -> None:
        """Connect, and encode the first requests as far as memory allows."""
        self._states = {number: _Progress(session) for number, session in sessions.items()}
        self._channel.open(connections)
        room = _ENCODED_AHEAD_BYTES
        for state in self._states.values():
            turn = state.next_turn
            # Five digits and a comma a token.
            room -= 6 * (turn.new_tokens + (0 if turn.prefix is None else len(turn.prefix)))
            if room < 0:
                return
            state.request = state.encode(self._channel)

    def drive(self, schedule: Schedule, start_ns: int | None = None) -> None:
        """Send every turn that the schedule names, from `start_ns` on; returns when the last one has ended.

        A failed turn ends its session, as nothing can continue from it; the turns that are thereby
        never sent are recorded as failures of the kind `abandoned`. Raises what `check_engine`
        raises, with everything that had ended before recorded.
        """
        self._start_ns = self._clock.now_ns() if start_ns is None else start_ns
        self._checked_ns = self._start_ns
        try:
            with _no_collector():
                self._loop(schedule)
        finally:
            self._read_all()
        self._look_after_engine()

    def _loop(self, schedule: Schedule) -> None:
        channel, served = self._channel, 0
        while True:
            now_ns = self._clock.now_ns()
            for release in schedule.due(now_ns - self._start_ns):
                self._send(release)
            next_ns = schedule.next_ns()
            if not self._in_flight and next_ns is None:
                return
            left_ns = NS_PER_S if next_ns is None else next_ns + self._start_ns - self._clock.now_ns()
            may_read = bool(self._unread) and (left_ns > _READING_NS or self._pieces > _UNREAD)
            longest_s = (_READING_PAUSE_S if served else 0.0) if may_read else WAIT_S
            served = channel.poll(0.0 if self._ended else min(longest_s, max(0.0, left_ns / NS_PER_S)))
            self._ended += channel.ended()
            self._go_on(schedule)
            if may_read and self._is_time_to_read(served):
                self._read_one()
            if not served and (self._troubled or now_ns - self._checked_ns > WAIT_S * NS_PER_S):
                self._look_after_engine()

    def _is_time_to_read(self, served: int) -> bool:
        """Whether the next answer may be read, when so many sockets had something just now."""
        if not served or self._pieces > _UNREAD:
            return True
        return served <= _FEW and self._unread[0][0].pieces <= _SHORT

    def _send(self, release: Release) -> None:
        state = self._states[release.session]
        state.released_ns = self._start_ns + release.at_ns
        request = state.request if state.request is not None else state.encode(self._channel)
        state.request = None
        self._in_flight += 1
        self.sent += 1
        self._channel.send(release.session, request)

    def _go_on(self, schedule: Schedule) -> None:
        """Take what has ended into account, but not for so long that the sockets wait."""
        until_ns = self._clock.now_ns() + _AWAY_NS
        while self._ended:
            self._end(self._ended.popleft(), schedule)
            if self._clock.now_ns() > until_ns:
                return

    def _end(self, reply: Reply, schedule: Schedule) -> None:
        """Tell the schedule; what a later turn needs of the answer is read at once."""
        self._in_flight -= 1
        number, at_ns = reply.tag, reply.end_ns - self._start_ns
        state = self._states[number]
        if state.is_last:
            del self._states[number]  # nothing is sent from it any more; a long run shall not keep its tokens
            self._unread.append((reply, state))
            self._pieces += reply.pieces
            schedule.ended(number, at_ns, more=False)
            return
        answer = reply.read()
        for record in self._take(answer, state):
            self._record(record)
        more = answer.failure is None and state.turn < len(state.session.turns)
        if not more:
            del self._states[number]
        schedule.ended(number, at_ns, more=more)

    def _read_all(self) -> None:
        """Read what is left, also when that is interrupted: it has been measured."""
        try:
            while self._unread:
                self._read_one()
        except BaseException:
            while self._unread:
                self._read_one()
            raise

    def _read_one(self) -> None:
        reply, state = self._unread.popleft()
        self._pieces -= reply.pieces
        for record in self._take(reply.read(), state):
            self._record(record)

    def _look_after_engine(self) -> None:
        """Only with everything that is there received: this may end the run, and no answer shall be lost."""
        self._checked_ns, self._troubled = self._clock.now_ns(), False
        self._check_engine()

    def _take(self, answer: Answer, state: _Progress) -> list[RequestRecord]:
        """Move the answer's session on and return what is to be recorded."""
        failure = answer.failure
        if failure is None and state.lacks(answer.token_ids):
            failure = Failure("no_token_ids", "the answer has no token ids for the next turn to continue from")
        records = [self._record_of(answer, state, failure)]
        if failure is not None:
            self._troubled = True
            records += self._abandoned(answer, state)
            state.turn = len(state.session.turns)
        else:
            if not state.is_last:
                state.remember(answer.token_ids)
            state.turn += 1
        state.sent = _NOTHING
        return records

    def _record_of(self, answer: Answer, state: _Progress, failure: Failure | None) -> RequestRecord:
        return RequestRecord(
            run=self._run,
            phase=self._phase,
            session=answer.tag,
            turn=state.turn,
            released_ns=state.released_ns,
            sent_ns=answer.sent_ns,
            flushed_ns=answer.flushed_ns,
            connect_ns=answer.connect_ns,
            end_ns=answer.end_ns,
            arrivals=answer.arrivals,
            new_tokens=state.next_turn.new_tokens,
            input_tokens=len(state.sent),
            output_tokens_asked=state.next_turn.output_tokens,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            cached_tokens=answer.cached_tokens,
            timings=answer.timings,
            replica=answer.replica,
            failure=failure,
            remarks=answer.remarks,
        )

    def _abandoned(self, answer: Answer, state: _Progress) -> list[RequestRecord]:
        failure = Failure(ABANDONED, f"never sent, because turn {state.turn} of the session failed")
        return [
            RequestRecord(
                run=self._run,
                phase=self._phase,
                session=answer.tag,
                turn=number,
                released_ns=answer.end_ns,
                sent_ns=None,
                end_ns=answer.end_ns,
                arrivals=(),
                new_tokens=turn.new_tokens,
                input_tokens=0,
                output_tokens_asked=turn.output_tokens,
                failure=failure,
            )
            for number, turn in enumerate(state.session.turns)
            if number > state.turn
        ]


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the cyclic garbage collector from stopping the loop: it walks all that has been recorded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
