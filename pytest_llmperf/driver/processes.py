"""Several processes on this machine, each with its share of the sessions.

They prepare, report, and start at one moment of the machine's monotonic clock, which they share.
What they record comes back while they drive.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from pytest_llmperf.clock import NS_PER_MS, NS_PER_S, Clock, RealClock
from pytest_llmperf.driver.job import Driven, Job
from pytest_llmperf.driver.local import LocalTeam, Worker
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load import Share
from pytest_llmperf.records import RequestRecord

# For the message to reach everybody.
_START_DELAY_NS = 50 * NS_PER_MS
_BATCH_EVERY_NS = NS_PER_S // 4
_LOOK_S = 1.0
_STOP_S = 5.0


class ProcessTeam:
    """`count` processes, started when they are first needed and kept until `close`."""

    def __init__(self, count: int, clock: Clock) -> None:
        self._count = count
        self._clock = clock
        self._members: list[_Member] = []

    def run(self, job: Job, record: Callable[[RequestRecord], None], check_engine: Callable[[], None]) -> Driven:
        """Raises `ConfigurationError` for a workload that cannot be sent to another process."""
        count = job.load.workers(self._count)
        if count == 1:
            return LocalTeam(self._clock).run(job, record, check_engine)
        message = _pickled(job)
        try:
            return self._run(message, count, record, check_engine)
        except BaseException:
            self._rescue(record)
            self.close()
            raise

    def close(self) -> None:
        for member in self._members:
            member.stop()
        self._members.clear()

    def _run(
        self, message: bytes, count: int, record: Callable[[RequestRecord], None], check_engine: Callable[[], None]
    ) -> Driven:
        self._members = [member for member in self._members if member.process.is_alive()]
        while len(self._members) < count:
            self._members.append(_Member())
        members = self._members[:count]
        for number, member in enumerate(members):
            member.pipe.send_bytes(message)
            member.pipe.send(Share(number, count))
        driven: list[Driven] = []
        lost: list[str] = []
        waiting = set(members)
        for member, kind, content in _messages(members, check_engine):
            if kind in ("ready", "lost") and waiting:
                waiting.discard(member)
                if not waiting:
                    _start(members, self._clock.now_ns() + _START_DELAY_NS)
            if kind == "lost":
                lost.append(content)
            elif kind == "records":
                for row in content:
                    record(row)
            elif kind == "driven":
                driven.append(content)
            elif kind == "error":
                raise content
        merged = driven[0] if driven else None
        if merged is None:
            raise ConfigurationError(*lost)
        for other in driven[1:]:
            merged.merge(other)
        merged.problems += tuple(lost)
        return merged

    def _rescue(self, record: Callable[[RequestRecord], None]) -> None:
        """Take what has already been sent to us."""
        for member in self._members:
            with suppress(EOFError, OSError):
                while member.pipe.poll():
                    kind, content = member.pipe.recv()
                    for row in content if kind == "records" else ():
                        record(row)


class _Member:
    """One process and the pipe to it."""

    def __init__(self) -> None:
        # Neither a fork of a process with threads, nor one that inherits an engine's pipes.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _plain_main():
            self.process.start()
        theirs.close()
        self.lost = False

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(_STOP_S if not self.lost else 0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _messages(members: list[_Member], check_engine: Callable[[], None]) -> Iterator[tuple[_Member, str, Any]]:
    """What the members send until each has driven its share or is gone."""
    by_pipe: dict[Any, _Member] = {member.pipe: member for member in members}
    while by_pipe:
        ready = wait(list(by_pipe), _LOOK_S)
        if not ready:
            check_engine()
        for pipe in ready:
            member = by_pipe[pipe]
            try:
                kind, content = member.pipe.recv()
            except (EOFError, OSError):
                member.lost = True
                member.process.join(_STOP_S)
                code = member.process.exitcode
                kind, content = "lost", f"worker process {member.process.pid} ended early, with exit code {code}"
            if kind in ("driven", "lost"):
                del by_pipe[pipe]
            yield member, kind, content


def _start(members: list[_Member], start_ns: int) -> None:
    for member in members:
        if not member.lost:
            with suppress(OSError):  # a member that has just ended will be noticed
                member.pipe.send(start_ns)


def _pickled(job: Job) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        msg = f"--llmperf-workers: this workload or load cannot be sent to another process ({error}); use 1 worker"
        raise ConfigurationError(msg) from None


@contextmanager
def _plain_main() -> Iterator[None]:
    """Keep `spawn` from running the test runner's main module again in the new process."""
    import __main__ as main  # noqa: PLC0415

    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def _serve(pipe: Connection) -> None:
    """The life of a member: one job after another until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process decides
    with suppress(EOFError, OSError):
        while True:
            job: Job = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from our own parent
            share: Share = pipe.recv()
            try:
                _drive(pipe, job, share)
            except (EOFError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - it is raised where the job came from
                pipe.send(("error", error))


def _drive(pipe: Connection, job: Job, share: Share) -> None:
    clock = RealClock()
    batch: list[RequestRecord] = []
    sent_ns = clock.now_ns()

    def record(row: RequestRecord) -> None:
        nonlocal sent_ns
        batch.append(row)
        if clock.now_ns() - sent_ns > _BATCH_EVERY_NS:
            flush()

    def flush() -> None:
        nonlocal sent_ns
        pipe.send(("records", list(batch)))
        batch.clear()
        sent_ns = clock.now_ns()

    worker = Worker(job, share, clock, record, check_engine=lambda: None)
    pipe.send(("ready", None))
    driven = worker.drive(pipe.recv())
    flush()
    pipe.send(("driven", driven))
