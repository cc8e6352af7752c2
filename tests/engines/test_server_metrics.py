"""`engines/server_metrics.py`: what is read from the metrics of each engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.engines.server_metrics import (
    CacheConfig,
    Metrics,
    sglang_cache,
    tensorrt_llm_cache,
    tensorrt_llm_timings,
)
from pytest_llmperf.records import CacheCounters, EngineTimings


def engine(number=0, *, modern=True):
    """Counters of one engine, as vLLM 0.33 prints them, or 0.26 where not `modern`; `number` scales them."""
    labels = f'engine="{number}",model_name="tiny"'
    scale = 10**number
    lines = [
        f"vllm:prefix_cache_queries_total{{{labels}}} {1000.0 * scale}",
        f"vllm:prefix_cache_hits_total{{{labels}}} {600.0 * scale}",
        f"vllm:external_prefix_cache_queries_total{{{labels}}} {400.0 * scale}",
        f"vllm:external_prefix_cache_hits_total{{{labels}}} {150.0 * scale}",
        f"vllm:num_preemptions_total{{{labels}}} {2.0 * scale}",
        f'vllm:prompt_tokens_by_source_total{{{labels},source="local_compute"}} {250.0 * scale}',
        f'vllm:prompt_tokens_by_source_total{{{labels},source="local_cache_hit"}} {600.0 * scale}',
        f'vllm:prompt_tokens_by_source_total{{{labels},source="external_kv_transfer"}} {150.0 * scale}',
    ]
    if modern:
        lines += [
            f'vllm:prompt_tokens_cached_by_source_total{{{labels},source="device"}} {600.0 * scale}',
            f'vllm:prompt_tokens_cached_by_source_total{{{labels},source="host"}} {100.0 * scale}',
            f'vllm:prompt_tokens_cached_by_source_total{{{labels},source="disk"}} {40.0 * scale}',
            f'vllm:prompt_tokens_cached_by_source_total{{{labels},source="p2p"}} {10.0 * scale}',
            f'vllm:prompt_tokens_cached_by_source_total{{{labels},source="external_unspecified"}} 0.0',
            f'vllm:kv_offload_store_bytes_total{{{labels},medium="cpu"}} {3e6 * scale}',
            f'vllm:kv_offload_store_bytes_total{{{labels},medium="fs"}} {1e6 * scale}',
            f'vllm:kv_offload_load_bytes_total{{{labels},medium="cpu"}} {2e6 * scale}',
        ]
    return lines


def cache_config(number=0, **labels):
    """The line with an engine's cache configuration; a label given as None is left out."""
    known = {
        "engine": number,
        "block_size": 128,
        "cache_dtype": "auto",
        "enable_prefix_caching": True,
        "kv_cache_size_tokens": 1043566,
        "num_gpu_blocks": 8192,
        "num_cpu_blocks": None,
        **labels,
    }
    content = ",".join(f'{name}="{value}"' for name, value in known.items() if value is not None)
    return f"vllm:cache_config_info{{{content}}} 1.0"


def metrics(*lines):
    """A reading with these lines, among what every vLLM prints."""
    text = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 1234.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 0.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 3.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 3.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny"} 0.25
