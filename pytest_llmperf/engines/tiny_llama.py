"""A small random-weight Llama with tokenizer and chat template, written locally and cached.

It serves as a real model wherever no checkpoint can be downloaded: its answers mean nothing, its
timing is that of a real engine on a small Llama. KV cache: 2 x 4 layers x 2 heads x 32 x 2 bytes
= 1 KiB per token in bfloat16.
"""

from __future__ import annotations

import json
import string
import struct
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmperf import atomic, roofline
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.roofline import ModelShape

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "tiny-llama"
"""The word that stands for this model in an engine specification."""

# Part of the folder's name: a change of anything below makes a new folder instead of a stale one.
REVISION = 1

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
}

SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>", "<|header|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|header|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant\n{% endif %}"
)


def shape_of(model: str) -> ModelShape:
    """The shape of a model by its name or folder, this one included. Raises `ConfigurationError`."""
    return roofline.shape_from(CONFIG, NAME) if model == NAME else roofline.shape_of(model)


def ensure(cache_dir: Path) -> Path:
    """Return the model's folder below `cache_dir`, writing it on first use.

    The folder appears under its final name only when it is complete, so that two processes may
    race for it. Raises `ConfigurationError` where it cannot be written.
    """
    folder = cache_dir / f"{NAME}-{REVISION}"
    if folder.is_dir():
        return folder
    try:
        with atomic.making_folder(folder) as draft:
            _write(draft)
    except OSError as error:
        raise ConfigurationError(f"{NAME}: {atomic.why(error, folder)} by XDG_CACHE_HOME") from None
    return folder


def _write(folder: Path) -> None:
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_weights(folder / "model.safetensors")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic.write(path, json.dumps(content, indent=1, ensure_ascii=False))


def _tensor_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the layout of a Hugging Face Llama checkpoint."""
    hidden, inner, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    queries = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    keys = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _write_weights(path: Path) -> None:
    """Write a safetensors file: header length (u64, little endian), JSON header, then the raw tensors.

    By hand because the format is these two lines, while the library's own writer for raw bytes
    changed its signature between 0.7 and 0.8.
    """
    generator = np.random.Generator(np.random.PCG64(7))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, shape in _tensor_shapes():
        values = np.ones(shape) if len(shape) == 1 else generator.standard_normal(shape) * CONFIG["initializer_range"]
        data = _bfloat16_bytes(values)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    atomic.write(path, struct.pack("<Q", len(text)) + text + body)


def _bfloat16_bytes(values: np.ndarray) -> bytes:
    """bfloat16 is the upper half of a float32; numpy has no type for it."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def _tokenizer() -> dict[str, Any]:
    """A byte-level BPE tokenizer: every text encodes, every id below `vocab_size` decodes."""
    alphabet = list(_byte_characters().values())
    letters = string.ascii_lowercase
    pairs = [a + b for a, b in product(letters, repeat=2)]
    words = [pair + letter for pair in pairs for letter in letters]
    free = CONFIG["vocab_size"] - len(SPECIAL_TOKENS) - len(alphabet)
    merges = [(pair[0], pair[1]) for pair in pairs] + [(word[:2], word[2]) for word in words]
    merges = list(islice(merges, free))
    tokens = [*SPECIAL_TOKENS, *alphabet, *(a + b for a, b in merges)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(i, token) for i, token in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(merge) for merge in merges],
        },
    }


def _added_token(token_id: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}


def _tokenizer_config() -> dict[str, Any]:
    begin, end, pad, header = SPECIAL_TOKENS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG["max_position_embeddings"],
        "bos_token": begin,
        "eos_token": end,
        "pad_token": pad,
        "additional_special_tokens": [header],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _byte_characters() -> dict[int, str]:
    """The printable character that byte-level BPE (GPT-2's scheme) writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
