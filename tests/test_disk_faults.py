"""Whole pytest sessions on disks that are full, read-only, or gone: the verdict and the exit code come all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from engine_cases import surroundings
from fakes import setting
from small_disks import on_small_disk  # noqa: F401 - a fixture

from pytest_llmperf import closed_loop, single_turn
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import make_engine, make_spec
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.origin import OriginProcess
from pytest_llmperf.record_file import read_requests
from pytest_llmperf.request import checked_request
from pytest_llmperf.row_file import RowFile
from pytest_llmperf.selfcheck import excesses
from pytest_llmperf.session import measure

TTFT_S = 0.03
BASELINES = Path(__file__).parents[1] / "baselines"

SESSION = """
import subprocess, sys
from pathlib import Path
disk, folder, spare, *arguments = sys.argv[1:]
if spare != "all":  # what is left to the session, KiB
    (Path(disk) / "ballast").write_bytes(bytes((64 - int(spare)) << 10))
done = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=folder)
print("left on the disk:", sorted(str(path.relative_to(disk)) for path in Path(disk).rglob("*") if path.is_file()))
sys.exit(done.returncode)
"""
FILLED = """
import os, pytest
from pathlib import Path
from pytest_llmperf import single_turn

@pytest.fixture(autouse=True)
def filled():
    yield
    disk = os.environ.get("FILL")
    if disk:  # the disk gets full after the last run
        with open(Path(disk, "hog"), "wb", buffering=0) as hog:
            try:
                while hog.write(bytes(4096)):
                    pass
            except OSError:
                pass
    gone = os.environ.get("REMOVE")
    if gone:
        import shutil
        shutil.rmtree(gone)

