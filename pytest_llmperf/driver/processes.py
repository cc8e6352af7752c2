"""Several processes on this machine, each with its share of the sessions.

They prepare, report, and start at one moment of the machine's monotonic clock, which they share.
What they record comes back while they drive.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import selectors
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pytest_llmperf.clock import NS_PER_MS, NS_PER_S, Clock
from pytest_llmperf.driver.job import Driven, Job
from pytest_llmperf.driver.local import LocalTeam, Worker
from pytest_llmperf.driver.parcel import pack, together, unpack
from pytest_llmperf.driver.stop import StoppableClock, Stopped
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.load import Share
from pytest_llmperf.records import RequestRecord

Record = Callable[[RequestRecord], None]

# For the message to reach everybody.
_START_DELAY_NS = 50 * NS_PER_MS
_LOOK_S = 1.0
_STOP_S = 5.0
_STILL_S = 60.0
"""A worker that is stopped, or waits for a disk or a driver, for so long will not come back."""
_STILL_STATES = {b"T": "stopped", b"t": "stopped by a debugger", b"D": "waiting in the kernel"}
# What a member says; a member of whom no more can come is `_LOST`.
_READY, _RECORD, _DRIVEN, _ERROR, _LOST = "ready", "record", "driven", "error", "lost"
_Message = tuple[str, Any]


class ProcessTeam:
    """`count` processes, started when they are first needed and kept until `close`."""

    def __init__(self, count: int, clock: Clock) -> None:
        self._count = count
        self._clock = clock
        self._members: list[_Member] = []

    def run(self, job: Job, record: Record, check_engine: Callable[[], None]) -> Driven:
        """Drive a job; a process that is lost is one of the problems of what is returned.

        Raises what a process has raised, `ConfigurationError` for a job that cannot be sent to one, and
        `LLMPerfError` if all are lost.
        """
        count = job.load.workers(self._count)
        if count == 1:
            return LocalTeam(self._clock).run(job, record, check_engine)
        parcels = [pack(job, Share(number, count)) for number in range(count)]
        try:
            return self._run(parcels, record, check_engine)
        except BaseException:
            self._stop_driving(record)
            raise

    def close(self) -> None:
        members, self._members = self._members, []
        for member in members:
            member.pipe.close()
        until_ns = self._clock.now_ns() + int(_STOP_S * NS_PER_S)
        for member in members:
            member.join(until_ns - self._clock.now_ns())

    def _run(self, parcels: list[bytes], record: Record, check_engine: Callable[[], None]) -> Driven:
        members = self._staff(len(parcels))
        for member, parcel in zip(members, parcels, strict=True):
            member.send(parcel)
        driven: dict[int, Driven] = {}
        lost: list[str] = []
        unready = set(range(len(members)))
        for number, (kind, content) in _messages(members, (_DRIVEN, _LOST), self._clock, check_engine):
            if kind == _RECORD:
                record(content)
            elif kind == _DRIVEN:
                driven[number] = content
            elif kind == _ERROR:
                error, where = content
                raise error from _WorkerError(where)
            elif kind == _LOST:
                lost.append(content)
            if kind in (_READY, _LOST) and number in unready:
                unready.discard(number)
                if not unready:
                    _start(members, self._clock.now_ns() + _START_DELAY_NS)
        return together([driven[number] for number in sorted(driven)], lost)

    def _staff(self, count: int) -> list[_Member]:
        """So many members, all alive as far as is known."""
        dead = [member for member in self._members if not member.process.is_alive()]
        self._members = [member for member in self._members if member not in dead]
        for member in dead:
            member.pipe.close()
            member.join(0)
        while len(self._members) < count:
            self._members.append(_Member())
        return self._members[:count]

    def _stop_driving(self, record: Record) -> None:
        """Have everybody hand over what has ended, as long as they do, and let them go."""
        until_ns = 0

        def give_up() -> None:
            if self._clock.now_ns() > until_ns:
                raise TimeoutError

        try:
            for member in self._members:
                member.process.terminate()
            until_ns = self._clock.now_ns() + int(_STOP_S * NS_PER_S)
            with suppress(TimeoutError):
                for _, (kind, content) in _messages(self._members, (_LOST,), self._clock, give_up):
                    until_ns = self._clock.now_ns() + int(_STOP_S * NS_PER_S)
                    if kind == _RECORD:
                        record(content)
        finally:
            self.close()


class _WorkerError(Exception):
    """Where in a worker the error was raised that this is the cause of."""

    def __str__(self) -> str:
        return f"in a worker process:\n\n{self.args[0]}"


class _Member:
    """One process and the pipe to it."""

    def __init__(self) -> None:
        # Neither a fork of a process with threads, nor one that inherits an engine's pipes.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _plain_main(), _without_interrupts():
            self.process.start()
        theirs.close()
        self._still_ns: int | None = None
        self._still = ""

    def end_if_still(self, now_ns: int) -> None:
        """Kill it if it does nothing at all (Linux): what it waits for no limit of the client ends."""
        state = _state(self.process.pid)
        if state not in _STILL_STATES:
            self._still_ns = None
        elif self._still_ns is None:
            self._still_ns = now_ns
        elif now_ns - self._still_ns > _STILL_S * NS_PER_S:
            self._still = f" after it had been {_STILL_STATES[state]} for {_STILL_S:g} s"
            self.process.kill()

    def send(self, content: bytes) -> None:
        """That nobody is there is noticed when an answer is waited for."""
        with suppress(OSError):
            self.pipe.send_bytes(content)

    def receive(self) -> _Message:
        """Its next message, which it has begun to send, or that it is lost."""
        try:
            message: _Message = self.pipe.recv()
        except (EOFError, OSError):
            return _LOST, self._how_it_ended()
        return message

    def join(self, left_ns: int) -> None:
        """Wait for its end, and end it if that takes longer."""
        self.process.join(max(0.0, left_ns / NS_PER_S))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(_STOP_S)
        if not self.process.is_alive():  # else not even SIGKILL ends it, and it is beyond us
            self.process.close()

    def _how_it_ended(self) -> str:
        self.process.join(_STOP_S)
        code = self.process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):  # a real-time signal has no name
                how = signal.Signals(-code).name
        who = f"the worker process {self.process.pid}"
        return f"{who} ended early ({how}{self._still}), and what it had not yet sent is missing"


def _messages(
    members: list[_Member], last: tuple[str, ...], clock: Clock, look: Callable[[], None]
) -> Iterator[tuple[int, _Message]]:
    """What the members say, by their number, until each has sent a message of the kinds `last`.

    `look` is called about every second and may end it by raising.
    """
    looked_ns = clock.now_ns()
    with selectors.DefaultSelector() as selector:
        for number, member in enumerate(members):
            selector.register(member.pipe, selectors.EVENT_READ, number)
        while selector.get_map():
            for key, _ in selector.select(_LOOK_S):
                message = members[key.data].receive()
                if message[0] in last:
                    selector.unregister(key.fileobj)
                yield key.data, message
            if clock.now_ns() - looked_ns > _LOOK_S * NS_PER_S:
                look()
                looked_ns = clock.now_ns()
                for key in list(selector.get_map().values()):
                    members[key.data].end_if_still(looked_ns)


def _state(pid: int | None) -> bytes | None:
    """The letter of a process's state; None where that is not told."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return None


