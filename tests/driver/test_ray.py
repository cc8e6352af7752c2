"""Workers on a Ray cluster: on a real one of two nodes, and, quickly, on one that is played."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace

import psutil
import pytest
from jobs import ENDLESS, ROUNDS, TEST, content, drive, eventually, job

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import Driven, LocalTeam, ray, team_of
from pytest_llmperf.driver.stop import StoppableClock
from pytest_llmperf.errors import ConfigurationError, EngineDiedError, LLMPerfError
from pytest_llmperf.load import closed_loop, poisson, round_robin
from pytest_llmperf.origin import OriginProcess
from pytest_llmperf.records import Phase, RequestRecord, Window

pytestmark = pytest.mark.real_time

AHEAD_NS = 5_000_000_000_000
"""How far the clock of the second played node is ahead."""


@pytest.fixture(scope="module")
def server():
    with OriginProcess(ttft_s=0.005, itl_s=0.001) as origin:
        yield origin


class FakeError(Exception):
    """Ray's errors by name."""


class FakeTaskError(FakeError):
    def __init__(self, cause):
        super().__init__(f"traceback\n{type(cause).__name__}: {cause}")
        self.cause = cause


class FakeRay(types.ModuleType):
    """As much of Ray as the team uses; the actors are threads of this process."""

    exceptions = types.SimpleNamespace(RayError=FakeError, RayTaskError=FakeTaskError)

    def __init__(self):
        super().__init__("ray")
        self.nodes_with_cpus = [1, 1]
        self.lost = {}
        """Node and method: its call never returns, as the node has died."""
        self.dead = ()
        """Nodes that died a moment ago: the cluster has not noticed when it is asked first."""
        self.looked = 0
        self.actors = []
        self.killed = []
        self.shut_down = False
        self.refuses = None
        self.initialised = False
        self.pool = ThreadPoolExecutor()

    def is_initialized(self):
        return self.initialised

    def init(self, **options):
        if self.refuses is not None:
            raise self.refuses
        signal.signal(signal.SIGTERM, lambda *_: None)
        self.options, self.initialised = options, True

    def shutdown(self):
        self.initialised, self.shut_down = False, True

    def nodes(self):
        self.looked += 1
        return [
            {
                "Alive": number not in self.dead or self.looked == 1,
                "Resources": {"CPU": cpus},
                "NodeManagerAddress": "10.0.0.1",
                "NodeID": f"node{number}-id",
            }
            for number, cpus in enumerate(self.nodes_with_cpus)
        ]

    def remote(self, **options):
        def actor_class(cls):
            def on_node(scheduling_strategy):
                return types.SimpleNamespace(remote=lambda: self.place(cls, scheduling_strategy.node_id))

            return types.SimpleNamespace(options=on_node)

        return actor_class

    def place(self, cls, node):
        actor = FakeActor(self, cls(), node)
        if node.startswith("node1"):
            actor.instance._clock = StoppableClock(Ahead())
        self.actors.append(actor)
        return actor

    def wait(self, references, num_returns=1, timeout=None):
        when = "FIRST_COMPLETED" if num_returns == 1 else "ALL_COMPLETED"
        done, waiting = wait_for(references, timeout, when)
        return list(done), list(waiting)

    def get(self, reference, timeout=None):
        return reference.result(timeout)

    def kill(self, actor):
        self.killed.append(actor.node)

    def close(self):
        """What the end of the processes would do."""
        self.pool.shutdown()
        for actor in self.actors:
            if actor.instance._worker is not None:
                actor.instance._worker._channel.close()


class FakeActor:
    def __init__(self, ray, instance, node):
        self.ray, self.instance, self.node = ray, instance, node

    def __getattr__(self, method):
        return types.SimpleNamespace(remote=lambda *arguments: self.call(method, arguments))

    def call(self, method, arguments):
        failure = self.ray.lost.get((self.node[:5], method))
        if failure is None:
            return self.ray.pool.submit(self.answer, method, arguments)
        reference = Future()
        if failure != "hangs":
            reference.set_exception(failure)
        return reference

    def answer(self, method, arguments):
        try:
            return getattr(self.instance, method)(*arguments)
        except Exception as error:
            raise FakeTaskError(error) from error


