"""Who sends next, and when."""

from __future__ import annotations

import heapq
import math
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load import (
    Extent,
    Release,
    Share,
    Steady,
    burst,
    closed_loop,
    constant,
    exponential,
    lognormal,
    poisson,
    replay,
    round_robin,
)
from pytest_llmperf.load.draws import uniforms

S = 1_000_000_000
ALONE = Share()


class Sent(NamedTuple):
    session: int
    turn: int
    at_ns: int
    """When the load meant it to be sent."""


@dataclass
class Run:
    """What a schedule did in virtual time."""

    sent: list[Sent] = field(default_factory=list)
    groups: list[tuple[int, ...]] = field(default_factory=list)
    """The sessions that were named together."""
    sent_ns: dict[tuple[int, int], int] = field(default_factory=dict)
    ended_ns: dict[tuple[int, int], int] = field(default_factory=dict)
    most_in_flight: int = 0
    shed: int = 0
    steady: Steady | None = None

    def times(self, session: int) -> list[int]:
        return [sent.at_ns for sent in self.sent if sent.session == session]


def simulate(load, sessions, share=ALONE, *, answer=lambda session, turn: S, failing=()) -> Run:
    """Drive a fresh schedule to its end as a driver would that is never late.

    `answer`: how many ns the answer to a session's turn takes. `failing`: (session, turn) pairs whose
    failure ends their session. Asserts what holds for every load.
    """
    schedule = load.schedule(sessions, share)
    run, turns, ends = Run(), Counter(), []
    now_ns = 0
    while True:
        due = schedule.due(now_ns)
        assert [release.at_ns for release in due] == sorted(release.at_ns for release in due)
        for release in due:
            session, turn = release.session, turns[release.session]
            assert release.at_ns <= now_ns
            assert isinstance(release.at_ns, int)
            assert share.has(session)
            assert turn < len(sessions[session])
            assert turn == 0 or (session, turn - 1) in run.ended_ns
            turns[session] += 1
            run.sent.append(Sent(session, turn, release.at_ns))
            run.sent_ns[session, turn] = now_ns
            heapq.heappush(ends, (now_ns + answer(session, turn), session, turn))
        if due:
            run.groups.append(tuple(release.session for release in due))
        run.most_in_flight = max(run.most_in_flight, len(ends))
        assert not schedule.due(now_ns), "named twice"
        coming = [] if schedule.next_ns() is None else [schedule.next_ns()]
        assert all(at_ns > now_ns for at_ns in coming)
        coming += [ends[0][0]] if ends else []
        if not coming:
            break
        now_ns = min(coming)
        while ends and ends[0][0] <= now_ns:
            _, session, turn = heapq.heappop(ends)
            run.ended_ns[session, turn] = now_ns
            more = turn + 1 < len(sessions[session]) and (session, turn) not in failing
            schedule.ended(session, now_ns, more=more)
    run.shed, run.steady = schedule.shed, schedule.steady()
    return run


def turns(*counts):
    """Sessions with so many turns each, none with a time of its own."""
    return [[None] * count for count in counts]


def starts(load, count):
    """When each of `count` sessions of one turn is sent, in ns."""
    return [sent.at_ns for sent in simulate(load, turns(*[1] * count)).sent]


class TestRoundRobin:
    def test_it_sends_one_user_after_another_round_by_round(self):
        """Every user has its first turn before any has its second, one at a time."""
        assert [(0,), (1,), (2,), (0,), (1,), (2,)] == simulate(round_robin(), turns(2, 2, 2)).groups

    def test_it_passes_over_users_who_have_finished(self):
        """A later round has only those who still have a turn."""
        assert [(0,), (1,), (2,), (0,), (2,), (2,)] == simulate(round_robin(), turns(2, 1, 3)).groups

    def test_a_turn_is_meant_for_the_moment_at_which_the_one_before_ended(self):
        """The first is meant for the run's start."""
        run = simulate(round_robin(), turns(2, 1), answer=lambda session, turn: 5 + session)

        assert [Sent(0, 0, 0), Sent(1, 0, 5), Sent(0, 1, 11)] == run.sent

    def test_a_barrier_sends_all_users_of_a_round_at_once_in_their_order(self):
        """The next round comes when the last answer of this one has come, in whatever order they came."""
        run = simulate(round_robin(barrier=True), turns(2, 1, 3), answer=lambda session, turn: 9 - session)

        assert [(0, 1, 2), (0, 2), (2,)] == run.groups
        assert [0, 9, 18] == run.times(2)

    def test_with_a_barrier_nothing_is_due_while_one_answer_is_missing(self):
        """Asking again in the middle of a round gives nobody, and no time."""
        schedule = round_robin(barrier=True).schedule(turns(2, 2))
        schedule.due(0)

        schedule.ended(0, 5, more=True)

        assert not schedule.due(6)
        assert schedule.next_ns() is None

    def test_a_round_is_meant_for_the_latest_end_also_if_that_is_told_first(self):
        """Answers may be looked at in another order than they came."""
        schedule = round_robin(barrier=True).schedule(turns(2, 2))
        schedule.due(0)

        schedule.ended(1, 8, more=True)
        schedule.ended(0, 5, more=True)

        assert [Release(0, 8), Release(1, 8)] == schedule.due(8)

    def test_a_random_order_is_another_one_each_round(self):
        """Every user has each turn once before anybody has the next one."""
        groups = simulate(round_robin(order="random", seed=3), turns(*[4] * 6)).groups

        rounds = [[session for (session,) in groups[n : n + 6]] for n in range(0, 24, 6)]
        assert [[*range(6)]] * 4 == [sorted(order) for order in rounds]
        assert 4 == len({tuple(order) for order in rounds} - {tuple(range(6))})

    def test_a_random_order_hangs_on_its_seed_and_on_nothing_else(self):
        """Not on the times of the answers, nor on the machine."""
        quick, slow, other = (
            simulate(round_robin(order="random", seed=seed), turns(2, 2, 2, 1), answer=answer).groups
            for seed, answer in ((7, lambda *_: 1), (7, lambda session, turn: 9 - session), (8, lambda *_: 1))
        )

        assert [(1,), (3,), (2,), (0,), (1,), (2,), (0,)] == quick == slow != other

    def test_a_random_order_does_not_go_with_a_barrier(self):
        """All of a round send at once there."""
        with pytest.raises(ConfigurationError, match=r"round_robin: with a barrier all users send at once, so order="):
            round_robin(barrier=True, order="random")

    def test_a_user_who_thinks_is_waited_for(self):
        """The next turn of a user comes so long after its last answer, and nobody goes first."""
        run = simulate(round_robin(think_s=5), turns(2, 2))

        assert [Sent(0, 0, 0), Sent(1, 0, S), Sent(0, 1, 6 * S), Sent(1, 1, 7 * S)] == run.sent

    def test_behind_a_barrier_the_one_who_thinks_longest_is_waited_for(self):
        """The round starts when all are ready."""
        run = simulate(round_robin(barrier=True, think_s=5), turns(2, 2), answer=lambda session, turn: S + session)

        assert [(0, 1), (0, 1)] == run.groups
        assert [0, 6 * S + 1] == run.times(0)

    def test_one_worker_drives_it(self):
        """Its order is one over all sessions; a second worker would send a second request."""
        assert round_robin().workers(4) == 1
        with pytest.raises(ConfigurationError, match=r"round_robin\(\) can be split over at most 1 workers, got 2"):
            round_robin().schedule(turns(1, 1), Share(0, 2))

    def test_the_whole_run_is_measured(self):
        """It neither rises nor falls."""
        assert Steady(0, None) == simulate(round_robin(), turns(2, 2)).steady


