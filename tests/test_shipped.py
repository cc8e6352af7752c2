"""What the repository ships of the simulation is what the simulation gives: baselines, tables, the speed of a suite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def values(path):
    """By measurement and metric, the values of the runs."""
    rows = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return {row["fullname"]: row["stats"]["data"] for row in rows}


FLEET = "perf_tests/test_prefix_routing.py"
PARTS = ["gh200", "h100", "h200", "4x-a100", "4x-rtx4090"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("key", "tests"),
    [
        *((part, ["perf_tests", "--ignore", FLEET, "--llmperf-hardware", f"sim:{part}"]) for part in PARTS),
        ("8x-l4", [FLEET]),
    ],
    ids=[*PARTS, "fleet"],
)
def test_the_shipped_baselines_are_those_of_make_baselines(key, tests, tmp_path):
    command = [
        sys.executable, "-m", "pytest", *tests, "-q", "-p", "no:cacheprovider",
        "--llmperf-set", "run_noise=0.01", "--llmperf-set", "noise_seed=1",
        "--llmperf-gate", "off", "--llmperf-save-baseline", "main",
        "--llmperf-baselines", str(tmp_path), "--llmperf-output", str(tmp_path / "out"),
    ]  # fmt: skip

    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 0 == finished.returncode, finished.stdout
    made = values(tmp_path / f"sim-{key}" / "0001_main.json")
    shipped = values(ROOT / "baselines" / f"sim-{key}" / "0001_main.json")
    assert made.keys() == shipped.keys()
    for name, data in made.items():
        assert pytest.approx(shipped[name], rel=1e-6) == data, f"{name}: make baselines"


@pytest.mark.timeout(300)
def test_the_tables_of_the_documentation_are_those_of_make_simulation():
    command = [sys.executable, "benchmarks/sim/page.py", "--check"]

    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 0 == finished.returncode, finished.stdout + finished.stderr


def test_the_page_of_numbers_is_of_what_was_measured():
    command = [sys.executable, "benchmarks/numbers/page.py", "--check"]

    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 0 == finished.returncode, "python benchmarks/numbers/page.py"
