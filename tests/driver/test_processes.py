"""Several processes do what one does: against a real server on loopback, with everything that can go wrong between."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from groups import process_group
from jobs import ENDLESS, ROUNDS, TEST, WAIT_S, content, drive, eventually, job
from servers import CompletionsServer

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import LocalTeam, ProcessTeam, processes
from pytest_llmperf.driver.parcel import pack, unpack
from pytest_llmperf.driver.stop import Stopped
from pytest_llmperf.errors import ConfigurationError, EngineDiedError, LLMPerfError
from pytest_llmperf.load import Share, closed_loop, poisson, replay, round_robin
from pytest_llmperf.origin import OriginProcess
from pytest_llmperf.record_file import read_requests
from pytest_llmperf.records import Phase, RequestRecord
from pytest_llmperf.workloads import Session, Turn

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def server():
    with OriginProcess(ttft_s=0.005, itl_s=0.001) as origin:
        yield origin


@pytest.fixture(scope="module")
def pair():
    """Two processes for all tests that leave them as they were."""
    team = ProcessTeam(2, RealClock())
    yield team
    team.close()


@pytest.fixture
def fragile_pair():
    """Two processes for a test that may not leave them alive."""
    team = ProcessTeam(2, RealClock())
    yield team
    team.close()


def pids(team):
    return [member.process.pid for member in team._members]


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@dataclass(frozen=True)
class Treacherous:
    """A load during which something happens to the worker of number 1 as it prepares."""

    deed: str

    def workers(self, asked):
        return asked

    def connections(self, sessions, share):
        return 0

    def schedule(self, sessions, share):
        if share.worker == 1:
            DEEDS[self.deed]()
        return closed_loop(4).schedule(sessions, share)


class TwoPartError(Exception):
    """Cannot be made from its text alone, so it cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raising(error):
    def deed():
        raise error

    return deed


DEEDS = {
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": raising(ValueError("no such schedule")),
    "raises of the system": raising(FileNotFoundError(2, "No such file", "trace.jsonl")),
    "raises what cannot be pickled": raising(TwoPartError("this", "that")),
    "raises ours": raising(ConfigurationError("replay: at_s must be a number")),
}


@pytest.mark.slow
def test_workers_listen_nowhere(pair, server):
    """They talk through pipes: nobody else has anything to say to them."""
    drive(pair, job(server))

    assert 2 == len(pids(pair))
    sockets = [one for pid in pids(pair) for one in psutil.Process(pid).net_connections("inet")]
    assert [] == [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]


class TestOneResult:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("load", "workers"),
        [
            (closed_loop(3), 2),
            (closed_loop(3, ramp_s=0.02, think_s=0.002), 2),
            (closed_loop(50), 2),
            (poisson(300, seed=5), 2),
            (replay(max_in_flight=100), 2),
            (closed_loop(1), 1),
            (round_robin(), 1),
            (round_robin(barrier=True), 1),
        ],
        ids=lambda value: value if isinstance(value, int) else value.describe(),
    )
    def test_it_is_that_of_one_worker(self, server, pair, load, workers):
        """Whatever the load, the same requests are made and the same answers recorded."""
        _, alone = drive(LocalTeam(RealClock()), job(server, load=load))
        driven, rows = drive(pair, job(server, load=load))
        assert content(rows) == content(alone)
        assert len(rows) == 21
        assert workers == len(driven.client.cpu_shares)
        assert driven.problems == ()

    def test_the_server_receives_the_same_prompts(self, pair):
        """Each turn continues from the very ids that its session was answered."""

        def prompts(team):
            with CompletionsServer() as server:
                drive(team, job(server))
                return sorted(request.body["prompt"] for request in server.requests)

        assert prompts(LocalTeam(RealClock())) == prompts(pair)

    def test_all_start_at_one_moment(self, server, pair):
        """The first turns of sessions of different workers are due at the same time of one clock."""
        driven, rows = drive(pair, job(server))
        first = {row.released_ns for row in rows if row.session < 4 and row.turn == 0}
        assert first == {driven.start_ns}

    def test_the_window_is_that_in_which_all_are_steady(self, server, pair):
        """It begins after the ramp and ends when the first worker runs out of sessions."""
        driven, rows = drive(pair, job(server, load=closed_loop(2, ramp_s=0.02)))
        last_turns = [row.end_ns for row in rows if row.turn == 2]
        assert driven.start_ns + 20_000_000 == driven.window.start_ns
        assert driven.window.end_ns in last_turns
        assert driven.window.end_ns < max(last_turns) <= driven.end_ns

    def test_a_share_without_sessions_changes_nothing(self, server, pair):
        """One session on two workers is driven by one of them."""
        driven, rows = drive(pair, job(server, replace(ROUNDS, users=1)))
        assert [0, 1, 2] == [row.turn for row in rows]
        assert driven.end_ns >= rows[-1].end_ns

    def test_processes_are_kept_from_run_to_run(self, server, pair):
        """The second run is driven by those of the first."""
        drive(pair, job(server))
        before = pids(pair)
        drive(pair, job(server))
        assert before == pids(pair)
        assert len(before) == 2


