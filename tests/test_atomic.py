"""Files are whole or not there, on real disks and beside real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from small_disks import on_small_disk  # noqa: F401 - a fixture

from pytest_llmperf import atomic

OLD_S = 3600
FULL = """
import sys
from pathlib import Path
from pytest_llmperf.atomic import why, write
disk = Path(sys.argv[1])
write(disk / "it.json", "old")
try:
    write(disk / "it.json", bytes(200_000))
except OSError as error:
    print(why(error, disk / "it.json"))
print([(path.name, path.read_text()) for path in disk.iterdir()])
"""
READ_ONLY = """
import subprocess, sys
from pathlib import Path
from pytest_llmperf.atomic import unwritable, unwritable_folder
disk = Path(sys.argv[1])
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
print(unwritable(disk / "it.json"))
print(unwritable_folder(disk / "new" / "folder"))
"""
BROUGHT_TO_THE_BRINK = """
import sys
from pathlib import Path
from pytest_llmperf.atomic import Draft
draft = Draft(Path(sys.argv[1]))
draft.stream.write(b"half")
draft.stream.flush()
print(draft.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """A process that stands in the middle of a write into `tmp_path`, and its draft, which looks old."""
    command = [sys.executable, "-c", BROUGHT_TO_THE_BRINK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        draft = process.stdout.readline().strip()
        old_s = os.stat(draft).st_mtime - OLD_S
        os.utime(draft, (old_s, old_s))
        yield process
        process.kill()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_leaves_what_was_there(on_small_disk):  # noqa: F811
    """The old content, no draft, and a sentence with path, reason and remedy."""
    done = on_small_disk(FULL)

    complaint, left = done.stdout.splitlines()
    assert "it.json cannot be written: No space left on device (0 MiB free); make room there, or name" in complaint
    assert left == "[('it.json', 'old')]"


def test_a_read_only_disk_is_noticed_by_trying(on_small_disk):  # noqa: F811
    """For a file and for a folder that is not there yet, and whoever asks, root included."""
    done = on_small_disk(READ_ONLY)

    file, folder = done.stdout.splitlines()
    assert "it.json cannot be written: Read-only file system; mount it so that it can be written to, or" in file
    assert "new/folder cannot be written: Read-only file system; " in folder


def test_what_a_killed_writer_has_left_goes_with_the_next_write(writer, tmp_path):
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    assert len(names(tmp_path)) == 1

    atomic.write(tmp_path / "it.json", "new")

    assert names(tmp_path) == ["it.json"]


def test_the_draft_of_a_living_writer_stays(writer, tmp_path):
    """However long it has been at it."""
    atomic.write(tmp_path / "it.json", "new")

    assert len(names(tmp_path)) == 2
    assert writer.poll() is None


def test_a_young_draft_stays(tmp_path):
    """On a disk that machines share, the lock of another one may not be seen."""
    (tmp_path / ".draft-of-another-machine").write_text("half")

    atomic.write(tmp_path / "it.json", "new")

    assert names(tmp_path) == [".draft-of-another-machine", "it.json"]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_step_that_fails_leaves_what_was_there(tmp_path, monkeypatch, step):
    path = tmp_path / "it.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="Input/output"):
        atomic.write(path, "new")

    assert (names(tmp_path), path.read_text()) == (["it.json"], "old")


def test_the_content_is_on_the_disk_before_it_has_its_name_and_the_name_is_afterwards(tmp_path, monkeypatch):
    """Flush of the file, rename, flush of the folder: in any other order a power cut can leave an empty file."""
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(f"os.{name}", lambda *of, name=name, real=real: (steps.append(name), real(*of))[1])

    atomic.write(tmp_path / "it.json", "new")

    assert steps == ["fsync", "replace", "fsync"]


def test_a_file_keeps_its_mode_and_a_link_stays_one(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)

    atomic.write(link, "new")

    assert (link.is_symlink(), real.read_text(), real.stat().st_mode & 0o777) == (True, "new", 0o640)


def test_a_device_is_written_to_and_not_replaced():
    atomic.write(atomic.Path("/dev/null"), "gone")

    assert not os.path.isfile("/dev/null")
    with pytest.raises(OSError, match="No space"):
        atomic.write(atomic.Path("/dev/full"), "gone")


def test_without_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    """As on some network and FUSE file systems."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    for taken in (False, True):
        with atomic.Draft(tmp_path) as draft:
            draft.stream.write(b"content")
            if taken:
                with pytest.raises(FileExistsError):
                    draft.publish(tmp_path / "it.json")
            else:
                draft.publish(tmp_path / "it.json")

    assert names(tmp_path) == ["it.json"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    """An error within leaves nothing; a folder that somebody else has made meanwhile is taken."""
    folder = tmp_path / "model"
    with pytest.raises(FileNotFoundError), atomic.making_folder(folder) as draft:
        (draft / "none" / "weights").write_text("w")
    assert names(tmp_path) == []

    with atomic.making_folder(folder) as draft:
        (draft / "weights").write_text("w")
        assert not folder.exists()
        with atomic.making_folder(folder) as other:
            (other / "weights").write_text("w")

    assert (names(tmp_path), names(folder)) == (["model"], ["weights"])
