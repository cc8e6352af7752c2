"""What a server tells about its KV cache: its metrics in Prometheus' form, and what stands beside them.

Names as of vLLM 0.26 to 0.33 (`v1/metrics/loggers.py`), SGLang 0.5.23 (`srt/observability/metrics_collector.py`)
and TensorRT-LLM's main (`metrics/collector.py`). A counter that a version does not have is None. Values of several
engines behind one server (data parallel) are added up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.records import CacheCounters, EngineTimings

SETTLE_S = 0.3
"""Counters appear late: so long after the last response the next reading was complete on vLLM 0.32."""
PATHS = ("/metrics", "/prometheus/metrics")
"""Where the metrics are. TensorRT-LLM has its iterations, as JSON, under the first one."""

# Tiers in our words, by vLLM's: `external_unspecified` is a connector that does not say where it keeps things.
_VLLM_TIERS = {"device": "gpu", "host": "host", "disk": "disk", "p2p": "p2p", "external_unspecified": "external"}
# And by SGLang's; `storage` is what lies beyond the host's memory, on whatever.
_SGLANG_TIERS = {"device": "gpu", "host": "host", "storage": "external"}


_KNOWN_LINE = re.compile(rb"^(?:# (?:HELP|TYPE) )?(?:vllm:|sglang:|trtllm_).*\n?", re.MULTILINE)
_MOST_BYTES = 4 << 20
_MOST = 2**53
"""Nothing is counted beyond it: a counter is a float there, and has lost its last digit."""
_MOST_ENGINES = 4096
_LATEST_S = 1e12
"""Beyond this a number is no moment of a clock in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The device's KV cache as the engine has laid it out."""

    capacities: tuple[int, ...] | None
    """Tokens, by engine: more than one with data parallelism. A sequence lives in one of them."""
    block_tokens: int | None
    prefix_caching: bool | None

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens over all engines."""
        return None if self.capacities is None else sum(self.capacities)


class Metrics:
    """One reading of a server's metrics."""

    def __init__(self, text: str) -> None:
        """Raises `ValueError` for a text that is not in Prometheus' form."""
        self.samples: list[Sample] = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    @classmethod
    def of(cls, body: bytes) -> Metrics:
        """Of a whole answer, of which only what is known is parsed, and no buckets: the parser takes a second for 1 MB.

        Raises `ValueError` for a text that is not in Prometheus' form, or is longer than any engine's.
        """
        lines = b"".join(line for line in _KNOWN_LINE.findall(body) if b"_bucket{" not in line)
        if len(lines) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes of metrics")
        try:
            return cls(lines.decode())
        except (LookupError, TypeError, AttributeError) as error:  # the parser's own mistakes
            raise ValueError(f"metrics that cannot be parsed: {error!r}") from None

    @property
    def engine(self) -> str | None:
        """Whose metrics these are, a key of `ENGINES`; None: nobody's that we know."""
        names = [sample.name for sample in self.samples]
        return next(
            (engine for engine, (prefix, _) in ENGINES.items() if any(n.startswith(prefix) for n in names)), None
        )

    def counters(self) -> CacheCounters:
        """The cache's counters at this moment."""
        return CacheCounters() if self.engine is None else ENGINES[self.engine][1](self)

    def total(self, name: str, **labels: str) -> int | None:
        """The sum of a counter's samples that have these labels, None where there is no such sample."""
        wanted = labels.items()
        return _sum(
            int(sample.value) if 0 <= sample.value <= _MOST else None
            for sample in self.samples
            if sample.name == f"{name}_total" and wanted <= sample.labels.items()
        )

    def cache_config(self) -> CacheConfig | None:
        """Capacity and block size from `vllm:cache_config_info`; None where it is missing."""
        infos = [sample.labels for sample in self.samples if sample.name == "vllm:cache_config_info"]
        if not infos:
            return None
        block = _whole(infos[0].get("block_size"))
        return CacheConfig(
            capacities=_all_known([_capacity(labels, block) for labels in infos]),
            block_tokens=block,
            prefix_caching={"True": True, "False": False}.get(infos[0].get("enable_prefix_caching", "")),
        )


