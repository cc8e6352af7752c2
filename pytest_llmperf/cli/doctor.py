"""`pytest-llmperf doctor`: what this machine is, which marked tests it can run, how much load it can measure."""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

from pytest_llmperf.hardware import MARKS, Requirement, detect

HELP = "say what this machine is: its hardware key, its GPUs, the marks that it satisfies, the load it can measure"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One switch."""
    parser.add_argument("--no-calibration", action="store_true", help="leave out the runs that measure this client")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print the findings; the exit code is always 0, as there is nothing to fail."""
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
    if not arguments.no_calibration:
        _calibrate(out)
    return 0


def _calibrate(out: TextIO) -> None:
    from pytest_llmperf.calibration import ITL_S, TTFT_S, calibrate  # noqa: PLC0415 - needs numpy

    def progress(streams: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[Kmeasuring {streams} streams")
            sys.stderr.flush()

    out.write(
        f"\nThe client against a server on this machine that sends first tokens after {TTFT_S * 1e3:g} ms and further "
        f"ones\nevery {ITL_S * 1e3:g} ms; true is what that server really did:\n"
        "   streams   mean TTFT, true      reported     tokens/s   possible\n"
    )
    best = None
    for step in calibrate(progress):
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        out.write(
            f"{step.streams:10}   {step.true_s * 1e3:12.2f} ms  {step.reported_s * 1e3:9.2f} ms  "
            f"{step.rate:10,.0f} {step.possible:10,.0f}  {'' if step.complaint is None else 'x'}\n"
        )
        if step.complaint is not None:
            out.write(f"           x {step.complaint}\n")
        else:
            best = step
    if best is None:
        out.write("client            measures no load truthfully: other processes may be using the processors\n")
    else:
        out.write(
            f"client            truthful up to {best.streams} streams and {best.rate:,.0f} tokens/s with one worker, "
            "beside the server\n"
        )
