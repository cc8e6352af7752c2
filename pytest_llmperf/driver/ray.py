"""The same workers as actors on the nodes of an existing Ray cluster.

Ray places them, carries jobs and records, and says which are lost. Each node's monotonic clock is
read from here before each run, and its times are converted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from pytest_llmperf import __version__
from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.clock import NS_PER_MS, NS_PER_S, Clock
from pytest_llmperf.driver.job import Driven, Job
from pytest_llmperf.driver.local import Worker
from pytest_llmperf.driver.parcel import pack, together, unpack
from pytest_llmperf.driver.stop import StoppableClock, Stopped
from pytest_llmperf.errors import ConfigurationError, LLMPerfError
from pytest_llmperf.load import Share
from pytest_llmperf.records import RequestRecord, Window

Record = Callable[[RequestRecord], None]
_Answer = tuple[list[RequestRecord], Driven | None]

_START_DELAY_NS = 200 * NS_PER_MS
_CLOCK_READINGS = 20
_LOOK_S = 1.0
_STOP_S = 5.0
_PLACE_S = 60.0
_SILENT_S = 60.0
"""A worker that does not tell the time for so long hangs, or its node is cut off; Ray notices that later or never."""


class _Remote:
    """What runs on a node; `stop` may come while it drives."""

    def __init__(self) -> None:
        self._clock = StoppableClock()
        self._records: list[RequestRecord] = []
        self._worker: Worker | None = None

    def version(self) -> str:
        """That of the package on the node."""
        return __version__

    def now_ns(self) -> int:
        """This node's monotonic clock."""
        return self._clock.now_ns()

    def prepare(self, parcel: bytes) -> None:
        """All that needs no start."""
        job, share = unpack(parcel)
        self._records = []
        self._worker = Worker(job, share, self._clock, self._records.append, check_engine=lambda: None)

    def drive(self, start_ns: int) -> _Answer:
        """Drive the share, from `start_ns` of this node's clock on; None if it was stopped."""
        assert self._worker is not None, "prepare comes first"
        try:
            driven = self._worker.drive(start_ns)
        except Stopped:
            return self._records, None
        finally:
            self._clock.resume()
        return self._records, driven

    def stop(self) -> None:
        """Have `drive` return with what has ended."""
        self._clock.stop()


