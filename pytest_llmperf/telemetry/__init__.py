"""Telemetry beside a run: what the engine's GPUs and the machine around them do meanwhile."""

from __future__ import annotations

from pytest_llmperf.telemetry.plan import Plan, planned
from pytest_llmperf.telemetry.processes import own_processes
from pytest_llmperf.telemetry.sampler import Sampler
from pytest_llmperf.telemetry.series import read_samples
from pytest_llmperf.telemetry.settle import settle
from pytest_llmperf.telemetry.spoiled import TOLERABLE, Fault, faults, unmoved

__all__ = [
    "TOLERABLE",
    "Fault",
    "Plan",
    "Sampler",
    "faults",
    "own_processes",
    "planned",
    "read_samples",
    "settle",
    "unmoved",
]
