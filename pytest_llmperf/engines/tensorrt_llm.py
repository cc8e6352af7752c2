"""The engine kind `tensorrt_llm`: a `trtllm-serve` process of our own, with the PyTorch backend.

Options of the command line and keys of the options file as of 1.2 and its main branch. It has no route that empties
the cache: a cold one is one that has never seen the prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_llmperf.engines import host
from pytest_llmperf.engines.base import Engine, EngineSpec, Surroundings
from pytest_llmperf.engines.host import Launch, Recipe, beside, flags
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.units import GIB

WORDS = host.WORDS
REQUIRED = host.REQUIRED


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` for weights in a format that only the checkpoint can bring."""
    if spec.dtype == "fp8":
        raise ConfigurationError(
            "tensorrt_llm: dtype='fp8': the server does not quantise weights while it loads them; name a checkpoint "
            "whose weights are FP8 (model=...) and leave dtype out"
        )


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """A TensorRT-LLM server of our own, not yet started."""
    return host.served_by(RECIPE, spec, surroundings)


def _command(launch: Launch) -> list[str]:
    spec = launch.spec
    return [
        *(beside(launch.python, "trtllm-serve"), launch.model),
        *("--host", "127.0.0.1", "--port", str(launch.port)),
        *flags({"--max_seq_len": spec.max_model_len, "--tp_size": spec.tensor_parallel}),
        *("--extra_llm_api_options", str(_options_file(launch))),
        *spec.args,
    ]


def _options_file(launch: Launch) -> Path:
    """What has no option on the command line, in a file; JSON is YAML, too."""
    path = launch.log.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(options(launch.spec), indent=2) + "\n")
    return path


def options(spec: EngineSpec) -> dict[str, Any]:
    """The content of the options file: metrics switched on, and the specification's words."""
    host_cache = None
    if spec.kv_offload_gib is not None:  # bytes, of each GPU's own pool
        host_cache = int(spec.kv_offload_gib * GIB / (spec.tensor_parallel or 1))
    cache = {
        "enable_block_reuse": spec.prefix_caching,
        "host_cache_size": host_cache,
        "free_gpu_memory_fraction": spec.gpu_memory_fraction,
        "dtype": spec.kv_cache_dtype,
    }
    known = {
        "dtype": spec.dtype,
        "kv_cache_config": {key: value for key, value in cache.items() if value is not None} or None,
    }
    return {
        "return_perf_metrics": True,  # /prometheus/metrics
        "enable_iter_perf_stats": True,  # /metrics, which tells the cache's size
        **{key: value for key, value in known.items() if value is not None},
    }


RECIPE = Recipe(
    kind="tensorrt_llm",
    package="tensorrt_llm",
    install="pip install tensorrt-llm, as NVIDIA's installation guide says",
    command=_command,
    names_models=False,
)