class Ahead:
    """The clock of another machine."""

    sleep = staticmethod(time.sleep)
    cpu_ns = staticmethod(time.process_time_ns)

    def now_ns(self):
        return time.monotonic_ns() + AHEAD_NS


@pytest.fixture
def fake(monkeypatch):
    module = FakeRay()
    strategies = types.ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = lambda node_id, soft: types.SimpleNamespace(node_id=node_id)
    for name, found in (("ray", module), ("ray.util", types.ModuleType("ray.util"))):
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    yield module
    module.close()


@pytest.fixture
def team(fake):
    team = team_of("ray://auto", RealClock())
    yield team
    team.close()


class TestPlayedCluster:
    @pytest.mark.slow
    @pytest.mark.parametrize("load", [closed_loop(3), poisson(300), round_robin()], ids=lambda load: load.name)
    def test_the_result_is_that_of_one_worker(self, server, team, load):
        """The same requests are made and the same answers recorded."""
        _, alone = drive(LocalTeam(RealClock()), job(server, load=load))
        driven, rows = drive(team, job(server, load=load))
        assert content(rows) == content(alone)
        assert driven.problems == ()

    def test_times_are_those_of_this_machine(self, server, team):
        """Although the second node's clock shows something else by far."""
        before_ns = time.monotonic_ns()
        driven, rows = drive(team, job(server, load=closed_loop(4, ramp_s=0.02)))
        after_ns = time.monotonic_ns()
        assert {0, 1} == {row.session % 2 for row in rows}
        for row in rows:
            moments = [row.released_ns, row.sent_ns, *row.arrivals.at_ns, row.end_ns]
            assert before_ns < min(moments)
            assert max(moments) < after_ns + 1_000_000
            assert row.arrivals.at_ns.tolist() == sorted(row.arrivals.at_ns)
        assert before_ns < driven.start_ns <= driven.window.start_ns < driven.window.end_ns <= driven.end_ns
        assert driven.end_ns < after_ns + 1_000_000

    def test_all_start_at_one_moment(self, server, team):
        """As exactly as the clocks are known."""
        driven, rows = drive(team, job(server))
        error_ns = max(error for _, error in driven.client.clock_offsets_ns.values())
        first = [row.released_ns for row in rows if row.session < 4 and row.turn == 0]
        assert max(first) - min(first) <= error_ns

    def test_the_clocks_are_on_record(self, server, team):
        """Each node with its offset and the error of that."""
        driven, _ = drive(team, job(server))
        offsets = driven.client.clock_offsets_ns
        assert ["10.0.0.1/node0-id", "10.0.0.1/node1-id"] == sorted(offsets)
        for node, (offset_ns, error_ns) in offsets.items():
            true_ns = AHEAD_NS if "node1" in node else 0
            assert abs(offset_ns - true_ns) <= error_ns < 50_000_000

    @pytest.mark.slow
    def test_clocks_are_read_before_each_run(self, server, fake, team):
        """They drift apart in the meantime."""
        drive(team, job(server))
        fake.actors[1].instance._clock = StoppableClock()
        driven, _ = drive(team, job(server))
        assert all(abs(offset_ns) < 50_000_000 for offset_ns, _ in driven.client.clock_offsets_ns.values())
        assert len(fake.actors) == 2

    @pytest.mark.slow
    def test_a_node_that_is_lost_spoils_the_run(self, server, fake, team):
        """The other's records are kept, and the next run takes the nodes that there are."""
        fake.lost["node1", "drive"] = FakeError("The actor died.\n\tmore")
        driven, rows = drive(team, job(server))
        assert {0, 2, 4, 6} == {row.session for row in rows}
        assert driven.problems == (
            "the Ray node 10.0.0.1/node1-id was lost with all that it measured: The actor died.",
        )
        fake.lost.clear()
        fake.nodes_with_cpus = [1, 0]
        driven, rows = drive(team, job(server))
        assert (driven.problems, len(rows), len(driven.client.cpu_shares)) == ((), 21, 1)

    def test_a_node_that_is_lost_before_the_start_spoils_the_run(self, server, fake, team):
        """The others do not wait for it."""
        fake.lost["node0", "prepare"] = FakeError("gone")
        driven, rows = drive(team, job(server))
        assert {1, 3, 5} == {row.session for row in rows}
        assert len(driven.problems) == 1

    def test_nobody_left_is_an_error(self, server, fake, team):
        """There is nothing to go on with."""
        fake.lost = {("node0", "drive"): FakeError("first"), ("node1", "drive"): FakeError("second")}
        with pytest.raises(LLMPerfError, match=r"every worker was lost: .*(first.*second|second.*first)"):
            drive(team, job(server))

    @pytest.mark.slow
    def test_a_node_that_is_lost_between_runs_is_left_out(self, server, fake, team):
        """Its clock does not answer, so all are placed anew."""
        drive(team, job(server))
        fake.lost["node1", "now_ns"] = FakeError("gone")
        fake.nodes_with_cpus = [1, 0]
        driven, rows = drive(team, job(server))
        assert (driven.problems, len(rows)) == ((), 21)

    def test_what_a_worker_raises_is_raised_here(self, server, fake, team):
        """The error itself, not Ray's."""
        fake.lost["node1", "prepare"] = FakeTaskError(ValueError("no such schedule"))
        with pytest.raises(ValueError, match=r"^no such schedule$"):
            drive(team, job(server))
        assert sorted(fake.killed) == ["node0-id", "node1-id"]

    @pytest.mark.slow
    @pytest.mark.parametrize("error", [EngineDiedError("the server has ended"), KeyboardInterrupt()])
    def test_an_end_from_outside_keeps_what_was_measured(self, server, fake, team, monkeypatch, error):
        """The workers are stopped, and what they have is recorded here."""
        monkeypatch.setattr(ray, "_LOOK_S", 0.4)

        def check():
            raise error

        rows = []
        with pytest.raises(type(error)):
            team.run(job(server, ENDLESS), rows.append, check)
        assert {0, 1, 2, 3} == {row.session for row in rows}
        assert max(row.end_ns for row in rows) < time.monotonic_ns()
        assert sorted(fake.killed) == ["node0-id", "node1-id"]

    def test_a_worker_that_does_not_stop_is_given_up(self, server, fake, team, monkeypatch):
        """Nobody waits for a node that does not answer any more."""
        monkeypatch.setattr(ray, "_LOOK_S", 0.1)
        monkeypatch.setattr(ray, "_STOP_S", 0.1)
        fake.lost["node1", "drive"] = "hangs"

        def check():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(team, job(server, replace(ENDLESS, rounds=80)), check_engine=check)
        assert sorted(fake.killed) == ["node0-id", "node1-id"]

    def test_every_node_without_a_worker_is_named(self, server, fake, team, monkeypatch):
        """One has no CPU free, one another version, one cannot import the package."""
        monkeypatch.setattr(ray, "_PLACE_S", 0.1)
        fake.nodes_with_cpus = [1, 1, 1]
        fake.lost = {
            ("node0", "version"): "hangs",
            ("node1", "version"): FakeError("It died\n  ...\nModuleNotFoundError: No module named 'pytest_llmperf'"),
        }
        monkeypatch.setattr(ray._Remote, "version", lambda self: "0.0.9")
        with pytest.raises(ConfigurationError) as raised:
            drive(team, job(server))
        assert raised.value.problems == (
            "the Ray node 10.0.0.1/node0-id had no CPU free for a worker within 0.1 s",
            "no worker can run on the Ray node 10.0.0.1/node1-id: "
            "ModuleNotFoundError: No module named 'pytest_llmperf'",
            f"the Ray node 10.0.0.1/node2-id has pytest-llmperf 0.0.9, not {ray.__version__}",
        )
        assert len(fake.killed) == 3

    def test_a_node_that_has_just_died_is_left_out(self, server, fake, team):
        """The cluster may not have noticed at first."""
        fake.dead = (1,)
        fake.lost["node1", "version"] = FakeError("The actor never ran")
        driven, rows = drive(team, job(server))
        assert (driven.problems, len(rows), len(driven.client.cpu_shares)) == ((), 21, 1)

    def test_a_cluster_without_processors_is_of_no_use(self, server, fake, team):
        """There would be nobody to drive."""
        fake.nodes_with_cpus = [0]
        with pytest.raises(ConfigurationError, match="no node with a CPU"):
            drive(team, job(server))

    def test_a_cluster_that_is_not_there_is_a_mistake(self, server, fake):
        """With the address that was tried, and what to do."""
        fake.refuses = ConnectionError("Could not find any running Ray instance.\nmore")
        team = team_of("ray://10.0.0.9:10001", RealClock())
        with pytest.raises(ConfigurationError, match=r"ray://10.0.0.9:10001 \(Could not find.*instance.\); start one"):
            drive(team, job(server))
        assert not fake.shut_down

    @pytest.mark.slow
    def test_who_connects_disconnects(self, server, fake, team):
        """After that another run may follow."""
        drive(team, job(server))
        assert fake.options["address"] == "auto"
        team.close()
        team.close()
        assert fake.shut_down
        assert drive(team, job(server))[0].problems == ()

    def test_a_connection_that_was_there_stays(self, server, fake, team):
        """It belongs to the test session that has made it."""
        fake.initialised = True
        drive(team, job(server))
        team.close()
        assert not fake.shut_down
        assert sorted(fake.killed) == ["node0-id", "node1-id"]

    def test_sigterm_means_what_it_did_before(self, server, team):
        """Ray would make it an exit in the middle of a test."""
        before = signal.getsignal(signal.SIGTERM)
        drive(team, job(server))
        assert signal.getsignal(signal.SIGTERM) is before

    def test_without_ray_it_is_said_how_to_get_it(self, server, monkeypatch):
        """Ray is an extra."""
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ConfigurationError, match=r"pip install 'pytest-llmperf\[ray\]'"):
            drive(team_of("ray://auto", RealClock()), job(server))


