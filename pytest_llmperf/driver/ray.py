"""The same workers as actors on the nodes of an existing Ray cluster.

Ray places them, carries jobs and records, and says which are lost. Each node's monotonic clock is
read from here, and its times are converted.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.clock import NS_PER_MS, Clock, RealClock
from pytest_llmperf.driver.job import Driven, Job
from pytest_llmperf.driver.local import Worker
from pytest_llmperf.errors import ConfigurationError, LLMPerfError
from pytest_llmperf.load import Share
from pytest_llmperf.records import RequestRecord, Window

_START_DELAY_NS = 200 * NS_PER_MS
_CLOCK_READINGS = 20
_LOOK_S = 1.0
_PLACE_S = 60.0


class _Remote:
    """What runs on a node."""

    def __init__(self) -> None:
        self._clock = RealClock()
        self._records: list[RequestRecord] = []
        self._worker: Worker | None = None

    def now_ns(self) -> int:
        """This node's monotonic clock."""
        return self._clock.now_ns()

    def prepare(self, message: bytes, share: Share) -> None:
        """All that needs no start."""
        job: Job = pickle.loads(message)  # noqa: S301 - from our own driver
        self._records = []
        self._worker = Worker(job, share, self._clock, self._records.append, check_engine=lambda: None)

    def drive(self, start_ns: int) -> tuple[list[RequestRecord], Driven]:
        """Drive the share, from `start_ns` of this node's clock on."""
        assert self._worker is not None, "prepare comes first"
        driven = self._worker.drive(start_ns)
        return self._records, driven


class _Member:
    """An actor, the node that it is on, and that node's clock."""

    def __init__(self, actor: Any, node: str) -> None:
        self.actor = actor
        self.node = node
        self.offset_ns = 0
        self.error_ns = 0

    def read_clock(self, ray: Any, clock: Clock) -> None:
        """Find how far the node's clock is ahead, by the reading that took least."""
        readings = []
        for _ in range(_CLOCK_READINGS):
            before_ns = clock.now_ns()
            theirs_ns = ray.get(self.actor.now_ns.remote(), timeout=_PLACE_S)
            after_ns = clock.now_ns()
            readings.append((after_ns - before_ns, theirs_ns - (before_ns + after_ns) // 2))
        took_ns, self.offset_ns = min(readings)
        self.error_ns = took_ns // 2


class RayTeam:
    """One worker on each node of the cluster at `address`, which is `auto` for the one that this machine is part of."""

    def __init__(self, address: str, clock: Clock) -> None:
        self._address = address
        self._clock = clock
        self._ray: Any = None
        self._connected = False
        self._members: list[_Member] = []

    def run(self, job: Job, record: Callable[[RequestRecord], None], check_engine: Callable[[], None]) -> Driven:
        """Raises `ConfigurationError` if the cluster cannot be used, `LLMPerfError` if all nodes are lost."""
        self._place()
        count = job.load.workers(len(self._members))
        members = self._members[:count]
        message = pickle.dumps(job)
        lost: list[str] = []
        preparing = {m.actor.prepare.remote(message, Share(n, count)): m for n, m in enumerate(members)}
        ready = [member for member, _ in self._results(preparing, lost, check_engine)]
        start_ns = self._clock.now_ns() + _START_DELAY_NS
        driving = {m.actor.drive.remote(start_ns + m.offset_ns): m for m in ready}
        merged: Driven | None = None
        for member, (records, driven) in self._results(driving, lost, check_engine):
            for row in records:
                record(_here(row, member.offset_ns))
            here = _driven_here(driven, member)
            if merged is None:
                merged = here
            else:
                merged.merge(here)
        if lost:
            self.close()
        if merged is None:
            raise LLMPerfError("every node of the Ray cluster was lost: " + "; ".join(lost))
        merged.problems += tuple(lost)
        return merged

    def close(self) -> None:
        for member in self._members:
            self._ray.kill(member.actor)
        self._members.clear()
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _place(self) -> None:
        """Put a worker on each living node."""
        if self._members:
            return
        ray = self._ray = _ray()
        if not ray.is_initialized():
            address = "auto" if self._address == "auto" else f"ray://{self._address}"
            try:
                ray.init(address=address, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                msg = f"--llmperf-workers: no Ray cluster at {address} ({error}); start one with `ray start --head`"
                raise ConfigurationError(msg) from None
            self._connected = True
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an extra

        remote = ray.remote(num_cpus=1, max_restarts=0)(_Remote)
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                actor = remote.options(scheduling_strategy=here).remote()
                self._members.append(_Member(actor, f"{node['NodeManagerAddress']}/{node['NodeID'][:8]}"))
        for member in self._members:
            try:
                member.read_clock(ray, self._clock)
            except ray.exceptions.RayError as error:
                msg = f"--llmperf-workers: no worker could be placed on the Ray node {member.node}: {error}"
                raise ConfigurationError(msg) from None

    def _results(
        self, pending: dict[Any, _Member], lost: list[str], check_engine: Callable[[], None]
    ) -> list[tuple[_Member, Any]]:
        """What the members answer, in their order; who does not is lost."""
        ray, waiting = self._ray, list(pending)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_LOOK_S)
            if not done:
                check_engine()
        found = []
        for reference, member in pending.items():
            try:
                found.append((member, ray.get(reference)))
            except (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError) as error:
                reason = str(error).strip().splitlines()[0]
                lost.append(f"the worker on the Ray node {member.node} was lost with all that it measured: {reason}")
        return found


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        msg = "--llmperf-workers ray://... needs Ray; install it with `pip install 'pytest-llmperf[ray]'`"
        raise ConfigurationError(msg) from None
    return ray


def _here(row: RequestRecord, offset_ns: int) -> RequestRecord:
    """A record in the times of this machine's clock."""

    def moved(moment_ns: int | None) -> int | None:
        return None if moment_ns is None else moment_ns - offset_ns

    arrivals = row.arrivals if isinstance(row.arrivals, Arrivals) else Arrivals.of(row.arrivals)
    return replace(
        row,
        released_ns=row.released_ns - offset_ns,
        sent_ns=moved(row.sent_ns),
        flushed_ns=moved(row.flushed_ns),
        end_ns=row.end_ns - offset_ns,
        arrivals=Arrivals([at_ns - offset_ns for at_ns in arrivals.at_ns], arrivals.tokens, arrivals.late_ns),
    )


def _driven_here(driven: Driven, member: _Member) -> Driven:
    offset_ns, window = member.offset_ns, driven.window
    driven.client.clock_offsets_ns[member.node] = offset_ns, member.error_ns
    return Driven(
        start_ns=driven.start_ns - offset_ns,
        end_ns=driven.end_ns - offset_ns,
        window=Window(window.start_ns - offset_ns, None if window.end_ns is None else window.end_ns - offset_ns),
        shed=driven.shed,
        client=driven.client,
        problems=driven.problems,
    )