class TestClosedLoop:
    def test_it_keeps_its_number_of_sessions_busy(self):
        """A session sends its next turn at once; a new one starts only when another has finished."""
        run = simulate(closed_loop(2), turns(2, 2, 2), answer=lambda session, turn: 10 + session)

        assert [(0, 1), (0,), (1,), (2,), (2,)] == run.groups

    def test_it_goes_on_with_whoever_is_answered(self):
        """The order is that of the answers, not of the sessions."""
        run = simulate(closed_loop(2), turns(2, 2, 2), answer=lambda session, turn: 10 if session else 100)

        assert [(0, 1), (1,), (2,), (2,), (0,)] == run.groups

    def test_wider_than_its_sessions_it_sends_them_all(self):
        """Concurrency is a limit, not a promise."""
        assert [(0, 1)] == simulate(closed_loop(8), turns(1, 1)).groups

    def test_a_user_thinks_before_its_next_turn_and_a_new_one_starts_at_once(self):
        """There is no think time between two sessions."""
        run = simulate(closed_loop(1, think_s=2), turns(2, 2))

        assert [0, 3 * S] == run.times(0)
        assert [4 * S, 7 * S] == run.times(1)

    def test_the_slots_open_one_after_another_during_the_ramp(self):
        """The first opens at once, the last one step before the ramp's end."""
        assert [0, S, 2 * S, 3 * S] == starts(closed_loop(4, ramp_s=4), 4)

    def test_a_session_that_ends_during_the_ramp_makes_room_too(self):
        """The slots that are still to open have their sessions; the next in line takes the free one."""
        run = simulate(closed_loop(2, ramp_s=4), turns(1, 1, 1))

        assert [Sent(0, 0, 0), Sent(2, 0, S), Sent(1, 0, 2 * S)] == run.sent

    def test_nothing_is_sent_from_the_duration_on(self):
        """Neither a further turn nor a new session, and that is not shedding."""
        run = simulate(closed_loop(1, duration_s=3), turns(2, 9))

        assert [0, S, 2 * S] == [sent.at_ns for sent in run.sent]
        assert run.shed == 0

    def test_no_more_requests_are_sent_than_asked_for(self):
        """The first ones in time are."""
        run = simulate(closed_loop(2, max_requests=3), turns(9, 9), answer=lambda session, turn: 10 + session)

        assert [Sent(0, 0, 0), Sent(1, 0, 0), Sent(0, 1, 10)] == run.sent

    def test_workers_split_the_slots_and_the_requests_evenly(self):
        """Each keeps its own sessions; together they open their slots as one would."""
        load = closed_loop(5, ramp_s=5, max_requests=12)
        runs = [simulate(load, turns(*[4] * 10), Share(n, 2), answer=lambda session, turn: 100 * S) for n in range(2)]

        assert [3, 2] == [run.most_in_flight for run in runs]
        assert [6, 6] == [len(run.sent) for run in runs]
        assert [(n, n * S) for n in range(5)] == sorted(
            (sent.session, sent.at_ns) for run in runs for sent in run.sent if sent.at_ns < 5 * S
        )

    def test_there_are_no_more_workers_than_slots(self):
        """A worker without a slot would leave its sessions unsent."""
        assert [2, 3, 3] == [closed_loop(3).workers(asked) for asked in (2, 3, 4)]
        with pytest.raises(ConfigurationError, match=r"closed_loop\(3\) can be split over at most 3 workers, got 4"):
            closed_loop(3).schedule(turns(1), Share(0, 4))

    @pytest.mark.parametrize(
        ("load", "counts", "expected"),
        [
            pytest.param(closed_loop(2), (1, 1, 1), Steady(0, S), id="a slot stays empty for want of sessions"),
            pytest.param(closed_loop(2), (2, 2), Steady(0, None), id="never more sessions than slots"),
            pytest.param(closed_loop(2), (0, 2, 2), Steady(0, None), id="a session without turns is none"),
            pytest.param(closed_loop(2, ramp_s=2, warmup_s=1), (9, 9), Steady(3 * S, None), id="ramp and warm-up"),
            pytest.param(closed_loop(2, duration_s=5), (9, 9), Steady(0, 5 * S), id="duration"),
            pytest.param(closed_loop(2, duration_s=5), (1, 1, 1), Steady(0, S), id="fallen before the duration"),
            pytest.param(closed_loop(2, duration_s=2), (3, 3, 3), Steady(0, 2 * S), id="not fallen by the duration"),
            pytest.param(closed_loop(2, max_requests=4), (9, 9), Steady(0, 2 * S), id="no request left"),
            pytest.param(closed_loop(2, max_requests=2), (9, 9), Steady(0, None), id="never more requests than slots"),
            pytest.param(
                closed_loop(2, max_requests=4, think_s=3), (9, 9), Steady(0, 8 * S), id="a thinking user is not gone"
            ),
            pytest.param(closed_loop(2, warmup_s=9), (1, 1, 1), Steady(9 * S, 9 * S), id="fallen before the warm-up"),
        ],
    )
    def test_it_is_measured_until_the_load_falls(self, load, counts, expected):
        """From the end of the warm-up to the moment at which a slot had to stay empty."""
        assert expected == simulate(load, turns(*counts)).steady

    def test_the_load_falls_with_the_first_slot_that_stays_empty(self):
        """Also if another answer was looked at before."""
        schedule = closed_loop(2).schedule(turns(1, 1, 1))
        schedule.due(0)
        schedule.ended(0, 3, more=False)
        schedule.due(3)

        schedule.ended(2, 9, more=False)
        schedule.ended(1, 8, more=False)

        assert Steady(0, 8) == schedule.steady()

    def test_with_several_workers_it_falls_where_one_of_them_runs_out(self):
        """Whether there are more sessions than slots is asked of the whole load."""
        runs = [simulate(closed_loop(4), turns(*[1] * 5), Share(n, 2)) for n in range(2)]

        assert [Steady(0, S), Steady(0, S)] == [run.steady for run in runs]


