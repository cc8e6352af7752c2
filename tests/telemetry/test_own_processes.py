"""Which processes are ours."""

from __future__ import annotations

import os
import subprocess
import sys

from pytest_llmperf.telemetry.processes import GpuProcesses, gpu_processes, own_processes


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


def opened(proc, pid, *targets):
    """Give a process of `fake` descriptors of these files."""
    folder = proc / str(pid) / "fd"
    folder.mkdir()
    for number, target in enumerate(targets):
        (folder / str(number)).symlink_to(target)


def test_who_may_hold_memory_of_a_gpu(tmp_path):
    """A child that has one open; this very process asks NVML, and has it open therefore."""
    fake(tmp_path, p10=1, p11=10, p12=11, p20=1)
    opened(tmp_path, 10, "/dev/nvidiactl", "/dev/nvidia0")
    opened(tmp_path, 11, "/dev/null", "socket:[1]")
    opened(tmp_path, 20, "/dev/nvidia0")
    assert gpu_processes(10, tmp_path) == GpuProcesses(frozenset({10, 11, 12}), may_hold_memory=False)
    opened(tmp_path, 12, "/dev/null", "/dev/nvidia0")
    assert gpu_processes(10, tmp_path).may_hold_memory


def test_a_process_that_cannot_be_looked_at_may(tmp_path):
    """Another user's child, say."""
    fake(tmp_path, p10=1, p11=10)
    (tmp_path / "11" / "fd").write_text("")
    assert gpu_processes(10, tmp_path).may_hold_memory
