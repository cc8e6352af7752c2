"""One writer at a time in a folder, over real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pytest_llmperf import folder_lock
from pytest_llmperf.baselines import Baselines, number_of

HOLD = """
import sys
from pathlib import Path
from pytest_llmperf.folder_lock import held
with held(Path(sys.argv[1]), "saving a baseline"):
    print("held", flush=True)
    sys.stdin.read()
"""
SAVE = """
import sys
from pathlib import Path
from pytest_llmperf.baselines import Baselines
baselines = Baselines(Path(sys.argv[1]))
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    baselines.put(sys.argv[2], "NVIDIA-L4-24GB", f"{sys.argv[2]} {number}".encode())
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path` until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_too_long_is_told_for_whom(holder, tmp_path):
    with (
        pytest.raises(TimeoutError, match=rf"waited 0.1 s for the lock of process {holder.pid} on .*, saving a baseli"),
        folder_lock.held(tmp_path, "another", patience_s=0.1),
    ):
        pytest.fail("two hold it")


def test_a_lock_ends_with_its_holder(holder, tmp_path):
    """Even by SIGKILL, which leaves the lock's file."""
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert os.listdir(tmp_path) == [".lock"]

    with folder_lock.held(tmp_path, "another", patience_s=0.0):
        pass

    assert os.listdir(tmp_path) == []


def test_a_lock_is_let_go(holder, tmp_path):
    """Whoever has waited for it gets it, although the file that he waited at is gone."""
    holder.stdin.close()

    with folder_lock.held(tmp_path, "another", patience_s=10.0):
        assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.slow
def test_processes_that_save_at_once_lose_no_night(tmp_path):
    """All are there, numbered without gaps, no number twice although the names differ, and nothing beside them."""
    each = 15
    command = [sys.executable, "-c", SAVE, str(tmp_path)]
    savers = [
        subprocess.Popen([*command, name, str(each)], stdin=subprocess.PIPE, text=True) for name in ("main", "nightly")
    ]
    for saver in savers:
        saver.stdin.write("go\n")
        saver.stdin.close()
    assert [saver.wait(30) for saver in savers] == [0, 0]

    paths = Baselines(tmp_path).paths("NVIDIA-L4-24GB")
    assert [number_of(path) for path in reversed(paths)] == list(range(1, 2 * each + 1))
    expected = {f"{name} {number}" for name in ("main", "nightly") for number in range(each)}
    assert {path.read_text() for path in paths} == expected
    assert len(list((tmp_path / "NVIDIA-L4-24GB").iterdir())) == 2 * each


def test_where_there_are_no_locks_writing_goes_on(tmp_path, monkeypatch):
    """As on a network file system without a lock service."""

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)

    with folder_lock.held(tmp_path, "saving", patience_s=0.0), folder_lock.held(tmp_path, "saving", patience_s=0.0):
        path = tmp_path / "written"
        path.touch()

    assert path.exists()
