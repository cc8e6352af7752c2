"""The Python interfaces of vLLM and TensorRT-LLM, as far as they are used, over the prefix cache of `stub_engine`.

`stub_engine.installed` puts them under the names that the real ones have; arguments that those do not know are refused.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import prometheus_client
from stub_engine import BLOCK, CAPACITY, LONG, PAUSE_S, Stub, fault, hang

TOKENIZER = SimpleNamespace(encode=lambda text: text.split())
_VOCABULARY = 100_000


def check_vocabulary(ids) -> None:
    if isinstance(ids[0], int) and max(ids) >= _VOCABULARY:
        raise ValueError(f"Token id {max(ids)} is out of vocabulary")


class Cache(Stub):
    """The prefix cache alone."""

    def __init__(self, *, caches: bool) -> None:
        self.cache, self.caches = set(), caches
        self.prompt = self.cached = self.running = 0


class RequestOutputKind(Enum):
    DELTA = 1


class UsageContext(Enum):
    OPENAI_API_SERVER = "server"


@dataclass(kw_only=True)
class SamplingParams:
    max_tokens: int
    temperature: float
    ignore_eos: bool
    detokenize: bool
    output_kind: RequestOutputKind | None = None
    return_perf_metrics: bool = False


class FlexibleArgumentParser(argparse.ArgumentParser):
    def __init__(self) -> None:
        super().__init__(allow_abbrev=False)


class AsyncEngineArgs:
    @staticmethod
    def add_cli_args(parser):
        for flag in ("--model", "--served-model-name", "--dtype", "--quantization", "--kv-cache-dtype"):
            parser.add_argument(flag)
        for flag in ("--kv-offloading-size", "--gpu-memory-utilization"):
            parser.add_argument(flag, type=float)
        for flag in ("--max-model-len", "--tensor-parallel-size"):
            parser.add_argument(flag, type=int)
        parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
        return parser

    @staticmethod
    def from_cli_args(given):
        return given


class AsyncLLM:
    @classmethod
    def from_engine_args(cls, given, usage_context):
        assert usage_context is UsageContext.OPENAI_API_SERVER
        fault()
        return cls(given)

    def __init__(self, given) -> None:
        self.errored = False
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=given.max_model_len))
        self.renderer = SimpleNamespace(get_tokenizer=lambda: TOKENIZER)
        self._stub = Cache(caches=given.enable_prefix_caching)
        self._counters = [prometheus_client.Counter(f"vllm:prefix_cache_{name}", "") for name in ("queries", "hits")]
        info = {
            "block_size": str(BLOCK),
            "num_gpu_blocks": str(CAPACITY // BLOCK),
            "enable_prefix_caching": str(self._stub.caches),
        }
        prometheus_client.Gauge("vllm:cache_config_info", "", list(info)).labels(**info).set(1)

    async def generate(self, prompt, sampling, request_id):
        ids = prompt["prompt"].split() if "prompt" in prompt else prompt["prompt_token_ids"]
        check_vocabulary(ids)
        self._stub.answers += 1
        hang("answer", self._stub.answers)
        hits = self._stub.look_up(ids)
        for counter, count in zip(self._counters, (len(ids), hits), strict=True):
            counter.inc(count)
        times = {"queued_ts": 5.0, "scheduled_ts": 5.00025, "first_token_ts": 5.00175, "first_token_latency": 0.002}
        self._stub.running += 1
        try:
            for number in range(1, sampling.max_tokens + 1):
                await asyncio.sleep(PAUSE_S if sampling.max_tokens >= LONG else 0)
                yield SimpleNamespace(
                    prompt_token_ids=ids,
                    num_cached_tokens=hits,
                    outputs=[SimpleNamespace(token_ids=[1000 + number])],
                    metrics=SimpleNamespace(**times),
                )
        finally:
            self._stub.running -= 1

    async def reset_prefix_cache(self, reset_running_requests=False, reset_connector=False):
        assert reset_connector
        return self._stub.empty()

    def shutdown(self) -> None:
        print("shut down", flush=True)  # noqa: T201 - to be found in the log


@dataclass(kw_only=True)
class KvCacheConfig:
    """The fields of TensorRT-LLM's that are documented."""

    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    onboard_blocks: bool = True
    secondary_offload_min_priority: int | None = None
    event_buffer_max_size: int = 0
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    dtype: str = "auto"
    tokens_per_block: int = 32


class LLM:
    def __init__(
        self,
        model,
        *,
        tokenizer=None,
        dtype="auto",
        tensor_parallel_size=1,
        max_seq_len=None,
        max_batch_size=None,
        kv_cache_config=None,
        return_perf_metrics=False,
        enable_iter_perf_stats=False,
    ) -> None:
        fault()
        assert isinstance(kv_cache_config, KvCacheConfig | None)
        self.tokenizer = TOKENIZER
        self._stub = Cache(caches=kv_cache_config is None or kv_cache_config.enable_block_reuse)
        self._tells = enable_iter_perf_stats

    def generate_async(self, inputs, sampling_params, streaming):
        assert streaming
        check_vocabulary(inputs)
        return _Generation(self._stub, inputs, sampling_params)

    def get_stats(self, timeout):
        blocks = {"kvCacheStats": {"maxNumBlocks": CAPACITY // BLOCK, "tokensPerBlock": BLOCK}}
        return [{"iter": 1, **blocks}] if self._tells else []

    def shutdown(self) -> None:
        print("shut down", flush=True)  # noqa: T201 - to be found in the log


class BuiltLLM(LLM):
    """For folders of engines."""

    def __init__(self, model, **words) -> None:
        assert list(Path(model).glob("rank*.engine"))
        super().__init__(model, **words)


class _Generation:
    """An answer that yields itself, with all its tokens so far."""

    def __init__(self, stub, inputs, sampling) -> None:
        self.prompt_token_ids = inputs.split() if isinstance(inputs, str) else inputs
        self.cached_tokens = stub.look_up(self.prompt_token_ids)
        moments = {"arrival_time": 5.0, "first_scheduled_time": 5.00025, "first_token_time": 5.00175}
        timing = SimpleNamespace(**{name: timedelta(seconds=at_s) for name, at_s in moments.items()})
        metrics = SimpleNamespace(timing_metrics=timing) if sampling.return_perf_metrics else None
        self.outputs = [SimpleNamespace(token_ids_diff=[], request_perf_metrics=metrics)]
        self._left = self._tokens = sampling.max_tokens

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._left:
            raise StopAsyncIteration
        await asyncio.sleep(PAUSE_S if self._tokens >= LONG else 0)
        self.outputs[0].token_ids_diff = [1001 + self._tokens - self._left]
        self._left -= 1
        return self

    def abort(self) -> None:
        self._left = 0
