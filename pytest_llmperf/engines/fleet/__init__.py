"""The engine kind `fleet`: several equal servers of our own behind a router."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pytest_llmperf.engines import host, sglang, tensorrt_llm, vllm
from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.fleet.engine import FleetEngine
from pytest_llmperf.engines.fleet.routers import router_problems
from pytest_llmperf.engines.host import Recipe, served_by
from pytest_llmperf.engines.placement import placement_problems, places
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import ConfigurationError, unknown

WORDS = vllm.WORDS | host.WORDS | {
    "engine", "replicas", "router", "router_args", "policy", "gpus", "cpus", "ports", "prompts", "tokenizer",
}  # fmt: skip
REQUIRED = host.REQUIRED

DEFAULT_ENGINE = "vllm"
RECIPES: dict[str, Recipe] = {recipe.kind: recipe for recipe in (vllm.RECIPE, sglang.RECIPE, tensorrt_llm.RECIPE)}
"""What a replica can be, by its kind."""


CHECKS: dict[str, Callable[[EngineSpec], None]] = {
    "vllm": vllm.check,
    "sglang": sglang.check,
    "tensorrt_llm": tensorrt_llm.check,
}
"""What a replica's own words are checked by."""


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` listing what is wrong with engine, router and placement."""
    problems = [*placement_problems(spec), *router_problems(spec)]
    kind = spec.engine or DEFAULT_ENGINE
    if spec.in_process:
        problems.append(
            "in_process=True: what stands behind a router is a server; leave it out, or take the engine by itself "
            f"(llm_engine({kind!r}, in_process=True, ...))"
        )
    if kind not in RECIPES:
        problems.append(f"engine: {unknown('engine of a fleet', kind, RECIPES)}")
    elif kind != "vllm" and spec.kv_offload_backend is not None:
        problems.append(f"kv_offload_backend={spec.kv_offload_backend!r} is a word of vllm's; {kind} has one way only")
    if problems:
        raise ConfigurationError(*(f"fleet: {problem}" for problem in problems))
    if kind in CHECKS:
        CHECKS[kind](replica_spec(spec))


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """A fleet, not yet started."""
    one = replica_spec(spec)
    untold = replace(
        surroundings, before_start=None
    )  # of the fleet it is told as a whole, and before its first replica
    replicas = [served_by(RECIPES[one.kind], one, untold, place) for place in places(spec)]
    return FleetEngine(spec, replicas, surroundings)


def build(spec: EngineSpec) -> dict[str, str]:
    """Which version of a replica would be started, and of which model."""
    one = replica_spec(spec)
    return host.build_of(RECIPES[one.kind], one)


def replica_spec(spec: EngineSpec) -> EngineSpec:
    """What each replica is: the fleet's words without those that are about the fleet."""
    return replace(
        spec,
        kind=spec.engine or DEFAULT_ENGINE,
        engine=None,
        replicas=None,
        router=None,
        router_args=(),
        policy=None,
        gpus=(),
        cpus=(),
        ports=(),
    )
