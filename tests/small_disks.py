"""Real disks that are full or read-only: a file system in memory that only one process and its children see."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


@pytest.fixture
def on_small_disk(tmp_path):
    """`on_small_disk(script, *arguments, size="64k")`: what Python made of the script, with a disk of that size.

    The disk's folder is `tmp_path / "disk"`, the first argument of the script. What is on it is gone with the process.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    apart = ["unshare", "--mount", "--map-root-user", "sh", "-c", _MOUNT, "sh"]
    tried = shutil.which("unshare") and subprocess.run([*apart, "64k", disk, "true"], capture_output=True, check=False)
    if not tried or tried.returncode:
        pytest.skip("no file system can be mounted here by an ordinary user (unshare --map-root-user)")

    def run(script, *arguments, size="64k", **words):
        command = [*apart, size, disk, sys.executable, "-c", script, disk, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **words)

    return run