OPEN = [constant, poisson, lambda rate, **more: burst(rate, shape=0.5, **more)]
OPEN_NAMES = ["constant", "poisson", "burst"]


class TestArrivals:
    def test_constant_sends_at_even_distances_from_the_start_on(self):
        """Session k comes at k / rate, rounded to a nanosecond, without the errors adding up."""
        assert [round(k * S / 3) for k in range(1000)] == starts(constant(3), 1000)

    @pytest.mark.parametrize(
        ("load", "distribution"),
        [
            (poisson(500, seed=7), stats.expon(scale=1 / 500)),
            (burst(500, shape=0.5, seed=7), stats.gamma(0.5, scale=2 / 500)),
            (burst(500, shape=4, seed=7), stats.gamma(4, scale=1 / 2000)),
            (burst(500, shape=1, seed=7), stats.expon(scale=1 / 500)),
        ],
    )
    def test_the_gaps_are_distributed_as_said(self, load, distribution):
        """By Kolmogorov and Smirnov's test on 10,000 gaps, the first of them before the first session."""
        gaps_s = np.diff(starts(load, 10_000), prepend=0) / S

        assert stats.kstest(gaps_s, distribution.cdf).pvalue > 0.05
        assert stats.kstest(gaps_s, stats.gamma(2, scale=1 / 1000).cdf).pvalue < 1e-6

    def test_neighbouring_gaps_have_nothing_to_do_with_each_other(self):
        """The correlation of 10,000 gaps with their successors is within four standard errors of none."""
        gaps = np.diff(starts(poisson(500), 10_001))

        assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / math.sqrt(10_000)

    def test_a_burst_of_shape_one_is_poisson(self):
        """The same seed gives the same sessions at the same times."""
        assert starts(poisson(50, seed=3), 100) == starts(burst(50, shape=1, seed=3), 100)

    def test_the_times_are_the_same_everywhere(self):
        """The stream behind the gaps is one that numpy does not change."""
        assert [193203125, 966571599, 1902901073] == starts(poisson(1), 3)
        assert [1549140419, 1621275961, 2390568126] == starts(burst(1, shape=0.5, seed=5), 3)

    @pytest.mark.parametrize(("raw", "expected"), [(0, 2.0**-53), (2**64 - 1, 1 - 2.0**-53)])
    def test_no_distribution_is_asked_for_its_ends(self, raw, expected, monkeypatch):
        """Where the raw numbers are at theirs, the uniform ones are neither 0 nor 1."""
        stream = SimpleNamespace(random_raw=lambda count: np.full(count, raw, dtype=np.uint64))
        monkeypatch.setattr(np.random, "PCG64", lambda key: stream)

        assert [expected] == uniforms(0, "label", 1).tolist()

    def test_the_rate_rises_in_a_straight_line_during_the_ramp(self):
        """After t of a ramp of r seconds, rate * t * t / (2 * r) sessions have come, and then rate a second."""
        came = np.array(starts(constant(100, ramp_s=10), 1000)) / S

        for t in np.arange(0.55, 10, 0.7):
            assert math.floor(100 * t * t / 20) + 1 == np.count_nonzero(came <= t)
        for t in np.arange(10.005, 14.5, 0.5):
            assert math.floor(100 * (t - 5)) + 1 == np.count_nonzero(came <= t)

    def test_a_ramp_leaves_the_randomness_as_it_is(self):
        """Measured by the sessions that were to be expected, the gaps are exponential during the ramp, too."""
        came = np.array(starts(poisson(1000, ramp_s=20), 10_000)) / S
        expected = 1000 * came**2 / 40

        assert came[-1] < 20
        assert stats.kstest(np.diff(expected, prepend=0), stats.expon.cdf).pvalue > 0.05

    @pytest.mark.parametrize("make", OPEN, ids=OPEN_NAMES)
    def test_sessions_come_whether_there_are_answers_or_not(self, make):
        """The times do not depend on how long the answers take."""
        runs = [
            simulate(make(10), turns(*[1] * 50), answer=lambda session, turn, takes_ns=takes_ns: takes_ns)
            for takes_ns in (1, 1000 * S)
        ]

        assert runs[0].sent == runs[1].sent
        assert runs[1].most_in_flight == 50

    def test_the_turns_of_a_session_follow_its_answers_after_the_think_time(self):
        """Only its start is planned."""
        run = simulate(constant(1, think_s=0.5), turns(3, 1, 2), answer=lambda session, turn: 2 * S)

        assert [0, 2.5 * S, 5 * S] == run.times(0)
        assert [2 * S, 4.5 * S] == run.times(2)

    def test_nothing_is_sent_from_the_duration_on(self):
        """Neither a new session nor a further turn, and that is not shedding."""
        run = simulate(constant(1, duration_s=3), turns(*[3] * 9), answer=lambda session, turn: int(1.5 * S))

        assert [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1)] == [(sent.session, sent.turn) for sent in run.sent]
        assert run.shed == 0

    def test_the_requests_go_to_the_first_sessions(self):
        """All turns of those that start first, the last of which is cut short."""
        run = simulate(constant(1, max_requests=4), turns(3, 3, 3))

        assert {(0, 0), (0, 1), (0, 2), (1, 0)} == {(sent.session, sent.turn) for sent in run.sent}

    @pytest.mark.parametrize(
        ("load", "counts", "expected"),
        [
            pytest.param(constant(1), (1, 1, 1, 5), Steady(0, 3 * S), id="the last session starts"),
            pytest.param(constant(1), (1, 1, 1, 0), Steady(0, 2 * S), id="a session without turns never starts"),
            pytest.param(constant(1, warmup_s=1), (1, 1, 1, 1), Steady(S, 3 * S), id="warm-up"),
            pytest.param(constant(1, ramp_s=2), (1, 1, 1, 1), Steady(2 * S, 4 * S), id="ramp"),
            pytest.param(constant(1, ramp_s=1, warmup_s=1, duration_s=2.5), (1,) * 9, Steady(2 * S, 2.5 * S), id="all"),
            pytest.param(constant(1, duration_s=9), (1, 1, 1), Steady(0, 2 * S), id="over before the duration"),
            pytest.param(constant(1, max_requests=3), (1,) * 9, Steady(0, 2 * S), id="over with the last request"),
            pytest.param(constant(1, warmup_s=5), (1, 1, 1), Steady(5 * S, 5 * S), id="over before the warm-up"),
            pytest.param(constant(1), (), Steady(0, 0), id="nothing to measure"),
        ],
    )
    def test_it_is_measured_until_the_last_session_starts(self, load, counts, expected):
        """From the end of the warm-up; all workers say the same."""
        assert expected == simulate(load, turns(*counts)).steady
        assert expected == simulate(load, turns(*counts), Share(1, 2)).steady