class TestParcels:
    def test_a_workload_of_ours_travels_as_its_description(self, server):
        """The receiver draws the sessions itself."""
        received, share = unpack(pack(job(server), Share(1, 2)))
        assert (received.sessions, share) == (ROUNDS, Share(1, 2))

    def test_other_sessions_travel_themselves_each_to_its_worker(self, server):
        """Of those that others drive only the times are sent."""
        turn = Turn(
            prefix=np.arange(3, dtype=np.int32), new_ids=np.arange(2, dtype=np.int32), output_tokens=4, at_s=2.5
        )
        received, _ = unpack(pack(job(server, [Session(turns=(turn,))] * 3), Share(1, 2)))
        assert [0, 5, 0] == [len(session.turns[0].input_tokens or ()) for session in received.sessions]
        assert [2.5] * 3 == [session.turns[0].at_s for session in received.sessions]

    def test_a_workload_of_a_test_is_driven(self, server, pair):
        """A class that no other process can import makes no difference."""

        class Mine:
            def __iter__(self):
                return iter(ROUNDS)

        _, alone = drive(LocalTeam(RealClock()), job(server))
        _, rows = drive(pair, job(server, Mine()))
        assert content(rows) == content(alone)

    def test_a_load_that_cannot_be_sent_is_a_mistake(self, server, pair):
        """A class within a function has no name by which another process could find it."""

        class Mine(Treacherous):
            pass

        with pytest.raises(ConfigurationError, match=r"(?s)cannot be sent.*Mine.*or use one worker"):
            drive(pair, job(server, load=Mine("")))

    @pytest.mark.slow
    def test_a_load_that_cannot_be_loaded_is_a_mistake(self, server, fragile_pair, monkeypatch):
        """A module that only this process knows is named."""
        module = type(sys)("known_only_here")
        module.Load = type("Load", (Treacherous,), {"__module__": "known_only_here"})
        monkeypatch.setitem(sys.modules, "known_only_here", module)
        with pytest.raises(ConfigurationError, match=r"No module named 'known_only_here'.*or use one worker"):
            drive(fragile_pair, job(server, load=module.Load("")))

    def test_a_workload_that_raises_does_so_here(self, server, pair):
        """What a test's own workload raises is its own exception."""

        def broken():
            yield from ROUNDS
            raise ValueError("no more users")

        with pytest.raises(ValueError, match="no more users"):
            drive(pair, job(server, broken()))


