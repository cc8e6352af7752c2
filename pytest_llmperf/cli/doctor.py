"""`pytest-llmperf doctor`: what this machine is and which marked tests it can run."""

from __future__ import annotations

import argparse
from typing import TextIO

from pytest_llmperf.hardware import MARKS, Requirement, detect

HELP = "say what this machine is: its hardware key, its GPUs, and the marks that it satisfies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""
    del parser


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print the findings; the exit code is always 0, as there is nothing to fail."""
    del arguments
    hardware = detect()
    satisfied = [mark for mark in MARKS if Requirement(parts=(mark,)).unmet_by(hardware) is None]
    facts = {
        "hardware key": hardware.key,
        "GPUs": hardware.describe(),
        "driver": hardware.driver or "-",
        "CUDA": hardware.cuda or "-",
        "CPU": f"{hardware.cpu}, {hardware.cpus} usable",
        "marks satisfied": ", ".join(satisfied) or "none",
    }
    out.writelines(f"{name:16}  {value}\n" for name, value in facts.items())
    return 0