# HELP vllm:prefix_cache_queries_created Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.7e+09
"""
    return Metrics(text + "\n".join(lines) + "\n")


class TestCounters:
    """What `counters` makes of the text."""

    def test_all(self):
        """Each counter is found, hits outside the device add to those on it, and tiers have our names."""
        assert (
            CacheCounters(
                queried_tokens=1000,
                hit_tokens=750,
                tokens_by_tier={"recomputed": 250, "gpu": 600, "host": 100, "disk": 40, "p2p": 10, "external": 0},
                offloaded_bytes=4_000_000,
                restored_bytes=2_000_000,
                preemptions=2,
            )
            == metrics(*engine()).counters()
        )

    def test_before_0_32(self):
        """An older version tells inside from outside only, and nothing of bytes."""
        assert (
            CacheCounters(
                queried_tokens=1000,
                hit_tokens=750,
                tokens_by_tier={"recomputed": 250, "gpu": 600, "external": 150},
                preemptions=2,
            )
            == metrics(*engine(modern=False)).counters()
        )

    def test_two_engines(self):
        """Engines behind one server are added up."""
        counters = metrics(*engine(0), *engine(1)).counters()
        assert (11_000, 8_250) == (counters.queried_tokens, counters.hit_tokens)
        assert (44_000_000, 22_000_000, 22) == (
            counters.offloaded_bytes,
            counters.restored_bytes,
            counters.preemptions,
        )
        assert {"recomputed": 2750, "gpu": 6600, "host": 1100, "disk": 440, "p2p": 110, "external": 0} == (
            counters.tokens_by_tier
        )

    def test_no_external_counter(self):
        """Without a connector the hits are those on the device."""
        lines = [line for line in engine() if "external_prefix" not in line]
        assert 600 == metrics(*lines).counters().hit_tokens

    def test_nothing_there(self):
        """What a server does not count is None, not 0."""
        assert CacheCounters() == metrics().counters()

    def test_without_sources(self):
        """Tokens by tier need the count of computed tokens, or the tiers would not add up."""
        lines = [line for line in engine() if "local_compute" not in line]
        assert metrics(*lines).counters().tokens_by_tier is None

    def test_difference(self):
        """Two readings subtracted give what happened between them, its hit rate included."""
        before = metrics(*engine(0)).counters()
        after = metrics(*engine(0), *engine(1)).counters()
        between = after.since(before)
        assert metrics(*engine(1)).counters() == between
        assert 0.75 == between.hit_rate

    def test_large_values(self):
        """Values in scientific notation are whole numbers."""
        line = 'vllm:kv_offload_store_bytes_total{engine="0"} 4.398046511104e+012'
        assert 2**42 == metrics(line).counters().offloaded_bytes


class TestCacheConfig:
    """What `cache_config` makes of the text."""

    def test_one_engine(self):
        """Capacity is the number of tokens that vLLM itself gives."""
        expected = CacheConfig(capacities=(1_043_566,), block_tokens=128, prefix_caching=True)
        assert expected == metrics(cache_config()).cache_config()

    def test_two_engines(self):
        """Capacities of several engines are added up."""
        config = metrics(cache_config(0, kv_cache_size_tokens=1000), cache_config(1, kv_cache_size_tokens=500))
        assert 1500 == config.cache_config().capacity_tokens

    def test_one_engine_does_not_say(self):
        """A sum with an unknown part is unknown."""
        config = metrics(cache_config(0), cache_config(1, kv_cache_size_tokens=None, num_gpu_blocks=None))
        assert config.cache_config().capacity_tokens is None

    def test_from_blocks(self):
        """Versions that do not give tokens give blocks."""
        assert 8192 * 128 == metrics(cache_config(kv_cache_size_tokens=None)).cache_config().capacity_tokens

    @pytest.mark.parametrize("missing", [{"num_gpu_blocks": "None"}, {"num_gpu_blocks": None}, {"block_size": "None"}])
    def test_unknown_capacity(self, missing):
        """Without tokens, and without blocks or their size, capacity is unknown."""
        assert metrics(cache_config(kv_cache_size_tokens=None, **missing)).cache_config().capacity_tokens is None

    @pytest.mark.parametrize(("label", "expected"), [(True, True), (False, False), (None, None), ("maybe", None)])
    def test_prefix_caching(self, label, expected):
        """Whether prefix caching is on is told or unknown."""
        assert expected is metrics(cache_config(enable_prefix_caching=label)).cache_config().prefix_caching

    def test_missing(self):
        """A server without the line has no known configuration."""
        assert metrics().cache_config() is None


SGLANG = """\
sglang:prompt_tokens_total{is_streaming="true"} 1000.0
sglang:cached_tokens_total{cache_source="device"} 600.0
sglang:cached_tokens_total{cache_source="host"} 100.0
sglang:hicache_host_total_tokens 5000.0
sglang:hicache_backup_bytes_total{tp_rank="0"} 3e6
sglang:hicache_backup_bytes_total{tp_rank="1"} 1e6
sglang:load_back_bytes_total{tp_rank="0"} 2e6
sglang:num_retracted_requests_total 2.0
"""


def without(text, name):
    """A reading without the lines of that name."""
    return Metrics("".join(f"{line}\n" for line in text.splitlines() if not line.startswith(name)))


class TestSglang:
    """SGLang's names."""

    def test_all(self):
        """Tokens by tier add up to the prompts; ranks are added up."""
        assert (
            CacheCounters(
                queried_tokens=1000,
                hit_tokens=700,
                tokens_by_tier={"recomputed": 300, "gpu": 600, "host": 100, "external": 0},
                offloaded_bytes=4_000_000,
                restored_bytes=2_000_000,
                preemptions=2,
            )
            == Metrics(SGLANG).counters()
        )

    def test_before_the_first_hit(self):
        """A counter that has not counted yet is not on the wire; beside counted prompts it is 0."""
        counters = without(SGLANG, "sglang:cached_tokens").counters()
        assert (1000, 0, 1000) == (counters.queried_tokens, counters.hit_tokens, counters.tokens_by_tier["recomputed"])

    def test_before_the_first_offload(self):
        """Where there is a host tier, nothing counted is nothing moved; where there is none, nothing is known."""
        before = without(SGLANG, "sglang:load_back")
        assert 0 == before.counters().restored_bytes
        lines = SGLANG.replace("sglang:hicache_host_total_tokens", "sglang:other").replace("load_back", "other")
        assert Metrics(lines).counters().restored_bytes is None

    def test_tiers_that_are_not_told(self):
        """Hits without a known source are hits, of no tier."""
        counters = Metrics(SGLANG.replace('"device"', '"total"')).counters()
        assert (700, None) == (counters.hit_tokens, counters.tokens_by_tier)

    def test_nothing_counted(self):
        """Before the first prompt nothing is known."""
        assert CacheCounters() == Metrics("sglang:num_running_reqs 0.0\n").counters()

    @pytest.mark.parametrize(
        ("info", "expected"),
        [
            (
                {"max_total_num_tokens": 4096, "page_size": 64, "dp_size": 2, "disable_radix_cache": True},
                CacheConfig(capacities=(4096, 4096), block_tokens=64, prefix_caching=False),
            ),
            ({"max_total_num_tokens": 7}, CacheConfig(capacities=(7,), block_tokens=None, prefix_caching=None)),
            ({"max_total_num_tokens": "x"}, CacheConfig(capacities=None, block_tokens=None, prefix_caching=None)),
            ({}, None),
            ([], None),
            (None, None),
        ],
    )
    def test_the_cache(self, info, expected):
        """What `/server_info` says of it."""
        assert expected == sglang_cache(info)


