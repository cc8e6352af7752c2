"""What a specification asks of the simulation, checked and worked out before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from pytest_llmperf.engines.placement import placement_problems, sharers
from pytest_llmperf.engines.sim.routing import POLICIES
from pytest_llmperf.engines.sim.settings import DEFAULT_LIKE, LIKE, Settings, settings_for
from pytest_llmperf.engines.sim.slowdown import Slowdown, parse_slowdown
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.engines.tiny_llama import shape_of
from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.hardware import part_named
from pytest_llmperf.roofline import Deployment, deployed, dtype_problems
from pytest_llmperf.units import GIB

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One engine to simulate; sizes are those of each replica."""

    deployment: Deployment
    settings: Settings
    slowdown: Slowdown
    prefix_caching: bool
    max_model_len: int
    gpu_blocks: int
    host_blocks: int
    replicas: int
    policy: str

    @property
    def kv_capacity_tokens(self) -> int:
        """Of one replica, on the device."""
        return self.gpu_blocks * int(self.settings.block_tokens)


def planned(spec: EngineSpec) -> Plan:
    """Work a specification out.

    Raises `ConfigurationError` listing what is unknown, what the part cannot do and what does not fit, with the
    bytes that it would need.
    """
    problems: list[str] = []
    like = spec.like or DEFAULT_LIKE
    if like not in LIKE:
        problems.append(f"like: {unknown('engine', like, LIKE)}")
    policy = spec.policy or "round_robin"
    if policy not in POLICIES:
        problems.append(f"policy: {unknown('routing policy', policy, POLICIES)}")
    problems += placement_problems(spec)
    slowdown = _attempt(problems, lambda: parse_slowdown(spec.slow))
    deployment = _attempt(problems, lambda: _deployment(spec))
    part = None if deployment is None else deployment.part
    wanted = like if like in LIKE else DEFAULT_LIKE
    settings = _attempt(problems, lambda: settings_for(wanted, part, spec.args, _overrides(spec)))
    if slowdown is None or deployment is None or settings is None or problems:
        raise ConfigurationError(*problems)
    room = _kv_room(deployment, settings)
    block_bytes = settings.block_tokens * deployment.kv_bytes_per_token
    blocks = int(room * slowdown.factor("kv_capacity") // block_bytes)
    longest = _longest(spec, deployment, settings, blocks)
    host_bytes = 0.0 if "kv_offload" in slowdown.off else (spec.kv_offload_gib or 0.0) * GIB / deployment.gpus
    return Plan(
        deployment=deployment,
        settings=settings,
        slowdown=slowdown,
        prefix_caching=spec.prefix_caching is not False and "prefix_cache" not in slowdown.off,
        max_model_len=longest,
        gpu_blocks=blocks,
        host_blocks=int(host_bytes // block_bytes),
        replicas=spec.replicas or 1,
        policy=policy,
    )


def _attempt(problems: list[str], work: Callable[[], Made]) -> Made | None:
    """What it makes; its mistakes are noted among the others."""
    try:
        return work()
    except ConfigurationError as error:
        problems += error.problems
        return None


def _deployment(spec: EngineSpec) -> Deployment:
    problems: list[str] = []
    part = _attempt(problems, lambda: part_named(spec.part or ""))
    shape = _attempt(problems, lambda: shape_of(spec.model or ""))
    if part is None or shape is None:
        raise ConfigurationError(*problems, *dtype_problems(spec.dtype, spec.kv_cache_dtype))
    whole = deployed(shape, part, dtype=spec.dtype, kv_cache_dtype=spec.kv_cache_dtype, gpus=spec.tensor_parallel or 1)
    return replace(whole, sharers=sharers(spec))


def _overrides(spec: EngineSpec) -> dict[str, object]:
    """Constants that the specification gives, in words of their own or in that of engines."""
    memory = {} if spec.gpu_memory_fraction is None else {"memory_utilization": spec.gpu_memory_fraction}
    return {**memory, **dict(spec.constants)}


def _kv_room(deployment: Deployment, settings: Settings) -> float:
    """Bytes of one GPU that are left for its KV cache."""
    share, taken = settings.memory_utilization, deployment.weight_bytes + settings.engine_bytes
    memory = deployment.memory_bytes
    free = memory - deployment.sharers * taken
    room = share * free if settings.memory_rule == "of_free" else share * memory - taken
    if room <= 0:
        usable = memory if settings.memory_rule == "of_free" else memory * share
        raise ConfigurationError(
            f"{deployment.model.name} does not fit on {_gpus(deployment)}: its {deployment.weights.name} weights need "
            f"{_gib(deployment.weight_bytes)} of each GPU and the engine {_gib(settings.engine_bytes)}, together "
            f"{_gib(taken)} of {_gib(usable)} usable; use more GPUs (tensor_parallel) or a smaller dtype"
        )
    return room


def _longest(spec: EngineSpec, deployment: Deployment, settings: Settings, blocks: int) -> int:
    """The longest sequence; by default what the model was made for, as far as the cache holds it."""
    capacity = blocks * int(settings.block_tokens)
    problems = []
    wanted = spec.max_model_len
    if wanted is not None and wanted > deployment.model.longest:
        problems.append(f"max_model_len={wanted}: {deployment.model.name} was made for {deployment.model.longest}")
    if wanted is not None and wanted > capacity:
        need = wanted * deployment.kv_bytes_per_token
        problems.append(
            f"max_model_len={wanted}: one such sequence needs {_gib(need)} of KV cache on each GPU, and "
            f"{_gpus(deployment)} have {_gib(capacity * deployment.kv_bytes_per_token)} ({capacity} tokens) left for it"
        )
    if not capacity:
        problems.append(f"no block of KV cache fits beside the weights on {_gpus(deployment)}")
    if problems:
        raise ConfigurationError(*problems)
    return wanted or min(deployment.model.longest, capacity)


def _gpus(deployment: Deployment) -> str:
    return f"{deployment.gpus} x {deployment.part.key}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
