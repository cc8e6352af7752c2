"""Load models: who sends next, and when. One file per model."""

from pytest_llmperf.load.base import Load, Release, Schedule, Share, Steady
from pytest_llmperf.load.closed_loop import ClosedLoop, closed_loop
from pytest_llmperf.load.draws import Exponential, LogNormal, ThinkTime, exponential, lognormal
from pytest_llmperf.load.extent import Extent
from pytest_llmperf.load.open_loop import OpenLoop, burst, constant, poisson
from pytest_llmperf.load.replay import Replay, replay
from pytest_llmperf.load.round_robin import RoundRobin, round_robin

__all__ = [
    "ClosedLoop",
    "Exponential",
    "Extent",
    "Load",
    "LogNormal",
    "OpenLoop",
    "Release",
    "Replay",
    "RoundRobin",
    "Schedule",
    "Share",
    "Steady",
    "ThinkTime",
    "burst",
    "closed_loop",
    "constant",
    "exponential",
    "lognormal",
    "poisson",
    "replay",
    "round_robin",
]