def _vllm(metrics: Metrics) -> CacheCounters:
    device_hits = metrics.total("vllm:prefix_cache_hits")
    external_hits = metrics.total("vllm:external_prefix_cache_hits")
    return CacheCounters(
        queried_tokens=metrics.total("vllm:prefix_cache_queries"),
        hit_tokens=None if device_hits is None else device_hits + (external_hits or 0),
        tokens_by_tier=_vllm_tiers(metrics),
        offloaded_bytes=metrics.total("vllm:kv_offload_store_bytes"),
        restored_bytes=metrics.total("vllm:kv_offload_load_bytes"),
        preemptions=metrics.total("vllm:num_preemptions"),
    )


def _vllm_tiers(metrics: Metrics) -> dict[str, int] | None:
    recomputed = metrics.total("vllm:prompt_tokens_by_source", source="local_compute")
    if recomputed is None:
        return None
    by_tier = {
        tier: metrics.total("vllm:prompt_tokens_cached_by_source", source=source)
        for source, tier in _VLLM_TIERS.items()
    }
    if by_tier["gpu"] is None:  # before 0.32 only inside and outside are told apart
        by_tier = {
            "gpu": metrics.total("vllm:prompt_tokens_by_source", source="local_cache_hit"),
            "external": metrics.total("vllm:prompt_tokens_by_source", source="external_kv_transfer"),
        }
    return {"recomputed": recomputed, **{tier: count for tier, count in by_tier.items() if count is not None}}


def _sglang(metrics: Metrics) -> CacheCounters:
    """A labelled counter of SGLang's appears when it first counts; beside what shows that it would, absent is 0."""
    prompts = metrics.total("sglang:prompt_tokens")
    hits = metrics.total("sglang:cached_tokens")
    tiers = {tier: metrics.total("sglang:cached_tokens", cache_source=s) or 0 for s, tier in _SGLANG_TIERS.items()}
    hit_tokens = None if prompts is None else hits or 0
    unplaced = hits is not None and hits != sum(tiers.values())  # "total": no tier is told
    return CacheCounters(
        queried_tokens=prompts,
        hit_tokens=hit_tokens,
        tokens_by_tier=None if prompts is None or unplaced else {"recomputed": prompts - (hits or 0), **tiers},
        offloaded_bytes=_moved(metrics, "sglang:hicache_backup_bytes"),
        restored_bytes=_moved(metrics, "sglang:load_back_bytes"),
        preemptions=metrics.total("sglang:num_retracted_requests"),
    )


def _moved(metrics: Metrics, name: str) -> int | None:
    """Bytes between SGLang's tiers, of which there is a second one where its size is told."""
    has_host_tier = any(sample.name == "sglang:hicache_host_total_tokens" for sample in metrics.samples)
    return metrics.total(name) or (0 if has_host_tier else None)


def _tensorrt_llm(metrics: Metrics) -> CacheCounters:
    """Before its main branch counted tokens, TensorRT-LLM told a hit rate only, which cannot be subtracted."""
    return CacheCounters(
        queried_tokens=metrics.total("trtllm_prompt_tokens"),
        hit_tokens=metrics.total("trtllm_prompt_cached_tokens"),
        offloaded_bytes=metrics.total("trtllm_kv_cache_offload_bytes"),
        restored_bytes=metrics.total("trtllm_kv_cache_onboard_bytes"),
    )


ENGINES: dict[str, tuple[str, Callable[[Metrics], CacheCounters]]] = {
    "vllm": ("vllm:", _vllm),
    "sglang": ("sglang:", _sglang),
    "tensorrt_llm": ("trtllm_", _tensorrt_llm),
}
"""Engine: what the names of its metrics begin with, and what makes counters of them."""


