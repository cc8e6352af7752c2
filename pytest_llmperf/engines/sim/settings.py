"""Every constant of the simulation, each with its unit, its source and the values it may take.

None of them was fitted to a table of one engine on one part; `docs/simulation.md` shows how far
published figures are met with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.hardware import Part
from pytest_llmperf.units import GIB, MIB, RATIO, SECONDS

AICONFIGURATOR = "aiconfigurator 0.12.0, Llama-3.1 70B FP8 and 8B BF16, 16,000 tokens"


_LONGEST_S = 60.0
_LEAST_SHARE = 0.01


def _number(default: float, unit: str, source: str, *, most: float = float("inf"), whole: bool = False) -> Any:
    bounds = {"least": _LEAST_SHARE if unit == RATIO else 0.0, "most": _LONGEST_S if unit == SECONDS else most}
    return field(default=default, metadata={"unit": unit, "source": source, "whole": whole, **bounds})


def _choice(default: str, source: str, *accepted: str) -> Any:
    return field(default=default, metadata={"unit": " | ".join(accepted), "source": source, "accepted": accepted})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How far parts get to their peaks, and how the engine schedules. A field's metadata says where it is from."""

    compute_efficiency: float = _number(
        0.6, RATIO, f"{AICONFIGURATOR}: prefill reaches 0.68 of BF16 on an H100, 0.53 on an L40S", most=1
    )
    fp8_efficiency: float = _number(0.55, RATIO, f"{AICONFIGURATOR}: prefill reaches 0.54 of FP8 on an H100", most=1)
    geforce_efficiency: float = _number(
        0.8,
        RATIO,
        "cuBLAS reaches 0.88 to 0.96 of an L20's FP32-accumulate peak (CUDA-Learn-Notes, HGEMM), less what is no GEMM",
        most=1,
    )
    memory_efficiency: float = _number(
        0.8, RATIO, f"{AICONFIGURATOR}: decode reaches 0.75 of an H100's bandwidth, overheads included", most=1
    )
    link_efficiency: float = _number(
        0.8, RATIO, "vLLM's offloading connector: about 50 of PCIe Gen5's 64 GB/s one way (blog, 2026-01-08)", most=1
    )
    gpu_link_efficiency: float = _number(0.8, RATIO, "taken to be that of the host link", most=1)
    all_reduce_latency_s: float = _number(
        20e-6, SECONDS, "a kernel launch and a round of synchronisation; no source was found"
    )
    step_overhead_s: float = _number(
        1.5e-3, SECONDS, f"{AICONFIGURATOR}: what decode on H100, H200 and L40S takes beyond 0.8 of the bandwidth"
    )
    sequence_overhead_s: float = _number(
        15e-6, SECONDS, "vLLM's scheduler takes 12.7 us per running request, its output processing 1.1 us "
        "(openfabric-systems/simllm#204, vllm-project/vllm#46112)"
    )  # fmt: skip
    request_overhead_s: float = _number(
        5e-3,
        SECONDS,
        "vLLM 0.32 on two CPU cores: TTFT less its own queue and prefill time is 3 to 5 ms within the "
        "server, 6 to 12 ms with HTTP and the client beside it",
    )
    memory_utilization: float = _number(0.9, RATIO, "default of vLLM and TensorRT-LLM", most=1)
    memory_rule: str = _choice("of_all", "vLLM: a share of all memory, less weights; TensorRT-LLM: a share of what the "
                               "engine leaves free", "of_all", "of_free")  # fmt: skip
    engine_bytes: float = _number(
        2e9, "bytes", "activations of 1.1 to 1.7 GiB (vllm-project/vllm#9003), CUDA context and graphs"
    )
    max_num_seqs: float = _number(256, "sequences", "vLLM's default; 1,024 on large GPUs", whole=True)
    max_num_batched_tokens: float = _number(2048, "tokens", "default of vLLM's server; 8,192 on large GPUs", whole=True)
    block_tokens: float = _number(16, "tokens", "default of vLLM", whole=True)
    admission: str = _choice("prompt", "vLLM admits what its prompt fits, and preempts; TensorRT-LLM what fits to its "
                             "end", "prompt", "whole")  # fmt: skip
    transfer: str = _choice("overlapped", "vLLM's connector loads while other requests go on; TensorRT-LLM's next step "
                            "waits for its copies", "overlapped", "blocking")  # fmt: skip
    offload: str = _choice("write_through", "vLLM's connector stores blocks once they are full; TensorRT-LLM when they "
                           "are evicted", "write_through", "write_back")  # fmt: skip
    load_factor: float = _number(1.25, RATIO, "prefix_hash: KubeAI's meanLoadPercentage of 125")
    ring_points: float = _number(256, "points per replica", "prefix_hash: KubeAI's replication", whole=True)
    prefix_tokens: float = _number(
        25, "tokens", "prefix_hash: KubeAI's prefixCharLength of 100, at 4 characters a token", whole=True
    )
    match_share: float = _number(0.5, RATIO, "cache_aware: SGLang's cache_threshold", most=1)
    imbalance: float = _number(
        1.5, RATIO, "cache_aware: SGLang's balance_rel_threshold; beyond it load decides", most=float("inf")
    )


