"""Signals to whoever takes part in a session, in each of its phases: real processes, engines played by stubs.

Each cell says what the terminal says, the exit code, how many runs are on record, and that nothing is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from groups import interruptible
from stub_engine import installed

from pytest_llmperf import journal
from pytest_llmperf.record_file import read_extant, read_runs

pytestmark = pytest.mark.real_time

WAIT_S = 120.0
"""A bound, not a wait: on an idle machine a session comes to rest within two seconds."""
RUNS = 3
# Four requests a run, after the probe's: the warm-up's are 2 to 5, the first run's 6 to 9, the second's 10 to 13.
TEST = """
import pytest
from pytest_llmperf import closed_loop, multi_round

pytestmark = [pytest.mark.llm_engine({kind!r}, **{words!r}), pytest.mark.llm_gate(metric="cache_hit_rate")]

def test_it(llm_engine, llm_perf):
    users = multi_round(users=2, rounds=2, context_tokens=64, input_tokens=16, output_tokens=4, seed=1)
    result = llm_perf(llm_engine, users, load=closed_loop(2), cache="cold")
    assert len(result.runs) == 3
"""
# What holds a session where no server can.
CONFTEST = """
import os
import signal
from pathlib import Path

import pytest
from pytest_llmperf import baselines, gate

def hold(phase, go_on):
    def held(*arguments, **words):
        if os.environ.get("HOLD") == phase:
            Path("hanging").touch()
            signal.pause()
        return go_on(*arguments, **words)
    return held

gate.Gate.judge = hold("gate", gate.Gate.judge)
baselines._publish = hold("baseline", baselines._publish)

@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json():
    hold("json", lambda: None)()
