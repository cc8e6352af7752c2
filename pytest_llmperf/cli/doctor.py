"""`pytest-llmperf doctor`: what this machine is, which marked tests it can run, what to change about it first.

And how much load it can measure. What killed sessions have left on it is removed.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, TextIO

from pytest_llmperf.cli import exit_codes
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines.orphans import clear_up
from pytest_llmperf.errors import NvmlError
from pytest_llmperf.hardware import MARKS, Hardware, Requirement, advise, detect, read_host, uses

if TYPE_CHECKING:
    from pytest_llmperf.calibration import Step
    from pytest_llmperf.hardware import Use

HELP = "say what this machine is, which marks it satisfies, what to change about it, the load that it can measure"
_COLUMNS = 80
_NAME = 18
# Above this share of the processors others have taken what the client would need.
_TAKEN = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One switch."""
    parser.add_argument("--no-calibration", action="store_true", help="leave out the runs that measure this client")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print the findings; the exit code is 0, as there is nothing to fail, or 130 after Ctrl-C."""
    for sentence in clear_up(RealClock(), _waiting):  # first: what is left may hold a GPU's memory
        _say(out, "left behind", sentence)
    _clear()
    hardware = detect()
    for name, value in _facts(hardware):
        _say(out, name, value)
    for sentence in advise(hardware, read_host(), _uses(hardware)):
        _say(out, "advice", sentence)
    if arguments.no_calibration:
        return 0
    try:
        _calibrate(out, hardware)
    except KeyboardInterrupt:
        _clear()
        return exit_codes.INTERRUPTED
    except RuntimeError as error:  # the built-in server's
        _say(out, "client", f"could not be measured: {error}")
    return 0


def _facts(hardware: Hardware) -> Iterator[tuple[str, str]]:
    """The fingerprint and what follows from it, by name."""
    satisfied = [mark for mark in MARKS if Requirement(parts=(mark,)).unmet_by(hardware) is None]
    yield "hardware key", hardware.key
    yield "GPUs", hardware.describe()
    yield "driver", hardware.driver or "-"
    yield "CUDA", hardware.cuda or "-"
    yield "CPU", f"{hardware.cpu}, {hardware.cpus} usable"
    yield "marks satisfied", ", ".join(satisfied) or "none"
    for gpu in hardware.gpus:
        yield f"GPU {gpu.index}", gpu.settings()


def _uses(hardware: Hardware) -> dict[str, Use]:
    """What goes on on the GPUs; nothing where the driver does not answer any more."""
    try:
        return uses([gpu.uuid for gpu in hardware.gpus if gpu.uuid])
    except NvmlError:
        return {}


def _calibrate(out: TextIO, hardware: Hardware) -> None:
    from pytest_llmperf.calibration import ITL_S, TTFT_S, calibrate, verdict  # noqa: PLC0415 - needs numpy

    notes = list(_notes(hardware))
    out.write(
        f"\nThe client against a server on this machine that sends first tokens after {TTFT_S * 1e3:g} ms\nand further "
        f"ones every {ITL_S * 1e3:g} ms; by how much it was late with first tokens is known:\n"
        "            TTFT, mean                              CPU used by\n"
        "  streams   true       reported    tokens/s  of possible  client  server\n"
    )
    steps = []
    for step in calibrate(_progress):
        _clear()
        out.writelines(f"{line}\n" for line in _row(step))
        out.flush()
        steps.append(step)
    for note in notes:
        _say(out, "note", note)
    _say(out, "client", verdict(steps))


def _row(step: Step) -> Iterator[str]:
    """A line of the table, and the reason where it is not a good one."""
    yield (
        f"{step.streams:9}  {step.true_s * 1e3:7.2f} ms {step.reported_s * 1e3:8.2f} ms {step.rate:11,.0f}"
        f"  {step.rate / step.possible:11.1%}  {step.client_cpu:6.0%}  {step.server_cpu:6.0%}  {_mark(step)}"
    )
    reason = step.complaint or step.doubt
    if reason is not None:
        text = f"{_mark(step)} {reason}"
        yield from textwrap.wrap(text, _COLUMNS, initial_indent=" " * 11, subsequent_indent=" " * 13)


def _mark(step: Step) -> str:
    """Whether it was truthful: yes, no, or nobody knows."""
    if step.complaint is not None:
        return "x"
    return "ok" if step.doubt is None else "?"


def _notes(hardware: Hardware) -> Iterator[str]:
    """What bears on the result and is not the client's doing."""
    processors, load = hardware.cpus or 1, os.getloadavg()[0]
    if load > _TAKEN * processors:
        yield f"load average {load:.1f} on {processors} processors before: the client may reach further when it is idle"


def _say(out: TextIO, name: str, value: str) -> None:
    # A key is there to be copied: one that is too long for the line stays whole.
    lines = textwrap.wrap(value, _COLUMNS - _NAME, break_on_hyphens=False, break_long_words=False)
    out.writelines(f"{label:{_NAME}}{line}\n" for label, line in zip_longest([name], lines, fillvalue=""))


def _progress(streams: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Kmeasuring {streams} streams")
        sys.stderr.flush()


def _waiting(step: str, detail: str = "", done: float | None = None) -> None:
    del done
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{step} ({detail})"[:_COLUMNS])
        sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