class TestTrouble:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("deed", "error", "message"),
        [
            ("raises", ValueError, "no such schedule"),
            ("raises of the system", FileNotFoundError, "trace.jsonl"),
            ("raises what cannot be pickled", LLMPerfError, "TwoPartError: this and that"),
            ("raises ours", ConfigurationError, "replay: at_s must be a number"),
        ],
    )
    def test_what_a_worker_raises_is_raised_here(self, server, fragile_pair, deed, error, message):
        """With its message, and with the place in the worker where it happened."""
        with pytest.raises(error, match=message) as raised:
            drive(fragile_pair, job(server, load=Treacherous(deed)))
        assert "in schedule" in str(raised.value.__cause__)

    @pytest.mark.slow
    def test_a_team_is_usable_after_an_error(self, server, fragile_pair):
        """New processes take the place of those that were stopped."""
        with pytest.raises(ValueError, match="no such schedule"):
            drive(fragile_pair, job(server, load=Treacherous("raises")))
        driven, rows = drive(fragile_pair, job(server))
        assert (driven.problems, len(rows)) == ((), 21)

    @pytest.mark.slow
    def test_a_worker_killed_in_mid_run_spoils_it(self, server, fragile_pair):
        """The run goes on without it, its first records and all of the other's are kept, and it says so."""
        drive(fragile_pair, job(server))  # both are there
        victim = pids(fragile_pair)[1]
        sessions = replace(ROUNDS, users=4, rounds=40)

        def kill(row):
            if (row.session, row.turn) == (1, 3):
                os.kill(victim, signal.SIGKILL)

        driven, rows = drive(fragile_pair, job(server, sessions), kill)

        turns = {session: [row.turn for row in rows if row.session == session] for session in range(4)}
        assert list(range(40)) == turns[0] == turns[2]
        assert 4 <= len(turns[1]) < 40
        (problem,) = driven.problems
        assert problem.startswith(f"the worker process {victim} ended early (SIGKILL)")
        driven, rows = drive(fragile_pair, job(server))
        assert (driven.problems, len(rows)) == ((), 21)

    @pytest.mark.slow
    def test_a_worker_killed_while_it_prepares_spoils_the_run(self, server, fragile_pair):
        """The others do not wait for it."""
        driven, rows = drive(fragile_pair, job(server, load=Treacherous("dies")))
        assert {0, 2, 4, 6} == {row.session for row in rows}
        assert len(rows) == 12
        assert len(driven.problems) == 1
        assert drive(fragile_pair, job(server))[0].problems == ()

    @pytest.mark.slow
    def test_an_interrupt_of_the_process_group_is_not_for_workers(self, server, fragile_pair):
        """Ctrl-C reaches them, too, but who has started them decides."""

        def interrupt(row):
            if (row.session, row.turn) == (1, 0):
                for pid in pids(fragile_pair):
                    os.kill(pid, signal.SIGINT)

        driven, rows = drive(fragile_pair, job(server), interrupt)
        assert (driven.problems, len(rows)) == ((), 21)

    @pytest.mark.slow
    def test_an_interrupt_does_not_reach_a_worker_that_is_starting(self, server, fragile_pair):
        """It is held back from its first moment on."""
        for member in fragile_pair._staff(2):
            os.kill(member.process.pid, signal.SIGINT)
        assert drive(fragile_pair, job(server))[0].problems == ()

    @pytest.mark.slow
    def test_nobody_left_is_an_error(self, server, fragile_pair):
        """There is nothing to go on with."""
        drive(fragile_pair, job(server))

        def kill(row):
            for pid in pids(fragile_pair):
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(LLMPerfError, match=r"every worker was lost: .*SIGKILL.*; .*SIGKILL"):
            drive(fragile_pair, job(server, ENDLESS), kill)

    @pytest.mark.slow
    def test_an_engine_that_dies_stops_the_workers(self, server, fragile_pair, monkeypatch):
        """It is looked after even while records keep coming, and these are kept."""
        monkeypatch.setattr(processes, "_LOOK_S", 0.05)
        rows, workers = [], []

        def check():
            if len(rows) > 40:
                workers.extend(pids(fragile_pair))
                raise EngineDiedError("the server has ended")

        server.reset()
        with pytest.raises(EngineDiedError):
            fragile_pair.run(job(server, ENDLESS), rows.append, check)
        assert 40 < len(rows) < 1600
        assert {0, 1, 2, 3} == {row.session for row in rows}
        assert len(workers) == 2
        assert not any(map(is_alive, workers))

    @pytest.mark.slow
    def test_an_interrupt_loses_no_answer(self, server, fragile_pair):
        """What the workers have at that moment is handed over, and they are gone."""
        rows, workers = [], []

        def record(row):
            rows.append(row)
            if len(rows) == 20:
                workers.extend(pids(fragile_pair))
                time.sleep(0.2)
                raise KeyboardInterrupt

        server.reset()
        with pytest.raises(KeyboardInterrupt):
            fragile_pair.run(job(server, ENDLESS), record, lambda: None)
        eventually(lambda: server.stats()["active"] == 0)
        answered = server.stats()["requests"]
        assert answered - 4 <= len(rows) <= answered  # up to four were on their way
        assert 20 < len(rows) < 1600
        assert not any(map(is_alive, workers))

    @pytest.mark.slow
    def test_a_worker_that_does_not_stop_is_killed(self, server, fragile_pair, monkeypatch):
        """One that hangs holds nobody up for long."""
        monkeypatch.setattr(processes, "_STOP_S", 0.3)
        workers = []

        def hang(row):
            workers.extend(pids(fragile_pair))
            os.kill(workers[1], signal.SIGSTOP)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(fragile_pair, job(server, ENDLESS), hang)
        assert not any(map(is_alive, workers))

    @pytest.mark.slow
    def test_nothing_is_left_open(self, server):
        """Pipes of lost workers are closed like all others."""
        drive(LocalTeam(RealClock()), job(server))
        multiprocessing.resource_tracker.ensure_running()
        before = len(os.listdir("/proc/self/fd"))
        team = ProcessTeam(2, RealClock())
        drive(team, job(server, load=Treacherous("dies")))
        drive(team, job(server))
        workers = pids(team)
        team.close()
        team.close()
        assert before == len(os.listdir("/proc/self/fd"))
        assert not any(map(is_alive, workers))