"""
PHASES = {
    "start": {"STUB_FAULT": "hang", "STUB_HANG": "start:1"},
    "warm-up": {"STUB_HANG": "answer:3"},
    "run": {"STUB_HANG": "answer:11"},
    "between": {"STUB_HANG": "reset:3"},
    "gate": {"HOLD": "gate"},
    "baseline": {"HOLD": "baseline"},
    "json": {"HOLD": "json"},
}
"""How the environment has it that a session comes to rest there."""
ON_RECORD = {"start": 0, "warm-up": 0, "run": 1, "between": 1, "gate": RUNS, "baseline": RUNS, "json": RUNS}
"""Runs that are complete by then."""
OPTIONS = ("--llmperf-runs", str(RUNS), "--llmperf-save-baseline", "main", "--benchmark-json", "out.json")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def session(tmp_path, python):
    """`session(phase, kind, **words)`: pytest in a process of its own, at rest in that phase."""
    started = []
    (tmp_path / "tmp").mkdir()
    (tmp_path / "conftest.py").write_text(CONFTEST)

    def start(phase=None, *arguments, kind="vllm", **words):
        given = {"model": "m", "executable": python, "max_model_len": 2048, **words}
        if kind == "fleet":
            given |= {"replicas": 2, "router": str(Path(python).parent / "vllm-router")}
        (tmp_path / "test_it.py").write_text(TEST.format(kind=kind, words=given))
        (tmp_path / "hanging").unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *OPTIONS, *arguments],
            cwd=tmp_path,
            env={**os.environ, **PHASES.get(phase, {}), "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=interruptible,  # noqa: PLW1509 - it starts no thread
        )
        started.append(process)
        if phase is not None:
            wait_for(lambda: (tmp_path / "hanging").exists() or process.poll() is not None)
            assert process.poll() is None, process.stdout.read()
        return SimpleNamespace(process=process, family=family(process.pid), folder=tmp_path)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def family(pid):
    """All that a process has started."""
    return psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []


def one_of(session, *words):
    """The process whose command line has these words and that is no guard."""
    found = [one for one in session.family if one.is_running() and "guard.py" not in " ".join(one.cmdline())]
    return next(one for one in found if all(word in " ".join(one.cmdline()) for word in words))


def ended(session):
    output, _ = session.process.communicate(timeout=WAIT_S)
    return session.process.returncode, output


def left(session):
    """Processes and temporary files of it that are still there, the leases of those that were killed aside."""
    _, alive = psutil.wait_procs(session.family, timeout=WAIT_S)
    running = [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    temporary = [path for path in (session.folder / "tmp").iterdir() if not path.name.startswith("pytest-")]
    return running + temporary


def leases(session):
    return list((session.folder / "tmp").glob("pytest-llmperf-*/*.json"))


def on_record(folder):
    """Runs of the newest session that can be read back, with all their requests."""
    newest = max(
        (account.began, account.folder) for path in (folder / ".llmperf").iterdir() if (account := journal.read(path))
    )
    files = list(newest[1].glob("records/*.jsonl"))
    if not files:
        return 0
    (path,) = files
    extant = read_extant(path)
    assert [4] * extant.runs == [len(run.requests) for run in read_runs(path)][: extant.runs]
    return extant.runs


def goes_on(session, start, *, kept, kind="vllm", said=(), **words):
    """The next session counts what is on record, and measures the rest."""
    for name in ("hanging", "go"):
        (session.folder / name).unlink(missing_ok=True)
    code, output = ended(start(None, "--llmperf-resume", kind=kind, **words))
    assert 0 == code, output
    assert [] == [one for one in said if one not in output], output
    (result,) = {
        json.dumps(row["extra_info"]["llmperf"]["result"])
        for row in json.loads((session.folder / "out.json").read_text())["benchmarks"]
    }
    resumed = [number for one in json.loads(result).get("resumed", ()) for number in one["runs"]]
    assert list(range(kept)) == resumed
    assert [] == left(session) + leases(session)


QUICK = [("run", "SIGTERM")]
"""Of the matrix, what every change is tried on."""
MATRIX = [
    pytest.param(phase, name, marks=[] if (phase, name) in QUICK else [pytest.mark.exhaustive], id=f"{phase}-{name}")
    for phase in PHASES
    for name in ("SIGINT", "SIGTERM", "SIGKILL")
]


@pytest.mark.slow
@pytest.mark.timeout(4 * WAIT_S)
@pytest.mark.parametrize(("phase", "name"), MATRIX)
def test_pytest(session, phase, name):
    """An order to end is followed at once, but for what is being written; a kill leaves records and nothing else."""
    running = session(phase)
    assert running.process.poll() is None

    running.process.send_signal(getattr(signal, name))
    code, output = ended(running)

    kept = ON_RECORD[phase]
    is_killed = name == "SIGKILL"
    assert (-signal.SIGKILL if is_killed else pytest.ExitCode.INTERRUPTED) == code, output
    assert kept == on_record(running.folder)
    assert [] == left(running)
    if not is_killed:
        assert [] == leases(running)
        if phase in ("start", "warm-up", "run", "between"):
            assert f"unfinished: test_it.py::test_it: {kept} of {RUNS} runs on record" in output
        is_whole = phase in ("baseline", "json")
        assert (kept > 0 and not is_whole) == ("what is on record counts with --llmperf-resume" in output)
    if phase in ("baseline", "json") and not is_killed:
        assert RUNS == len(json.loads((running.folder / "out.json").read_text())["benchmarks"][0]["stats"]["data"])
        assert 1 == len(list(running.folder.glob("baselines/*/*_main.json")))
    if (phase, name) in (("run", "SIGTERM"), ("run", "SIGKILL"), ("gate", "SIGKILL")):
        goes_on(running, session, kept=kept)


@pytest.mark.slow
@pytest.mark.timeout(4 * WAIT_S)
def test_pytest_and_the_guard(session):
    """As a container's end or the kernel's want of memory has it: the next session ends the server, and says so."""
    running = session("run")
    server = one_of(running, "api_server")
    guard = next(one for one in running.family if "guard.py" in " ".join(one.cmdline()))

    guard.kill()
    running.process.kill()
    running.process.wait()

    assert server.is_running()
    assert 1 == len(leases(running))
    said = ("llmperf: cleared up after a session that was killed", "ended 1 process, removed ")
    goes_on(running, session, kept=1, said=said)
    assert not server.is_running()


ENGINE = {"server": ("api_server", {}), "worker in process": ("worker.py", {"in_process": True})}
"""What its process is known by, and its words."""


@pytest.mark.exhaustive
@pytest.mark.timeout(4 * WAIT_S)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("phase", ["start", "warm-up", "run"])
@pytest.mark.parametrize("engine", ENGINE)
def test_the_engine(session, phase, engine, name):
    """Ended by somebody else, it makes its test an error with the log's last lines; the runs before count."""
    program, words = ENGINE[engine]
    running = session(phase, **words)

    one_of(running, program).send_signal(getattr(signal, name))
    (running.folder / "go").touch()  # who ends in order has to come to it
    code, output = ended(running)

    in_order = (engine, name) == ("worker in process", "SIGTERM") and phase != "start"
    assert pytest.ExitCode.TESTS_FAILED == code, output
    assert ("exit code 0" if in_order else f"killed by {name}") in output
    assert in_order == ("ends, as a signal asks it to" in output)
    assert "last lines of" in output
    assert [] == left(running) + leases(running)
    assert ON_RECORD[phase] == on_record(running.folder)
    if phase == "run":
        goes_on(running, session, kept=ON_RECORD[phase], **words)


