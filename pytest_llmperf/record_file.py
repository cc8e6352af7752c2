"""Records as a file: rows are written as they happen, one JSON object a line.

Whatever ends a session early leaves everything measured before it readable. The file also takes
from memory what does not fit there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import orjson

from pytest_llmperf.arrivals import Arrival, Arrivals
from pytest_llmperf.atomic import why
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.files import lines, open_regular
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.readings import telemetry_from
from pytest_llmperf.records import (
    CacheCounters,
    ClientStats,
    EngineTimings,
    Failure,
    Phase,
    Remark,
    RequestRecord,
    RunRecord,
    Window,
)
from pytest_llmperf.row_file import RowFile, Written

SCHEMA_VERSION = 2
ARRIVALS_IN_MEMORY = 5_000_000
"""Token arrivals of one measurement kept in memory, at most 100 MB; further ones are read back when needed."""
_RUN_ROW = b'{"run":'
_END_ROW = b'{"end":'
_HISTOGRAMS = ("away", "unread", "connects")


class RecordFile:
    """Appends rows to a JSON Lines file; the first line names the schema and the measurement.

    A file that cannot be written costs no measurement: `problem` then says so, and the file ends with the last
    row that found room.
    """

    def __init__(self, path: Path, header: dict[str, Any], arrivals_in_memory: int = ARRIVALS_IN_MEMORY) -> None:
        self.path = path
        self._room = arrivals_in_memory
        self.problem: str | None = None
        """Why not all rows are in the file; what is measured is all the same, and stays in memory."""
        self._file: RowFile | None = None
        try:
            self._file = RowFile(path)
        except OSError as error:
            self._lose(error)
        self._write({"schema": "pytest-llmperf-records", "version": SCHEMA_VERSION, **header})

    def request(self, record: RequestRecord) -> RequestRecord:
        """Append one request; returns it in the form to be kept, which may leave its arrivals in the file."""
        file = self._file
        offset = 0 if file is None else file.size
        self._write({"request": _row(record)})
        self._room -= len(record.arrivals)
        if file is None or self.problem is not None or self._room >= 0 or len(record.arrivals) < 2:
            if isinstance(record.arrivals, Arrivals):
                record.arrivals.keep()
            return record
        ends = record.arrivals[0], record.arrivals[-1]
        return replace(record, arrivals=_Spilled(file.written, offset, len(record.arrivals), ends))

    def run(self, record: RunRecord, spoiled: Sequence[str] = ()) -> None:
        """Append what is known of a whole run, its requests left out. `spoiled`: why it is no evidence."""
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
                        **{name: getattr(client, name).to_json() for name in _HISTOGRAMS},
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
                    **({} if record.session is None else {"session": record.session}),
                    **({"spoiled": list(spoiled)} if spoiled else {}),
                }
            }
        )

    def end(self, *, complete: bool) -> None:
        """Append that the measurement is over; `complete`: it has all the runs that it wanted, none of them spoiled."""
        self._write({"end": {"complete": complete}})

    def close(self) -> None:
        """Write nothing more. That the file has vanished meanwhile is noticed now."""
        if self._file is None:
            return
        try:
            if self.problem is None:
                self._file.check()
        except OSError as error:
            self._lose(error)
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None or self.problem is not None:
            return  # a file with a gap would pass for a whole one
        try:
            self._file.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.problem = f"not all records are on disk: {why(error, self.path)}"


def read_requests(path: Path) -> Iterator[RequestRecord]:
    """Read the requests of a record file back, in the order in which they ended.

    A last line cut short by a crash is left out. Raises `LLMPerfError` if the file is not one of
    ours or has another schema version.
    """
    for number, line in _rows(path):
        with _naming(path, number):
            row = orjson.loads(line).get("request")
            request = None if row is None else _request_from(row)
        if request is not None:
            yield request


@dataclass(frozen=True, slots=True, kw_only=True)
class Extant:
    """How much of a measurement a file holds. `runs`: measured ones from the first on, all whole, none spoiled."""

    header: dict[str, Any]
    runs: int
    is_complete: bool


def read_extant(path: Path) -> Extant:
    """See what a record file holds, without its requests. Raises as `read_requests` does."""
    runs, is_spoiled, is_complete = 0, False, False
    for number, line in _rows(path):
        with _naming(path, number):
            if line.startswith(_RUN_ROW):
                run = orjson.loads(line)["run"]
                is_spoiled = is_spoiled or bool(run.get("spoiled"))
                runs += not is_spoiled and run["phase"] == Phase.MEASURED.value and run["index"] == runs
            elif line.startswith(_END_ROW):
                is_complete = orjson.loads(line)["end"]["complete"] is True
    return Extant(header=read_header(path), runs=runs, is_complete=is_complete)


def read_runs(path: Path) -> Iterator[RunRecord]:
    """Read the measured runs back, each when it is asked for, with its requests. Raises as `read_requests` does."""
    requests: list[RequestRecord] = []
    for number, line in _rows(path):
        found: RunRecord | None = None
        with _naming(path, number):
            row = orjson.loads(line)
            if "request" in row:
                requests.append(_request_from(row["request"]))
            elif "run" in row:
                run = row["run"]
                own = [one for one in requests if (one.run, one.phase) == (run["index"], Phase.MEASURED)]
                requests = []
                found = _run_from(run, own) if run["phase"] == Phase.MEASURED.value else None
        if found is not None:
            yield found


def read_header(path: Path) -> dict[str, Any]:
    """What the first line says: `measurement` and `hardware_key`. Raises as `read_requests` does."""
    with open_regular(path) as stream:
        line = next(lines(path, stream), b"")
    _check_header(path, line)
    header: dict[str, Any] = orjson.loads(line)
    return header


def read_windows(path: Path) -> dict[int, Window]:
    """Of each measured run that has a ramp or a tail, the part that counts. Raises as `read_requests` does."""
    found = {}
    for number, line in _rows(path):
        if line.startswith(_RUN_ROW):
            with _naming(path, number):
                run = orjson.loads(line)["run"]
                if run["phase"] == Phase.MEASURED.value and run["window"] is not None:
                    found[run["index"]] = Window(**run["window"])
    return found


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole lines behind the header, by their numbers."""
    with open_regular(path) as stream:
        found = lines(path, stream)
        _check_header(path, next(found, b""))
        for number, line in enumerate(found, start=2):
            if line.endswith(b"\n"):  # else a crash has cut it short
                yield number, line


