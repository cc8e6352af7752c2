"""Telemetry beside a run: what the engine's GPUs and the machine around them do meanwhile, and what that spoils."""

from __future__ import annotations

from pytest_llmperf.telemetry.beforehand import Beforehand
from pytest_llmperf.telemetry.plan import Plan, planned
from pytest_llmperf.telemetry.sampler import Sampler
from pytest_llmperf.telemetry.series import read_samples
from pytest_llmperf.telemetry.spoiled import TOLERABLE
from pytest_llmperf.telemetry.watch import Watch

__all__ = ["TOLERABLE", "Beforehand", "Plan", "Sampler", "Watch", "planned", "read_samples"]
