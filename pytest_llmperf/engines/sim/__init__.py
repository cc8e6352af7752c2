"""The engine kind `sim`: a simulated LLM server that knows the hardware.

A roofline with stated efficiencies gives each step its time, a scheduler like vLLM's fills the
steps, and a paged KV cache over two tiers decides what is computed and what is reused. It runs in
virtual time within the process that drives it; `pytest-llmperf serve` offers it in real time.
"""

from __future__ import annotations

from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.sim.engine import SimulatedEngine
from pytest_llmperf.engines.sim.plan import planned
from pytest_llmperf.engines.spec import COMMON_WORDS, EngineSpec

WORDS = COMMON_WORDS | {
    "part", "like", "replicas", "policy", "gpus", "gpu_memory_fraction",
    "run_noise", "request_noise", "noise_seed", "slow", "constants",
}  # fmt: skip
REQUIRED = {
    "model": "give model=... in the mark or --llmperf-model MODEL",
    "part": "give part=... in the mark or --llmperf-hardware sim:PART",
}


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` for whatever the simulation would refuse."""
    planned(spec)


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """A simulated engine, with empty caches."""
    return SimulatedEngine(spec, surroundings.limits)