def _start(members: list[_Member], start_ns: int) -> None:
    for member in members:
        member.send(pickle.dumps(start_ns))


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


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back, which reaches the whole process group: a new process inherits that for as long as it starts."""
    resource_tracker.ensure_running()  # the first start would do so, and lift what is held back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection) -> None:
    """The life of a member: one job after another until the pipe is closed, or until SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who has started it decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    parent = _Parent(pipe)
    with suppress(Stopped):
        while True:
            _work(parent)
    parent.say_what_ended_it()


def _work(parent: _Parent) -> None:
    parcel = parent.receive_bytes()
    answer: _Message
    try:
        job, share = unpack(parcel)
        worker = Worker(job, share, parent.clock, parent.record, check_engine=parent.send_records)
        parent.send(_READY)
        start_ns = parent.receive()
        with parent.undisturbed():
            answer = _DRIVEN, worker.drive(start_ns)
    except Exception as error:  # noqa: BLE001 - it is raised where the job came from
        answer = _ERROR, (_sendable(error), traceback.format_exc())
    parent.send(*answer)


def _end_with_parent() -> None:
    """A worker that drives looks at no pipe, and nobody is left to stop it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # that is for the main thread
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _Parent:
    """The process that started this one, and that stops it by SIGTERM."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._room = select.poll()
        self._room.register(pipe, select.POLLOUT)
        self._rows: deque[RequestRecord] = deque()
        self._undisturbed = self._stopped = False
        self.clock = StoppableClock()
        signal.signal(signal.SIGTERM, self._stop)

    def receive_bytes(self) -> bytes:
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise Stopped from None

    def receive(self) -> Any:
        return pickle.loads(self.receive_bytes())

    def send(self, kind: str, content: object = None) -> None:
        try:
            self._pipe.send((kind, content))
        except OSError:
            raise Stopped from None

    def record(self, row: RequestRecord) -> None:
        self._rows.append(row)
        self.send_records()

    def send_records(self, *, patiently: bool = False) -> None:
        """Send what has been recorded; not `patiently`, only as long as that need not be waited for."""
        while self._rows and (patiently or self._room.poll(0)):
            self.send(_RECORD, self._rows.popleft())

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Drive within this: nothing that has ended is lost when it is stopped, and all records are sent."""
        self._undisturbed = True
        try:
            yield
        finally:
            self.send_records(patiently=True)
            self._undisturbed = False
            self.clock.resume()
            if self._stopped:
                raise Stopped

    def say_what_ended_it(self) -> None:
        """End by SIGTERM if that is what it was, so that whoever finds this process gone is told."""
        if self._stopped:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def _stop(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        self._stopped = True
        if not self._undisturbed:
            raise Stopped
        self.clock.stop()


def _sendable(error: Exception) -> Exception:
    """The error itself if it survives the way, else one of ours that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class does
        return LLMPerfError(f"{type(error).__name__}: {error}")
    return error
