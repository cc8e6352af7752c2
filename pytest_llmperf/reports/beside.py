"""What lies beside a result file: the records of its session, and the telemetry beside these."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf.arms import HEAD
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.readings import GpuSample
from pytest_llmperf.record_file import read_header, read_requests, read_windows
from pytest_llmperf.telemetry import read_samples
from pytest_llmperf.timeline import Gauge, Timeline, timeline
from pytest_llmperf.units import GIB

_TELEMETRY = ".telemetry.ndjson"
_SAMPLED = {
    "sm_clock_mhz": ("GPU SM clock", "MHz", 1),
    "power_w": ("GPU power", "W", 1),
    "memory_used_bytes": ("GPU memory used", "GiB", GIB),
    "temperature_c": ("GPU temperature", "°C", 1),
}
"""What of a GPU's samples is drawn: its name, its unit, and what it is divided by to be in that unit."""
_UNREADABLE = (LLMPerfError, OSError, LookupError, TypeError, ValueError)


@dataclass(slots=True)
class Beside:
    """Record files by measurement, and a sentence on each that could not be used."""

    files: Mapping[str, Path]
    notes: list[str] = field(default_factory=list)

    def timeline(self, measurement: str) -> Timeline | None:
        """What the measurement's records tell; None where there are none, or they cannot be read to their end."""
        path = self.files.get(measurement)
        if path is None:
            return None
        try:
            return timeline(read_requests(path), read_windows(path), self.gauges(measurement))
        except _UNREADABLE as error:
            self.notes.append(f"{path} was left out: {error}")
            return None

    def gauges(self, measurement: str) -> tuple[Gauge, ...]:
        """What was sampled beside the measurement's runs; empty where nothing was."""
        path = self.files.get(measurement)
        samples = None if path is None else path.with_suffix(_TELEMETRY)
        if samples is None or not samples.is_file():
            return ()
        try:
            return gauges_of(sample for sample in read_samples(samples) if isinstance(sample, GpuSample))
        except _UNREADABLE as error:
            self.notes.append(f"{samples} was left out: {error}")
            return ()


def beside(folder: Path | None, measurements: Iterable[str]) -> Beside:
    """The record files of these measurements below a folder; those of a second build are left alone."""
    wanted = set(measurements)
    notes: list[str] = []
    found: dict[str, tuple[bool, Path]] = {}
    for path, header in _headers(folder, notes):
        name, arm = header.get("measurement"), header.get("arm")
        if name in wanted and arm in (None, HEAD):
            # What was flagged is measured again as the head of two builds; the figures are of the first time.
            found[name] = max(found.get(name, (False, path)), (arm is None, path))
    return Beside({name: path for name, (_, path) in found.items()}, notes)


def _headers(folder: Path | None, notes: list[str]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in sorted(folder.rglob("*.jsonl")) if folder is not None else ():
        try:
            yield path, read_header(path)
        except _UNREADABLE as error:
            notes.append(f"{path} was left out: {error}")


def gauges_of(samples: Iterable[GpuSample]) -> tuple[Gauge, ...]:
    """Clock, power, memory and temperature of each GPU, as far as they were measured."""
    columns: dict[tuple[str, int], tuple[array[int], array[float]]] = {}
    for sample in samples:
        for name, (_, _, divisor) in _SAMPLED.items():
            value = getattr(sample, name)
            if value is not None:
                at_ns, values = columns.setdefault((name, sample.gpu), (array("q"), array("d")))
                at_ns.append(sample.at_ns)
                values.append(value / divisor)
    order = list(_SAMPLED)
    return tuple(
        Gauge(label=_SAMPLED[name][0], of=f"GPU {gpu}", unit=_SAMPLED[name][1], at_ns=at_ns, values=values)
        for (name, gpu), (at_ns, values) in sorted(columns.items(), key=lambda one: (order.index(one[0][0]), one[0][1]))
    )
