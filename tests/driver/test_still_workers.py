"""Workers that are there and do nothing are given up in time, here and on a cluster."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from jobs import ENDLESS, job
from servers import CompletionsServer

from pytest_llmperf.clock import RealClock, VirtualClock
from pytest_llmperf.driver import ProcessTeam, processes, ray


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux tells the state of a process")
def test_a_worker_that_is_stopped_is_given_up(monkeypatch):
    """As by SIGSTOP, or a machine that swaps: the others' share counts, and the run says what became of it."""
    monkeypatch.setattr(processes, "_STILL_S", 0.3)
    monkeypatch.setattr(processes, "_LOOK_S", 0.1)
    team = ProcessTeam(2, RealClock())
    stopped = []

    def record(row):
        if not stopped:
            stopped.append(team._members[1].process.pid)
            os.kill(stopped[0], signal.SIGSTOP)

    with CompletionsServer() as server:
        try:
            driven = team.run(job(server, ENDLESS), record, lambda: None)
        finally:
            team.close()

    (problem,) = driven.problems
    assert f"the worker process {stopped[0]} ended early (SIGKILL after it had been stopped for 0.3 s)" in problem


class Cluster:
    """As much of Ray as telling the time takes; those in `silent` do not."""

    def __init__(self):
        self.silent = set()

    def member(self, name):
        return SimpleNamespace(actor=SimpleNamespace(now_ns=SimpleNamespace(remote=lambda: name)), node=name)

    def wait(self, references, timeout):
        assert timeout == 0
        there = [one for one in references if one not in self.silent]
        return there, [one for one in references if one in self.silent]


def test_a_ray_worker_that_does_not_tell_the_time_is_taken_for_lost():
    """A minute after its last call, and not one that answers, however long it drives."""
    cluster, clock = Cluster(), VirtualClock()
    calls = ray._Calls(cluster, clock)
    well, hung = (ray._Member(cluster.member(name).actor, name, name) for name in ("well", "hung"))

    told = []
    for second in range(100):
        if second == 10:
            cluster.silent.add("hung")
        told.append((calls.is_silent(well), calls.is_silent(hung)))
        clock.sleep(1.0)

    assert not any(one for one, _ in told)
    assert [silent for _, silent in told].index(True) in range(70, 73)
