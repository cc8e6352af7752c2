"""The simulated engine, behind the protocol that all engines have."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.engines.base import Connector
from pytest_llmperf.engines.sim.cache import PrefixCache
from pytest_llmperf.engines.sim.channel import SimConnector
from pytest_llmperf.engines.sim.fleet import Fleet
from pytest_llmperf.engines.sim.noise import Noise
from pytest_llmperf.engines.sim.plan import Plan, planned
from pytest_llmperf.engines.sim.replica import Replica
from pytest_llmperf.engines.sim.timing import Timing
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.records import CacheCounters, EngineTimings, added


def fleet_of(plan: Plan) -> Fleet:
    """The replicas and the router that a plan describes, with empty caches."""
    settings = plan.settings
    write_through = settings.offload == "write_through"
    caches = [PrefixCache(plan.gpu_blocks, plan.host_blocks, write_through=write_through) for _ in range(plan.replicas)]
    timing = Timing(plan.deployment, settings, plan.slowdown)
    return Fleet(timing, settings, caches, plan.policy, prefix_caching=plan.prefix_caching)


class SimulatedEngine:
    """A fleet in virtual time. It is driven in this process only, and starts with empty caches."""

    is_ours = True
    is_simulated = True
    returns_token_ids = True
    forces_lengths = True
    prompt_overhead = 0
    ready_ns = None

    def __init__(self, spec: EngineSpec, limits: Limits) -> None:
        """`limits`: how long a client waits, in virtual time."""
        self.spec = spec
        self._limits = limits
        self.clock = VirtualClock()
        self.plan = planned(spec)
        self._fleet: Fleet | None = None

    @property
    def url(self) -> str:
        return f"sim:{self.plan.deployment.part.name}"

    @property
    def model(self) -> str:
        return self.spec.model or self.plan.deployment.model.name

    @property
    def max_model_len(self) -> int:
        return self.plan.max_model_len

    @property
    def kv_capacity_tokens(self) -> int:
        return self.plan.replicas * self.plan.kv_capacity_tokens

    @property
    def fleet(self) -> Fleet:
        """What runs."""
        self.start()
        assert self._fleet is not None
        return self._fleet

    def users_that_fit(self, tokens_per_user: int) -> int:
        if tokens_per_user < 1:
            raise ConfigurationError(f"users_that_fit: tokens_per_user must be at least 1, got {tokens_per_user}")
        blocks = -(-tokens_per_user // int(self.plan.settings.block_tokens))
        return self.plan.replicas * (self.plan.gpu_blocks // blocks)

    def start(self) -> None:
        if self._fleet is None:
            self._fleet = fleet_of(self.plan)

    def stop(self) -> None:
        self._fleet = None

    def check(self) -> None:
        """There is no process that could die."""

    def check_answers(self) -> None:
        """Nor one that could hang."""

    def connector(self) -> Connector:
        spec = self.spec

        def noise() -> Noise:
            return Noise(spec.noise_seed or 0, spec.run_noise or 0.0, spec.request_noise or 0.0)

        return SimConnector(self.fleet, self.clock, noise, self.max_model_len, self._limits)

    def cache_counters(self) -> CacheCounters:
        replicas = [self._counters(replica) for replica in self.fleet.replicas]
        return replicas[0] if len(replicas) == 1 else added(replicas)

    def _counters(self, replica: Replica) -> CacheCounters:
        counted, plan = replica.counters, self.plan
        block_bytes = round(plan.settings.block_tokens * plan.deployment.kv_bytes_per_token * plan.deployment.gpus)
        hits = counted.from_gpu + counted.from_host
        tiers = {"recomputed": counted.prompt - hits, "gpu": counted.from_gpu}
        offloads = self.spec.kv_offload_gib is not None
        if offloads:
            tiers["host"] = counted.from_host
        return CacheCounters(
            queried_tokens=counted.queried,
            hit_tokens=hits,
            tokens_by_tier=tiers,
            offloaded_bytes=replica.cache.stored * block_bytes if offloads else None,
            restored_bytes=counted.restored_blocks * block_bytes if offloads else None,
            preemptions=counted.preemptions,
        )

    def request_timings(self) -> tuple[EngineTimings, ...]:
        return ()

    def reset_cache(self) -> bool:
        return self.fleet.reset_cache()

    def describe(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "simulated": True,
            "model": self.model,
            "part": plan.deployment.part.name,
            "deployment": plan.deployment.describe(),
            "max_model_len": plan.max_model_len,
            "returns_token_ids": True,
            "kv_capacity_tokens": self.kv_capacity_tokens,
            "kv_block_tokens": int(plan.settings.block_tokens),
            "prefix_caching": plan.prefix_caching,
        }