class TestTensorrtLlm:
    """TensorRT-LLM's names."""

    def test_all(self):
        """Tokens and bytes as its main branch counts them."""
        text = """\
trtllm_prompt_tokens_total{model_name="m"} 1000.0
trtllm_prompt_cached_tokens_total{model_name="m"} 600.0
trtllm_kv_cache_offload_bytes_total{model_name="m"} 3e6
trtllm_kv_cache_onboard_bytes_total{model_name="m"} 1e6
"""
        expected = CacheCounters(
            queried_tokens=1000, hit_tokens=600, offloaded_bytes=3_000_000, restored_bytes=1_000_000
        )
        assert expected == Metrics(text).counters()

    def test_a_rate_is_no_count(self):
        """Of 1.2's gauge nothing is made."""
        assert CacheCounters() == Metrics("trtllm_kv_cache_hit_rate 0.7\n").counters()

    @pytest.mark.parametrize(
        ("iterations", "capacity"),
        [
            ([{"kvCacheStats": {"maxNumBlocks": 1, "tokensPerBlock": 32}}, {"iter": 2}], 32),
            ([{"kvCacheStats": {"maxNumBlocks": 1}}], None),
        ],
    )
    def test_the_cache(self, iterations, capacity):
        """The newest iteration that has it."""
        assert capacity == tensorrt_llm_cache(iterations).capacity_tokens

    @pytest.mark.parametrize("iterations", [[], [1], {}, None])
    def test_no_iterations(self, iterations):
        """Before the first one, or where they are switched off, nothing is known."""
        assert tensorrt_llm_cache(iterations) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('vllm:num_requests_running{engine="0"} 0.0\n', "vllm"),
        ("sglang:num_running_reqs 0.0\n", "sglang"),
        ("trtllm_kv_cache_hit_rate 0.0\n", "tensorrt_llm"),
        ("process_cpu_seconds_total 1.0\n", None),
        ("", None),
    ],
)
def test_engine(text, expected):
    """An engine is known by its metrics' names."""
    assert expected == Metrics(text).engine


@pytest.mark.parametrize(
    "text", ["<!DOCTYPE html>\n<p>Hello</p>", '{"status": "ok"}', '[{"iter": 1}]', "vllm:x", 'vllm:x{engine="0']
)
def test_not_metrics(text):
    """A text that is not Prometheus' format is a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the parser's
        Metrics(text)


MOMENTS = {"arrival_time": 5.0, "first_scheduled_time": 5.25, "first_token_time": 7.0, "last_token_time": 9.0}


@pytest.mark.parametrize(
    ("timing", "expected"),
    [
        (MOMENTS, EngineTimings(queue_ns=250_000_000, prefill_ns=1_750_000_000, ttft_ns=2_000_000_000)),
        ({**MOMENTS, "first_token_time": 0.0}, EngineTimings(queue_ns=250_000_000)),
        ({**MOMENTS, "first_scheduled_time": 4.0}, EngineTimings(prefill_ns=3_000_000_000, ttft_ns=2_000_000_000)),
        ({"arrival_time": "now"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_tensorrt_llm_times_of_requests(timing, expected):
    """In the form of its `/perf_metrics`; what has not happened, or cannot have, is left out."""
    rows = [{"request_id": 3, "perf_metrics": {"timing_metrics": timing, "kv_cache_metrics": {"num_reused_blocks": 1}}}]
    assert (() if expected is None else (expected,)) == tensorrt_llm_timings(rows)


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.sampled_from(["perf_metrics", "timing_metrics", *MOMENTS]), v),
    )
)
def test_times_of_any_form(rows):
    """Nothing that a route of that name may answer breaks a run."""
    for timings in tensorrt_llm_timings(rows):
        assert all(value is None or value >= 0 for value in (timings.queue_ns, timings.prefill_ns, timings.ttft_ns))
