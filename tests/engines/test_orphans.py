"""`engines/orphans.py` and `engines/lease.py`: what killed sessions leave is removed, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fakes import no_progress

from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import lease, orphans
from pytest_llmperf.engines.identity import Identity
from pytest_llmperf.engines.lease import Holding, Lease, read
from pytest_llmperf.engines.orphans import clear_up
from pytest_llmperf.engines.process import ServerProcess

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="processes are told apart by /proc")

OWNER = """
import sys
from pathlib import Path
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines.process import ServerProcess

folder = Path(sys.argv[1])
server = ServerProcess(sys.argv[2:], env={}, log=folder / "server.log", clock=RealClock(), folders=[folder / "scratch"])
server.wait_until(lambda: "ready" in (folder / "server.log").read_text().splitlines(), 10.0, lambda *words: None)
print(server.pid, server._guard.pid, flush=True)
sys.stdin.read()
"""
# A piece of shared memory, a file, and a child in a session of its own.
SERVER = """
import mmap, os, subprocess, sys, time
name, scratch, stubborn = sys.argv[1:]
with open(f"/dev/shm/{name}", "wb+") as stream:
    stream.truncate(4096)
    memory = mmap.mmap(stream.fileno(), 4096)
open(f"{scratch}/file", "w").close()
if stubborn:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary files are, and so the register: nobody else's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def shared():
    """A name for shared memory, and nothing there afterwards."""
    name = f"llmperf-test-{os.getpid()}-{time.monotonic_ns()}"
    yield Path("/dev/shm", name)
    Path("/dev/shm", name).unlink(missing_ok=True)


def cleared():
    return clear_up(RealClock(), no_progress)


def leases():
    return sorted(lease.register().glob("*.json"))


def killed_session(folder, shared, *, guard=True, stubborn=""):
    """A session with a server, both of which ran; all of it but the server is gone. Returns the server's processes."""
    server = [sys.executable, "-I", "-S", "-c", SERVER, shared.name, str(folder / "scratch"), stubborn]
    command = [sys.executable, "-c", OWNER, str(folder), *server]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        pids = [int(word) for word in owner.stdout.readline().split()]
        found = [psutil.Process(pids[0]), *psutil.Process(pids[0]).children(recursive=True)]
        if guard:
            os.kill(pids[1], signal.SIGKILL)
        owner.kill()
    return found


@pytest.mark.slow
def test_a_server_whose_session_and_guard_were_killed(folder, shared):
    """Its processes, its folder, its shared memory and its lease are gone, and it is said; then there is nothing."""
    processes = killed_session(folder, shared)
    assert [True, True] == [one.is_running() for one in processes]

    (said,) = cleared()

    assert said.startswith("cleared up after a session that was killed (pid ")
    assert said.endswith(f"ended 2 processes, removed {folder / 'scratch'}, removed 1 piece of shared memory")
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [] == [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    assert (False, False, []) == (shared.exists(), (folder / "scratch").exists(), leases())
    assert [] == cleared()


@pytest.mark.slow
def test_a_server_that_does_not_want_to_end(folder, shared, monkeypatch):
    """It is killed once it has had its time."""
    monkeypatch.setattr(orphans, "GRACE_S", 0.3)
    killed_session(folder, shared, stubborn="yes")

    (said,) = cleared()

    assert "ended 2 processes" in said
    assert not shared.exists()


@pytest.mark.slow
def test_what_the_guard_ends_is_left_to_it(folder, shared):
    """A guard that runs gets the time that it takes; then only what it knows nothing of is left."""
    processes = killed_session(folder, shared, guard=False)

    said = cleared()

    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)
    assert (False, False, []) == (shared.exists(), (folder / "scratch").exists(), leases())
    assert all("ended" not in one for one in said)


@pytest.mark.slow
def test_everything_was_killed(folder, shared):
    """With no process left there are still files and shared memory."""
    for process in killed_session(folder, shared):
        process.kill()

    (said,) = cleared()

    assert f"removed {folder / 'scratch'}, removed 1 piece of shared memory" in said
    assert (False, False) == (shared.exists(), (folder / "scratch").exists())


