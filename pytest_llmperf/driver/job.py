"""What is driven in one run, and what comes of it, whoever drives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pytest_llmperf.engines.base import Connector
from pytest_llmperf.load import Load
from pytest_llmperf.records import (
    ABANDONED,
    CacheCounters,
    ClientStats,
    EngineTimings,
    Phase,
    RequestRecord,
    RunRecord,
    Window,
)
from pytest_llmperf.workloads import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run. Everything in it can be pickled, if the workload and the load can."""

    connector: Connector
    sessions: Iterable[Session]
    load: Load
    run: int
    phase: Phase


@dataclass(slots=True, kw_only=True)
class Driven:
    """What came of a job, the requests left out. `problems`: why the run is spoiled."""

    start_ns: int
    end_ns: int
    window: Window
    shed: int = 0
    sent: int | None = None
    """Turns that the load let go, each of which is to have a record; None where a worker took that number along."""
    client: ClientStats = field(default_factory=ClientStats)
    problems: tuple[str, ...] = ()

    def run(
        self,
        requests: Iterable[RequestRecord],
        *,
        index: int,
        phase: Phase,
        cache: CacheCounters | None = None,
        timings: tuple[EngineTimings, ...] = (),
    ) -> RunRecord:
        """The run that these requests, and what the engine has counted, make with it."""
        return RunRecord(
            index=index,
            phase=phase,
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            requests=tuple(requests),
            window=self.window,
            shed=self.shed,
            cache=cache or CacheCounters(),
            client=self.client,
            timings=timings,
        )

    def unaccounted(self, requests: Sequence[RequestRecord]) -> Iterator[str]:
        """A sentence unless all that was meant = completed + failed + shed: every turn that was let go has one record.

        Turns after a failed one are recorded, too, as `abandoned`: they were never let go.
        """
        if self.sent is None:
            return
        ended = sum(request.failure is None or request.failure.kind != ABANDONED for request in requests)
        twice = len(requests) - len({(request.session, request.turn) for request in requests})
        if ended != self.sent or twice:
            yield (
                f"{self.sent} requests were let go and {ended} have ended, {twice} of them twice: the client has lost "
                "account of them, which is a defect of pytest-llmperf; please report it with the record file"
            )

    def merge(self, other: Driven) -> None:
        """Add what another worker of the same run did: the run is measured while all are in their steady state."""
        self.start_ns = min(self.start_ns, other.start_ns)
        self.end_ns = max(self.end_ns, other.end_ns)
        ends = [window.end_ns for window in (self.window, other.window) if window.end_ns is not None]
        self.window = Window(max(self.window.start_ns, other.window.start_ns), min(ends, default=None))
        self.shed += other.shed
        self.sent = None if self.sent is None or other.sent is None else self.sent + other.sent
        self.client.merge(other.client)
        self.problems += other.problems


class Team(Protocol):
    """Those who drive."""

    def run(self, job: Job, record: Callable[[RequestRecord], None], check_engine: Callable[[], None]) -> Driven:
        """Drive a job. `record` takes each request; raises what `check_engine` raises."""
        ...

    def close(self) -> None:
        """Let them go. Idempotent."""
        ...
