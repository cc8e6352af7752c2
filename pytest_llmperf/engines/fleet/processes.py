"""The processes of a fleet: its replicas and the router in front of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.engines.fleet.routers import (
    DEFAULT_POLICY,
    DEFAULT_ROUTER,
    check_router_url,
    is_url,
    router_command,
    router_program,
)
from pytest_llmperf.engines.host import unused_path
from pytest_llmperf.engines.placement import check_processors, sharers
from pytest_llmperf.engines.process import ServerProcess, free_port
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.engines.started import ServedEngine
from pytest_llmperf.errors import EngineDiedError, EngineStartError
from pytest_llmperf.records import CacheCounters


class FleetHost:
    """Replicas of ours behind a router of ours, or behind one at a URL."""

    is_ours = True

    def __init__(self, spec: EngineSpec, replicas: Sequence[ServedEngine], surroundings: Surroundings) -> None:
        self.replicas = tuple(replicas)
        self._spec = spec
        self._surroundings = surroundings
        self._name = spec.router or DEFAULT_ROUTER
        self._router: ServerProcess | None = None

    def launch(self) -> Address:
        """The replicas are ready when this returns: a router looks for them when it starts."""
        check_processors(self._spec)
        if is_url(self._name):
            check_router_url(self._name, self._surroundings.clock)
        else:
            router_program(self._name)  # before half a minute of starts
        if sharers(self._spec) == 1:  # else each would find the memory gone that the others are just taking
            self._each(ServedEngine.launch)
        self._each(ServedEngine.start)
        if is_url(self._name):
            return Address.parse(self._name)
        port, metrics_port = free_port(), free_port()
        self._router = ServerProcess(
            router_command(self._spec, [replica.url for replica in self.replicas], port, metrics_port),
            env={},
            log=unused_path(self._surroundings.log_dir, "router"),
            clock=self._surroundings.clock,
        )
        return Address.parse(f"http://127.0.0.1:{port}")

    def wait_until_ready(self, is_healthy: Callable[[], bool]) -> None:
        if self._router is not None:
            with _naming(f"the router {self._name}"):
                self._router.wait_until(is_healthy, self._surroundings.start_timeout_s, self._surroundings.progress)

    def is_running(self) -> bool:
        routes = is_url(self._name) or (self._router is not None and self._router.returncode is None)
        return routes and all(replica.host.is_running() for replica in self.replicas)

    def check(self) -> None:
        self._each(ServedEngine.check)
        if self._router is not None:
            with _naming(f"the router {self._name}"):
                self._router.check()

    def end_hung(self) -> str:
        """A replica that hangs is named; if all answer, it is the router."""
        self._each(ServedEngine.check_answers)
        return "" if self._router is None else f"the router {self._name}\n{self._router.end_hung()}"

    def report(self) -> str:
        """The router's: replicas have told their own when they were started."""
        return "" if self._router is None else f"the router {self._name}\n{self._router.report()}"

    def stop(self) -> None:
        """The router first, so that it does not see its replicas go. Each is stopped, whatever becomes of others."""
        with ExitStack() as stops:
            for replica in self.replicas:
                stops.callback(replica.stop)
            if self._router is not None:
                stops.callback(self._router.stop)
                self._router = None

    def reset_cache(self, server: OpenAIServer) -> bool:
        """All replicas; True if each of them did. The router's memory of who has what is its own."""
        del server
        emptied = [replica.reset_cache() for replica in self.replicas]
        return all(emptied)

    def completed(self, counters: CacheCounters) -> CacheCounters:
        """The replicas' hosts have done so."""
        return counters

    def describe(self) -> dict[str, Any]:
        router = self._name if self._router is None else self._router.command_line
        policy = None if is_url(self._name) else self._spec.policy or DEFAULT_POLICY
        return {"router": router, "policy": policy, "replicas": [replica.describe() for replica in self.replicas]}

    def _each(self, act: Callable[[ServedEngine], object]) -> None:
        """One replica after the other; what is raised over one says which it was."""
        for number, replica in enumerate(self.replicas, start=1):
            with _naming(f"replica {number} of {len(self.replicas)} ({replica.spec.kind})"):
                act(replica)


@contextmanager
def _naming(who: str) -> Iterator[None]:
    """Say in an engine's error whose it is."""
    try:
        yield
    except EngineStartError as error:
        raise EngineStartError(f"{who}: {error}", is_final=error.is_final) from error
    except EngineDiedError as error:
        raise EngineDiedError(f"{who}: {error}") from error
