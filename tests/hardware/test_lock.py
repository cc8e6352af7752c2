"""One measurement at a time on one device: between processes, in order, with words for those who wait."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time

import pytest

from pytest_llmperf.clock import RealClock
from pytest_llmperf.errors import ConfigurationError, DeviceBusyError
from pytest_llmperf.hardware import DeviceLocks, lock

DEVICE = "GPU-6f3a"
HOLDER = """
import sys, time
from pathlib import Path
from pytest_llmperf.clock import RealClock
from pytest_llmperf.hardware import DeviceLocks

locks = DeviceLocks(Path(sys.argv[1]), clock=RealClock(), wait_s=30, told=lambda said: None)
locks.hold(sys.argv[2:])
print("held", flush=True)
sys.stdin.readline()
print(locks.is_wanted(), flush=True)
locks.let_go()
print("gone", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def make(tmp_path):
    made = []

    def make(wait_s=0.3, told=lambda said: None):
        made.append(DeviceLocks(tmp_path, clock=RealClock(), wait_s=wait_s, told=told))
        return made[-1]

    yield make
    for locks in made:
        locks.let_go()


@pytest.fixture
def other(tmp_path):
    """Another process that holds devices until it is told to let go, or is killed."""
    started = []

    def hold(*devices):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), *devices],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        started.append(process)
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def said(process):
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_another_process_waits_and_is_told_for_whom(make, other):
    """In words: who, where, since when; and what to do if it takes too long."""
    holder, heard = other(DEVICE), []
    assert "held" == said(holder)

    with pytest.raises(DeviceBusyError) as busy:
        make(told=heard.append).hold([DEVICE])

    assert f"{DEVICE} was not free within 0.3 s: process {holder.pid} of " in str(busy.value)
    assert f"measures on it in {os.getcwd()} since 2" in str(busy.value)
    assert "--llmperf-lock-wait" in str(busy.value)
    assert heard[0].startswith(f"waiting for {DEVICE}: process {holder.pid} of ")


def test_the_kernel_lets_go_for_one_that_was_killed(make, other):
    """Nothing has to be cleaned up."""
    holder = other(DEVICE)
    assert "held" == said(holder)
    holder.kill()
    holder.wait()

    locks = make()
    locks.hold([DEVICE])

    assert {DEVICE} == locks.held


@pytest.mark.slow
def test_the_holder_knows_that_it_is_waited_for_and_gives_way(make, other):
    """Who lets go cannot have it again before the one who waits has had it."""
    mine = make(wait_s=10)
    mine.hold([DEVICE])
    assert not mine.is_wanted()
    waiting = other(DEVICE)
    deadline = time.monotonic() + 15
    while not mine.is_wanted():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    mine.let_go()
    with pytest.raises(DeviceBusyError):
        make(wait_s=0.01).hold([DEVICE])

    assert "held" == said(waiting)
    waiting.stdin.write("\n")
    assert ["False", "gone"] == [said(waiting), said(waiting)]
    mine.hold([DEVICE])


def test_other_devices_are_free(make, other):
    """One lock for each."""
    assert "held" == said(other("GPU-other"))

    locks = make()
    locks.hold([DEVICE, "CPU"])
    locks.hold([DEVICE])

    assert {DEVICE, "CPU"} == locks.held


def test_within_one_process_too(make):
    """Two sessions of one process are two, though the kernel knows but one."""
    make().hold([DEVICE])

    with pytest.raises(DeviceBusyError):
        make(wait_s=0.01).hold([DEVICE])


def test_every_user_can_lock(make, tmp_path):
    """Whatever the umask of who came first."""
    before = os.umask(0o077)
    try:
        make().hold([DEVICE])
    finally:
        os.umask(before)

    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*.lock")}
    assert {0o666} == modes


@pytest.mark.slow
def test_a_file_that_a_cleaner_has_removed_is_no_lock(make, tmp_path, monkeypatch):
    """Whoever opened it just before would hold what nobody else can find."""
    opened = lock._opened

    def opened_late(path):
        descriptor = opened(path)
        if path.suffix == ".lock" and not removed:
            removed.append(path)
            path.unlink()
        return descriptor

    removed: list = []
    monkeypatch.setattr(lock, "_opened", opened_late)
    first = make(wait_s=3)
    first.hold([DEVICE])

    with pytest.raises(DeviceBusyError):
        make(wait_s=0.01).hold([DEVICE])


def test_no_link_is_followed(make, tmp_path):
    """In a folder where everybody may write, a link may point anywhere."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f"pytest-llmperf-{DEVICE}.lock").symlink_to(precious)

    with pytest.raises(ConfigurationError, match=r"cannot be opened .*--llmperf-locks DIR"):
        make().hold([DEVICE])

    assert "mine" == precious.read_text()


def test_a_folder_without_locks_is_a_mistake(make, tmp_path, monkeypatch):
    """As on a network file system without a lock service: two sessions would measure at a time, each sure that it
    does not."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)

    with pytest.raises(ConfigurationError, match=rf"the file system of {tmp_path} has no locks.*--llmperf-locks DIR"):
        make().hold([DEVICE])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"pid": 1}', b"\xff" * 9000])
def test_what_stands_in_the_file_need_not_make_sense(make, tmp_path, content):
    """Anybody can have written there."""
    make().hold([DEVICE])
    (tmp_path / f"pytest-llmperf-{DEVICE}.lock").write_bytes(content)

    with pytest.raises(DeviceBusyError, match="somebody measures on it"):
        make(wait_s=0.01).hold([DEVICE])


def test_a_name_moves_no_cursor(make, tmp_path):
    """What others wrote is shown as text, and a device's name is part of a file's name."""
    make().hold(["../x y"])
    (path,) = tmp_path.glob("*.lock")
    path.write_bytes(b'{"pid": 1, "user": "\\u001b[2J", "folder": "/", "since": "now"}')

    with pytest.raises(DeviceBusyError, match=r"process 1 of \?\[2J"):
        make(wait_s=0.01).hold(["../x y"])

    assert "pytest-llmperf-..-x-y.lock" == path.name
