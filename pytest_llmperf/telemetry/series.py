"""Samples as a file beside the run's records: JSON Lines, written in batches by the thread that samples.

It also takes the samples from memory: what a run came to is worked out by reading them back, one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import orjson

from pytest_llmperf.atomic import why
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.files import lines, open_regular
from pytest_llmperf.readings import GpuSample, HostSample, Xid
from pytest_llmperf.row_file import RowFile
from pytest_llmperf.telemetry.gpu import GpuAddress

SCHEMA_VERSION = 1
_SCHEMA = "pytest-llmperf-telemetry"
_BATCH = 256
"""Rows kept before they are written: about three seconds of eight GPUs at 10 Hz, some 100 kB."""

_AS_LINE = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS

Sample = GpuSample | HostSample | Xid
_ROW_OF: dict[type[Sample], str] = {GpuSample: "gpu", HostSample: "host", Xid: "xid"}
_NAMES_OF = {kind: [field.name for field in fields(kind)] for kind in _ROW_OF}
_VALUES_OF = {kind: attrgetter(*names) for kind, names in _NAMES_OF.items()}
"""All fields at once: one by one takes twice as long, ten times a second of each GPU."""


class SeriesFile:
    """Appends samples to a file; the first line names the schema, the measurement and the GPUs."""

    def __init__(self, path: Path, header: Mapping[str, Any], gpus: Sequence[GpuAddress]) -> None:
        """Raises `OSError` if it cannot be written."""
        self.path = path
        self._file = RowFile(path)
        self._waiting: list[Sample | dict[str, Any]] = []
        self._waiting.append(
            {"schema": _SCHEMA, "version": SCHEMA_VERSION, **header, "gpus": [_known(asdict(gpu)) for gpu in gpus]}
        )

    def add(self, sample: Sample) -> None:
        """Keep a sample, and write those that are kept once there are enough."""
        self._waiting.append(sample)
        if len(self._waiting) >= _BATCH:
            self.flush()

    def run(self, index: int) -> int:
        """Note that the samples that follow are of this run; returns the place from which to read them."""
        self._waiting.append({"run": {"index": index}})
        self.flush()
        return self._file.size

    def since(self, offset: int) -> Iterator[Sample]:
        """The samples from a place that `run` has returned; also when the path is gone. Raises `OSError`."""
        return _samples(self.path, self._file.written.lines(offset))

    def flush(self) -> None:
        """Write what is kept. Raises `LLMPerfError`; what could not be written is then gone."""
        waiting, self._waiting = self._waiting, []
        try:
            self._file.append(b"".join(orjson.dumps(_row(one), option=_AS_LINE) for one in waiting))
        except OSError as error:
            raise LLMPerfError(why(error, self.path)) from None

    def close(self) -> None:
        """Write what is kept, and let go of the file."""
        try:
            self.flush()
        finally:
            self._file.close()


def read_samples(path: Path) -> Iterator[Sample]:
    """Read the samples of a series file back, in the order in which they were taken.

    A last line cut short by a crash is left out. Raises `LLMPerfError` if the file is not one of
    ours or has another schema version.
    """
    with open_regular(path) as stream:
        rows = lines(path, stream)
        _check_header(path, next(rows, b""))
        yield from _samples(path, (row for row in rows if row.endswith(b"\n")))


def _samples(path: Path, rows: Iterable[bytes]) -> Iterator[Sample]:
    for number, row in enumerate(rows, start=1):
        try:
            sample = _sample(orjson.loads(row))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise LLMPerfError(f"{path}: row {number} of those read is no sample: {reason}") from None
        if sample is not None:
            yield sample


def _sample(row: dict[str, Any]) -> Sample | None:
    """What a row holds; None for one that is no sample, such as a run's beginning."""
    if "gpu" in row:
        return _gpu_sample(row["gpu"])
    if "host" in row:
        return HostSample(**row["host"])
    return Xid(**row["xid"]) if "xid" in row else None


def _gpu_sample(row: dict[str, Any]) -> GpuSample:
    processes = row.get("processes")
    if processes is not None:
        row["processes"] = {int(pid): memory for pid, memory in processes.items()}
    return GpuSample(**row)


def _row(one: Sample | dict[str, Any]) -> dict[str, Any]:
    if isinstance(one, dict):
        return one
    kind = type(one)
    values = zip(_NAMES_OF[kind], _VALUES_OF[kind](one), strict=True)
    return {_ROW_OF[kind]: {name: value for name, value in values if value is not None}}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _check_header(path: Path, line: bytes) -> None:
    try:
        header = orjson.loads(line)
    except ValueError:
        header = None
    ours = isinstance(header, dict) and header.get("schema") == _SCHEMA
    if not ours or header.get("version") != SCHEMA_VERSION:
        shown = line[:80].decode("utf-8", errors="backslashreplace")
        msg = f"{path} is not a telemetry file of schema version {SCHEMA_VERSION}: its first line is {shown!r}"
        raise LLMPerfError(msg)
