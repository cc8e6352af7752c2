"""A share of a job, driven by this process; all of it if there is no other."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.clock import Clock
from pytest_llmperf.driver.drive import Driver
from pytest_llmperf.driver.job import Driven, Job
from pytest_llmperf.load import Share
from pytest_llmperf.records import RequestRecord, Window


class Worker:
    """Prepares and drives one share of a job."""

    def __init__(
        self,
        job: Job,
        share: Share,
        clock: Clock,
        record: Callable[[RequestRecord], None],
        check_engine: Callable[[], None],
    ) -> None:
        """Draw the sessions, connect, encode: all that needs no start."""
        self._clock = clock
        sessions, times = {}, []
        for number, session in enumerate(job.sessions):
            times.append([turn.at_s for turn in session.turns])
            if share.has(number):
                sessions[number] = session
        self._schedule = job.load.schedule(times, share)
        self._channel = job.connector.open(clock)
        self._driver = Driver(
            self._channel, clock, run=job.run, phase=job.phase, check_engine=check_engine, record=record
        )
        try:
            self._driver.prepare(sessions, job.load.connections(len(sessions), share))
        except BaseException:
            self._channel.close()
            raise

    def drive(self, start_ns: int | None = None) -> Driven:
        """Drive it from `start_ns` on, or at once."""
        clock, schedule = self._clock, self._schedule
        start_ns = clock.now_ns() if start_ns is None else start_ns
        began_ns, began_cpu_ns = clock.now_ns(), clock.cpu_ns()
        try:
            self._driver.drive(schedule, start_ns)
        finally:
            self._channel.close()
        end_ns = clock.now_ns()
        stats = self._channel.stats
        used_cpu_ns = clock.cpu_ns()
        if began_cpu_ns is not None and used_cpu_ns is not None:
            stats.cpu_shares.append((used_cpu_ns - began_cpu_ns) / max(1, end_ns - began_ns))
        steady = schedule.steady()
        return Driven(
            start_ns=start_ns,
            end_ns=end_ns,
            window=Window(start_ns + steady.start_ns, None if steady.end_ns is None else start_ns + steady.end_ns),
            shed=schedule.shed,
            sent=self._driver.sent,
            client=stats,
        )


class LocalTeam:
    """This process alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def run(self, job: Job, record: Callable[[RequestRecord], None], check_engine: Callable[[], None]) -> Driven:
        return Worker(job, Share(), self._clock, record, check_engine).drive()

    def close(self) -> None:
        """There is nobody to let go."""