LIKE: dict[str, dict[str, Any]] = {
    "vllm": {},
    "tensorrt_llm": {
        "memory_rule": "of_free",
        "engine_bytes": 5.6e9,
        "block_tokens": 64,
        "max_num_seqs": 256,
        "admission": "whole",
        "transfer": "blocking",
        "offload": "write_back",
    },
    "sglang": {"block_tokens": 1, "memory_utilization": 0.88},
}
"""What differs from vLLM, by the engine to be like.

TensorRT-LLM's 5.6 GB: from the two users on an H100 and seven on a GH200 that its benchmark publishes,
which hold for 4.71 to 6.55 GB. SGLang's share is its default `mem_fraction_static`; HiCache writes through.
"""

DEFAULT_LIKE = "vllm"

_ON_LARGE: dict[str, Any] = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}


def _is_large(part: Part | None) -> bool:
    """Whether vLLM takes its defaults for large GPUs: at least 70 GiB, and no A100."""
    return part is not None and part.memory_mib * MIB >= 70 * GIB and part.mark != "a100"


# Command-line flags that mean something here: vLLM's, SGLang's, TensorRT-LLM's.
FLAGS: dict[str, str] = {
    "--max-num-seqs": "max_num_seqs",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--gpu-memory-utilization": "memory_utilization",
    "--block-size": "block_tokens",
    "--max-running-requests": "max_num_seqs",
    "--chunked-prefill-size": "max_num_batched_tokens",
    "--mem-fraction-static": "memory_utilization",
    "--page-size": "block_tokens",
    "--max_batch_size": "max_num_seqs",
    "--max_num_tokens": "max_num_batched_tokens",
    "--free_gpu_memory_fraction": "memory_utilization",
}


def settings_for(like: str, part: Part | None, arguments: Sequence[str], overrides: Mapping[str, object]) -> Settings:
    """The constants of an engine like that one, as its part, its arguments and then `overrides` change them.

    Raises `ConfigurationError` listing every override that is unknown or out of range.
    """
    values: dict[str, Any] = {**(_ON_LARGE if _is_large(part) else {}), **LIKE[like], **_from(arguments)}
    problems = []
    known = {item.name: item for item in dataclasses.fields(Settings)}
    for name, value in {**values, **overrides}.items():
        if name not in known:
            problems.append(unknown("constant of the simulation", name, known))
        elif not _fits(value, known[name].metadata):
            problems.append(f"constants: {name}={value!r}; expected {_expected(known[name].metadata)}")
        else:
            values[name] = value
    if problems:
        raise ConfigurationError(*problems)
    settings = Settings(**values)
    if settings.max_num_seqs > settings.max_num_batched_tokens:
        raise ConfigurationError(
            f"max_num_seqs={settings.max_num_seqs:g} is more than max_num_batched_tokens="
            f"{settings.max_num_batched_tokens:g}, so that not every sequence could go on in a step"
        )
    return settings


def _from(arguments: Sequence[str]) -> dict[str, Any]:
    """Those of the engine's own arguments that the simulation knows; the others have no meaning here."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    found = {}
    for flag, value in pairwise([*words, ""]):
        if flag in FLAGS:
            try:
                number = float(value)
            except ValueError:
                raise ConfigurationError(f"args: {flag} {value}: expected a number after it") from None
            found[FLAGS[flag]] = int(number) if number.is_integer() and number > 1 else number
    return found


def _fits(value: object, metadata: Mapping[str, Any]) -> bool:
    if "accepted" in metadata:
        return value in metadata["accepted"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if not metadata["least"] <= value <= metadata["most"]:
        return False
    return not metadata["whole"] or (float(value).is_integer() and value >= 1)


def _expected(metadata: Mapping[str, Any]) -> str:
    if "accepted" in metadata:
        return "one of " + ", ".join(metadata["accepted"])
    if metadata["whole"]:
        return f"a whole number of {metadata['unit']}, at least 1"
    limit = "" if metadata["most"] == float("inf") else f" up to {metadata['most']:g}"
    unit = "" if metadata["unit"] == RATIO else f" in {metadata['unit']}"
    return f"a number{unit} from {metadata['least']:g}{limit}"
