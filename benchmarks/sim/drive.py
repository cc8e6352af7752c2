"""Runs a workload once on a simulated engine, in virtual time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pytest_llmperf.client import Limits
from pytest_llmperf.driver import Job, LocalTeam
from pytest_llmperf.engines import make_spec
from pytest_llmperf.engines.sim.engine import SimulatedEngine
from pytest_llmperf.load import Load
from pytest_llmperf.records import CacheCounters, Phase, RequestRecord
from pytest_llmperf.workloads import Session, Turn

NOTHING = np.empty(0, np.int32)
_LIMITS = Limits(silence_s=3600, exchange_s=3600)


@dataclass(frozen=True)
class Run:
    """What came of it. Times in seconds."""

    duration_s: float
    requests: list[RequestRecord]
    cache: CacheCounters

    @cached_property
    def ttft(self) -> np.ndarray:
        return np.array([r.arrivals[0].at_ns - r.sent_ns for r in self.requests]) / 1e9

    @cached_property
    def e2e(self) -> np.ndarray:
        return np.array([r.end_ns - r.sent_ns for r in self.requests]) / 1e9

    @cached_property
    def tpot(self) -> np.ndarray:
        several = [r for r in self.requests if r.output_tokens > 1]
        return np.array([(r.end_ns - r.arrivals[0].at_ns) / (r.output_tokens - 1) for r in several]) / 1e9

    @property
    def requests_per_s(self) -> float:
        return len(self.requests) / self.duration_s


def engine(**words: object) -> SimulatedEngine:
    """A simulated engine, started."""
    made = SimulatedEngine(make_spec("sim", words), _LIMITS)
    made.start()
    return made


def run(on: SimulatedEngine, sessions: Iterable[Session], load: Load) -> Run:
    """Drive the sessions."""
    requests: list[RequestRecord] = []
    before = on.cache_counters()
    job = Job(connector=on.connector(), sessions=sessions, load=load, run=0, phase=Phase.MEASURED)
    driven = LocalTeam(on.clock).run(job, requests.append, on.check)
    failed = [request.failure for request in requests if request.failure is not None]
    assert not failed, failed[:3]
    return Run((driven.end_ns - driven.start_ns) / 1e9, requests, on.cache_counters().since(before))


def single(ids: np.ndarray, output_tokens: int, at_s: float | None = None) -> Session:
    """A session of one request."""
    return Session(turns=(Turn(prefix=ids, new_ids=NOTHING, output_tokens=output_tokens, at_s=at_s),))


def contexts(sessions: Iterable[Session]) -> list[Session]:
    """Requests that bring each session's context into the cache."""
    return [single(np.array(session.context, np.int32), 1) for session in sessions]
