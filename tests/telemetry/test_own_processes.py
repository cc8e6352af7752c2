"""Which processes are ours."""

from __future__ import annotations

import os
import subprocess
import sys

from pytest_llmperf.telemetry.processes import own_processes


def fake(proc, **parents):
    """A /proc of processes by their parents, with names that try to mislead."""
    for pid, parent in parents.items():
        folder = proc / pid.removeprefix("p")
        folder.mkdir()
        folder.joinpath("stat").write_text(f"{folder.name} (odd ) 1 name) S {parent} 0 0")


def test_descendants(tmp_path):
    fake(tmp_path, p10=1, p11=10, p12=11, p20=1, p21=20)
    tmp_path.joinpath("30").mkdir()
    assert own_processes(10, tmp_path) == {10, 11, 12}


def test_a_real_child():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        own = own_processes()
        assert {os.getpid(), child.pid} <= own
        assert os.getppid() not in own
    finally:
        child.communicate(b"\n")
