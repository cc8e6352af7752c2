"""Routers in front of replicas: programs that are started like servers. Options as of the versions named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.client import Address, HttpClient, Limits
from pytest_llmperf.clock import Clock
from pytest_llmperf.engines.host import beside, option_of
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import ConfigurationError, EngineStartError, unknown

DEFAULT_ROUTER = "vllm-router"
DEFAULT_POLICY = "round_robin"
_LISTENS_S = 5.0
_ABSENT = ("connection_refused", "connect_timeout", "connect_failed", "unknown_host", "tls", "peer_gone")
"""How a request fails where there is no server."""
_OWN_FLAGS = {
    "--worker-urls": "it is told of the fleet's own replicas (replicas=..., engine=...)",
    "--policy": "say policy=...",
    "--host": "a router that is started here listens on loopback only",
    "--port": "it gets a free one",
    "--prometheus-host": "its metrics are on loopback only",
    "--prometheus-port": "it gets a free one",
}
"""Options that each of its commands has."""


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
    if router is None and Path(name).name != name:
        return [
            f"router={name!r}: by its file's name it is told which options it takes, so that has to be "
            f"{' or '.join(ROUTERS)}; a link of that name will do"
        ]
    if router is None:
        return [f"router: {unknown('router', name, ROUTERS)}, the path of one, or the URL of any"]
    problems = list(_flag_problems(spec))
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
    if found is not None:
        return found
    if Path(name).name != name:
        what = "is no program that may be run" if Path(name).exists() else "is not there"
        raise ConfigurationError(
            f"fleet: router={name!r} {what}; give the path of one, or its name alone ({Path(name).name!r}), which is "
            "then looked for beside this Python and on PATH"
        )
    raise ConfigurationError(
        f"fleet: the router {name!r} is not installed; pip install {name}, or give its path with router=... in "
        "the mark or --llmperf-set router=PATH"
    )


def check_router_url(url: str, clock: Clock) -> None:
    """Raise `EngineStartError` where nothing listens, before the replicas take their minutes."""
    client = HttpClient(Address.parse(url), clock, headers={}, limits=Limits(silence_s=_LISTENS_S))
    try:
        failure = client.request("GET", "/health", b"", timeout_s=_LISTENS_S).failure
    finally:
        client.close()
    if failure is not None and failure.kind in _ABSENT:
        raise EngineStartError(
            f"router={url!r} is to run already, and {failure.detail}; start it first, or give the name or path of one "
            f"that is started here ({' or '.join(ROUTERS)}): vllm-router listens only when its replicas do"
        )


def _flag_problems(spec: EngineSpec) -> Iterator[str]:
    for argument in spec.router_args:
        flag = option_of(argument)
        if flag in _OWN_FLAGS:
            yield f"router_args has {argument.partition('=')[0]}, which is set here; {_OWN_FLAGS[flag]}"


def _url_problems(spec: EngineSpec) -> list[str]:
    problems = []
    if spec.policy is not None or spec.router_args:
        problems.append(f"policy and router_args are for a router that is started here; {spec.router} has its own")
    if not spec.ports:
        problems.append(
            f"router={spec.router!r} has to know where the replicas listen; say on which ports: ports=[...]"
        )
    return problems
