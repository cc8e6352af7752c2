"""A long measurement against a server by URL, in a process of its own, as a test would make it.

The parent reads from outside what this process takes; what happened comes back as a dict.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from watching import look

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import Driven, Job, Team, team_of
from pytest_llmperf.engines import make_spec, openai
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.load import Load
from pytest_llmperf.metrics import METRICS, gated_by_default
from pytest_llmperf.record_file import read_requests
from pytest_llmperf.records import RequestRecord, RunRecord
from pytest_llmperf.request import checked_request
from pytest_llmperf.results import PerfResult
from pytest_llmperf.selfcheck import error_bounds, excesses
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import Workload


class Tally:
    """How far the measurement has come, readable from outside."""

    def __init__(self) -> None:
        self._records = multiprocessing.Value("q", 0, lock=False)
        self._run = multiprocessing.Value("q", 0, lock=False)

    @property
    def records(self) -> int:
        """Requests that have a record."""
        return int(self._records.value)

    @property
    def run(self) -> int:
        """Which run is being driven, from 1; 0 or less while none is."""
        return int(self._run.value)

    def begin(self) -> None:
        self._run.value = 1 - self._run.value

    def one_more(self) -> None:
        self._records.value += 1

    def end(self) -> None:
        self._run.value = -self._run.value


class _Counted:
    """A team whose records are counted; before the first of them it asks what the server has counted."""

    def __init__(self, team: Team, tally: Tally, server_counts: Callable[[], int] | None) -> None:
        self._team = team
        self._tally = tally
        self._server_counts = server_counts
        self.server_counted = 0

    def run(self, job: Job, record: Callable[[RequestRecord], None], check_engine: Callable[[], None]) -> Driven:
        def counted(row: RequestRecord) -> None:
            record(row)
            self._tally.one_more()

        if self._server_counts is not None and not self._tally.records:
            self.server_counted = self._server_counts()
        self._tally.begin()
        try:
            return self._team.run(job, counted, check_engine)
        finally:
            self._tally.end()

    def close(self) -> None:
        self._team.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to drive."""

    url: str
    workload: Workload
    load: Load
    folder: Path
    runs: int = 1
    workers: int = 1
    server_counts: Callable[[], int] | None = None
    """Asks the server how many requests it has answered; None where it does not count."""


def drive(order: Order, tally: Tally) -> dict[str, Any]:
    """Measure once and say what came of it."""
    clock = RealClock()
    began_bytes = look(os.getpid()).resident_bytes
    surroundings = Surroundings(
        clock=clock,
        log_dir=order.folder,
        cache_dir=order.folder,
        start_timeout_s=60,
        limits=Limits(silence_s=120),
        api_key=None,
        progress=_silent,
    )
    request = checked_request(
        order.workload,
        load=order.load,
        runs=order.runs,
        warmup_runs=0,
        cache="as_is",
        prefill_context=False,
        slo=None,
        name=None,
    )
    team = _Counted(team_of(order.workers, clock), tally, order.server_counts)
    try:
        engine = openai.make(make_spec("openai", {"url": order.url}), surroundings)
        setting = Setting(
            test="soak", hardware_key="soak", clock=clock, record_dir=order.folder, progress=_silent, team=team
        )
        result = measure(engine, request, setting)
    finally:
        team.close()
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # what follows is in no hurry
    told = _told(result) | {"began_bytes": began_bytes}
    if order.server_counts is not None:
        told["server_counted"] = order.server_counts() - team.server_counted
    told["held_bytes"] = look(os.getpid()).resident_bytes
    del result, engine
    _let_go()
    told["let_go_bytes"] = look(os.getpid()).resident_bytes
    return told


def _let_go() -> None:
    """Give what nobody holds back to the system, as far as its allocator can."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _silent(step: str, detail: str = "", done: float | None = None) -> None:
    del step, detail, done


def _told(result: PerfResult) -> dict[str, Any]:
    gated = [METRICS[name] for name in gated_by_default(open_load=result.is_open)]
    return {
        "validity": {"valid": bool(result.validity), "reasons": list(result.validity.reasons)},
        "client_excesses": [str(excess) for excess in excesses(gated, result.records)],
        "accounts": accounts(result.records),
        "tokens": sum(request.output_tokens or 0 for run in result.records for request in run.requests),
        "runs": [_figures(run) for run in result.records],
    }


def accounts(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Who became what; `sent` is counted where bytes left, the others where records say how it ended."""
    requests = [request for run in runs for request in run.requests]
    kinds = Counter(request.failure.kind for request in requests if request.failure is not None)
    return {
        "records": len(requests),
        "sent": sum(request.sent_ns is not None for request in requests),
        "completed": sum(request.ok for request in requests),
        "failed": sum(not request.ok for request in requests),
        "shed": sum(run.shed for run in runs),
        "twice": len(requests) - len({(request.run, request.session, request.turn) for request in requests}),
        "failures": dict(kinds),
    }


def _figures(run: RunRecord) -> dict[str, Any]:
    """Each metric of the gate, and by how much the client may have falsified it."""
    wanted = [
        METRICS[name] for name in ("ttft_mean", "ttft_p50", "scheduled_ttft_p50", "tpot_p50", "itl_p50", "e2e_p50")
    ]
    bounds = error_bounds(wanted, run)
    return {
        "requests": len(run.counted),
        "connections": run.client.connects.count,
        "resent": run.client.resent,
        "cpu_share": round(sum(run.client.cpu_shares), 4),
        "late_sends_ms": _lateness_ms(run),
        **{metric.name: metric.formula(run) for metric in wanted},
        **{f"{name}_error_bound": bound for name, bound in bounds.items()},
    }


def _lateness_ms(run: RunRecord) -> dict[str, float]:
    late = sorted(
        (request.sent_ns - run.due_ns(request)) / 1e6 for request in run.requests if request.sent_ns is not None
    )
    return {f"p{share}": round(late[min(len(late) - 1, len(late) * share // 100)], 3) for share in (50, 99, 100)}


def kept_bytes(path: Path, most: int = 20_000) -> float:
    """What one record takes in memory, bytes: in a process that reads the first ones of this file, nothing else."""
    ours, theirs = multiprocessing.Pipe()

    def read() -> None:
        before = look(os.getpid()).resident_bytes
        kept = list(islice(read_requests(path), most))
        theirs.send((look(os.getpid()).resident_bytes - before) / max(1, len(kept)))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    found: float = ours.recv()
    process.join()
    return found
