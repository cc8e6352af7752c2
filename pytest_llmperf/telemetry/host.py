"""The machine around the GPUs, as Linux tells it in /proc; elsewhere nothing is known."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pytest_llmperf.hardware.host import meminfo, swap_used
from pytest_llmperf.readings import HostSample

_LARGEST = 16 << 10
_FILES = ("stat", "meminfo", "pressure/cpu", "pressure/memory", "pressure/io")
_IDLE, _WAITING = 3, 4
"""Columns of the processors' times in which nothing ran: idle, and idle with I/O under way."""
_COUNTED = 8
"""Columns that add up to all time; those of guests, which follow, are in them already."""
_PRESSURE = re.compile(rb"^some avg10=([0-9.]+)", re.MULTILINE)


class HostSensor:
    """Reads the files again and again, held open: a read costs a few microseconds."""

    def __init__(self, files: dict[str, int]) -> None:
        """`files`: descriptors by their names; one that is missing is one that the kernel does not have."""
        self._files = files
        self._cpu = self._cpu_times()

    def read(self, at_ns: int) -> HostSample:
        """A sample; the processors' share is of the time since the one before."""
        memory = meminfo(self._content("meminfo").decode())
        return HostSample(
            at_ns=at_ns,
            cpu_share=self._cpu_share(),
            memory_available_bytes=memory.get("MemAvailable"),
            swap_used_bytes=swap_used(memory),
            cpu_pressure=self._pressure("pressure/cpu"),
            memory_pressure=self._pressure("pressure/memory"),
            io_pressure=self._pressure("pressure/io"),
        )

    def _cpu_share(self) -> float | None:
        before, now = self._cpu, self._cpu_times()
        self._cpu = now
        if before is None or now is None or now[1] <= before[1]:
            return None
        return min(1.0, max(0.0, (now[0] - before[0]) / (now[1] - before[1])))

    def _cpu_times(self) -> tuple[int, int] | None:
        """Time of all processors, used and altogether, in ticks since the machine was started."""
        first = self._content("stat").partition(b"\n")[0].split()
        if first[:1] != [b"cpu"]:
            return None
        times = [int(number) for number in first[1 : 1 + _COUNTED]]
        idle = sum(times[_IDLE : _WAITING + 1])
        return sum(times) - idle, sum(times)

    def _pressure(self, name: str) -> float | None:
        found = _PRESSURE.search(self._content(name))
        return None if found is None else float(found.group(1)) / 100

    def _content(self, name: str) -> bytes:
        descriptor = self._files.get(name)
        if descriptor is None:
            return b""
        try:
            return os.pread(descriptor, _LARGEST, 0)
        except OSError:  # a kernel that has the file and keeps no pressure
            return b""


@contextmanager
def host_sensor(proc: Path = Path("/proc")) -> Iterator[HostSensor | None]:
    """A sensor of this machine; None where there is nothing to read."""
    with ExitStack() as opened:
        files = {}
        for name in _FILES:
            try:
                files[name] = os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            opened.callback(os.close, files[name])
        yield HostSensor(files) if files else None
