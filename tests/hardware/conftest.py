"""Machines to detect: a stub of NVML in C, below the real binding, so that lookups and error codes are real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("nvml_stub.c")

# Names and memory as NVML reports them; MIG and C2C where the part has them to report.
GPUS = {
    "gh200": {"name": "NVIDIA GH200 480GB", "memory_mib": 97871, "cc": 9.0, "c2c": 1, "mig": 0},
    "gh200 144": {"name": "NVIDIA GH200 144G HBM3e", "memory_mib": 146831, "cc": 9.0, "c2c": 1, "mig": 0},
    "h100": {"name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559, "cc": 9.0, "c2c": 0, "mig": 0},
    "h100 pcie": {"name": "NVIDIA H100 PCIe", "memory_mib": 81559, "cc": 9.0, "c2c": 0, "mig": 0},
    "h200": {"name": "NVIDIA H200", "memory_mib": 143771, "cc": 9.0, "c2c": 0, "mig": 0},
    "a100": {"name": "NVIDIA A100-SXM4-40GB", "memory_mib": 40960, "cc": 8.0, "mig": 0},
    "a100 mig": {"name": "NVIDIA A100-SXM4-40GB", "memory_mib": 40960, "cc": 8.0, "mig": 1},
    "l4": {"name": "NVIDIA L4", "memory_mib": 23034, "cc": 8.9},
    "rtx4090": {"name": "NVIDIA GeForce RTX 4090", "memory_mib": 24564, "cc": 8.9},
}

DETECT = """
import ctypes, json
from pytest_llmperf.hardware import MARKS, Requirement, detect
hardware = detect()
try:
    open_sessions = ctypes.CDLL("libnvidia-ml.so.1").stub_sessions()
except OSError:
    open_sessions = None
print(json.dumps({
    "key": hardware.key,
    "describe": hardware.describe(),
    "problem": hardware.problem,
    "marks": [mark for mark in MARKS if Requirement(parts=(mark,)).unmet_by(hardware) is None],
    "fingerprint": hardware.fingerprint(),
    "open_sessions": open_sessions,
}))
"""


@pytest.fixture(scope="session")
def nvml_stub(tmp_path_factory):
    """Folders that hold the stub: one of a current driver, one of a driver without the late functions."""
    if not sys.platform.startswith("linux"):
        pytest.skip(f"the stub of NVML is {LIBRARY}, found by way of LD_LIBRARY_PATH: Linux only")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (gcc, cc) to build the stub of NVML with")
    folder = tmp_path_factory.mktemp("nvml")
    for driver, flags in (("current", ()), ("old", ("-DOLD_DRIVER",))):
        folder.joinpath(driver).mkdir()
        target = folder / driver / LIBRARY
        subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", target, SOURCE], check=True)
    return folder


@pytest.fixture
def machine(nvml_stub, tmp_path):
    """`machine("gh200", "l4")`: the environment of a process on a machine with these GPUs.

    A GPU is a name in `GPUS` or a dictionary like those in it; further words are lines of the stub's
    file, and `library="old"` takes the driver that lacks functions.
    """

    def make(*gpus, library="current", **lines):
        lines = {"driver": "570.133.20", "cuda": 12080} | lines
        text = [f"{word} {value}" for word, value in lines.items() if value is not None]
        for number, gpu in enumerate(gpus):
            fields = {"uuid": f"GPU-{number}"} | (gpu if isinstance(gpu, dict) else GPUS[gpu])
            text.append("gpu " + ";".join(f"{key}={value}" for key, value in fields.items()))
        script = tmp_path / "machine.txt"
        script.write_text("\n".join(text) + "\n", encoding="utf-8")
        return {"NVML_STUB": str(script), "LD_LIBRARY_PATH": library_path(nvml_stub / library)}

    return make


@pytest.fixture
def no_driver(tmp_path):
    """The environment of a machine without NVIDIA's driver, also where the tests run on one with it."""
    folder = tmp_path / "no_driver"
    folder.mkdir()
    folder.joinpath(LIBRARY).touch()  # the loader stops at a file that is no library
    return {"LD_LIBRARY_PATH": library_path(folder)}


@pytest.fixture(scope="session")
def found_on():
    """`found_on(environment)`: what a fresh process there detects; `before` is code to run first."""

    def run(environment, before=""):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"{before}\n{DETECT}"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def library_path(first):
    return os.pathsep.join(filter(None, [str(first), os.environ.get("LD_LIBRARY_PATH")]))