class TestConversion:
    def test_of_a_record(self):
        """Moments are moved, durations are not."""
        row = RequestRecord(
            run=0,
            phase=Phase.MEASURED,
            session=0,
            turn=0,
            released_ns=1005,
            sent_ns=1010,
            flushed_ns=1011,
            connect_ns=7,
            end_ns=1030,
            arrivals=Arrivals([1020, 1025], [1, 2], [3, 4]),
            new_tokens=1,
            input_tokens=1,
            output_tokens_asked=3,
        )
        moved = replace(
            row,
            released_ns=5,
            sent_ns=10,
            flushed_ns=11,
            end_ns=30,
            arrivals=Arrivals([20, 25], [1, 2], [3, 4]),
        )
        assert moved == ray._here(row, 1000)

    def test_of_a_request_that_was_never_sent(self):
        """What did not happen has no time here either."""
        row = RequestRecord(
            run=0,
            phase=Phase.MEASURED,
            session=0,
            turn=1,
            released_ns=1005,
            sent_ns=None,
            end_ns=1005,
            arrivals=(),
            new_tokens=1,
            input_tokens=0,
            output_tokens_asked=3,
        )
        moved = ray._here(row, 1000)
        assert (None, None, None, 0) == (moved.sent_ns, moved.flushed_ns, moved.connect_ns, len(moved.arrivals))

    @pytest.mark.parametrize(("end_ns", "moved_ns"), [(1080, 80), (None, None)])
    def test_of_a_share(self, end_ns, moved_ns):
        """The window may be open."""
        theirs = Driven(start_ns=1000, end_ns=1090, window=Window(1010, end_ns), shed=2, problems=("x",))
        here = ray._driven_here(theirs, ray._Member(None, "id", "n", offset_ns=1000, error_ns=3))
        assert (0, 90, Window(10, moved_ns), 2, ("x",)) == (
            here.start_ns,
            here.end_ns,
            here.window,
            here.shed,
            here.problems,
        )
        assert {"n": (1000, 3)} == here.client.clock_offsets_ns


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a processor each, on this machine."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    from ray.cluster_utils import Cluster

    soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 2}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    )
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def real_team(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    team = team_of("ray://auto", RealClock())
    yield team
    team.close()


def actors():
    """The processes that are workers of ours."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("_Remote" in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("default")  # Ray's own
class TestRealCluster:
    def test_two_nodes(self, server, cluster, real_team):
        """One worker on each, one result, and nothing is left of us on the cluster."""
        for load in (closed_loop(3), poisson(300, seed=5)):
            _, alone = drive(LocalTeam(RealClock()), job(server, load=load))
            driven, rows = drive(real_team, job(server, load=load))
            assert content(rows) == content(alone)
            assert driven.problems == ()
            assert len(driven.client.cpu_shares) == 2
            assert len(driven.client.clock_offsets_ns) == 2
            # It is one machine, so the clocks are one.
            assert all(abs(offset) <= error for offset, error in driven.client.clock_offsets_ns.values())
        assert len(actors()) == 2
        real_team.close()
        eventually(lambda: not actors())

    def test_under_pytest(self, server, cluster, tmp_path):
        """The nodes know nothing of the test's own workload, and Ray has nothing to say."""
        (tmp_path / "test_it.py").write_text(TEST)
        words = ["--llmperf-runs", "2", "--llmperf-workers", "ray://auto", "--llmperf-url", server.url]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *words],
            cwd=tmp_path, env={**os.environ, "RAY_ADDRESS": cluster.address},
            capture_output=True, text=True, timeout=40, check=False,
        )  # fmt: skip
        assert "2 workers, [10, 10] requests" in done.stdout, done.stdout + done.stderr
        assert done.stderr == ""
        eventually(lambda: not actors())

    def test_what_a_worker_raises_is_raised_here(self, server, real_team):
        """A class that the node cannot import is a mistake of the caller."""
        module = type(sys)("known_only_here")
        module.Load = type("Load", (), {"__module__": "known_only_here", "workers": lambda self, asked: asked})
        sys.modules["known_only_here"] = module
        try:
            with pytest.raises(ConfigurationError, match="No module named 'known_only_here'"):
                drive(real_team, job(server, load=module.Load()))
        finally:
            del sys.modules["known_only_here"]

    def test_an_engine_that_dies_stops_the_workers(self, server, real_team):
        """What they have measured is recorded."""
        rows = []

        def check():
            raise EngineDiedError("the server has ended")

        with pytest.raises(EngineDiedError):
            real_team.run(job(server, ENDLESS), rows.append, check)
        assert {0, 1, 2, 3} == {row.session for row in rows}

    def test_a_worker_that_is_killed_spoils_the_run(self, server, real_team):
        """It is named, and the other's records are kept."""
        drive(real_team, job(server))
        sessions = replace(ROUNDS, users=4, rounds=100)
        killer = threading.Timer(0.5, lambda: os.kill(actors()[0].pid, signal.SIGKILL))
        killer.start()
        driven, rows = drive(real_team, job(server, sessions))
        killer.join()
        assert len({row.session % 2 for row in rows}) == 1
        assert len(rows) == 200
        (problem,) = driven.problems
        assert "was lost with all that it measured" in problem
        assert drive(real_team, job(server))[0].problems == ()

    def test_a_node_that_is_removed_spoils_the_run(self, server, cluster, real_team):
        """The next run takes the one that is left."""
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        drive(real_team, job(server))
        sessions = replace(ROUNDS, users=6, rounds=500)
        remover = threading.Timer(0.5, lambda: cluster.remove_node(node, allow_graceful=False))
        remover.start()
        driven, rows = drive(real_team, job(server, sessions, closed_loop(6)))
        remover.join()
        assert len({row.session % 3 for row in rows}) == 2
        assert len(rows) == 2000
        assert len(driven.problems) == 1
        driven, rows = drive(real_team, job(server))
        assert (driven.problems, len(rows), len(driven.client.cpu_shares)) == ((), 21, 2)
