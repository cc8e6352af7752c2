"""Records as a file: rows are written as they happen, one JSON object a line.

Whatever ends a session early leaves everything measured before it readable. The file also takes
from memory what does not fit there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, overload

import orjson

from pytest_llmperf.arrivals import Arrival, Arrivals
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.records import (
    CacheCounters,
    EngineTimings,
    Failure,
    Phase,
    Remark,
    RequestRecord,
    RunRecord,
    Window,
)

SCHEMA_VERSION = 2
ARRIVALS_IN_MEMORY = 5_000_000
"""Token arrivals of one measurement kept in memory, about 100 MB; further ones are read back when needed."""
_RUN_ROW = b'{"run":'


class RecordFile:
    """Appends rows to a JSON Lines file; the first line names the schema and the measurement."""

    def __init__(self, path: Path, header: dict[str, Any], arrivals_in_memory: int = ARRIVALS_IN_MEMORY) -> None:
        self.path = path
        self._room = arrivals_in_memory
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: IO[bytes] = path.open("wb", buffering=0)
        self._offset = 0
        self._write({"schema": "pytest-llmperf-records", "version": SCHEMA_VERSION, **header})

    def request(self, record: RequestRecord) -> RequestRecord:
        """Append one request; returns it in the form to be kept, which may leave its arrivals in the file."""
        offset = self._offset
        self._write({"request": _row(record)})
        self._room -= len(record.arrivals)
        if self._room >= 0 or len(record.arrivals) < 2:
            return record
        ends = record.arrivals[0], record.arrivals[-1]
        return replace(record, arrivals=_Spilled(self.path, offset, len(record.arrivals), ends))

    def run(self, record: RunRecord) -> None:
        """Append what is known of a whole run, its requests left out."""
        client = record.client
        self._write(
            {
                "run": {
                    "index": record.index,
                    "phase": record.phase.value,
                    "start_ns": record.start_ns,
                    "end_ns": record.end_ns,
                    "window": None if record.window is None else asdict(record.window),
                    "shed": record.shed,
                    "cache": _counters(record.cache),
                    "timings": [asdict(timings) for timings in record.timings],
                    "client": {
                        **{name: getattr(client, name).to_json() for name in ("away", "unread", "connects")},
                        "unstamped": client.unstamped,
                        "clock_steps": client.clock_steps,
                        "resent": client.resent,
                        "retransmitted": client.retransmitted,
                        "out_of_order": client.out_of_order,
                        "disturbed_connections": client.disturbed_connections,
                        "cpu_shares": client.cpu_shares,
                        "clock_offsets_ns": client.clock_offsets_ns,
                    },
                    **({} if record.telemetry is None else {"telemetry": record.telemetry.to_json()}),
                }
            }
        )

    def close(self) -> None:
        self._stream.close()

    def _write(self, row: dict[str, Any]) -> None:
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        self._stream.write(line)
        self._offset += len(line)


def read_requests(path: Path) -> Iterator[RequestRecord]:
    """Read the requests of a record file back, in the order in which they ended.

    A last line cut short by a crash is left out. Raises `LLMPerfError` if the file is not one of
    ours or has another schema version.
    """
    with path.open("rb") as stream:
        _check_header(path, stream.readline())
        for line in stream:
            if not line.endswith(b"\n"):
                return
            row = orjson.loads(line).get("request")
            if row is not None:
                yield _request_from(row)


def read_header(path: Path) -> dict[str, Any]:
    """What the first line says: `measurement` and `hardware_key`. Raises as `read_requests` does."""
    with path.open("rb") as stream:
        line = stream.readline()
    _check_header(path, line)
    header: dict[str, Any] = orjson.loads(line)
    return header


def read_windows(path: Path) -> dict[int, Window]:
    """Of each measured run that has a ramp or a tail, the part that counts. Raises as `read_requests` does."""
    found = {}
    with path.open("rb") as stream:
        _check_header(path, stream.readline())
        for line in stream:
            if line.startswith(_RUN_ROW) and line.endswith(b"\n"):
                run = orjson.loads(line)["run"]
                if run["phase"] == Phase.MEASURED.value and run["window"] is not None:
                    found[run["index"]] = Window(**run["window"])
    return found


@dataclass(frozen=True, slots=True)
class _Spilled(Sequence[Arrival]):
    """Arrivals that stand in the file only; the first and the last are at hand."""

    path: Path
    offset: int
    size: int
    ends: tuple[Arrival, Arrival]

    def load(self) -> Arrivals:
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return Arrivals.from_json(orjson.loads(stream.readline())["request"]["arrivals"])

    @overload
    def __getitem__(self, index: int) -> Arrival: ...
    @overload
    def __getitem__(self, index: slice) -> Arrivals: ...
    def __getitem__(self, index: int | slice) -> Arrival | Arrivals:
        if index in (0, -1):
            return self.ends[0 if index == 0 else 1]
        return self.load()[index]

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.load())

    def __len__(self) -> int:
        return self.size


def _counters(cache: CacheCounters) -> dict[str, Any]:
    """The counters, and those of each replica where there are several."""
    counters = asdict(cache)
    return counters if cache.replicas else {name: value for name, value in counters.items() if name != "replicas"}


def _row(record: RequestRecord) -> dict[str, Any]:
    arrivals = record.arrivals if isinstance(record.arrivals, Arrivals) else Arrivals.of(record.arrivals)
    row = {name: getattr(record, name) for name in RequestRecord.__slots__}
    row["phase"] = record.phase.value
    row["arrivals"] = arrivals.to_json()
    row["timings"] = None if record.timings is None else asdict(record.timings)
    row["failure"] = None if record.failure is None else asdict(record.failure)
    row["remarks"] = [asdict(remark) for remark in record.remarks]
    return row


def _request_from(row: dict[str, Any]) -> RequestRecord:
    failure, timings = row.pop("failure"), row.pop("timings", None)  # files of before know no timings
    return RequestRecord(
        **{
            **row,
            "phase": Phase(row["phase"]),
            "arrivals": Arrivals.from_json(row["arrivals"]),
            "remarks": tuple(Remark(**remark) for remark in row["remarks"]),
        },
        timings=None if timings is None else EngineTimings(**timings),
        failure=None if failure is None else Failure(**failure),
    )


def _check_header(path: Path, line: bytes) -> None:
    try:
        header = orjson.loads(line)
    except ValueError:
        header = None
    ours = isinstance(header, dict) and header.get("schema") == "pytest-llmperf-records"
    if not ours or header.get("version") != SCHEMA_VERSION:
        # Another file's bytes shall be shown in the error, not raise one of their own.
        shown = line[:80].decode("utf-8", errors="backslashreplace")
        msg = f"{path} is not a record file of schema version {SCHEMA_VERSION}: its first line is {shown!r}"
        raise LLMPerfError(msg)
