"""The GPUs that the benchmarks sample: those of this machine, or made-up ones."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pytest_llmperf.hardware import detect
from pytest_llmperf.telemetry.gpu import GpuAddress

TESTS = Path(__file__).resolve().parents[2] / "tests"


def stubbed(folder: Path, gpus: int, part: str = "h100") -> tuple[GpuAddress, ...]:
    """Puts the tests' stub of NVML, with so many GPUs of a name in `nvml.GPUS`, below the binding of this process."""
    sys.path.insert(0, str(TESTS))
    import nvml as stub  # noqa: PLC0415 - of the tests
    import pynvml  # noqa: PLC0415

    library = folder / stub.LIBRARY
    compiler = shutil.which("gcc") or shutil.which("cc") or sys.exit("no C compiler (gcc, cc) to build the stub with")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, stub.SOURCE], check=True)
    script = folder / "machine.json"
    busy = stub.GPUS[part] | {"processes": [{"pid": 1000 + number, "memory_mib": 70_000} for number in range(4)]}
    script.write_text(stub.script(*[busy] * gpus), encoding="utf-8")
    os.environ["NVML_STUB"] = str(script)
    pynvml.nvmlLib = ctypes.CDLL(str(library))
    return tuple(GpuAddress(number, uuid=f"GPU-{number}", name=busy["name"]) for number in range(gpus))


def here() -> tuple[GpuAddress, ...]:
    """The GPUs of this machine; ends the program where there are none."""
    hardware = detect()
    if not hardware.gpus:
        sys.exit(f"there is nothing to sample: {hardware.describe()}")
    return tuple(
        GpuAddress(number, index=gpu.index, uuid=gpu.uuid, name=gpu.name) for number, gpu in enumerate(hardware.gpus)
    )
