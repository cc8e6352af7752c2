"""A model on parts: which bytes lie where, and what work a step is.

Everything is per GPU of a tensor-parallel group, whose members share the work evenly. Formulas:

    linear          2 FLOPs per weight and token
    attention       4 * layers * heads * head size * (n*c + n*n/2) FLOPs, n new tokens after c cached ones
    KV cache        2 * layers * KV heads * head size * bytes per element and token
    all-reduce      two per layer; 2 * (g-1)/g of the activations pass each GPU's link (ring)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.hardware import Part
from pytest_llmperf.roofline.models import ModelShape
from pytest_llmperf.units import GIB, MIB

_ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How linear layers are stored and multiplied; embedding and head stay in 16 bits.

    `linear_bytes` per weight, scales included.
    """

    name: str
    linear_bytes: float
    fp8_arithmetic: bool = False


_16_BIT = WeightFormat("bfloat16", 2.0)
_FP8 = WeightFormat("fp8", 1.0, fp8_arithmetic=True)
# Four bits and, per group of 128, a 16-bit scale and a zero point: 4.16 bits.
_INT4 = WeightFormat("int4", 0.52)

DTYPES: dict[str, WeightFormat] = {
    "bfloat16": _16_BIT,
    "float16": _16_BIT,
    "half": _16_BIT,
    "fp8": _FP8,
    "awq": _INT4,
    "gptq": _INT4,
    "int4": _INT4,
}
KV_DTYPES: dict[str, float] = {
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
}
"""Bytes per element."""


@dataclass(frozen=True)
class Deployment:
    """One replica: a model in these formats over `gpus` equal parts."""

    model: ModelShape
    part: Part
    weights: WeightFormat
    kv_element_bytes: float
    gpus: int = 1
    sharers: int = 1
    """How many replicas run on the same GPUs."""

    @cached_property
    def weight_bytes(self) -> float:
        """Weights that one GPU holds."""
        model = self.model
        embeddings = (1 if model.tied else 2) * model.head_parameters
        return (model.linear_parameters * self.weights.linear_bytes + embeddings * 2.0) / self.gpus

    @cached_property
    def read_bytes(self) -> float:
        """Weights that one GPU reads in a step: all but the embedding, of which a step looks up rows."""
        model = self.model
        return (model.linear_parameters * self.weights.linear_bytes + model.head_parameters * 2.0) / self.gpus

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token on one GPU; heads are not split further than one per GPU."""
        model = self.model
        heads = max(1.0, model.kv_heads / self.gpus)
        return 2 * model.layers * heads * model.head_size * self.kv_element_bytes

    @cached_property
    def linear_flops_per_token(self) -> float:
        return 2.0 * self.model.linear_parameters / self.gpus

    @cached_property
    def head_flops_per_sample(self) -> float:
        return 2.0 * self.model.head_parameters / self.gpus

    @cached_property
    def attention_flops_per_pair(self) -> float:
        """For one query token and one token that it attends to."""
        model = self.model
        return 4.0 * model.layers * model.heads * model.head_size / self.gpus

    @cached_property
    def all_reduce_bytes_per_token(self) -> float:
        """What passes each GPU's link, in each direction."""
        exchanged = 2 * self.model.layers * self.model.hidden * _ACTIVATION_BYTES
        return exchanged * 2.0 * (self.gpus - 1) / self.gpus

    @property
    def all_reduces(self) -> int:
        """Per step."""
        return 2 * self.model.layers if self.gpus > 1 else 0

    @property
    def linear_peak(self) -> float:
        """FLOP/s of one GPU in the arithmetic of the linear layers."""
        part = self.part
        if self.weights.fp8_arithmetic and part.flops_fp8 is not None:
            return part.flops_fp8.value
        return part.flops_16bit.value

    @property
    def memory_bytes(self) -> int:
        """Of one GPU, as its driver reports it."""
        return self.part.memory_mib * MIB

    @staticmethod
    def attention_pairs(new: float, cached: float) -> float:
        """Pairs of a query token and one that it attends to, causal."""
        return new * (cached + new / 2)

    def prefill_flops(self, new: float, cached: float) -> float:
        """What computing `new` prompt tokens after `cached` ones takes of one GPU."""
        pairs = self.attention_flops_per_pair * self.attention_pairs(new, cached)
        return self.linear_flops_per_token * new + pairs + self.head_flops_per_sample

    def describe(self) -> str:
        """One line: what is assumed to run on what."""
        count = "" if self.gpus == 1 else f"{self.gpus} x "
        where = f"{count}{self.part.key}" + ("" if self.sharers == 1 else f", shared by {self.sharers}")
        return (
            f"{self.model.name} with {self.weights.name} weights ({self.weight_bytes * self.gpus / GIB:.1f} GiB) and "
            f"{self.kv_bytes_per_token * self.gpus / 1024:.0f} KiB of KV cache per token on {where}"
        )


def deployed(
    model: ModelShape, part: Part, *, dtype: str | None = None, kv_cache_dtype: str | None = None, gpus: int = 1
) -> Deployment:
    """A model on parts, with the dtypes by the names that engines give them; None and "auto": the checkpoint's own.

    Raises `ConfigurationError` listing what the part or the model cannot do.
    """
    problems = dtype_problems(dtype, kv_cache_dtype)
    name = model.quantization or "bfloat16" if dtype in (None, "auto") else dtype
    weights = DTYPES.get(name or "")
    if weights is None and name == model.quantization:
        problems.append(
            f"{model.name} is stored as {name!r}, which is not modelled; give dtype=..., one of {', '.join(DTYPES)}"
        )
    elif weights is not None and weights.fp8_arithmetic and part.flops_fp8 is None:
        in_16_bit = Deployment(model, part, _16_BIT, 2.0, gpus).weight_bytes
        problems.append(
            f"dtype 'fp8': {part.key} has no FP8 arithmetic; in bfloat16 the weights need "
            f"{in_16_bit / GIB:.1f} GiB of each GPU's {part.memory_mib * MIB / GIB:.1f} GiB"
        )
    if model.heads % gpus:
        problems.append(f"tensor_parallel={gpus} does not divide the {model.heads} attention heads of {model.name}")
    if problems:
        raise ConfigurationError(*problems)
    assert weights is not None
    kv_name = "bfloat16" if kv_cache_dtype in (None, "auto") else kv_cache_dtype
    return Deployment(model, part, weights, KV_DTYPES[kv_name or "bfloat16"], gpus)


def dtype_problems(dtype: str | None, kv_cache_dtype: str | None) -> list[str]:
    """What is wrong with these names, whatever the model and the part are."""
    given = (("dtype", dtype, DTYPES), ("kv_cache_dtype", kv_cache_dtype, KV_DTYPES))
    return [
        unknown(word, name, ["auto", *known])
        for word, name, known in given
        if name not in (None, "auto") and name not in known
    ]
