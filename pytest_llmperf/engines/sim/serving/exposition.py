"""`/metrics` of the simulated engine, under the names and with the buckets that vLLM has.

A replica is what vLLM calls an engine. Only what is simulated is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.engines.sim.fleet import Fleet
from pytest_llmperf.engines.sim.plan import Plan
from pytest_llmperf.engines.sim.replica import Counters
from pytest_llmperf.engines.spec import EngineSpec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
           160.0, 640.0, 2560.0)  # fmt: skip
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
              960.0, 1920.0, 7680.0)  # fmt: skip


class Distribution:
    """Durations counted in buckets."""

    def __init__(self, limits_s: Sequence[float]) -> None:
        self._limits_s = limits_s
        self._counts = np.zeros(len(limits_s) + 1, np.int64)
        self.sum_s = 0.0

    def add(self, value_s: float) -> None:
        """Count one."""
        self.add_all(np.array([value_s]))

    def add_all(self, values_s: npt.NDArray[np.float64]) -> None:
        """Count several."""
        self._counts += np.bincount(np.searchsorted(self._limits_s, values_s), minlength=len(self._counts))
        self.sum_s += float(values_s.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """Each limit and how many are not above it."""
        return list(zip([*map(str, self._limits_s), "+Inf"], self._counts.cumsum().astype(float).tolist(), strict=True))


@dataclass(slots=True)
class Latencies:
    """How long requests took: when their tokens were due, without what the network adds."""

    ttft: Distribution = field(default_factory=lambda: Distribution(_TTFT_S))
    itl: Distribution = field(default_factory=lambda: Distribution(_TOKEN_S))
    tpot: Distribution = field(default_factory=lambda: Distribution(_TOKEN_S))
    e2e: Distribution = field(default_factory=lambda: Distribution(_REQUEST_S))
    ended_requests: int = 0
    aborted: int = 0

    def first_token(self, duration_ns: int) -> None:
        """A request has its first token."""
        self.ttft.add(duration_ns / NS_PER_S)

    def ended(self, times_s: npt.NDArray[np.float64]) -> None:
        """A request has all its tokens, so long after its arrival."""
        self.ended_requests += 1
        self.e2e.add(times_s[-1])
        gaps_s = np.diff(times_s)
        if len(gaps_s):
            self.itl.add_all(gaps_s)
            self.tpot.add(gaps_s.mean())


class Exposition(Collector):
    """What there is to tell about one fleet."""

    def __init__(self, fleet: Fleet, plan: Plan, latencies: Latencies, spec: EngineSpec) -> None:
        """`plan`: of `spec`."""
        self._fleet = fleet
        self._plan = plan
        self._latencies = latencies
        self._model = spec.model or plan.deployment.model.name
        self._offloads = spec.kv_offload_gib is not None
        self._cache_dtype = spec.kv_cache_dtype or "auto"
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """The whole of it."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield self._cache_config()
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _cache_config(self) -> Metric:
        plan = self._plan
        known = {
            "block_size": str(int(plan.settings.block_tokens)),
            "cache_dtype": self._cache_dtype,
            "enable_prefix_caching": str(plan.prefix_caching),
            "kv_cache_size_tokens": str(plan.kv_capacity_tokens),
            "num_gpu_blocks": str(plan.gpu_blocks),
            "num_cpu_blocks": str(plan.host_blocks),
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", labels=["engine", *known]
        )
        for number in range(plan.replicas):
            family.add_metric([str(number), *known.values()], 1)
        return family

    def _gauges(self) -> Iterator[Metric]:
        replicas = self._fleet.replicas
        yield self._by_engine(GaugeMetricFamily, "num_requests_running", "Requests in the batch.",
                              [replica.running for replica in replicas])  # fmt: skip
        yield self._by_engine(GaugeMetricFamily, "num_requests_waiting", "Requests that are not in the batch yet.",
                              [replica.waiting for replica in replicas])  # fmt: skip

    def _counters(self) -> Iterator[Metric]:
        counted = [replica.counters for replica in self._fleet.replicas]
        for name, text, values in self._totals(counted):
            yield self._by_engine(CounterMetricFamily, name, text, values)
        yield self._by_source("prompt_tokens_by_source", "Prompt tokens by where their KV cache came from.", {
            "local_compute": [each.prompt - each.from_gpu - each.from_host for each in counted],
            "local_cache_hit": [each.from_gpu for each in counted],
            "external_kv_transfer": [each.from_host for each in counted],
        })  # fmt: skip
        cached = {"device": [each.from_gpu for each in counted], "host": [each.from_host for each in counted]}
        if not self._offloads:
            del cached["host"]
        yield self._by_source("prompt_tokens_cached_by_source", "Cached prompt tokens by tier.", cached)
        success = CounterMetricFamily("vllm:request_success", "Requests that have ended.",
                                      labels=["model_name", "finished_reason"])  # fmt: skip
        success.add_metric([self._model, "length"], self._latencies.ended_requests)
        success.add_metric([self._model, "abort"], self._latencies.aborted)
        yield success

    def _totals(self, counted: Sequence[Counters]) -> Iterator[tuple[str, str, list[int]]]:
        yield "prefix_cache_queries", "Prompt tokens looked up.", [each.queried for each in counted]
        yield "prefix_cache_hits", "Prompt tokens found on the device.", [each.from_gpu for each in counted]
        yield "num_preemptions", "Preemptions.", [each.preemptions for each in counted]
        yield "prompt_tokens", "Prompt tokens.", [each.prompt for each in counted]
        yield "generation_tokens", "Generated tokens.", [each.generated for each in counted]
        if not self._offloads:
            return
        asked = [each.queried - each.from_gpu for each in counted]
        yield "external_prefix_cache_queries", "Prompt tokens looked up in host memory.", asked
        yield "external_prefix_cache_hits", "Prompt tokens found there.", [each.from_host for each in counted]
        deployment, settings = self._plan.deployment, self._plan.settings
        block = round(settings.block_tokens * deployment.kv_bytes_per_token * deployment.gpus)
        stored = [replica.cache.stored * block for replica in self._fleet.replicas]
        yield "kv_offload_store_bytes", "Bytes copied to host memory.", stored
        yield "kv_offload_load_bytes", "Bytes brought back.", [each.restored_blocks * block for each in counted]

    def _histograms(self) -> Iterator[Metric]:
        latencies = self._latencies
        for name, text, found in (
            ("time_to_first_token_seconds", "Time to first token.", latencies.ttft),
            ("inter_token_latency_seconds", "From each token to the next.", latencies.itl),
            ("request_time_per_output_token_seconds", "Time per output token of each request.", latencies.tpot),
            ("e2e_request_latency_seconds", "From arrival to the last token.", latencies.e2e),
        ):
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            family.add_metric([self._model], found.buckets(), found.sum_s)
            yield family

    def _by_engine(
        self,
        family_of: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        values: Sequence[int],
    ) -> Metric:
        family = family_of(f"vllm:{name}", text, labels=["engine", "model_name"])
        for number, value in enumerate(values):
            family.add_metric([str(number), self._model], value)
        return family

    def _by_source(self, name: str, text: str, sources: dict[str, list[int]]) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=["engine", "model_name", "source"])
        for source, values in sources.items():
            for number, value in enumerate(values):
                family.add_metric([str(number), self._model, source], value)
        return family