@contextmanager
def _naming(path: Path, number: int) -> Iterator[None]:
    """Say where a row stands that is none of ours."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise LLMPerfError(f"{path}, line {number} is not a row of a record file: {reason}") from None


@dataclass(frozen=True, slots=True)
class _Spilled(Sequence[Arrival]):
    """Arrivals that stand in the file only; the first and the last are at hand."""

    written: Written
    offset: int
    size: int
    ends: tuple[Arrival, Arrival]

    def load(self) -> Arrivals:
        line = next(self.written.lines(self.offset))
        return Arrivals.from_json(orjson.loads(line)["request"]["arrivals"])

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


def _counters_from(row: dict[str, Any]) -> CacheCounters:
    return CacheCounters(**{**row, "replicas": tuple(map(_counters_from, row.get("replicas", ())))})


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
    arrivals = Arrivals.from_json(row["arrivals"])
    arrivals.keep()
    return RequestRecord(
        **{
            **row,
            "phase": Phase(row["phase"]),
            "arrivals": arrivals,
            "remarks": tuple(Remark(**remark) for remark in row["remarks"]),
        },
        timings=None if timings is None else EngineTimings(**timings),
        failure=None if failure is None else Failure(**failure),
    )


def _run_from(row: dict[str, Any], requests: list[RequestRecord]) -> RunRecord:
    client = row["client"]
    seen = {name: Histogram.from_json(client[name]) for name in _HISTOGRAMS}
    offsets = {name: (ahead_ns, error_ns) for name, (ahead_ns, error_ns) in client["clock_offsets_ns"].items()}
    return RunRecord(
        index=row["index"],
        phase=Phase(row["phase"]),
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        requests=tuple(sorted(requests, key=lambda one: (one.end_ns, one.session, one.turn))),
        window=None if row["window"] is None else Window(**row["window"]),
        shed=row["shed"],
        cache=_counters_from(row["cache"]),
        client=ClientStats(**{**client, **seen, "clock_offsets_ns": offsets}),
        telemetry=telemetry_from(row.get("telemetry")),
        timings=tuple(EngineTimings(**timings) for timings in row["timings"]),
        session=row.get("session"),
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