@dataclass(slots=True, eq=False)
class _Member:
    """An actor, its node, how far that node's clock is ahead, and by how much this may be wrong."""

    actor: Any
    node_id: str
    node: str
    offset_ns: int = 0
    error_ns: int = 0

    def read_clock(self, ray: Any, clock: Clock) -> None:
        """Believe the reading that took least."""
        readings = []
        for _ in range(_CLOCK_READINGS):
            before_ns = clock.now_ns()
            theirs_ns = ray.get(self.actor.now_ns.remote(), timeout=_PLACE_S)
            after_ns = clock.now_ns()
            readings.append((after_ns - before_ns, theirs_ns - (before_ns + after_ns) // 2))
        took_ns, self.offset_ns = min(readings)
        self.error_ns = took_ns // 2


class _Calls:
    """Calls members while they work, to see that they are still there."""

    def __init__(self, ray: Any, clock: Clock) -> None:
        self._ray = ray
        self._clock = clock
        self._called: dict[_Member, tuple[Any, int]] = {}

    def is_silent(self, member: _Member) -> bool:
        """Whether its last call has been without an answer for too long; one that has its answer is called again."""
        now_ns = self._clock.now_ns()
        reference, since_ns = self._called.get(member, (None, now_ns))
        if reference is None or self._ray.wait([reference], timeout=0)[0]:
            self._called[member] = member.actor.now_ns.remote(), now_ns
            return False
        return now_ns - since_ns > _SILENT_S * NS_PER_S


class RayTeam:
    """One worker on each node of the cluster at `address`, which is `auto` for the one that this machine is part of.

    A cluster that this process is connected to already is used as it is.
    """

    def __init__(self, address: str, clock: Clock) -> None:
        self._address = address
        self._clock = clock
        self._ray: Any = None
        self._connected = False
        self._members: list[_Member] = []

    def run(self, job: Job, record: Record, check_engine: Callable[[], None]) -> Driven:
        """Drive a job; a node that is lost is one of the problems of what is returned.

        Raises what a worker has raised, `ConfigurationError` if the cluster cannot be used or the job not
        be sent, `LLMPerfError` if all nodes are lost.
        """
        try:
            self._staff()
            driven, lost = self._run(job, record, check_engine)
        except BaseException:
            self.close()
            raise
        if lost:
            self._dismiss()
        return together(driven, lost)

    def close(self) -> None:
        self._dismiss()
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _run(self, job: Job, record: Record, check_engine: Callable[[], None]) -> tuple[list[Driven], list[str]]:
        """What those did who were not lost, and the sentences on those who were."""
        count = job.load.workers(len(self._members))
        members = self._members[:count]
        lost: list[str] = []
        preparing = {m.actor.prepare.remote(pack(job, Share(n, count))): m for n, m in enumerate(members)}
        ready = [member for member, _ in self._answers(preparing, lost, check_engine)]
        start_ns = self._clock.now_ns() + _START_DELAY_NS
        driving = {member.actor.drive.remote(start_ns + member.offset_ns): member for member in ready}
        driven = []
        try:
            for member, answer in self._answers(driving, lost, check_engine):
                driven += _taken(member, answer, record)
        except BaseException:
            self._stop_driving(driving, record)
            raise
        return driven, lost

    def _answers(
        self, pending: dict[Any, _Member], lost: list[str], check_engine: Callable[[], None]
    ) -> Iterator[tuple[_Member, Any]]:
        """What the members answer, and who is lost; `pending` has those who have not answered yet."""
        ray = self._ray
        calls = _Calls(ray, self._clock)
        while pending:
            done, _ = ray.wait(list(pending), timeout=_LOOK_S)
            if not done:
                check_engine()
                for reference in [one for one, member in pending.items() if calls.is_silent(member)]:
                    node = pending.pop(reference).node
                    lost.append(f"the Ray node {node} did not tell the time for {_SILENT_S:g} s and is taken for lost")
            for reference in done:
                member = pending.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error) from None
                except ray.exceptions.RayError as error:
                    lost.append(f"the Ray node {member.node} was lost with all that it measured: {_first_line(error)}")
                else:
                    yield member, answer

    def _stop_driving(self, driving: dict[Any, _Member], record: Record) -> None:
        """Take what has ended until now, from those who answer in time."""
        ray = self._ray
        for member in driving.values():
            member.actor.stop.remote()
        done, _ = ray.wait(list(driving), num_returns=len(driving), timeout=_STOP_S) if driving else ([], [])
        for reference in done:
            with suppress(ray.exceptions.RayError):
                _taken(driving[reference], ray.get(reference), record)

    def _staff(self) -> None:
        """Have a worker on each living node, and know its clock."""
        self._connect()
        ray = self._ray
        try:
            for member in self._members:
                member.read_clock(ray, self._clock)
        except ray.exceptions.RayError:  # lost since the last run
            self._dismiss()
        if not self._members:
            self._place()
            for member in self._members:
                member.read_clock(ray, self._clock)

    def _connect(self) -> None:
        self._ray = ray = self._ray or _ray()
        if ray.is_initialized():
            return
        address = "auto" if self._address == "auto" else f"ray://{self._address}"
        try:
            with _own_signals():
                ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        except (ConnectionError, ValueError, RuntimeError) as error:
            msg = (
                f"no Ray cluster can be used at {address} ({_first_line(error)}); start one with `ray start --head`, "
                "or give the address of its client server"
            )
            raise ConfigurationError(msg) from None
        self._connected = True

    def _place(self) -> None:
        """Put a worker on each living node. Raises `ConfigurationError` naming every node where that fails."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an extra

        ray = self._ray
        remote = ray.remote(num_cpus=1, max_restarts=0, max_concurrency=2)(_Remote)
        for node_id, address in _nodes(ray).items():
            here = NodeAffinitySchedulingStrategy(node_id, soft=False)
            actor = remote.options(scheduling_strategy=here).remote()
            self._members.append(_Member(actor, node_id, f"{address}/{node_id[:8]}"))
        unplaced = self._unplaced()
        if unplaced:  # the cluster notices a dead node late
            alive = _nodes(ray)
            self._members = [m for m in self._members if m not in unplaced or m.node_id in alive]
        problems = [unplaced[member] for member in self._members if member in unplaced]
        if problems or not self._members:
            raise ConfigurationError(*problems or ("the Ray cluster has no node with a CPU",))

    def _unplaced(self) -> dict[_Member, str]:
        """The members who cannot work, or are of another version, with the reason."""
        ray, unplaced = self._ray, {}
        versions = {member.actor.version.remote(): member for member in self._members}
        placed, _ = ray.wait(list(versions), num_returns=len(versions), timeout=_PLACE_S) if versions else ([], [])
        for reference, member in versions.items():
            if reference not in placed:
                unplaced[member] = f"the Ray node {member.node} had no CPU free for a worker within {_PLACE_S:g} s"
                continue
            try:
                version = ray.get(reference)
            except ray.exceptions.RayError as error:
                unplaced[member] = f"no worker can run on the Ray node {member.node}: {_last_line(error)}"
            else:
                if version != __version__:
                    unplaced[member] = f"the Ray node {member.node} has pytest-llmperf {version}, not {__version__}"
        return unplaced

    def _dismiss(self) -> None:
        members, self._members = self._members, []
        for member in members:
            with suppress(Exception):  # the node or the whole cluster may be gone, each in a way of its own
                self._ray.kill(member.actor)


def _taken(member: _Member, answer: _Answer, record: Record) -> list[Driven]:
    """Record what a member has recorded, in the times of this machine's clock."""
    rows, driven = answer
    for row in rows:
        record(_here(row, member.offset_ns))
    return [] if driven is None else [_driven_here(driven, member)]


def _nodes(ray: Any) -> dict[str, str]:
    """The living nodes that have a processor, by their id, with their address."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        msg = "workers at ray://... need Ray; install it with `pip install 'pytest-llmperf[ray]'`"
        raise ConfigurationError(msg) from None
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray makes SIGTERM an exit of its own, which would not end a test session in order."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _cause(error: Any) -> BaseException:
    """What was raised on the node."""
    return error.cause if isinstance(error.cause, Exception) else LLMPerfError(_last_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    """Where Ray puts what was raised on the node."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


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
    """The same for a whole share; says by how much was converted."""
    offset_ns, window = member.offset_ns, driven.window
    driven.client.clock_offsets_ns[member.node] = offset_ns, member.error_ns
    return replace(
        driven,
        start_ns=driven.start_ns - offset_ns,
        end_ns=driven.end_ns - offset_ns,
        window=Window(window.start_ns - offset_ns, None if window.end_ns is None else window.end_ns - offset_ns),
    )