def test_a_living_session_is_left_alone(folder):
    """Its server runs on, and its lease stays until it is stopped."""
    command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    server = ServerProcess(command, env={}, log=folder / "log", clock=RealClock(), folders=[folder / "scratch"])
    try:
        assert [] == cleared()
        assert (None, True, 1) == (server.returncode, (folder / "scratch").is_dir(), len(leases()))
    finally:
        server.stop()
    assert (False, []) == ((folder / "scratch").exists(), leases())


@pytest.fixture
def dead():
    """A process that has ended, as it was."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = Identity.of(process.pid)
    return found


def on_file(owner, **words):
    made = Lease(token="0123456789abcdef", owner=owner, what="log x", **words)
    lease.register().mkdir(mode=0o700, exist_ok=True)
    path = lease.register() / f"{made.token}.json"
    path.write_text(json.dumps(made.to_json()))
    assert made == read(path)
    return path


@pytest.fixture
def bystander():
    """A process in a group of its own that is nobody's business."""
    command = [sys.executable, "-I", "-S", "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        yield process
        assert process.poll() is None
        process.stdin.close()


def test_a_number_that_was_given_again(dead, bystander):
    """A process that has the server's number by now is another one, as its start says."""
    on_file(dead, server=replace(Identity.of(bystander.pid), start=1))

    assert [] == cleared()
    assert [] == leases()


def test_another_boot(dead, bystander, folder):
    """Of a lease from before the machine was started anew only folders can be left."""
    (folder / "scratch").mkdir()
    before = replace(dead, boot="another")
    on_file(before, server=replace(Identity.of(bystander.pid), boot="another"), folders=(str(folder / "scratch"),))

    (said,) = cleared()

    assert said.endswith(f"removed {folder / 'scratch'}")


def test_another_container(bystander):
    """What is behind another namespace of processes cannot be seen, and so may be running."""
    elsewhere = replace(Identity.of(os.getpid()), namespace="pid:[1]", pid=10**6)
    path = on_file(elsewhere, server=Identity.of(bystander.pid))

    assert [] == cleared()
    assert path.exists()


@pytest.mark.parametrize("mine", ["inode", "before", "used"])
def test_shared_memory_that_is_not_its_own(dead, shared, mine):
    """A new piece under an old name, one that was there before the server, a model's say, and one in use."""
    shared.write_bytes(b"content")
    inode = shared.stat().st_ino
    if mine == "before":
        holding = Holding("log x", [])
        with shared.open():
            holding.note_shared(os.getsid(0))
            assert {} == holding._lease.with_shared_of([os.getpid()]).shared
        holding.release()
    elif mine == "inode":
        on_file(dead, shared={shared.name: inode + 1})
        assert [] == cleared()
    else:
        on_file(dead, shared={shared.name: inode})
        with shared.open():
            assert [] == cleared()
    assert b"content" == shared.read_bytes()


@pytest.mark.parametrize("text", ["", "{}", "[]", "\x00", '{"owner": {"pid": 1}}', '{"owner": null, "token": "x"}'])
def test_a_file_that_is_no_lease(folder, text):
    """Is left where it is."""
    lease.register().mkdir(mode=0o700)
    path = lease.register() / "x.json"
    path.write_text(text)

    assert [] == cleared()
    assert path.exists()


@pytest.mark.parametrize("how", ["link", "mode"])
def test_a_register_that_others_can_write_to(dead, folder, how):
    """Whatever stands there may be somebody else's: it is not believed, and nothing is written to it."""
    (folder / "scratch").mkdir()
    on_file(dead, folders=(str(folder / "scratch"),))
    if how == "link":
        lease.register().rename(folder / "elsewhere")
        lease.register().symlink_to(folder / "elsewhere")
    else:
        lease.register().chmod(0o777)

    assert [] == cleared()
    Holding("log x", [])
    assert (True, 1) == ((folder / "scratch").is_dir(), len(leases()))


def test_a_link_in_place_of_a_folder(dead, folder):
    """Is not followed."""
    (folder / "precious").mkdir()
    (folder / "scratch").symlink_to(folder / "precious")
    on_file(dead, folders=(str(folder / "scratch"),))

    assert [] == cleared()
    assert (folder / "precious").is_dir()


def test_one_clears_up_at_a_time(dead, folder):
    """Sessions that start together do not get into each other's way."""
    (folder / "scratch").mkdir()
    on_file(dead, folders=(str(folder / "scratch"),))
    with orphans._alone(lease.register()) as is_alone:
        assert is_alone
        assert [] == cleared()
    assert 1 == len(cleared())