@pytest.mark.llm_engine("sim", model="llama-3.1-8b", part="gh200")
def test_it(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=40, input_tokens=100, output_tokens=200, seed=7))
"""
pytestmark = [pytest.mark.real_time, pytest.mark.timeout(60)]  # whole sessions in processes of their own
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin", "-p", "no:cacheprovider", "-W", "default")


@pytest.fixture
def suite(tmp_path):
    """A folder with one performance test and a stored night of it."""
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "test_it.py").write_text(FILLED)
    return folder


def words(*more):
    return [*PLUGINS, "--llmperf-runs", "2", "--color", "no", *more]


@pytest.fixture
def session(on_small_disk, suite, tmp_path):  # noqa: F811
    """`session(*arguments, spare=KiB)`: a session, with a disk of 64 KiB at `tmp_path / "disk"`."""

    def run(*arguments, spare="all", **environ):
        known = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ}
        return on_small_disk(SESSION, str(suite), str(spare), *words(*arguments), env=known)

    run.disk = tmp_path / "disk"
    return run


def plain(suite, *arguments, **environ):
    """A session on the disk that is there."""
    known = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ}
    command = [sys.executable, "-m", "pytest", *words(*arguments)]
    return subprocess.run(command, cwd=suite, env=known, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
def test_records_on_a_full_disk(session):
    """The run is measured and judged; that its records are not all there is a doubt beside its figures."""
    done = session("--llmperf-output", session.disk / "out", spare=24)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO_BASELINE test_it.py::test_it" in done.stdout
    told = " ".join(done.stdout.split())
    assert "doubt: not all records are on disk: " in told
    assert "No space left on device (0 MiB free); make room there, or name another place" in told


@pytest.mark.slow
def test_files_on_a_disk_that_gets_full(session):
    """Neither pytest-benchmark's file, nor JUnit's, nor the report, nor the baseline keeps the verdict from the
    terminal; each is named with path and reason, none is half there, and the exit code tells."""
    disk = session.disk
    done = session(
        "--benchmark-json", disk / "b.json", "--junitxml", disk / "j.xml", "--llmperf-markdown", disk / "r.md",
        "--llmperf-save-baseline", "main", "--llmperf-baselines", disk / "nights",
        FILL=str(disk),
    )  # fmt: skip

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "NO_BASELINE test_it.py::test_it" in done.stdout
    for file in ("--benchmark-json: *b.json", "the report: *r.md", "the baseline was not stored: *nights"):
        start, name = file.split("*")
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(start))
        assert name in line
        assert "No space left on device" in line
    assert "a file of pytest's could not be written: [Errno 28] No space left on device" in done.stdout
    assert "INTERNALERROR" not in done.stdout + done.stderr
    (left,) = (line for line in done.stdout.splitlines() if line.startswith("left on the disk:"))
    assert not {".draft", "main.json", "r.md", ".lock"} & set(left.replace("'", " ").replace("/", " ").split())


@pytest.mark.slow
def test_a_read_only_disk_is_said_before_the_run(session, suite):
    """All of them at once, and nothing is measured."""
    (suite / "conftest.py").write_text(
        "import os, subprocess\nsubprocess.run(['mount', '-o', 'remount,ro', os.environ['DISK']], check=True)\n"
    )
    disk = session.disk
    done = session(
        "--llmperf-output", disk / "out", "--llmperf-save-baseline", "main", "--llmperf-baselines", disk / "nights",
        "--llmperf-markdown", disk / "r.md", DISK=str(disk),
    )  # fmt: skip

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--llmperf-markdown: " in done.stderr
    assert "Read-only file system; mount it so that it can be written to, or name another place" in done.stderr


@pytest.mark.slow
def test_folders_that_vanish_in_mid_session(suite):
    """Records and result file are gone with their folder, which is said; the verdict is there."""
    (suite / "gone").mkdir()
    done = plain(
        suite, "--llmperf-output", "gone/out", "--benchmark-json", "gone/b.json", "--llmperf-markdown", "gone/r.md",
        REMOVE=str(suite / "gone"),
    )  # fmt: skip

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "NO_BASELINE test_it.py::test_it" in done.stdout
    assert "gone/b.json cannot be written: No such file or directory; make the folder" in done.stdout
    assert "r.md cannot be written: No such file or directory; make the folder" in done.stdout


@pytest.mark.slow
def test_nothing_is_different_on_a_disk_with_room(suite):
    """The files are whole, and no draft and no lock is beside them."""
    done = plain(
        suite, "--benchmark-json", "b.json", "--junitxml", "j.xml", "--llmperf-markdown", "r.md",
        "--llmperf-save-baseline", "main", "--benchmark-save", "one",
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Wrote benchmark data in: b.json" in done.stdout + done.stderr
    ElementTree.parse(suite / "j.xml")
    assert [path.name for path in suite.rglob(".draft*")] + [path.name for path in suite.rglob(".lock")] == []
    assert (suite / "b.json").stat().st_size > 1000
    assert (suite / "baselines" / "sim-gh200" / "0001_main.json").is_file()


@pytest.mark.slow
def test_standard_output_on_a_full_disk():
    """A sentence and an exit code, and no traceback."""
    code = "import sys; from pytest_llmperf.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "baseline", "list", "--baselines", str(BASELINES)]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=50)

    assert done.returncode == 2
    assert "pytest-llmperf baseline: [Errno 28] No space left on device; make room there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_slow_disk_falsifies_nothing(tmp_path, monkeypatch):
    """Writing a record takes as long as an answer: TTFT is what the server did all the same, or the run is invalid."""
    append = RowFile.append

    def slowly(file, lines):
        time.sleep(TTFT_S)
        append(file, lines)

    monkeypatch.setattr(RowFile, "append", slowly)
    clock = RealClock()
    workload = single_turn(requests=24, input_tokens=16, output_tokens=4, seed=1)
    asked = checked_request(
        workload, load=closed_loop(4), runs=1, warmup_runs=0, cache="as_is", prefill_context=False, slo=None, name=None
    )
    with OriginProcess(ttft_s=TTFT_S, itl_s=0.005) as origin:
        engine = make_engine(make_spec("openai", {"url": origin.url}), surroundings(tmp_path))
        result = measure(engine, asked, setting(tmp_path, clock))

    assert (result.requests, result.errors) == (24, {})
    assert excesses([METRICS["ttft_p50"]], result.records) or abs(result.ttft.p50 - TTFT_S) < 0.05 * TTFT_S
    assert len(list(read_requests(next(tmp_path.glob("*.jsonl"))))) == 24
