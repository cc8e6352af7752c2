"""What the nightly workflow measures on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_matrix.py"


@pytest.fixture
def run(tmp_path):
    """Runs the script beside a folder of baselines with these keys; returns the finished process."""

    def go(*arguments, keys=()):
        script = tmp_path / "scripts" / "gpu_matrix.py"
        script.parent.mkdir()
        script.write_bytes(SCRIPT.read_bytes())
        (tmp_path / "baselines").mkdir()
        for key in keys:
            (tmp_path / "baselines" / key).mkdir()
        (tmp_path / "baselines" / "README.md").touch()
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return go


def test_the_stored_gpus_are_measured_and_nothing_else(run):
    """A simulated part, a processor, a URL and published figures have no runner."""
    keys = ("NVIDIA-GH200-96GB", "4x-NVIDIA-A100-SXM4-80GB", "sim-h100", "CPU-AMD-2-cores", "remote-host", "published")

    rows = json.loads(run(keys=keys).stdout)

    assert [
        {"hardware": "4x-a100", "mark": "a100", "runner": "gpu-4x-a100"},
        {"hardware": "gh200", "mark": "gh200", "runner": "gpu-gh200"},
    ] == rows


def test_what_is_asked_for_is_measured_instead(run):
    """By part or by key, each once."""
    finished = run("h100-nvl", "2x-NVIDIA-H200", "2x-h200", keys=("NVIDIA-GH200-96GB",))

    assert ["h100-nvl", "2x-h200"] == [row["hardware"] for row in json.loads(finished.stdout)]


def test_nothing_stored_is_an_empty_matrix(run):
    """The workflow then measures nothing."""
    assert [] == json.loads(run(keys=("sim-gh200",)).stdout)


def test_unknown_hardware_is_named_with_what_is_known(run):
    """Before anything is booked."""
    finished = run("gh2000")

    assert 1 == finished.returncode
    assert "gh2000" in finished.stderr
    assert "gh200" in finished.stderr
