"""What the nightly workflow measures on, as its matrix: `python scripts/gpu_matrix.py [HARDWARE...]`.

HARDWARE is a part, such as `gh200` or `4x-a100`, or a hardware key, such as `2x-NVIDIA-H200`. Without any it is every
hardware key of `baselines/` that names real GPUs. Prints one line of JSON, a list of

    {"hardware": "4x-a100", "mark": "a100", "runner": "gpu-4x-a100"}

with the mark of the tests that are for the part and the label of the runner that has it. Exits with 1 and a sentence
for hardware that is not known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware import PARTS, Hardware, declared

BASELINES = Path(__file__).parents[1] / "baselines"


def matrix(wanted: Sequence[str], baselines: Path) -> list[dict[str, str]]:
    """A row for each piece of hardware, once. Raises `ConfigurationError` for one that is not known."""
    rows = [_row(_hardware(name)) for name in wanted or _stored(baselines)]
    return list({row["hardware"]: row for row in rows}.values())


def _stored(baselines: Path) -> list[str]:
    """The folders that are named by real GPUs: neither simulated ones nor a processor nor a server elsewhere."""
    return sorted(folder.name for folder in baselines.iterdir() if folder.is_dir() and _is_gpu(folder.name))


def _is_gpu(key: str) -> bool:
    try:
        declared(key)
    except ConfigurationError:
        return False
    return True


def _hardware(name: str) -> Hardware:
    return declared(name) if _is_gpu(name) else declared(f"sim:{name}")


def _row(hardware: Hardware) -> dict[str, str]:
    part = next(part for part in PARTS if hardware.gpus[0].name in part.nvml_names)
    count = len(hardware.gpus)
    name = part.name if count == 1 else f"{count}x-{part.name}"
    return {"hardware": name, "mark": part.mark, "runner": f"gpu-{name}"}


def main() -> int:
    """Print the matrix; returns the exit code."""
    try:
        rows = matrix(sys.argv[1:], BASELINES)
    except ConfigurationError as error:
        sys.stderr.writelines(f"{problem}\n" for problem in error.problems)
        return 1
    sys.stdout.write(f"{json.dumps(rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
