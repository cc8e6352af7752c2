"""Sends a workload as a load says and collects what came back: in this process, in several, or on a Ray cluster."""

from __future__ import annotations

from pytest_llmperf.clock import Clock
from pytest_llmperf.driver.drive import Driver
from pytest_llmperf.driver.job import Driven, Job, Team
from pytest_llmperf.driver.local import LocalTeam
from pytest_llmperf.driver.processes import ProcessTeam

RAY = "ray://"

__all__ = ["Driven", "Driver", "Job", "LocalTeam", "ProcessTeam", "Team", "team_of"]


def team_of(workers: int | str, clock: Clock) -> Team:
    """The team for `--llmperf-workers`: a number of processes, or the address of a Ray cluster."""
    if isinstance(workers, str):
        from pytest_llmperf.driver.ray import RayTeam  # noqa: PLC0415 - an extra

        return RayTeam(workers.removeprefix(RAY), clock)
    return LocalTeam(clock) if workers == 1 else ProcessTeam(workers, clock)
