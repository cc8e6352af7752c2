"""The engine kind `tensorrt_llm`: a `trtllm-serve` process of our own, or its `LLM` in a process with the sender.

Options of the command line, keys of the options file and arguments of `LLM` as of 1.2 and its main branch. A folder of
built TensorRT engines is for releases up to 1.2: the main branch has left that backend out. There is no way to empty
the cache: a cold one is one that has never seen the prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_llmperf.engines import host
from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.host import Launch, Recipe, beside, flags
from pytest_llmperf.engines.in_process import in_process, worker_command
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.units import GIB

WORDS = host.WORDS | {"in_process", "tokenizer"}
REQUIRED = host.REQUIRED

_TIMED_REQUESTS = 100_000
"""Of so many requests of a run the server keeps its times until they are asked for."""
_ARGUMENT_WORDS = {
    "model": "model=...",
    "tokenizer": "tokenizer=...",
    "dtype": "dtype=...",
    "max_seq_len": "max_model_len=...",
    "tensor_parallel_size": "tensor_parallel=...",
    "kv_cache_config": "prefix_caching=..., kv_offload_gib=..., kv_cache_dtype=... and gpu_memory_fraction=...",
}
"""Arguments of `LLM` that are words here."""
_BUILT_IN = ("dtype", "kv_cache_dtype", "tensor_parallel")
"""What is settled when a TensorRT engine is built."""


def check(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` listing what cannot be asked of this engine."""
    problems = list(_problems(spec))
    if problems:
        raise ConfigurationError(*(f"tensorrt_llm: {problem}" for problem in problems))


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """A TensorRT-LLM of our own, not yet started."""
    if spec.in_process:
        return in_process(IN_PROCESS, spec, surroundings)
    return host.served_by(RECIPE, spec, surroundings)


def build(spec: EngineSpec) -> dict[str, str]:
    """Which version would be started, and of which model."""
    return host.build_of(RECIPE, spec)


def _problems(spec: EngineSpec) -> Iterator[str]:
    if spec.dtype == "fp8":
        yield (
            "dtype='fp8': the server does not quantise weights while it loads them; name a checkpoint "
            "whose weights are FP8 (model=...) and leave dtype out"
        )
    if is_engine_folder(spec):
        for word in _BUILT_IN:
            if getattr(spec, word) is not None:
                yield f"{word}: {spec.model!r} holds engines that were built for theirs; leave it out"
        if spec.tokenizer is None:
            yield f"tokenizer is missing: {spec.model!r} holds built engines and no tokenizer; give the model's folder"
    elif spec.tokenizer is not None:
        yield f"tokenizer={spec.tokenizer!r} is for a folder of built engines; {spec.model!r} has its own"
    if not spec.in_process:
        yield from host.flag_problems(RECIPE, spec)
    elif spec.args:
        yield from _argument_problems(spec)


def _argument_problems(spec: EngineSpec) -> Iterator[str]:
    """What is wrong with arguments of `LLM`, which would take the place of ours."""
    given = _as_object(spec.args)
    if given is None:
        yield f"args={list(spec.args)!r}: with in_process=True they are one JSON object with arguments of LLM"
        return
    own = llm_arguments(replace(spec, args=()), str(spec.model))
    for name, words in _ARGUMENT_WORDS.items():
        if name in given and name in own:
            yield f"args has {name!r}, which is set here; say it by {words} only"


def is_engine_folder(spec: EngineSpec) -> bool:
    """Whether the model is a folder of engines that `trtllm-build` has made, one for each GPU."""
    return spec.model is not None and any(Path(spec.model).glob("rank*.engine"))


def _command(launch: Launch) -> list[str]:
    spec = launch.spec
    built = {"--backend": "tensorrt", "--tokenizer": spec.tokenizer} if is_engine_folder(spec) else {}
    return [
        *(beside(launch.python, "trtllm-serve"), launch.model),
        *("--host", "127.0.0.1", "--port", str(launch.port)),
        *flags(built),
        *_words(spec),
        *("--extra_llm_api_options", str(_options_file(launch))),
        *spec.args,
    ]


def _words(spec: EngineSpec) -> list[str]:
    return flags({"--max_seq_len": spec.max_model_len, "--tp_size": spec.tensor_parallel})


def _in_process(launch: Launch) -> list[str]:
    arguments = json.dumps(llm_arguments(launch.spec, launch.model))
    return [*worker_command(launch.python, "tensorrt_llm", launch.port), arguments]


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
    built = is_engine_folder(spec)
    known = {
        "enable_iter_perf_stats": None if built else True,  # /metrics, which tells the cache's size
        "perf_metrics_max_requests": None if built or spec.in_process else _TIMED_REQUESTS,  # /perf_metrics
        "dtype": spec.dtype,
        "kv_cache_config": {key: value for key, value in cache.items() if value is not None} or None,
    }
    return {
        "return_perf_metrics": True,  # /prometheus/metrics
        **{key: value for key, value in known.items() if value is not None},
    }


def llm_arguments(spec: EngineSpec, model: str) -> dict[str, Any]:
    """The arguments of `LLM` as JSON has them; `engine_folder` is for the worker, which `LLM` to take."""
    known = {
        "tokenizer": spec.tokenizer,
        "max_seq_len": spec.max_model_len,
        "tensor_parallel_size": spec.tensor_parallel,
    }
    return {
        "model": model,
        "engine_folder": is_engine_folder(spec),
        **options(spec),
        **{key: value for key, value in known.items() if value is not None},
        **(_as_object(spec.args) or {}),
    }


def _as_object(args: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        (text,) = args
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


RECIPE = Recipe(
    kind="tensorrt_llm",
    package="tensorrt_llm",
    install="pip install tensorrt-llm, as NVIDIA's installation guide says",
    oldest=(1, 0),
    newest=(1, 2),
    tried="1.2 and the main branch after it, read and not run",
    command=_command,
    own_flags={**host.OWN_FLAGS, "--model": "say model=..."},
    words=_words,
    word_flags={"--max-seq-len": "max_model_len", "--tp-size": "tensor_parallel"},
    aliases={"--tensor-parallel-size": "--tp-size"},
    names_models=False,
)
IN_PROCESS = replace(RECIPE, command=_in_process)
