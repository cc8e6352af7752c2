"""A fleet as an engine: one address, and the sums over its replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.engines.fleet.processes import FleetHost
from pytest_llmperf.engines.host import ProcessHost
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.server_metrics import SETTLE_S
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.engines.started import ServedEngine
from pytest_llmperf.records import CacheCounters, EngineTimings, added


class FleetEngine(ServedEngine):
    """Equal engines behind one address. Requests go to the router, everything else to the replicas themselves."""

    def __init__(self, spec: EngineSpec, replicas: Sequence[ServedEngine], surroundings: Surroundings) -> None:
        super().__init__(spec, FleetHost(spec, replicas, surroundings), None, surroundings)
        self.replicas = tuple(replicas)
        """One engine each, for instance for `[replica.cache_counters() for replica in llm_engine.replicas]`."""

    @property
    def kv_capacity_tokens(self) -> int | None:
        """Over all replicas; a sequence lives in one of them."""
        capacities = [replica.kv_capacity_tokens for replica in self._started()]
        known = [capacity for capacity in capacities if capacity is not None]
        return sum(known) if len(known) == len(capacities) else None

    def users_that_fit(self, tokens_per_user: int) -> int:
        return sum(replica.users_that_fit(tokens_per_user) for replica in self._started())

    def cache_counters(self) -> CacheCounters:
        """The replicas' counters, added up, and each by itself. What the router says of `/metrics` is one replica's."""
        replicas = self._started()
        self.clock.sleep(SETTLE_S)
        return added([replica.counters(settled=True) for replica in replicas])

    def request_timings(self) -> tuple[EngineTimings, ...]:
        return tuple(timings for replica in self._started() for timings in replica.request_timings())

    def describe(self) -> dict[str, Any]:
        """What the replicas have in common, and each by itself."""
        self._started()
        about = self.host.describe()
        replicas: list[dict[str, Any]] = about["replicas"]
        known = {name: value for name, value in replicas[0].items() if name not in ("command", "doubts")}
        doubts = dict.fromkeys(one for each in replicas for one in each.get("doubts", ()))
        if all(replica.recovered_from is None for replica in self.replicas):  # else it is told of that one
            doubts |= dict.fromkeys(self._restarted())
        of_all = {"kv_capacity_tokens": self.kv_capacity_tokens, "doubts": list(doubts) or None}
        return known | {name: value for name, value in of_all.items() if value is not None} | about

    def _started(self) -> tuple[ServedEngine, ...]:
        """The replicas, started with all that belongs to them if need be; one that has died is not replaced here."""
        if self._connected is None:
            self.start()
        return self.replicas

    def _is_ready(self, server: OpenAIServer) -> bool:
        """sglang-router 0.3.2 is healthy before it has looked at its replicas; both routers count them there."""
        readiness = server.json("/readiness")
        return isinstance(readiness, dict) and readiness.get("healthy_workers") == len(self.replicas)

    def _connect(self, server: OpenAIServer) -> None:
        """A router may not know what its replicas serve, and they have told."""
        names = [replica.host.own_name for replica in self.replicas if isinstance(replica.host, ProcessHost)]
        server.connect_like(self.replicas[0].server, tuple(name for name in names if name is not None))
