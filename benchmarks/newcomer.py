"""How long a newcomer waits: from a fresh clone, and from the wheel, to a first report of a simulated GPU.

    python benchmarks/newcomer.py [--json FILE]

The clone is of what is committed here. Packages come from the index that pip is set to, or from its cache; what the
network takes is in the wall time and not in the processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
WANTED_S = 180.0
SUITE_WANTED_S = 120.0
_EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def timed(command: Sequence[str | Path], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a command, which has to succeed; its last lines are printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "LLMPERF"))}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    words = [str(word).replace(str(REPOSITORY), "REPOSITORY").replace(sys.executable, "python") for word in command]
    shown = " ".join(words).replace(str(folder), ".")
    print(f"{wall_s:6.1f} s, {cpu_s:6.1f} s of CPU: {shown}", flush=True)
    return wall_s, cpu_s


def from_a_clone(folder: Path) -> dict[str, float]:
    """`git clone`, then the first of the README's two commands, then that again."""
    wall_s = timed(["git", "clone", "--quiet", REPOSITORY, folder / "clone"], folder)[0]
    wall_s += timed(["make", "perf", "ARGS=--llmperf-report report.html"], folder / "clone")[0]
    assert (folder / "clone" / "report.html").exists()
    return {"clone_s": wall_s, "suite_s": timed(["make", "perf"], folder / "clone")[0]}


def from_the_wheel(folder: Path) -> dict[str, float]:
    """The wheel into an empty environment elsewhere, and a test of one's own."""
    timed([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", REPOSITORY, "-w", folder / "wheel"], folder)
    (wheel,) = (folder / "wheel").glob("pytest_llmperf-*.whl")
    mine = folder / "mine"
    mine.mkdir()
    example = _EXAMPLE.search((REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8"))
    assert example is not None
    (mine / "test_first.py").write_text(example[1], encoding="utf-8")
    wall_s = timed([sys.executable, "-m", "venv", "venv"], mine)[0]
    wall_s += timed(["venv/bin/python", "-m", "pip", "install", "--quiet", f"{wheel}[report]"], mine)[0]
    run = ["venv/bin/pytest", "-q", "--llmperf-hardware", "sim:gh200", "--llmperf-report", "report.html"]
    wall_s += timed(run, mine)[0]
    assert (mine / "report.html").exists()
    return {"wheel_s": wall_s}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        took = from_a_clone(Path(folder)) | from_the_wheel(Path(folder))
    wanted = {
        "clone_s": (
            "from `git clone` to the first report of a simulated GH200, packages installed on the way",
            WANTED_S,
        ),
        "wheel_s": (
            "from an empty environment to the report of the documentation's first test, by the wheel",
            WANTED_S,
        ),
        "suite_s": ("`make perf` once that is installed", SUITE_WANTED_S),
    }
    verdicts = [
        {"what": f"{what}: less than {most:.0f} s", "found": f"{took[name]:.0f} s", "ok": took[name] < most}
        for name, (what, most) in wanted.items()
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps({"verdicts": verdicts}, indent=1), encoding="utf-8")
    return int(not all(verdict["ok"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
