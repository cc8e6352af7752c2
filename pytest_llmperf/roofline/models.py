"""The shapes of decoder-only transformers, built in or read from a Hugging Face `config.json`."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.files import MIB, json_of, read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of a model's configuration decides about its speed. Counts, no units."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    """Whether the head shares the embedding's weights."""
    longest: int
    """Positions that the model was made for, tokens."""
    quantization: str | None = None
    """How the checkpoint's linear layers are stored; None: in 16 bits."""

    @property
    def linear_parameters(self) -> int:
        """Weights that every token is multiplied with: attention projections and gated MLP."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Weights of the language-model head, which is applied only where a token is sampled."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights, norms included."""
        norms = self.hidden * (2 * self.layers + 1)
        return self.linear_parameters + norms + (1 if self.tied else 2) * self.head_parameters


SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape(
            name="llama-3.1-8b", layers=32, hidden=4096, heads=32, kv_heads=8, head_size=128, intermediate=14_336,
            vocabulary=128_256, longest=131_072,
        ),
        ModelShape(
            name="llama-3.1-70b", layers=80, hidden=8192, heads=64, kv_heads=8, head_size=128, intermediate=28_672,
            vocabulary=128_256, longest=131_072,
        ),
        ModelShape(
            name="qwen2-7b", layers=28, hidden=3584, heads=28, kv_heads=4, head_size=128, intermediate=18_944,
            vocabulary=152_064, longest=32_768,
        ),
        ModelShape(
            name="qwen2-72b-awq", layers=80, hidden=8192, heads=64, kv_heads=8, head_size=128, intermediate=29_696,
            vocabulary=152_064, longest=32_768, quantization="awq",
        ),
    )
}  # fmt: skip
"""Shapes by the name that a repository's name is reduced to. From the `config.json` of
meta-llama/Llama-3.1-8B, meta-llama/Llama-3.1-70B, Qwen/Qwen2-7B and Qwen/Qwen2-72B-Instruct-AWQ."""

_MOST_BYTES = 16 * MIB
_LARGEST = 10**9
"""No layer is as wide, no vocabulary as large."""
_LONGEST_WORD = 40
# What repositories add to a model's name without changing its shape.
_ADDITIONS = re.compile(r"^meta-|-(instruct|chat|hf|bf16|dynamic)\b")
_QUANTIZED = re.compile(r"-(fp8|awq|gptq|int4)\b")
_UNSUPPORTED = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "multi-head latent attention",
    "ssm_cfg": "a state-space model",
    "mamba_d_state": "a state-space model",
    "is_encoder_decoder": "an encoder with a decoder",
}
_UNSUPPORTED_TYPES = ("mamba", "bert", "t5", "rwkv", "jamba")


def shape_of(model: str) -> ModelShape:
    """The shape of a model: a folder or file of its configuration, a built-in name, or one in the local hub cache.

    Raises `ConfigurationError` where it is not known or not of a kind that is modelled.
    """
    path = Path(model).expanduser()
    for file in (path / "config.json", path):
        if file.is_file():
            return _read(file, path.name)
    built_in = _built_in(_reduced(model))
    if built_in is not None:
        return built_in
    cached = _cached(model)
    if cached is not None:
        return _read(cached, model)
    known = unknown("model", model, SHAPES)
    raise ConfigurationError(f"{known}; or a folder with the model's config.json")


def shape_from(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a Hugging Face configuration describes.

    Raises `ConfigurationError` naming what is missing, or what is not modelled.
    """
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise ConfigurationError(f"the configuration of {name}: text_config is {reprlib.repr(text)}, not an object")
    odd = [what for key, what in _UNSUPPORTED.items() if text.get(key)]
    odd += [
        f"of the type {reprlib.repr(text.get('model_type'))}"
        for kind in _UNSUPPORTED_TYPES
        if kind in str(text.get("model_type"))
    ]
    if _slides(text):
        odd.append("one with sliding-window attention")
    if odd:
        raise ConfigurationError(
            f"{name} is {odd[0]}, which the roofline does not model; use a dense decoder with full attention"
        )
    wanted = (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings",
    )  # fmt: skip
    wrong = [f"{key} is {reprlib.repr(text.get(key))}" for key in wanted if not _is_count(text.get(key))]
    wrong += [
        f"{key} is {reprlib.repr(text[key])}"
        for key in ("num_key_value_heads", "head_dim")
        if not _is_count(text.get(key) or 1)
    ]
    if wrong:
        raise ConfigurationError(
            f"the configuration of {name}: {', '.join(wrong)}; expected whole numbers from 1 to {_LARGEST:,}"
        )
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    kv_heads = text.get("num_key_value_heads") or heads
    if heads % kv_heads or (not text.get("head_dim") and hidden % heads):
        raise ConfigurationError(
            f"the configuration of {name}: hidden size {hidden}, {heads} attention heads and {kv_heads} key-value "
            "heads do not go together; expected each to be a multiple of the next"
        )
    return ModelShape(
        name=name,
        layers=text["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=text.get("head_dim") or hidden // heads,
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        longest=text["max_position_embeddings"],
        quantization=_quantization(config),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _slides(text: Mapping[str, Any]) -> bool:
    """Whether some layer attends to a window only."""
    window = text.get("sliding_window")
    slides = isinstance(window, int) and text.get("use_sliding_window", True) and not text.get("layer_types")
    layers, longest = text.get("layer_types"), text.get("max_position_embeddings")
    return bool(slides and window and isinstance(longest, int) and window < longest) or (
        isinstance(layers, list) and "sliding_attention" in layers
    )


def _quantization(config: Mapping[str, Any]) -> str | None:
    told = config.get("quantization_config")
    method = told.get("quant_method") if isinstance(told, dict) else told
    return None if method is None else str(method)[:_LONGEST_WORD]


def _read(file: Path, name: str) -> ModelShape:
    try:
        config = json_of(read_text(file, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise ConfigurationError(f"{file} is no readable model configuration: {reason}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{file} is no model configuration: expected a JSON object")
    return shape_from(config, name)


def _built_in(name: str) -> ModelShape | None:
    """The shape of that name, its weights as the name says."""
    quantized = _QUANTIZED.search(name)
    if name in SHAPES or quantized is None:
        return SHAPES.get(name)
    shape = SHAPES.get(_QUANTIZED.sub("", name))
    return None if shape is None else replace(shape, quantization=quantized[1])


def _reduced(model: str) -> str:
    return _ADDITIONS.sub("", model.rstrip("/").rsplit("/", 1)[-1].lower())


def _cached(model: str) -> Path | None:
    """The configuration in the hub's cache on this machine, by that cache's own layout."""
    home = os.environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    snapshots = Path(home, "hub", f"models--{model.replace('/', '--')}", "snapshots")
    return next(iter(sorted(snapshots.glob("*/config.json"))), None) if "/" in model else None
