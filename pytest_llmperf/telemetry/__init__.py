"""Telemetry beside a run: what the engine's GPUs and the machine around them do meanwhile."""

from __future__ import annotations

from pytest_llmperf.telemetry.plan import Plan, planned
from pytest_llmperf.telemetry.sampler import Sampler
from pytest_llmperf.telemetry.series import read_samples

__all__ = ["Plan", "Sampler", "planned", "read_samples"]
