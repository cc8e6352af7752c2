"""Machines whose GPUs are made up: a stub of NVML in C below the real binding, so that lookups and codes are real.

`nvml_stub.c` says what can be scripted, and that each value may change over time. The fixtures are
everybody's: `machine` and `no_driver` make the environment of a process, `found_on` runs detection in
one, `nvml_here` puts the stub under the binding of this very process.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LIBRARY = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("nvml_stub.c")
STEERING = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "NVML_STUB")
"""Variables of the outside that no made-up machine is to inherit."""

NO_PERMISSION, UNKNOWN, LOST, NOT_SUPPORTED, MISMATCH = 4, 999, 15, 3, 18


def error(code: int) -> dict[str, Any]:
    """A value that NVML answers with this code."""
    return {"error": code}


def over_time(*steps: tuple[float, Any]) -> dict[str, Any]:
    """A value that changes in steps: `(seconds, value)` each."""
    return {"over_time": [list(step) for step in steps]}


def ramp(*points: tuple[float, float]) -> dict[str, Any]:
    """A number that goes from point to point, `(seconds, number)` each, in straight lines."""
    return {"ramp": [list(point) for point in points]}


def _server_part(name: str, memory_mib: int, cc: float, watts: int, generation: int, **more: Any) -> dict[str, Any]:
    """A GPU as it is on a well-kept, idle server: persistence on, power limit as shipped, links at full width."""
    return {
        "name": name,
        "memory_mib": memory_mib,
        "memory_used_mib": 0,
        "memory_reserved_mib": 500,
        "cc": cc,
        "power_limit": watts * 1000,
        "power_limit_default": watts * 1000,
        "power_limit_range": [watts * 300, watts * 1000],
        "clock": {"graphics": 345, "sm": 345, "memory": 2619},
        "clock_max": {"graphics": 1980, "sm": 1980, "memory": 2619},
        "persistence": 1,
        "ecc": 1,
        "compute_mode": 0,
        "pcie_generation": generation,
        "pcie_width": 16,
        "pcie_generation_max": generation,
        "pcie_width_max": 16,
        "pcie_generation_gpu_max": generation,
        "cpu_affinity": 0xFFFF,
        "memory_affinity": 1,
        "clock_reasons": 1,
        "temperature": 31,
        "pstate": 0,
        "utilisation": [0, 0],
        "energy": ramp((0, 1_000_000), (1000, 71_000_000)),
        "power": 70_000,
        "processes": [],
        "graphics_processes": [],
        "fields": {"186": 70_000, "185": 70_000, "83": ramp((0, 1_000_000), (1000, 71_000_000))}
        | {str(number): 0 for number in (74, 269, 270, 271, *range(75, 80), 3, 4, 5, 6, *range(142, 146))}
        | {"197": ramp((0, 0), (1000, 1_000_000)), "198": ramp((0, 0), (1000, 1_000_000))},
        "xid": [],
    } | more


def _slice(profile: str, number: int, memory_mib: int) -> dict[str, Any]:
    return {
        "name": f"NVIDIA A100-SXM4-40GB MIG {profile}",
        "uuid": f"MIG-0000000{number}-aaaa-5bbb-8ccc-dddddddddddd",
        "memory_mib": memory_mib,
        "cc": 8.0,
        "gpu_instance": number + 6,
        "compute_instance": 0,
    }


GPM = {"20": ramp((0, 0), (1000, 10)), "21": ramp((0, 0), (1000, 10)), "60": 0, "61": 0}
"""What GPM tells on Hopper: PCIe, and NVLink to peers."""
_C2C = {
    "c2c": 1,
    "addressing_mode": 2,
    "numa_node": 1,
    "gpm": GPM | {"100": ramp((0, 0), (1000, 1_000_000)), "101": ramp((0, 0), (1000, 3_000_000))},
}
_A100 = _server_part("NVIDIA A100-SXM4-40GB", 40960, 8.0, 400, 4, mig=0, nvlinks=[1] * 12, nvlink_version=3)
_SLICES = [_slice("1g.5gb", 1, 4864), _slice("1g.5gb", 2, 4864), _slice("3g.20gb", 3, 19968)]

# Names and memory as NVML reports them; all else is made up to be plausible.
GPUS: dict[str, dict[str, Any]] = {
    "gh200": _server_part("NVIDIA GH200 480GB", 97871, 9.0, 700, 5, mig=0, nvlinks=[0] * 18, **_C2C),
    "gh200 144": _server_part("NVIDIA GH200 144G HBM3e", 146831, 9.0, 900, 5, mig=0, nvlinks=[0] * 18, **_C2C),
    "h100": _server_part(
        "NVIDIA H100 80GB HBM3", 81559, 9.0, 700, 5, c2c=0, mig=0, gpm=GPM, nvlinks=[1] * 18, nvlink_version=4
    ),
    "h100 pcie": _server_part("NVIDIA H100 PCIe", 81559, 9.0, 350, 5, c2c=0, mig=0, gpm=GPM, nvlinks=[0] * 18),
    "h200": _server_part("NVIDIA H200", 143771, 9.0, 700, 5, c2c=0, mig=0, gpm=GPM, nvlinks=[0] * 18),
    "a100": _A100,
    "a100 mig": _A100 | {"mig": 1},
    "a100 slices": _A100 | {"mig": 1, "slices": [*_SLICES[:2], None, _SLICES[2]], "slices_max": 7},
    "l4": _server_part("NVIDIA L4", 23034, 8.9, 72, 4),
    "rtx4090": _server_part("NVIDIA GeForce RTX 4090", 24564, 8.9, 450, 4, persistence=0, ecc=0),
    "withheld": {"name": "NVIDIA H200", "handle": error(NO_PERMISSION)},
    "lost": {"name": "NVIDIA H200", "memory_mib": 143771, "lost_at": 0},
    "lost in mid-run": _server_part("NVIDIA H200", 143771, 9.0, 700, 5, c2c=0, mig=0, gpm=GPM, lost_at=10),
}

MACHINES: dict[str, tuple[str, ...]] = {
    "one GH200 96": ("gh200",),
    "one GH200 144": ("gh200 144",),
    "eight H100 SXM": ("h100",) * 8,
    "H100 PCIe": ("h100 pcie",),
    "H200": ("h200",),
    "A100 with MIG": ("a100 slices",),
    "L4": ("l4",),
    "RTX 4090": ("rtx4090",),
    "two unlike parts": ("h200", "l4"),
    "one withheld": ("withheld", "h200"),
    "lost in mid-run": ("lost in mid-run",),
}
"""GPUs by the names in `GPUS`; `machine(*MACHINES[name])` is the machine."""

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


@dataclass(frozen=True)
class Stub:
    """The library itself, for what a test wants to do to time and to know of the calls."""

    library: ctypes.CDLL

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.library.stub_advance(ctypes.c_double(seconds))

    def asked(self, key: str) -> int:
        """How often the value of this key, as in `nvml_stub.c`, has been asked for, of all GPUs together."""
        return self.library.stub_asked(key.encode())

    @property
    def open_sessions(self) -> int:
        return self.library.stub_sessions()

    @property
    def gpm_samples(self) -> int:
        """Those that were allocated and not freed."""
        return self.library.stub_gpm_samples()


def script(*gpus: str | dict[str, Any], **lines: Any) -> str:
    """The stub's file for a machine with these GPUs, each a name in `GPUS` or a dictionary like those in it."""
    made = [_placed(number, gpu if isinstance(gpu, dict) else GPUS[gpu]) for number, gpu in enumerate(gpus)]
    machine = {"driver": "570.133.20", "cuda": 12080, "gpus": made} | lines
    return json.dumps({name: value for name, value in machine.items() if value is not None}, ensure_ascii=False)


