"""One run of one client: started on its cores, bounded in time, its processor time counted, its report read."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from origin import TICKS_PER_S, Origin, Served, pinned
from peers import Client, Job, Report

LIMIT_S = 300.0
_LAST_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of a run. `cpu_s`: of all processes that the client started and waited for.

    `others_share`: how much of the client's and of the server's cores went to neither of them, in
    the time of the run; the larger of both. Either `report` or `failure` is None.
    """

    client: str
    streams: int
    requests: int
    cpu_s: float
    wall_s: float
    others_share: float
    served: Served
    report: Report | None
    failure: str | None
    log: str


def attempt(name: str, client: Client, job: Job, origin: Origin, cores: Collection[int]) -> Attempt:
    """Run a client once and read what it reports; a failure of the client is a result."""
    job.output.mkdir(parents=True)
    log = job.output / "client.log"
    command = client.command(job)
    origin.reset()
    before = _Spent.now(origin, cores)
    failure = _run(command, client.variables, job.output, log, cores)
    spent = _Spent.now(origin, cores) - before
    served = origin.served()
    report, failure = _report(client, job, served, failure)
    return Attempt(
        client=name,
        streams=job.streams,
        requests=job.requests,
        cpu_s=spent.client_s,
        wall_s=spent.wall_s,
        others_share=spent.others_share(len(cores)),
        served=served,
        report=report,
        failure=failure,
        log=str(log),
    )


@dataclass(frozen=True, slots=True)
class _Spent:
    """Processor time so far, and the time."""

    wall_s: float
    client_s: float
    client_cores_s: float
    server_s: float
    server_core_s: float

    @classmethod
    def now(cls, origin: Origin, cores: Iterable[int]) -> _Spent:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(
            time.perf_counter(),
            children.ru_utime + children.ru_stime,
            _busy_s(cores),
            origin.cpu_s(),
            _busy_s(origin.cores),
        )

    def __sub__(self, before: _Spent) -> _Spent:
        return _Spent(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))

    def others_share(self, cores: int) -> float:
        """See `Attempt`. The kernel counts in steps of 10 ms, so that a short run may seem to be below zero."""
        beside_client = (self.client_cores_s - self.client_s) / cores
        return max(0.0, beside_client, self.server_core_s - self.server_s) / self.wall_s


def _busy_s(cores: Iterable[int]) -> float:
    """Processor time of all processes on `cores` since the start of the system, and what a hypervisor took."""
    wanted = {f"cpu{core}" for core in cores}
    rows = (line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines())
    times = [row for row in rows if row[0] in wanted]
    user, nice, system, steal = 1, 2, 3, 8
    return sum(int(row[index]) for row in times for index in (user, nice, system, steal)) / TICKS_PER_S


def last_lines(log: str) -> str:
    """The end of a client's log, in which it says why it failed."""
    return "\n".join(Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])


def _run(command: list[str], variables: Mapping[str, str], folder: Path, log: Path, cores: Iterable[int]) -> str | None:
    """Run a command to its end; returns why it failed, or None."""
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **variables}
    with log.open("wb") as stream:
        stream.write(f"{shlex.join(command)}\n".encode())
        stream.flush()
        try:
            with pinned(cores):
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            return f"cannot be started: {error}"
    try:
        code = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it left running must not disturb the next
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"exit code {code}" if code else None


def _report(client: Client, job: Job, served: Served, failure: str | None) -> tuple[Report | None, str | None]:
    """The client's report, unless it failed, or did less than it was asked, or cannot be read."""
    if failure is not None:
        return None, failure
    if served.tokens < job.requests * job.output_tokens:
        return None, f"it was served {served.tokens} tokens, not {job.requests} times {job.output_tokens}"
    try:
        return client.read(job.output), None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return None, f"its report cannot be read: {type(error).__name__}: {error}"
