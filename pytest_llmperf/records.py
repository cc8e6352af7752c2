"""Frozen rows of what happened, and their file form.

Rows are written as they happen, one JSON object a line, so that whatever ends a session early
leaves everything measured before it readable. Every number of a result can be computed again from
these rows.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any

from pytest_llmperf.errors import LLMPerfError

SCHEMA_VERSION = 1


class Phase(str, Enum):
    """Why a request was sent; only `MEASURED` ones enter a result."""

    WARMUP = "warmup"
    PREPARE = "prepare"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Arrival:
    """Generated tokens that became readable together.

    `at_ns`: the clock's reading before anything was parsed. `tokens`: how many, or None where the
    server does not say how many tokens a chunk holds.
    """

    at_ns: int
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer. `kind` is counted, `detail` is one example for the reader."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request of one run; times are readings of one monotonic clock, in nanoseconds."""

    run: int
    phase: Phase
    session: int
    turn: int
    released_ns: int
    """The moment that let it go: the start of the run, or the end of the answer it waited for."""
    sent_ns: int | None
    """Just before the first byte was handed to the kernel; None if it never was."""
    end_ns: int
    arrivals: tuple[Arrival, ...]
    new_tokens: int
    """Tokens that this turn added to its session, as asked."""
    input_tokens: int
    """Tokens that were sent."""
    output_tokens_asked: int
    prompt_tokens: int | None = None
    """Input tokens as the server counted them."""
    output_tokens: int | None = None
    """Generated tokens, by the server's token ids or usage."""
    cached_tokens: int | None = None
    """Input tokens that the server took from a cache, all tiers together."""
    failure: Failure | None = None

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def first_token_ns(self) -> int | None:
        return self.arrivals[0].at_ns if self.arrivals else None

    @property
    def last_token_ns(self) -> int | None:
        return self.arrivals[-1].at_ns if self.arrivals else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCounters:
    """What an engine has counted since it started; a field is None where it does not say.

    Subtracting two readings gives what happened between them.
    """

    queried_tokens: int | None = None
    """Prompt tokens looked up in the prefix cache."""
    hit_tokens: int | None = None
    """Prompt tokens served from any tier."""
    tokens_by_tier: dict[str, int] | None = None
    """Prompt tokens by where they came from: gpu, host, disk, external, recomputed."""
    offloaded_bytes: int | None = None
    """KV bytes moved from the device outwards."""
    restored_bytes: int | None = None
    """KV bytes moved back to the device."""
    preemptions: int | None = None

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that came from any cache tier.

        Of the tokens looked up; with prefix caching off none are, and what counts is that all
        prompt tokens were computed.
        """
        if self.hit_tokens is not None and self.queried_tokens:
            return self.hit_tokens / self.queried_tokens
        tiers = self.tokens_by_tier or {}
        total = sum(tiers.values())
        return 1 - tiers["recomputed"] / total if total and "recomputed" in tiers else None

    def plus(self, other: CacheCounters) -> CacheCounters:
        """Both added up; what one of them does not say is not known of the sum."""
        return self._combined(other, operator.add)

    def since(self, before: CacheCounters) -> CacheCounters:
        """The counts between `before` and this reading."""
        return self._combined(before, operator.sub)

    def _combined(self, other: CacheCounters, combine: Callable[[int, int], int]) -> CacheCounters:
        def both(mine: int | None, theirs: int | None) -> int | None:
            return None if mine is None or theirs is None else combine(mine, theirs)

        tiers = None
        if self.tokens_by_tier is not None and other.tokens_by_tier is not None:
            names = [*self.tokens_by_tier, *(tier for tier in other.tokens_by_tier if tier not in self.tokens_by_tier)]
            tiers = {t: combine(self.tokens_by_tier.get(t, 0), other.tokens_by_tier.get(t, 0)) for t in names}
        return CacheCounters(
            queried_tokens=both(self.queried_tokens, other.queried_tokens),
            hit_tokens=both(self.hit_tokens, other.hit_tokens),
            tokens_by_tier=tiers,
            offloaded_bytes=both(self.offloaded_bytes, other.offloaded_bytes),
            restored_bytes=both(self.restored_bytes, other.restored_bytes),
            preemptions=both(self.preemptions, other.preemptions),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """How late the client itself may have been.

    `busy_ns`: per wake-up, how long the event loop was away from its sockets; an arrival's stamp
    can be late by no more than that.
    """

    busy_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One pass of the whole workload: the unit of evidence."""

    index: int
    phase: Phase
    start_ns: int
    end_ns: int
    requests: tuple[RequestRecord, ...]
    cache: CacheCounters = field(default_factory=CacheCounters)
    client: ClientStats = field(default_factory=ClientStats)


class RecordFile:
    """Appends rows to a JSON Lines file; the first line names the schema and the measurement."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: IO[str] = path.open("w", encoding="utf-8")
        self._write({"schema": "pytest-llmperf-records", "version": SCHEMA_VERSION, **header})

    def request(self, record: RequestRecord) -> None:
        """Append one request."""
        row = asdict(record)
        row["phase"] = record.phase.value
        row["arrivals"] = [[arrival.at_ns, arrival.tokens] for arrival in record.arrivals]
        self._write({"request": row})

    def run(self, record: RunRecord) -> None:
        """Append what is known of a whole run, its requests left out."""
        row = asdict(record)
        row["phase"] = record.phase.value
        del row["requests"]
        row["client"]["busy_ns"] = list(record.client.busy_ns)
        self._write({"run": row})

    def close(self) -> None:
        self._stream.close()

    def _write(self, row: dict[str, Any]) -> None:
        self._stream.write(json.dumps(row, separators=(",", ":")) + "\n")
        self._stream.flush()


def read_requests(path: Path) -> Iterator[RequestRecord]:
    """Read the requests of a record file back, in the order in which they ended.

    A last line cut short by a crash is left out. Raises `LLMPerfError` if the file is not one of
    ours or has another schema version.
    """
    # Ours are ASCII; another file's bytes shall be shown in the error, not raise one of their own.
    with path.open(encoding="utf-8", errors="backslashreplace") as stream:
        _check_header(path, stream.readline())
        for line in stream:
            if not line.endswith("\n"):
                return
            row = json.loads(line).get("request")
            if row is not None:
                yield _request_from(row)


def _check_header(path: Path, line: str) -> None:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    ours = isinstance(header, dict) and header.get("schema") == "pytest-llmperf-records"
    if not ours or header.get("version") != SCHEMA_VERSION:
        msg = f"{path} is not a record file of schema version {SCHEMA_VERSION}: its first line is {line[:80]!r}"
        raise LLMPerfError(msg)


def _request_from(row: dict[str, Any]) -> RequestRecord:
    failure = row.pop("failure")
    return RequestRecord(
        **{**row, "phase": Phase(row["phase"]), "arrivals": tuple(Arrival(*pair) for pair in row["arrivals"])},
        failure=None if failure is None else Failure(**failure),
    )