def row(tokens=1):
    return RequestRecord(
        run=0,
        phase=Phase.MEASURED,
        session=0,
        turn=0,
        released_ns=0,
        sent_ns=0,
        end_ns=0,
        arrivals=Arrivals(range(tokens), [1] * tokens, [0] * tokens),
        new_tokens=1,
        input_tokens=1,
        output_tokens_asked=1,
    )


@pytest.fixture
def way_to_parent():
    """A worker's end of the pipe, and the other one; SIGTERM is what it was afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    ours, theirs = multiprocessing.Pipe()
    yield processes._Parent(ours), theirs
    signal.signal(signal.SIGTERM, before)
    ours.close()
    theirs.close()


class TestWayToParent:
    @pytest.mark.slow
    def test_driving_does_not_wait_for_who_reads(self, way_to_parent):
        """A parent that is busy for a while finds everything later."""
        parent, theirs = way_to_parent
        for _ in range(300):
            parent.record(row(tokens=500))
        received = []
        reader = threading.Thread(target=lambda: received.extend(theirs.recv() for _ in range(300)))
        reader.start()
        parent.send_records(patiently=True)
        reader.join(WAIT_S)
        assert [("record", row(tokens=500))] * 300 == received

    def test_a_stop_ends_at_once_who_waits(self, way_to_parent):
        """Where nothing can be lost the signal is an exception, once."""
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    def test_a_stop_ends_who_drives_where_it_looks_at_the_clock(self, way_to_parent):
        """Nowhere else: not within a message, not between an answer and its record."""
        parent, theirs = way_to_parent
        done = []

        def drive():
            with parent.undisturbed():
                signal.raise_signal(signal.SIGTERM)
                parent.record(row())
                done.append("answer")
                try:
                    parent.clock.now_ns()
                    done.append("look")
                finally:  # as the driver does in the end
                    assert parent.clock.now_ns() <= time.monotonic_ns()
                    parent.record(row())

        with pytest.raises(Stopped):
            drive()
        assert ["answer"] == done
        assert [("record", row())] * 2 == [theirs.recv(), theirs.recv()]

    def test_a_stop_after_the_last_look_at_the_clock_comes_in_the_end(self, way_to_parent):
        """All that has been recorded is sent before."""
        parent, theirs = way_to_parent
        parent._room = select.poll()  # says that there is no room

        def drive():
            with parent.undisturbed():
                parent.record(row())
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Stopped):
            drive()
        assert ("record", row()) == theirs.recv()

    def test_without_a_parent_there_is_nothing_to_do(self, way_to_parent):
        """A pipe that is broken ends the work."""
        parent, theirs = way_to_parent
        theirs.close()
        with pytest.raises(Stopped):
            parent.record(row())
        with pytest.raises(Stopped):
            parent.receive()


SCRIPT = """
import sys
with open("starts", "a") as file:
    file.write("x")
