"""Routers in front of replicas: programs that are started like servers. Options as of the versions named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.engines.base import EngineSpec
from pytest_llmperf.engines.host import beside
from pytest_llmperf.errors import ConfigurationError, unknown

DEFAULT_ROUTER = "vllm-router"
DEFAULT_POLICY = "round_robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A program that spreads requests over replicas."""

    policies: tuple[str, ...]
    subcommand: tuple[str, ...] = ()
    takes_token_ids: bool = True


ROUTERS: dict[str, Router] = {
    "vllm-router": Router(  # 0.1.17
        policies=("cache_aware", "consistent_hash", "kv_aware", "power_of_two", "random", "round_robin",
                  "sticky_least_loaded"),
    ),
    "sglang-router": Router(  # 0.3.2
        policies=("cache_aware", "manual", "power_of_two", "random", "round_robin"),
        subcommand=("launch",),
        takes_token_ids=False,  # /v1/completions answers 422 to them
    ),
}  # fmt: skip
"""Program: what is known of it."""


def is_url(router: str) -> bool:
    """Whether the router runs already, somewhere."""
    return "://" in router


def router_problems(spec: EngineSpec) -> list[str]:
    """What is wrong with the words for the router."""
    name = spec.router or DEFAULT_ROUTER
    if is_url(name):
        return _url_problems(spec)
    router = ROUTERS.get(Path(name).name)
    if router is None:
        return [f"router: {unknown('router', Path(name).name, ROUTERS)}, the path of one, or the URL of any"]
    problems = []
    if spec.policy is not None and spec.policy not in router.policies:
        problems.append(f"policy: {unknown(f'policy of {Path(name).name}', spec.policy, router.policies)}")
    if not router.takes_token_ids and spec.prompts is None:
        problems.append(
            f"{Path(name).name} takes no token ids; send text (prompts='text'), with which no session of several turns "
            "can be continued exactly, or take vllm-router"
        )
    return problems


def router_command(spec: EngineSpec, workers: Sequence[str], port: int, metrics_port: int) -> list[str]:
    """The command line of a router over `workers`, their URLs."""
    name = spec.router or DEFAULT_ROUTER
    return [
        router_program(name),
        *ROUTERS[Path(name).name].subcommand,
        *("--worker-urls", *workers),
        *("--policy", spec.policy or DEFAULT_POLICY),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
        "--disable-retries",  # a request that was sent twice would look like a slow one
        "--disable-circuit-breaker",
        *spec.router_args,
    ]


def router_program(name: str) -> str:
    """Where it is installed. Raises `ConfigurationError` if nowhere."""
    found = shutil.which(beside(sys.executable, name))
    if found is None:
        program = Path(name).name
        raise ConfigurationError(
            f"fleet: the router {name!r} is not installed; pip install {program}, or give its path with router=... in "
            "the mark or --llmperf-set router=PATH"
        )
    return found


def _url_problems(spec: EngineSpec) -> list[str]:
    problems = []
    if spec.policy is not None or spec.router_args:
        problems.append(f"policy and router_args are for a router that is started here; {spec.router} has its own")
    if not spec.ports:
        problems.append(
            f"router={spec.router!r} has to know where the replicas listen; say on which ports: ports=[...]"
        )
    return problems