def sglang_cache(info: Any) -> CacheConfig | None:
    """The cache as SGLang's `/server_info` tells it; None where this is something else."""
    if not isinstance(info, dict) or "max_total_num_tokens" not in info:
        return None
    capacity, disabled = _count(info["max_total_num_tokens"]), info.get("disable_radix_cache")
    engines = min(_count(info.get("dp_size")) or 1, _MOST_ENGINES)
    return CacheConfig(
        capacities=None if capacity is None else (capacity,) * engines,
        block_tokens=_count(info.get("page_size")),
        prefix_caching=None if not isinstance(disabled, bool) else not disabled,
    )


def tensorrt_llm_cache(iterations: Any) -> CacheConfig | None:
    """The cache as the newest of TensorRT-LLM's iterations tells it; None where none does."""
    for iteration in reversed(iterations if isinstance(iterations, list) else []):
        stats = iteration.get("kvCacheStats") if isinstance(iteration, dict) else None
        if isinstance(stats, dict):
            blocks, block = _count(stats.get("maxNumBlocks")), _count(stats.get("tokensPerBlock"))
            capacities = None if blocks is None or block is None else _all_known([_count(blocks * block)])
            return CacheConfig(capacities=capacities, block_tokens=block, prefix_caching=None)
    return None


CACHE_ROUTES: dict[str, tuple[str, Callable[[Any], CacheConfig | None]]] = {
    "sglang": ("/server_info", sglang_cache),
    "tensorrt_llm": ("/metrics", tensorrt_llm_cache),
}
"""Engine that tells its cache's size beside its metrics: the route, and what makes sense of its JSON."""


def tensorrt_llm_timings(rows: Any) -> tuple[EngineTimings, ...]:
    """What TensorRT-LLM's `/perf_metrics` tells of requests, in the order of their ends; nothing of which is which."""
    found = [_timing(row) for row in rows] if isinstance(rows, list) else []
    return tuple(timings for timings in found if timings is not None)


def _timing(row: Any) -> EngineTimings | None:
    """Moments are seconds of one clock, 0 where they have not come."""
    metrics = row.get("perf_metrics") if isinstance(row, dict) else None
    timing = metrics.get("timing_metrics") if isinstance(metrics, dict) else None
    if not isinstance(timing, dict):
        return None
    arrived, scheduled, first = (
        _moment(timing.get(name)) for name in ("arrival_time", "first_scheduled_time", "first_token_time")
    )
    spans = _span_ns(arrived, scheduled), _span_ns(scheduled, first), _span_ns(arrived, first)
    return None if spans == (None,) * 3 else EngineTimings(queue_ns=spans[0], prefill_ns=spans[1], ttft_ns=spans[2])


def _moment(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and 0 < value < _LATEST_S else None


def _span_ns(start_s: float | None, end_s: float | None) -> int | None:
    return None if start_s is None or end_s is None or end_s < start_s else round((end_s - start_s) * NS_PER_S)


TIMING_ROUTES: dict[str, tuple[str, Callable[[Any], tuple[EngineTimings, ...]]]] = {
    "tensorrt_llm": ("/perf_metrics", tensorrt_llm_timings),
}
"""Engine that tells its times of requests apart from the answers: the route, which forgets what it has told."""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST else None


def _capacity(labels: dict[str, str], block_tokens: int | None) -> int | None:
    tokens = _whole(labels.get("kv_cache_size_tokens"))
    blocks = _whole(labels.get("num_gpu_blocks"))
    if tokens is None and blocks is not None and block_tokens is not None:
        return _count(blocks * block_tokens)
    return tokens


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and text.isascii() and len(text) < 16 else None


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum, or None of nothing or where a part is unknown: absent is not zero."""
    known = _all_known(list(values))
    return sum(known) if known else None


def _all_known(values: list[int | None]) -> tuple[int, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None