class TestReplay:
    def test_each_turn_is_sent_at_its_own_time(self):
        """Divided by the speed."""
        sessions = [[0.5, 4.0], [1.0]]

        assert [Sent(0, 0, S // 2), Sent(1, 0, S), Sent(0, 1, 4 * S)] == simulate(replay(), sessions).sent
        assert [Sent(0, 0, S // 4), Sent(1, 0, S // 2), Sent(0, 1, 2 * S)] == simulate(replay(2), sessions).sent

    def test_a_turn_whose_predecessor_is_late_counts_from_its_own_time(self):
        """It is sent when the answer has come, and was meant for before."""
        run = simulate(replay(), [[0.0, 2.0, 30.0]], answer=lambda session, turn: 10 * S)

        assert [0, 2 * S, 30 * S] == run.times(0)
        assert [0, 10 * S, 30 * S] == list(run.sent_ns.values())

    def test_a_turn_without_a_time_follows_the_answer_before(self):
        """After the think time, which the speed does not change; a session that begins with one starts at once."""
        run = simulate(replay(2, think_s=3), [[None, None, 40.0], [2.0, None]])

        assert [0, 4 * S, 20 * S] == run.times(0)
        assert [S, 5 * S] == run.times(1)

    def test_nothing_is_sent_from_the_duration_on(self):
        """By the time that a turn was meant for: a late one is sent, and counts as late."""
        sessions = [[0.0, 2.0, 3.0], [3.0], [0.0, None, None]]
        run = simulate(replay(duration_s=3), sessions, answer=lambda session, turn: int(2.9 * S))

        assert [(0, 0), (2, 0), (0, 1), (2, 1)] == [(sent.session, sent.turn) for sent in run.sent]
        assert run.shed == 0

    def test_the_first_requests_by_their_time_are_sent(self):
        """One without a time counts with the turn before it."""
        sessions = [[0.0, 5.0], [1.0, None, 9.0], [2.0], [8.0]]

        sent = {(sent.session, sent.turn) for sent in simulate(replay(max_requests=5), sessions).sent}

        assert {(0, 0), (1, 0), (1, 1), (2, 0), (0, 1)} == sent

    @pytest.mark.parametrize("late", [[5.0, None, None], [5.0, 1.0, 1.0]])
    def test_a_turn_never_counts_before_its_predecessor(self, late):
        """Whether it has no time of its own or one that cannot be kept: it takes no other turn's place."""
        sent = simulate(replay(max_requests=2), [late, [2.0], [3.0]]).sent

        assert [Sent(1, 0, 2 * S), Sent(2, 0, 3 * S)] == sent

    def test_a_session_that_finds_no_room_is_shed(self):
        """Only its turns before the duration were meant to be sent."""
        load = replay(max_in_flight=1, duration_s=10)
        run = simulate(load, [[0.0, 1.0], [0.5, 9.0, 10.0], [8.0]], answer=lambda session, turn: 2 * S)

        assert [(0, 0), (0, 1), (2, 0)] == [(sent.session, sent.turn) for sent in run.sent]
        assert run.shed == 2

    def test_the_whole_run_is_measured(self):
        """A recording has no part that is steadier than another."""
        assert Steady(0, None) == simulate(replay(duration_s=5), [[1.0], [9.0]]).steady

    def test_a_time_that_is_none_is_refused(self):
        """All of them are named at once."""
        with pytest.raises(ConfigurationError) as caught:
            replay().schedule([[0.0, -1.0], [math.nan]])

        assert caught.value.problems == (
            "replay: at_s must be a number of seconds, at least 0, or None, got -1.0 (session 0, turn 1)",
            "replay: at_s must be a number of seconds, at least 0, or None, got nan (session 1, turn 0)",
        )


THINKING = [
    lambda **more: closed_loop(3, **more),
    lambda **more: constant(5, **more),
    lambda **more: poisson(5, **more),
    lambda **more: burst(5, shape=2, **more),
    replay,
]


def think_times(run):
    """Per session and turn: from the end of the turn before to this one, in ns."""
    return {
        (sent.session, sent.turn): sent.at_ns - run.ended_ns[sent.session, sent.turn - 1]
        for sent in run.sent
        if sent.turn
    }


class TestThinkTimes:
    @pytest.mark.parametrize("make", THINKING)
    @pytest.mark.parametrize(
        ("think_s", "distribution"),
        [
            (exponential(3), stats.expon(scale=3)),
            (lognormal(3, 0.8), stats.lognorm(0.8, scale=3 / math.exp(0.32))),
        ],
    )
    def test_they_are_distributed_as_said(self, make, think_s, distribution):
        """By Kolmogorov and Smirnov's test; the mean of both is the one that was asked for."""
        drawn = think_times(simulate(make(think_s=think_s), turns(*[11] * 60)))

        assert distribution.mean() == pytest.approx(3)
        assert len(drawn) == 600
        assert stats.kstest([ns / S for ns in drawn.values()], distribution.cdf).pvalue > 0.01

    @pytest.mark.parametrize("make", THINKING)
    def test_neither_answers_nor_workers_change_them(self, make):
        """They belong to the session and the turn, and to the seed."""
        load, sessions = make(think_s=exponential(1), seed=4), turns(3, 1, 4, 2, 5)
        slow = simulate(load, sessions, answer=lambda session, turn: (7 * session + turn) % 5 * S)
        parts = [think_times(simulate(load, sessions, Share(n, 3))) for n in range(3)]

        whole = think_times(simulate(load, sessions))

        assert len(whole) == 10
        assert whole == think_times(slow)
        assert whole == parts[0] | parts[1] | parts[2]

    @pytest.mark.parametrize("make", THINKING)
    def test_another_seed_draws_others(self, make):
        """And an equal one the same."""
        drawn = [think_times(simulate(make(think_s=exponential(1), seed=seed), turns(3, 3))) for seed in (1, 1, 2)]

        assert drawn[0] == drawn[1]
        assert drawn[0].keys() == drawn[2].keys()
        assert not set(drawn[0].values()) & set(drawn[2].values())

    def test_they_have_nothing_to_do_with_the_gaps(self):
        """Both come from one seed, and neither can be told from the other."""
        run = simulate(poisson(1, think_s=exponential(1)), turns(*[2] * 1000))
        gaps = np.diff([0, *(run.times(session)[0] for session in range(1000))])
        thought = think_times(run)

        assert abs(np.corrcoef(gaps, [thought[session, 1] for session in range(1000)])[0, 1]) < 4 / math.sqrt(1000)

    def test_one_of_centuries_is_cut_to_what_can_be_counted(self):
        """No draw overflows: the longest is 2**62 ns."""
        drawn = think_times(simulate(closed_loop(1, think_s=exponential(1e12)), turns(9)))

        assert set(drawn.values()) == {2**62}


class TestMaxInFlight:
    def test_a_session_that_finds_no_room_is_shed_with_all_its_turns(self):
        """Those that have started go on, and a later one may find room again."""
        load, answer = constant(1, max_in_flight=2), lambda session, turn: int(2.6 * S)

        run = simulate(load, turns(2, 1, 3, 1, 1, 2), answer=answer)

        assert [(0, 0), (1, 0), (0, 1), (4, 0)] == [(sent.session, sent.turn) for sent in run.sent]
        assert run.shed == 3 + 1 + 2

    def test_a_session_that_has_started_goes_on_without_room(self):
        """Others may have filled it while the user was thinking."""
        load = constant(1, max_in_flight=1, think_s=1.2)

        run = simulate(load, turns(2, 1, 1), answer=lambda session, turn: 5 * S if session else S // 2)

        assert [Sent(0, 0, 0), Sent(1, 0, S), Sent(0, 1, round(1.7 * S))] == run.sent
        assert run.shed == 1

    def test_workers_split_the_room_evenly(self):
        """And there are no more of them than it has places."""
        load = constant(1000, max_in_flight=5)
        runs = [simulate(load, turns(*[1] * 100), Share(n, 2)) for n in range(2)]

        assert [3, 2] == [run.most_in_flight for run in runs]
        assert [47, 48] == [run.shed for run in runs]
        assert [4, 5, 5] == [load.workers(asked) for asked in (4, 5, 6)]
        assert [4, 5, 5] == [replay(max_in_flight=5).workers(asked) for asked in (4, 5, 6)]

    def test_without_it_there_may_be_any_number_of_workers(self):
        """Sessions that do not wait for one another can be sent from anywhere."""
        assert [64, 64] == [load.workers(64) for load in (poisson(1), replay())]


def test_an_open_load_does_not_wait_for_answers():
    """Its latency counts from the intended send; in a closed one there is no other than the real one."""
    closed, opened = (round_robin(), closed_loop(1)), (constant(1), poisson(1), burst(1, shape=1), replay())

    assert not any(load.is_open for load in closed)
    assert all(load.is_open for load in opened)


def test_a_share_deals_the_sessions_out():
    """Each belongs to one worker, and no worker gets two more than another."""
    shares = [Share(n, 3) for n in range(3)]

    assert [[0, 3, 6], [1, 4], [2, 5]] == [[n for n in range(7) if share.has(n)] for share in shares]
    assert [3, 2, 2] == [share.of(7) for share in shares]
    assert all(ALONE.has(n) for n in range(7))


LOADS = [
    round_robin(),
    round_robin(barrier=True),
    round_robin(order="random", think_s=0.5, seed=2),
    closed_loop(1),
    closed_loop(3, ramp_s=3, think_s=0.5),
    constant(2),
    poisson(2),
    burst(2, shape=0.3),
    replay(),
]


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.describe())
class TestEveryLoad:
    def test_a_session_that_failed_is_dropped(self, load):
        """Its later turns are never due, and the others go on."""
        sent = simulate(load, turns(3, 3, 3), failing={(0, 0), (2, 1)}).sent

        assert Counter({0: 1, 1: 3, 2: 2}) == Counter(each.session for each in sent)

    def test_without_sessions_nothing_is_due(self, load):
        """An empty workload ends at once, and so does one whose sessions have no turns."""
        assert [] == simulate(load, []).sent
        assert [] == simulate(load, turns(0, 0)).sent

    def test_each_schedule_starts_afresh(self, load):
        """A load has no memory of the runs before."""
        assert simulate(load, turns(1, 2, 3)).sent == simulate(load, turns(1, 2, 3)).sent

    def test_it_travels(self, load):
        """A worker in another process gets an equal load, written alike."""
        copy = pickle.loads(pickle.dumps(load))

        assert load == copy
        assert load.describe() == copy.describe()

    def test_nothing_is_due_before_its_time(self, load):
        """A driver may be told of a start that lies ahead."""
        assert not load.schedule(turns(1, 1)).due(-1)


@pytest.mark.slow
@pytest.mark.parametrize("load", [closed_loop(1000), constant(50_000), burst(50_000, shape=0.5), replay(think_s=1)])
def test_a_hundred_thousand_sessions_are_no_trouble(load):
    """The work per turn does not grow with their number: all of it is far below the tests' time limit."""
    sessions = turns(*[1] * 100_000)
    schedule, sent, now_ns = load.schedule(sessions), 0, 0

    while now_ns is not None:
        due = schedule.due(now_ns)
        for release in due:
            schedule.ended(release.session, now_ns, more=False)
        sent += len(due)
        now_ns = schedule.next_ns()

    assert sent == 100_000


THINK_S = st.sampled_from([0.0, 0.7, exponential(0.5), lognormal(0.5, 1)])
COUNTS = st.lists(st.integers(0, 5), max_size=12)
LIMITS = {
    "duration_s": st.none() | st.floats(0.5, 10),
    "max_requests": st.none() | st.integers(1, 30),
}
RATE = st.floats(0.1, 50)
SEED = st.integers(0, 3)


def closed_loads(**more):
    return st.builds(
        closed_loop, st.integers(1, 6), think_s=THINK_S, ramp_s=st.sampled_from([0, 0.3]), seed=SEED, **more
    )


def arrival_loads(**more):
    more |= {"think_s": THINK_S, "ramp_s": st.sampled_from([0, 0.4]), "seed": SEED}
    shapes = st.floats(0.1, 10)
    return (
        st.builds(constant, RATE, **more)
        | st.builds(poisson, RATE, **more)
        | st.builds(burst, RATE, shape=shapes, **more)
    )


def open_loads(**more):
    return arrival_loads(**more) | st.builds(replay, st.floats(0.5, 2), think_s=THINK_S, seed=SEED, **more)


ROUND_ROBINS = st.builds(round_robin, barrier=st.booleans(), think_s=THINK_S, seed=SEED) | st.builds(
    round_robin, order=st.sampled_from(["turn", "random"]), think_s=THINK_S, seed=SEED
)
SESSIONS = st.lists(st.lists(st.none() | st.floats(0, 10), max_size=5), max_size=12)


@st.composite
def answers(draw):
    """How long each answer takes: anything, but always the same."""
    salt, spread = draw(st.integers(0, 1000)), draw(st.sampled_from([1, 3 * S, 20 * S]))
    return lambda session, turn: 1 + (session * 7_919_000_003 + turn * 1_047_290_011 + salt * 911_000_111) % spread


@pytest.mark.slow
@given(load=ROUND_ROBINS | closed_loads() | open_loads(), sessions=SESSIONS, answer=answers())
@settings(deadline=None)
def test_every_turn_is_sent_exactly_once(load, sessions, answer):
    """Whatever the answers, in the session's order, never before the answer to the turn before."""
    run = simulate(load, sessions, answer=answer)

    expected = {(session, turn) for session, times in enumerate(sessions) for turn in range(len(times))}
    assert sorted(expected) == sorted((sent.session, sent.turn) for sent in run.sent)
    assert all(run.sent_ns[key] >= run.ended_ns[key[0], key[1] - 1] for key in expected if key[1])
    assert run.shed == 0


@pytest.mark.slow
@given(load=arrival_loads(**LIMITS), counts=COUNTS, answer=answers(), workers=st.integers(1, 5))
@settings(deadline=None)
def test_workers_together_send_what_one_would_of_arrivals(load, counts, answer, workers):
    """The same turns, meant for the same times, with every limit that is not about what is in flight."""
    parts = [simulate(load, turns(*counts), Share(n, workers), answer=answer) for n in range(workers)]

    whole = simulate(load, turns(*counts), answer=answer)

    assert sorted(whole.sent) == sorted(sent for part in parts for sent in part.sent)
    assert {whole.steady} == {part.steady for part in parts}


@pytest.mark.slow
@given(sessions=SESSIONS, answer=answers(), workers=st.integers(1, 5), data=st.data())
@settings(deadline=None)
def test_workers_together_send_what_one_would_of_a_recording(sessions, answer, workers, data):
    """The same turns, meant for the same times."""
    load = data.draw(st.builds(replay, st.floats(0.5, 2), think_s=THINK_S, **LIMITS))
    parts = [simulate(load, sessions, Share(n, workers), answer=answer) for n in range(workers)]

    assert sorted(simulate(load, sessions, answer=answer).sent) == sorted(s for part in parts for s in part.sent)


@given(load=closed_loads(), counts=COUNTS, answer=answers(), workers=st.integers(1, 5))
@settings(deadline=None)
def test_workers_together_drive_a_closed_loop(load, counts, answer, workers):
    """They send the same turns, with no more in flight than one would have."""
    workers = load.workers(workers)
    parts = [simulate(load, turns(*counts), Share(n, workers), answer=answer) for n in range(workers)]

    whole = simulate(load, turns(*counts), answer=answer)

    assert sorted(sent[:2] for sent in whole.sent) == sorted(sent[:2] for part in parts for sent in part.sent)
    assert sum(part.most_in_flight for part in parts) <= load.concurrency


@pytest.mark.slow
@given(load=closed_loads(**LIMITS) | open_loads(**LIMITS), sessions=SESSIONS, answer=answers())
@settings(deadline=None)
def test_the_limits_hold(load, sessions, answer):
    """Nothing is meant for the duration or later, and no more is sent than asked for."""
    run = simulate(load, sessions, answer=answer)

    assert load.duration_s is None or all(sent.at_ns < load.duration_s * S for sent in run.sent)
    assert load.max_requests is None or len(run.sent) <= load.max_requests
    assert run.shed == 0
    assert run.steady.end_ns is None or run.steady.end_ns >= run.steady.start_ns


@pytest.mark.slow
@given(load=open_loads(max_in_flight=st.integers(1, 4)), sessions=SESSIONS, answer=answers())
@settings(deadline=None)
def test_what_is_not_sent_is_counted_as_shed(load, sessions, answer):
    """Without any other limit, a session is sent altogether or shed altogether."""
    run = simulate(load, sessions, answer=answer)

    sent = Counter(sent.session for sent in run.sent)
    assert all(count == len(sessions[session]) for session, count in sent.items())
    assert sum(map(len, sessions)) == len(run.sent) + run.shed


@pytest.mark.slow
@given(concurrency=st.integers(1, 6), counts=COUNTS, data=st.data())
@settings(deadline=None)
def test_a_closed_loop_is_full_whenever_it_can_be(concurrency, counts, data):
    """There are always as many requests in flight as asked for, or as sessions are left."""
    schedule = closed_loop(concurrency).schedule(turns(*counts))
    left, now_ns = list(counts), 0
    in_flight = [release.session for release in schedule.due(0)]
    while in_flight:
        assert min(concurrency, sum(count > 0 for count in left)) == len(in_flight)
        session = data.draw(st.sampled_from(sorted(in_flight)))
        in_flight.remove(session)
        left[session] -= 1
        now_ns += 1
        schedule.ended(session, now_ns, more=left[session] > 0)
        in_flight += [release.session for release in schedule.due(now_ns)]
    assert not any(left)


@pytest.mark.slow
@given(rate=RATE, shape=st.floats(0.05, 20), ramp_s=st.sampled_from([0, 3]), seeds=st.tuples(SEED, SEED))
@settings(deadline=None)
def test_equal_seeds_give_equal_times_and_others_others(rate, shape, ramp_s, seeds):
    """For each load that draws its times."""
    for make, more in ((poisson, {}), (burst, {"shape": shape})):
        one, other = (starts(make(rate, ramp_s=ramp_s, seed=seed, **more), 20) for seed in seeds)
        assert (seeds[0] == seeds[1]) == (one == other)
        assert all(earlier <= later for earlier, later in pairwise(one))


@given(rate=RATE, more=st.integers(0, 20))
@settings(deadline=None)
def test_more_sessions_change_nothing_for_those_before(rate, more):
    """A longer workload begins like a shorter one."""
    assert starts(poisson(rate), 10) == starts(poisson(rate), 10 + more)[:10]


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (round_robin(), "round_robin()"),
        (round_robin(barrier=True), "round_robin(barrier=True)"),
        (
            round_robin(order="random", think_s=2.0, seed=7),
            "round_robin(order='random', think_s=2, seed=7)",
        ),
        (closed_loop(8), "closed_loop(8)"),
        (
            closed_loop(8, think_s=1.5, ramp_s=2, warmup_s=3, duration_s=60, max_requests=100, seed=1),
            "closed_loop(8, think_s=1.5, ramp_s=2, warmup_s=3, duration_s=60, max_requests=100, seed=1)",
        ),
        (closed_loop(8, think_s=exponential(2)), "closed_loop(8, think_s=exponential(2))"),
        (closed_loop(8, think_s=lognormal(2.5, 0.5)), "closed_loop(8, think_s=lognormal(2.5, 0.5))"),
        (constant(0.5), "constant(0.5)"),
        (constant(4, max_in_flight=9), "constant(4, max_in_flight=9)"),
        (poisson(500, seed=3, ramp_s=5), "poisson(500, seed=3, ramp_s=5)"),
        (burst(4, shape=1), "burst(4, shape=1)"),
        (burst(4, shape=0.25, warmup_s=1), "burst(4, shape=0.25, warmup_s=1)"),
        (replay(), "replay()"),
        (replay(1), "replay()"),
        (replay(0.5, duration_s=9), "replay(0.5, duration_s=9)"),
    ],
)
def test_a_load_is_described_as_it_is_written(load, expected):
    """With every argument that is not the default; written again, it is the same load."""
    assert expected == load.describe()
    assert load == eval(expected)


def test_equal_loads_are_described_alike():
    """Whether a number was written as 2 or as 2.0, or came from numpy."""
    assert {"poisson(2, ramp_s=3)"} == {
        load.describe() for load in (poisson(2, ramp_s=3), poisson(2.0, ramp_s=3.0), poisson(np.float64(2), ramp_s=3))
    }


NO_COUNT = [0, -1, 1.5, True, "8"]
NO_SECONDS = [-1, math.inf, math.nan, True, "8", None]
NO_DURATION = [0, -1, math.inf, math.nan, True, "8"]
NO_RATE = [*NO_DURATION, None]
COUNT = "a whole number of at least 1"
SECONDS = "a number of seconds, at least 0"
THINK = SECONDS + ", or exponential(mean_s) or lognormal(mean_s, sigma)"


def with_shape(rate=1, *, shape=1, **more):
    return burst(rate, shape=shape, **more)


COMMON = [
    ("think_s", THINK, NO_SECONDS),
    ("duration_s", "a number of seconds above 0, or None", NO_DURATION),
    ("max_requests", COUNT + ", or None", NO_COUNT),
    ("seed", "a whole number of at least 0", [-1, 0.5, True, None]),
]
RISING = [("ramp_s", SECONDS, NO_SECONDS), ("warmup_s", SECONDS, NO_SECONDS)]
ROOM = [("max_in_flight", COUNT + ", or None", NO_COUNT)]
RATES = [("rate", "a number above 0", NO_RATE)]
ARGUMENTS = [
    (
        "round_robin",
        round_robin,
        {},
        [
            ("barrier", "True or False", [0, 1, None, "yes"]),
            ("order", "'turn' or 'random'", ["shuffled", None, True]),
            COMMON[0],
            COMMON[-1],
        ],
    ),
    (
        "closed_loop",
        closed_loop,
        {"concurrency": 1},
        [("concurrency", COUNT, [*NO_COUNT, None]), *COMMON, *RISING],
    ),
    ("constant", constant, {"rate": 1}, [*RATES, *COMMON, *RISING, *ROOM]),
    ("poisson", poisson, {"rate": 1}, [*RATES, *COMMON, *RISING, *ROOM]),
    ("burst", burst, {"rate": 1, "shape": 1}, [*RATES, ("shape", *RATES[0][1:]), *COMMON, *RISING, *ROOM]),
    ("replay", replay, {}, [("speed", *RATES[0][1:]), *COMMON, *ROOM]),
    ("exponential", exponential, {}, [("mean_s", *RATES[0][1:])]),
    ("lognormal", lognormal, {"mean_s": 1, "sigma": 1}, [("mean_s", *RATES[0][1:]), ("sigma", *RATES[0][1:])]),
]


@pytest.mark.parametrize(
    ("name", "make", "good", "argument", "accepted", "bad"),
    [
        pytest.param(name, make, good, argument, accepted, bad, id=f"{name}-{argument}-{bad}")
        for name, make, good, arguments in ARGUMENTS
        for argument, accepted, values in arguments
        for bad in values
    ],
)
def test_an_argument_out_of_range_is_refused(name, make, good, argument, accepted, bad):
    """The error says what was given and what is accepted."""
    with pytest.raises(ConfigurationError) as caught:
        make(**(good | {argument: bad}))

    assert caught.value.problems == (f"{name}: {argument} must be {accepted}, got {bad!r}",)


def test_all_mistakes_are_named_at_once():
    """Whoever has made three need not find them one by one."""
    with pytest.raises(ConfigurationError) as caught:
        poisson(0, think_s="long", max_in_flight=-1)

    assert caught.value.problems == (
        "poisson: rate must be a number above 0, got 0",
        f"poisson: think_s must be {THINK}, got 'long'",
        "poisson: max_in_flight must be a whole number of at least 1, or None, got -1",
    )


@pytest.mark.parametrize("make", [closed_loop, *OPEN])
def test_a_duration_that_leaves_nothing_to_measure_is_refused(make):
    """Ramp and warm-up must be over before."""
    with pytest.raises(ConfigurationError, match="longer than ramp_s and warmup_s together, or nothing is measured"):
        make(1, ramp_s=2, warmup_s=1, duration_s=3)

    assert make(1, ramp_s=2, warmup_s=1, duration_s=3.01).duration_s == 3.01


def test_importing_the_loads_does_not_import_scipy():
    """It takes longer than all the rest, and few loads need it."""
    code = "import sys, pytest_llmperf.load as load; load.poisson(1).schedule([[None]]); print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


class TestExtent:
    """How far a run has come."""

    @pytest.mark.parametrize(
        ("load", "share"),
        [
            (round_robin(), 0.05),
            (closed_loop(4), 0.05),
            (closed_loop(4, max_requests=10), 0.5),
            (closed_loop(4, max_requests=1000), 0.05),
            (poisson(3, duration_s=20), 0.15),
            (replay(duration_s=1), 1.0),
        ],
        ids=lambda value: value.describe() if hasattr(value, "describe") else "",
    )
    def test_by_requests_or_by_time(self, load, share):
        """Whichever ends the run first, as far as is known: here 5 of 100 turns in 3 seconds."""
        assert share == Extent.of(load, 100).share(5, 3.0)

    def test_of_nothing_all_is_done(self):
        assert 1.0 == Extent.of(round_robin(), 0).share(0, 0.0)