FLEET = [("vllm-router", "the router "), ("api_server", "replica ")]


@pytest.mark.exhaustive
@pytest.mark.timeout(4 * WAIT_S)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize(("victim", "named"), FLEET, ids=["router", "replica"])
def test_a_part_of_a_fleet(session, victim, named, name):
    """The error says which it was; nothing of the others is left."""
    running = session("warm-up", kind="fleet")

    one_of(running, *(("route()",) if victim == "vllm-router" else (victim,))).send_signal(getattr(signal, name))
    (running.folder / "go").touch()
    code, output = ended(running)

    assert pytest.ExitCode.TESTS_FAILED == code, output
    assert named in output
    assert f"killed by {name}" in output
    assert [] == left(running) + leases(running)
    assert ON_RECORD["warm-up"] == on_record(running.folder)


@pytest.mark.exhaustive
@pytest.mark.timeout(4 * WAIT_S)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_worker(session, name):
    """A run with a lost worker is no evidence: its test is an error, and the runs before it count."""
    workers = ("--llmperf-workers", "2")
    running = session("run", *workers)

    one_of(running, "spawn_main").send_signal(getattr(signal, name))
    (running.folder / "go").touch()
    code, output = ended(running)

    assert pytest.ExitCode.TESTS_FAILED == code, output
    assert f"ended early ({name}), and what it had not yet sent is missing" in output
    assert [] == left(running) + leases(running)
    assert 1 == on_record(running.folder)
    (running.folder / "go").unlink()
    code, output = ended(session(None, "--llmperf-resume", *workers))
    assert 0 == code, output
    assert f"1 of {RUNS} runs were measured in the session" in output


@pytest.mark.exhaustive
@pytest.mark.timeout(4 * WAIT_S)
@pytest.mark.parametrize("phase", ["start", "run"])
def test_everybody(session, phase):
    """As systemd and containers stop a job, SIGTERM comes to all processes at once, the guard included."""
    running = session(phase)

    for one in [psutil.Process(running.process.pid), *running.family]:
        one.send_signal(signal.SIGTERM)
    code, output = ended(running)

    assert pytest.ExitCode.INTERRUPTED == code, output
    assert f"unfinished: test_it.py::test_it: {ON_RECORD[phase]} of {RUNS} runs on record" in output
    assert [] == left(running) + leases(running)
    assert ON_RECORD[phase] == on_record(running.folder)