from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import Job, ProcessTeam
from pytest_llmperf.engines.completions import CompletionsConnector, Dialect
from pytest_llmperf.load import closed_loop
from pytest_llmperf.record_file import read_requests
from pytest_llmperf.records import Phase
from pytest_llmperf.workloads import single_turn

connector = CompletionsConnector(
    address=Address.parse(sys.argv[1]), model="x", dialect=Dialect(extended=True), limits=Limits(silence_s=99)
)
sessions = single_turn(requests=4, input_tokens=4, output_tokens=4)
job = Job(connector=connector, sessions=sessions, load=closed_loop(4), run=0, phase=Phase.MEASURED)
team = ProcessTeam(2, RealClock())

def check_engine():
    print(*(member.process.pid for member in team._members), flush=True)

team.run(job, print, check_engine)
"""


class TestWithoutParent:
    @pytest.mark.slow
    def test_a_parent_that_is_killed_takes_its_workers_with_it(self, tmp_path):
        """Although they have nothing to say, as the server is slow; and none has run the script that it came from."""
        (tmp_path / "script.py").write_text(SCRIPT)
        with OriginProcess(ttft_s=60) as slow:
            command = [sys.executable, "script.py", slow.url]
            with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
                workers = [int(pid) for pid in parent.stdout.readline().split()]
                parent.kill()
            assert len(workers) == 2
            eventually(lambda: not any(map(is_alive, workers)))
            eventually(lambda: slow.stats()["active"] == 0)
        assert (tmp_path / "starts").read_text() == "x"


LONG_TEST = """
from pytest_llmperf import closed_loop, single_turn

def test_it(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=5000, input_tokens=4, output_tokens=4), load=closed_loop(4))
"""
# Says of each worker whether it had to do with pytest.
SITE = """
import atexit, os, sys

def tell():
    with open(os.environ["TELL"], "a") as file:
        file.write(f"{'_pytest' in sys.modules} ")

if "--multiprocessing-fork" in sys.orig_argv:
    atexit.register(tell)
"""


@pytest.mark.slow
class TestUnderPytest:
    @pytest.mark.parametrize("command", [("-m", "pytest"), (Path(sys.executable).with_name("pytest"),)])
    def test_two_workers(self, server, tmp_path, command):
        """However pytest was started, its workers know nothing of it, and nothing of the test's own workload."""
        (tmp_path / "test_it.py").write_text(TEST)
        (tmp_path / "sitecustomize.py").write_text(SITE)
        told = tmp_path / "told"
        words = ["--llmperf-runs", "1", "--llmperf-workers", "2", "--llmperf-url", server.url]
        done = subprocess.run(
            [sys.executable, *command, "-s", "-p", "no:cacheprovider", *words],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path), "TELL": str(told)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "2 workers, [10] requests" in done.stdout, done.stdout + done.stderr
        assert "1 workers, [10] requests" in done.stdout
        assert done.stderr == ""
        assert told.read_text() == "False False "

    def test_control_c(self, server, tmp_path):
        """What was answered is on record, and nobody is left of the whole process group."""
        (tmp_path / "test_it.py").write_text(LONG_TEST)
        server.reset()
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llmperf-workers", "2"]
        with process_group([*command, "--llmperf-url", server.url, "--llmperf-warmup-runs", "0"], tmp_path) as process:
            eventually(lambda: any(path.stat().st_size > 9999 for path in tmp_path.glob(".llmperf/*/records/*")))
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            os.killpg(process.pid, signal.SIGINT)
            began = time.monotonic()
            out, err = process.communicate(timeout=WAIT_S)
            assert process.returncode == 2, out + err
            assert time.monotonic() - began < 5
            assert "Traceback" not in out + err
            assert len(family) >= 3
            eventually(lambda: not any(map(is_alive, family)))
        (path,) = tmp_path.glob(".llmperf/*/records/*.jsonl")
        # The engine's first contact is a request, too; up to four were on their way.
        answered = server.stats()["requests"] - 1
        assert answered - 4 <= len(list(read_requests(path))) <= answered