def _placed(number: int, gpu: dict[str, Any]) -> dict[str, Any]:
    bus_id = f"00000000:{number + 1:02X}:00.0"
    place = {"uuid": f"GPU-{number}", "pci": {"bus_id": bus_id, "device": 0x233010DE, "subsystem": 0x16C110DE}}
    return place | gpu


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

    A GPU is a name in `GPUS` or a dictionary like those in it; further words go into the stub's file
    beside them, and `library="old"` takes the driver that lacks functions.
    """

    def make(*gpus, library="current", **lines):
        path = tmp_path / "machine.json"
        path.write_text(script(*gpus, **lines), encoding="utf-8")
        return {"NVML_STUB": str(path), "LD_LIBRARY_PATH": library_path(nvml_stub / library)}

    return make


@pytest.fixture
def nvml_here(nvml_stub, tmp_path, monkeypatch):
    """`nvml_here("h200")`: this process is on a machine with these GPUs; returns the `Stub`.

    Its time stands still but for `Stub.advance`, unless `real_time=True` is given.
    """
    import pynvml

    def make(*gpus, library="current", **lines):
        path = tmp_path / "machine.json"
        path.write_text(script(*gpus, **{"real_time": False} | lines), encoding="utf-8")
        loaded = ctypes.CDLL(str(nvml_stub / library / LIBRARY))
        loaded.stub_reset()
        monkeypatch.setattr(pynvml, "nvmlLib", loaded)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        for name in STEERING:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NVML_STUB", str(path))
        return Stub(loaded)

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
        outside = {name: value for name, value in os.environ.items() if name not in STEERING}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"{before}\n{DETECT}"],
            env=outside | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def library_path(first):
    return os.pathsep.join(filter(None, [str(first), os.environ.get("LD_LIBRARY_PATH")]))
