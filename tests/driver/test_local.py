"""One worker, and a team of one: what comes of a job besides its requests."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import ConcurrentChannel, Script, VirtualChannel, VirtualEngine

from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.driver import Job, LocalTeam, ProcessTeam, team_of
from pytest_llmperf.driver.local import Worker
from pytest_llmperf.driver.ray import RayTeam
from pytest_llmperf.errors import ConfigurationError, EngineDiedError
from pytest_llmperf.load import Share, closed_loop, constant, poisson, replay, round_robin
from pytest_llmperf.records import Phase, Window
from pytest_llmperf.workloads import Session, Turn, multi_round, single_turn

S = 1_000_000_000
START_NS = 7 * S


def virtual_engine(ttft_s=0.5, **words):
    return VirtualEngine(
        Script(ttft_s=lambda computed, number: ttft_s, itl_s=0.0),
        clock=VirtualClock(START_NS),
        concurrent=True,
        **words,
    )


def job(engine, sessions, load, **words):
    return Job(connector=engine.connector(), sessions=sessions, load=load, run=2, phase=Phase.WARMUP, **words)


def singles(requests):
    return single_turn(requests=requests, input_tokens=4, output_tokens=2)


def run(sessions, load, engine=None):
    """What a team of one makes of a job: its summary and the records."""
    engine = engine or virtual_engine()
    records = []
    driven = LocalTeam(engine.clock).run(job(engine, sessions, load), records.append, engine.check)
    return driven, records


def test_a_run_is_from_its_start_to_its_last_answer():
    """Both are readings of the clock; the records carry the job's run and phase."""
    driven, records = run(singles(3), closed_loop(1))

    assert (START_NS, START_NS + 3 * S // 2, ()) == (driven.start_ns, driven.end_ns, driven.problems)
    assert {(2, Phase.WARMUP)} == {(record.run, record.phase) for record in records}
    assert [0, 1, 2] == [record.session for record in records]


@pytest.mark.parametrize(
    ("load", "window"),
    [
        (round_robin(), Window(START_NS, None)),
        (closed_loop(2), Window(START_NS, START_NS + 5 * S)),
        (closed_loop(2, ramp_s=1, warmup_s=1), Window(START_NS + 2 * S, START_NS + 5 * S)),
        (closed_loop(2, duration_s=3), Window(START_NS, START_NS + 3 * S)),
        (constant(10), Window(START_NS, START_NS + 19 * S // 10)),
        (constant(10, warmup_s=0.5, duration_s=1), Window(START_NS + S // 2, START_NS + S)),
        (replay(), Window(START_NS, None)),
    ],
)
def test_the_window_is_the_load_s_steady_part_on_the_record_s_clock(load, window):
    """Ramp and warm-up are before it, the tail is after it."""
    driven, _ = run(singles(20), load)

    assert window == driven.window


def test_a_start_that_was_agreed_moves_the_window():
    """All workers of a run have the same one, whenever they are ready."""
    engine = virtual_engine()
    worker = Worker(job(engine, singles(20), constant(10)), Share(), engine.clock, [].append, engine.check)

    driven = worker.drive(START_NS + 3 * S)

    assert (START_NS + 3 * S, Window(START_NS + 3 * S, START_NS + 49 * S // 10)) == (driven.start_ns, driven.window)


def test_shed_turns_are_counted():
    """What the load had to drop is in the summary, and in no record."""
    driven, records = run(singles(20), constant(10, max_in_flight=1))

    assert (16, 4) == (driven.shed, len(records))


def test_the_cpu_share_is_that_of_the_run(monkeypatch):
    """CPU seconds per second of the clock, the preparation left out."""
    readings = iter([40 * S, 40 * S + S // 4])
    engine = virtual_engine()
    monkeypatch.setattr(engine.clock, "cpu_ns", lambda: next(readings))

    driven, _ = run(singles(2), closed_loop(1), engine)

    assert [0.25] == driven.client.cpu_shares


def test_in_virtual_time_there_is_no_cpu_share():
    """What the processor did has nothing to do with a clock that is only told to move."""
    driven, _ = run(singles(2), closed_loop(1))

    assert [] == driven.client.cpu_shares


def test_what_the_channel_saw_of_its_own_delays_is_handed_on():
    """The statistics of the run are those of the channel."""

    class Watched(VirtualEngine):
        def open_channel(self):
            channel = VirtualChannel(self)
            channel.stats.resent = 3
            channel.stats.away.add(5_000_000)
            return channel

    driven, _ = run(singles(2), closed_loop(1), Watched())

    assert (3, 1) == (driven.client.resent, driven.client.away.count)


@pytest.mark.parametrize(
    ("load", "connections"), [(round_robin(), 1), (closed_loop(3), 3), (closed_loop(9), 5), (constant(2), 4)]
)
def test_as_many_connections_are_made_as_the_load_is_likely_to_need(load, connections):
    """And no more than there are sessions."""
    engine = virtual_engine()

    run(singles(5), load, engine)

    assert [connections] == [channel.opened for channel in engine.channels]


@pytest.mark.parametrize("load", [closed_loop(3), poisson(5), constant(5)])
def test_workers_drive_each_their_own_sessions(load):
    """Every session once, under the number that it has in the whole workload, at the time that it has there."""
    sent = []
    for number in range(3):
        engine = virtual_engine()
        Worker(job(engine, singles(10), load), Share(number, 3), engine.clock, sent.append, engine.check).drive()
        assert {number} == {record.session % 3 for record in sent[-len(engine.sent) :]}
        assert len(engine.sent) == sum(what == "encode" for what, _ in engine.channels[0].did)

    alone = run(singles(10), load)[1]
    assert list(range(10)) == sorted(record.session for record in sent)
    if load.is_open:
        assert {r.session: r.released_ns for r in alone} == {r.session: r.released_ns for r in sent}


def test_sessions_keep_their_recorded_times():
    """The times of the turns reach the load, and a worker's sessions keep theirs."""
    turns = [
        Turn(prefix=np.array([1], np.int32), new_ids=np.array([2], np.int32), output_tokens=1, at_s=at_s)
        for at_s in (0.0, 1.25, 3.0)
    ]
    engine = virtual_engine()
    sent = []

    sessions = [Session(turns=(turn,)) for turn in turns]
    Worker(job(engine, sessions, replay()), Share(1, 2), engine.clock, sent.append, engine.check).drive()

    assert [(1, START_NS + 5 * S // 4)] == [(record.session, record.sent_ns) for record in sent]


def test_a_load_that_cannot_be_split_says_so_before_anything_is_opened():
    """The error of the load comes through."""
    engine = virtual_engine()

    with pytest.raises(ConfigurationError, match="can be split over at most 1 workers"):
        Worker(job(engine, singles(2), round_robin()), Share(0, 2), engine.clock, [].append, engine.check)

    assert [] == engine.channels


def test_the_channel_is_closed_after_the_run_and_after_an_error():
    """No connection is left."""
    engine = virtual_engine(dies_after=4)
    run(multi_round(users=2, rounds=2, context_tokens=4, input_tokens=4, output_tokens=2), round_robin(), engine)

    with pytest.raises(EngineDiedError):
        run(singles(5), closed_loop(1), engine)

    assert [True, True] == [channel.closed for channel in engine.channels]


def test_the_channel_is_closed_where_preparing_fails():
    """A server that cannot be connected to leaves nothing open either."""

    class Unconnectable(ConcurrentChannel):
        def open(self, connections):
            raise OSError("no more sockets")

    class Engine(VirtualEngine):
        def open_channel(self):
            return Unconnectable(self)

    engine = Engine()

    with pytest.raises(OSError, match="no more sockets"):
        run(singles(1), closed_loop(1), engine)

    assert [True] == [channel.closed for channel in engine.channels]


@pytest.mark.parametrize(
    ("workers", "team"), [(1, LocalTeam), (2, ProcessTeam), ("ray://auto", RayTeam), ("ray://head:10001", RayTeam)]
)
def test_the_option_decides_who_drives(workers, team):
    """One worker is this process; nothing is started or connected before there is something to drive."""
    made = team_of(workers, VirtualClock())

    assert team is type(made)
    made.close()
    made.close()
