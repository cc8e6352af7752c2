"""The engine kind `sglang`: a server process of our own. Flags and routes as of 0.5.23."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pytest_llmperf.engines import host
from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.host import Launch, Recipe, flags, option_of
from pytest_llmperf.engines.server import OpenAIServer
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.units import GIB

WORDS = host.WORDS
REQUIRED = host.REQUIRED

_GB = 1e9  # HiCache's size is in these
_ROUNDED_SHARE = 0.01
"""Up to this a rounded size is told in the command only: a tier that is larger by 1 % holds 1 % more contexts."""
_KV_DTYPES = {"fp8": "fp8_e4m3", "float16": "auto", "half": "auto"}
"""KV cache formats that have another name there. It has none for 16 bits but bfloat16 and the model's own."""


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` listing what cannot be asked of this engine."""
    problems = list(host.flag_problems(RECIPE, spec))
    without_radix = spec.prefix_caching is False or any(option_of(one) == "--disable-radix-cache" for one in spec.args)
    if spec.kv_offload_gib is not None and without_radix:
        problems.append(
            f"kv_offload_gib={spec.kv_offload_gib:g} without prefix caching: HiCache is the outer tier of "
            "RadixAttention; leave kv_offload_gib out, or the prefix cache on"
        )
    if problems:
        raise ConfigurationError(*(f"sglang: {problem}" for problem in problems))


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """An SGLang server of our own, not yet started."""
    return host.served_by(RECIPE, spec, surroundings)


def build(spec: EngineSpec) -> dict[str, str]:
    """Which version would be started, and of which model."""
    return host.build_of(RECIPE, spec)


def _command(launch: Launch) -> list[str]:
    return [
        *(launch.python, "-m", "sglang.launch_server"),
        *("--model-path", launch.model),
        *("--served-model-name", launch.served_name),
        *("--host", "127.0.0.1", "--port", str(launch.port)),
        "--enable-metrics",
        "--enable-cache-report",
        *_words(launch.spec),
        *launch.spec.args,
    ]


def _words(spec: EngineSpec) -> list[str]:
    fp8 = spec.dtype == "fp8"
    kv_cache_dtype = spec.kv_cache_dtype
    given = flags(
        {
            "--dtype": None if fp8 else spec.dtype,
            "--quantization": "fp8" if fp8 else None,
            "--kv-cache-dtype": _KV_DTYPES.get(kv_cache_dtype, kv_cache_dtype) if kv_cache_dtype else None,
            "--context-length": spec.max_model_len,
            "--tensor-parallel-size": spec.tensor_parallel,
            "--mem-fraction-static": spec.gpu_memory_fraction,
        }
    )
    if spec.prefix_caching is False:  # on by default, and there is no flag that says so
        given.append("--disable-radix-cache")
    if spec.kv_offload_gib is not None:
        given += ["--enable-hierarchical-cache", "--hicache-size", str(_hicache_gb(spec))]
    return given


def _hicache_gb(spec: EngineSpec) -> int:
    """Whole gigabytes for each GPU, rounded up."""
    assert spec.kv_offload_gib is not None
    return math.ceil(spec.kv_offload_gib * GIB / _GB / (spec.tensor_parallel or 1))


def _rounded(spec: EngineSpec, python: str) -> Iterator[str]:
    """A doubt where whole gigabytes are another size than was asked for."""
    del python
    if spec.kv_offload_gib is None:
        return
    gpus, gb = spec.tensor_parallel or 1, _hicache_gb(spec)
    real = gpus * gb * _GB / GIB
    if real > spec.kv_offload_gib * (1 + _ROUNDED_SHARE):
        yield (
            f"kv_offload_gib={spec.kv_offload_gib:g} became {real:.4g} GiB: HiCache is sized in whole GB for each GPU, "
            f"here {gb} for each of {gpus}"
        )


def _empty(server: OpenAIServer) -> bool:
    """Both tiers are flushed together; 400 while requests are running."""
    return server.control("POST", "/flush_cache").status == 200


RECIPE = Recipe(
    kind="sglang",
    package="sglang",
    install="pip install 'sglang>=0.5.23'",
    oldest=(0, 5),
    newest=(0, 5),
    tried="0.5.23, read and not run",
    command=_command,
    own_flags={
        **host.OWN_FLAGS,
        "--model-path": "say model=...",
        "--served-model-name": "requests go by the name of model=...",
    },
    words=_words,
    word_flags={
        "--dtype": "dtype",
        "--quantization": "dtype",
        "--kv-cache-dtype": "kv_cache_dtype",
        "--context-length": "max_model_len",
        "--tensor-parallel-size": "tensor_parallel",
        "--mem-fraction-static": "gpu_memory_fraction",
        "--disable-radix-cache": "prefix_caching",
        "--enable-hierarchical-cache": "kv_offload_gib",
        "--hicache-size": "kv_offload_gib",
    },
    aliases={"--model": "--model-path", "--tp-size": "--tensor-parallel-size", "--tp": "--tensor-parallel-size"},
    empty=_empty,
    doubts=_rounded,
)
