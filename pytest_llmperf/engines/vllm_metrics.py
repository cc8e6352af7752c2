"""What a vLLM server tells about its KV cache under `/metrics`.

Names as of vLLM 0.26 to 0.33 (`v1/metrics/loggers.py`). A counter that a version does not have is
None. Values of several engines behind one server (data parallel) are added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pytest_llmperf.records import CacheCounters

SETTLE_S = 0.3
"""Counters appear late: so long after the last response the next reading was complete on 0.32."""

# Tiers in our words; `external_unspecified` is a connector that does not say where it keeps things.
_TIERS = {"device": "gpu", "host": "host", "disk": "disk", "p2p": "p2p", "external_unspecified": "external"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The device's KV cache as vLLM has laid it out."""

    capacities: tuple[int, ...] | None
    """Tokens, by engine: more than one with data parallelism. A sequence lives in one of them."""
    block_tokens: int | None
    prefix_caching: bool | None

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens over all engines."""
        return None if self.capacities is None else sum(self.capacities)


class Metrics:
    """One reading of `/metrics`."""

    def __init__(self, text: str) -> None:
        self._samples: list[Sample] = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    @property
    def is_vllm(self) -> bool:
        return any(sample.name.startswith("vllm:") for sample in self._samples)

    def counters(self) -> CacheCounters:
        """The cache's counters at this moment."""
        device_hits = self._total("prefix_cache_hits")
        external_hits = self._total("external_prefix_cache_hits")
        return CacheCounters(
            queried_tokens=self._total("prefix_cache_queries"),
            hit_tokens=None if device_hits is None else device_hits + (external_hits or 0),
            tokens_by_tier=self._tiers(),
            offloaded_bytes=self._total("kv_offload_store_bytes"),
            restored_bytes=self._total("kv_offload_load_bytes"),
            preemptions=self._total("num_preemptions"),
        )

    def cache_config(self) -> CacheConfig | None:
        """Capacity and block size from `vllm:cache_config_info`; None where it is missing."""
        infos = [sample.labels for sample in self._samples if sample.name == "vllm:cache_config_info"]
        if not infos:
            return None
        block = _whole(infos[0].get("block_size"))
        return CacheConfig(
            capacities=_all_known([_capacity(labels, block) for labels in infos]),
            block_tokens=block,
            prefix_caching={"True": True, "False": False}.get(infos[0].get("enable_prefix_caching", "")),
        )

    def _total(self, name: str, **labels: str) -> int | None:
        wanted = labels.items()
        return _sum(
            int(sample.value) if math.isfinite(sample.value) else None
            for sample in self._samples
            if sample.name == f"vllm:{name}_total" and wanted <= sample.labels.items()
        )

    def _tiers(self) -> dict[str, int] | None:
        recomputed = self._total("prompt_tokens_by_source", source="local_compute")
        if recomputed is None:
            return None
        by_tier = {
            tier: self._total("prompt_tokens_cached_by_source", source=source) for source, tier in _TIERS.items()
        }
        if by_tier["gpu"] is None:  # before 0.32 only inside and outside are told apart
            by_tier = {
                "gpu": self._total("prompt_tokens_by_source", source="local_cache_hit"),
                "external": self._total("prompt_tokens_by_source", source="external_kv_transfer"),
            }
        return {"recomputed": recomputed, **{tier: count for tier, count in by_tier.items() if count is not None}}


def _capacity(labels: dict[str, str], block_tokens: int | None) -> int | None:
    tokens = _whole(labels.get("kv_cache_size_tokens"))
    blocks = _whole(labels.get("num_gpu_blocks"))
    if tokens is None and blocks is not None and block_tokens is not None:
        return blocks * block_tokens
    return tokens


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and text.isascii() else None


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum, or None of nothing or where a part is unknown: absent is not zero."""
    known = _all_known(list(values))
    return sum(known) if known else None


def _all_known(values: list[int | None]) -> tuple[int, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None
