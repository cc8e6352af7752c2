"""Sends a workload through a channel as the load says, and collects what came back.

One loop: ask the schedule who is due, send, wait for answers, tell the schedule. Between an answer
and the next send only the session's history is put together; nothing is computed or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pytest_llmperf.clock import Clock
from pytest_llmperf.engines.base import Answer, Channel, Generation
from pytest_llmperf.load import Schedule
from pytest_llmperf.records import Failure, Phase, RequestRecord
from pytest_llmperf.workloads import Session, Turn

WAIT_S = 1.0
"""How long to wait before looking again whether the engine is alive."""


@dataclass(slots=True)
class _Progress:
    """Where one session stands."""

    session: Session
    turn: int = 0
    history: list[int] = field(default_factory=list)
    released_ns: int = 0
    sent: list[int] = field(default_factory=list)

    @property
    def next_turn(self) -> Turn:
        return self.session.turns[self.turn]

    @property
    def is_last(self) -> bool:
        return self.turn + 1 == len(self.session.turns)

    @property
    def is_over(self) -> bool:
        return self.turn >= len(self.session.turns)


class Driver:
    """Drives one run: the same sessions, one channel, one schedule."""

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
        """`check_engine` raises when the engine has died; `record` takes each finished request."""
        self._channel = channel
        self._clock = clock
        self._run = run
        self._phase = phase
        self._check_engine = check_engine
        self._record = record

    def drive(self, sessions: Sequence[Session], schedule: Schedule) -> None:
        """Send every turn of every session; returns when the last one has ended.

        A failed turn ends its session, as nothing can continue from it; the turns that are thereby
        never sent are recorded as failures of the kind `abandoned`. Raises what `check_engine`
        raises, with everything that had ended before recorded.
        """
        states = [_Progress(session) for session in sessions]
        in_flight = self._dispatch(schedule, states, released_ns=self._clock.now_ns())
        while in_flight:
            answers = self._channel.wait(WAIT_S)
            if not answers:
                self._check_engine()
            failed = [answer for answer in answers if answer.failure is not None]
            records: list[RequestRecord] = []
            for answer in answers:
                if answer.failure is None:
                    records += self._take(answer, states[answer.tag])
                    in_flight += self._go_on(answer, schedule, states) - 1
            for answer in failed:
                records += self._take(answer, states[answer.tag])
            for record in records:
                self._record(record)
            # Only now: looking after the engine may end the run, and no answer shall be lost.
            if failed:
                self._check_engine()
            for answer in failed:
                in_flight += self._go_on(answer, schedule, states) - 1

    def _go_on(self, answer: Answer, schedule: Schedule, states: Sequence[_Progress]) -> int:
        """Tell the schedule that the answer's turn has ended, and send what is due then; returns how many."""
        schedule.ended(answer.tag, more=not states[answer.tag].is_over)
        return self._dispatch(schedule, states, released_ns=answer.end_ns)

    def _dispatch(self, schedule: Schedule, states: Sequence[_Progress], *, released_ns: int) -> int:
        """Send all that is due; returns how many. `released_ns`: the moment that made them due."""
        due = schedule.due()
        for number in due:
            state = states[number]
            turn = state.next_turn
            state.released_ns = released_ns
            state.sent = turn.input_after(state.history)
            several = len(state.session.turns) > 1
            self._channel.send(number, Generation(state.sent, turn.output_tokens, return_token_ids=several))
        return len(due)

    def _take(self, answer: Answer, state: _Progress) -> list[RequestRecord]:
        """Move the answer's session on and return what is to be recorded."""
        failure = answer.failure
        if failure is None and not state.is_last and answer.token_ids is None:
            failure = Failure("no_token_ids", "the answer has no token ids for the next turn to continue from")
        records = [self._record_of(answer, state, failure)]
        if failure is not None:
            records += self._abandoned(answer, state)
            state.turn = len(state.session.turns)
        else:
            state.history = [*state.sent, *(answer.token_ids or ())]
            state.turn += 1
        return records

    def _record_of(self, answer: Answer, state: _Progress, failure: Failure | None) -> RequestRecord:
        return RequestRecord(
            run=self._run,
            phase=self._phase,
            session=answer.tag,
            turn=state.turn,
            released_ns=state.released_ns,
            sent_ns=answer.sent_ns,
            end_ns=answer.end_ns,
            arrivals=answer.arrivals,
            new_tokens=state.next_turn.new_tokens,
            input_tokens=len(state.sent),
            output_tokens_asked=state.next_turn.output_tokens,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            cached_tokens=answer.cached_tokens,
            failure=failure,
        )

    def _abandoned(self, answer: Answer, state: _Progress) -> list[RequestRecord]:
        failure = Failure("abandoned", f"never sent, because turn {state.turn} of the session failed")
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
