"""How long a step of the engine takes: a roofline with stated efficiencies.

A step runs its layers' linear part and its attention one after the other. Each takes the time of its
arithmetic and the time of what it reads, added up: near the roofline's knee they overlap only in part.

    linear      (tokens * FLOPs) / (peak * efficiency) + weights / (bandwidth * efficiency)
    attention   (pairs * FLOPs) / (16-bit peak * efficiency) + KV cache read / (bandwidth * efficiency)
    exchange    tokens * bytes / (GPU link * efficiency) + all-reduces * latency
    overhead    fixed, and per sequence

Replicas that share a GPU have equal parts of it, idle neighbours or not, as the slices of a partitioned one.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmperf.engines.sim.settings import Settings
from pytest_llmperf.engines.sim.slowdown import Slowdown
from pytest_llmperf.roofline import Deployment


@dataclass(slots=True)
class Step:
    """What one step does, over all its sequences. Counts of tokens."""

    decodes: int = 0
    """Sequences that get their next token."""
    context: int = 0
    """Tokens that these attend to."""
    prefills: int = 0
    """Sequences of whose prompt a part is computed."""
    new: int = 0
    """Prompt tokens computed."""
    pairs: float = 0.0
    """Pairs of one of these and a token that it attends to."""
    read: int = 0
    """Tokens whose KV cache the prefills read."""
    samples: int = 0
    """Prefills that end and so give a first token."""


class Timing:
    """Durations on one deployment, seconds."""

    def __init__(self, deployment: Deployment, settings: Settings, slowdown: Slowdown) -> None:
        part, factor = deployment.part, slowdown.factor
        slice_ = 1 / deployment.sharers
        compute = part.sustained.value * factor("compute") * slice_
        memory = part.bandwidth.value * settings.memory_efficiency * factor("memory") * slice_
        sixteen_bit = part.flops_16bit.value * compute * _efficiency(deployment, settings, fp8=False)
        linear = deployment.linear_peak * compute * _efficiency(deployment, settings, fp8=True)
        exchange = part.gpu_link.value * settings.gpu_link_efficiency * factor("gpu_link") * slice_
        if part.geforce:
            exchange /= 2  # through the host's memory, so that every byte crosses the link twice
        self._token_s = deployment.linear_flops_per_token / linear + deployment.all_reduce_bytes_per_token / exchange
        self._sample_s = deployment.head_flops_per_sample / sixteen_bit
        self._pair_s = deployment.attention_flops_per_pair / sixteen_bit
        self._weights_s = deployment.read_bytes / memory
        self._read_s = deployment.kv_bytes_per_token / memory
        self._fixed_s = settings.step_overhead_s * factor("step_overhead")
        self._fixed_s += deployment.all_reduces * settings.all_reduce_latency_s
        self._sequence_s = settings.sequence_overhead_s
        self._prefill, self._decode = factor("prefill"), factor("decode")
        self.request_s = settings.request_overhead_s * factor("request_overhead")
        """From a request's arrival at the server to the scheduler."""
        host = part.host_link.value * settings.link_efficiency * factor("host_link") * slice_
        self.block_s = settings.block_tokens * deployment.kv_bytes_per_token / host
        """Moving one block over the host link, one way."""

    def decode_s(self, decodes: int, context: int) -> float:
        """How long a step takes that only gives so many sequences their next token."""
        decode_s = decodes * (self._token_s + self._sample_s + self._sequence_s)
        decode_s += context * (self._read_s + self._pair_s)
        return (self._weights_s + self._fixed_s + decode_s) * self._decode

    def step_s(self, step: Step) -> float:
        """How long the step takes, transfers left out."""
        # One query for each decode; its pairs are its context.
        prefill_s = step.new * self._token_s + step.samples * self._sample_s + step.prefills * self._sequence_s
        prefill_s += step.pairs * self._pair_s + step.read * self._read_s
        if step.decodes:
            return self.decode_s(step.decodes, step.context) + prefill_s * self._prefill
        return (self._weights_s + self._fixed_s + prefill_s) * self._prefill


def _efficiency(deployment: Deployment, settings: Settings, *, fp8: bool) -> float:
    """The share of the peak that is reached: of the linear layers' arithmetic, or of 16-bit arithmetic."""
    if deployment.part.geforce:
        return settings.geforce_efficiency
    return settings.fp8_efficiency if fp8 and deployment.weights.fp8_arithmetic else settings.compute_efficiency
