"""How much of what the hardware allows was reached: shares of the roofline's peaks.

A share is work that must have been done, as the time that it takes at the peak, over the time in which it was done:

    prefill     FLOPs of the prompt tokens computed / peak FLOP/s  over  the time in which a first token was waited for
    decode      bytes that the decode steps read / peak bytes/s    over  the time in which answers were under way
    host link   bytes of KV cache restored / peak bytes/s          over  the time in which a first token was waited for

Both sides are those of a run as a whole, and runs are added up: requests that overlap share the GPU, so their work
is added, and time in which several of them wait counts once. What was done for others in that time, and work that no
record shows (recomputation after a preemption, padding, a scheduler's pause), makes a share smaller. Nothing
makes it larger: a share above 1 belies the assumptions.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pytest_llmperf import units
from pytest_llmperf.arrivals import UNKNOWN
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.engines.placement import gpu_count
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.engines.tiny_llama import shape_of
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware import Hardware, Part
from pytest_llmperf.metrics import columns
from pytest_llmperf.records import RequestRecord, RunRecord
from pytest_llmperf.roofline import Deployment, ModelShape, deployed

# A peak is a number of three digits, and times are whole nanoseconds.
_ROUNDING = 0.01
_TERA, _GIGA = 1e12, 1e9

# Arguments of an engine that make it serve something else than its specification says.
_OTHERWISE = re.compile(
    r"--(model|config|dtype|quantization|kv-cache-dtype)(=|$)"
    r"|--(tensor|pipeline|data|decode-context|prefill-context)-parallel|--speculative|--hf-"
    r"|-(q|tp|pp|dp|dcp|pcp)(=|$)"
)
_SIXTEEN_BIT = (None, "auto", "bfloat16", "float16", "half")
# Names of repositories with quantised weights, whose format only their configuration tells.
_QUANTISED = re.compile(r"fp8|fp4|int8|int4|gptq|awq|gguf|bnb|w\d+a\d+|\d-?bit", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Shares of the roofline's peaks, 1 being all of it; None where one was not measured."""

    prefill: float | None
    """Of the FLOP/s."""
    decode: float | None
    """Of the memory's bandwidth."""
    link: float | None
    """Of the host link's bandwidth, in one direction."""
    assumptions: str
    """What the shares are computed with."""

    @property
    def shares(self) -> dict[str, float]:
        """What was measured, by the names that people read."""
        shares = {"prefill": self.prefill, "decode": self.decode, "host link": self.link}
        return {name: share for name, share in shares.items() if share is not None}

    @property
    def doubts(self) -> tuple[str, ...]:
        """What cannot be, and so says that an assumption is wrong."""
        beyond = [f"{name} {units.share(share)}" for name, share in self.shares.items() if share > 1 + _ROUNDING]
        if not beyond:
            return ()
        return (
            f"more than the roofline allows ({', '.join(beyond)}): the model, a dtype or the part is not what was "
            "assumed, the server gives several tokens a step, or the clock lied",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What a measurement is held against: equal replicas behind one address.

    `prefix_caching`: None where it is not known.
    """

    deployment: Deployment
    replicas: int = 1
    prefix_caching: bool | None = None

    @property
    def attention_peak(self) -> float:
        """FLOP/s of one GPU: FP8 where the KV cache is and the part can, as engines may multiply what they store."""
        part = self.deployment.part
        if self.deployment.kv_element_bytes <= 1 and part.flops_fp8 is not None:
            return part.flops_fp8.value
        return part.flops_16bit.value

    def prefill_s(self, new: int, cached: int) -> float:
        """Seconds that computing `new` prompt tokens after `cached` ones takes of one replica at the peaks.

        Linear layers in the weights' arithmetic, attention in the KV cache's, the head of one token in 16 bits.
        """
        deployment = self.deployment
        pairs = deployment.attention_pairs(new, cached)
        return (
            new * deployment.linear_flops_per_token / deployment.linear_peak
            + pairs * deployment.attention_flops_per_pair / self.attention_peak
            + deployment.head_flops_per_sample / deployment.part.flops_16bit.value
        )

    def decode_s(self, steps: int, context: int) -> float:
        """Seconds that so many steps take of one replica at the peak: the weights for each, and the KV cache of so
        many tokens over all steps and sequences."""
        deployment = self.deployment
        read = steps * deployment.read_bytes + context * deployment.kv_bytes_per_token
        return read / deployment.part.bandwidth.value

    def restore_s(self, restored_bytes: int) -> float:
        """Seconds that bringing these bytes from the host takes of one replica at the peak."""
        return restored_bytes / (self.deployment.part.host_link.value * self.deployment.gpus)

    def describe(self) -> str:
        """One line: what is assumed to run on what, and its peaks."""
        deployment, part = self.deployment, self.deployment.part
        fp8 = "" if part.flops_fp8 is None else f"{part.flops_fp8.value / _TERA:.0f} TFLOP/s in FP8, "
        behind = "" if self.replicas == 1 else f"{self.replicas} replicas of "
        return (
            f"{behind}{deployment.describe()}; peaks of each GPU: {fp8}{part.flops_16bit.value / _TERA:.0f} TFLOP/s in "
            f"16 bits, {part.bandwidth.value / _TERA:.2f} TB/s, host link {part.host_link.value / _GIGA:.0f} GB/s; one "
            "token per step and sequence"
        )


def roof_of(spec: EngineSpec, hardware: Hardware, *, model: str, prefix_caching: bool | None = None) -> Roof | None:
    """What an engine on that hardware is held against; None unless all that decides about it is known.

    `model`: the name that the engine goes by, where the specification gives none. Never raises: a
    model's configuration that is odd in any way is an unknown one.
    """
    part, counts = _part(hardware), _counts(spec, len(hardware.gpus))
    foreign = spec.url is not None
    if part is None or counts is None or (foreign and spec.dtype is None) or _is_otherwise(spec.args):
        return None
    gpus, replicas = counts
    name = spec.model or model
    try:
        shape = shape_of(name)
        dtype = _dtype(spec.dtype, shape, name)
        deployment = deployed(shape, part, dtype=dtype, kv_cache_dtype=spec.kv_cache_dtype, gpus=gpus)
    except (ConfigurationError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
        return None
    known = spec.prefix_caching if prefix_caching is None else prefix_caching
    return Roof(deployment=deployment, replicas=replicas, prefix_caching=known)


def ceiling_of(runs: Sequence[RunRecord], roof: Roof, shared_tokens: Sequence[int] = ()) -> Ceiling | None:
    """The shares that these runs reached together; None where none could be measured.

    `shared_tokens`: by session, how many leading tokens others begin with, too. An engine may read their KV cache
    once for several sequences, so decode leaves it out.
    """
    ceiling = Ceiling(
        prefill=_share([_prefill(run, roof) for run in runs]),
        # Which replica served whom is not known, and so not how often the weights were read.
        decode=_share([_decode(run, roof, shared_tokens) for run in runs]) if roof.replicas == 1 else None,
        link=_share([_link(run, roof) for run in runs]),
        assumptions=roof.describe(),
    )
    return ceiling if ceiling.shares else None


def _part(hardware: Hardware) -> Part | None:
    """The one known part that all GPUs are."""
    parts = {gpu.part for gpu in hardware.gpus}
    return parts.pop() if len(parts) == 1 else None


def _counts(spec: EngineSpec, present: int) -> tuple[int, int] | None:
    """GPUs of a replica, and how many replicas there can be at most; None where that is not known."""
    gpus = spec.tensor_parallel or 1
    replicas = gpu_count(spec) // gpus  # those that share a GPU can do no more than one that has it to itself
    if spec.kind == "sim":
        return gpus, replicas
    if spec.url is not None:
        if spec.tensor_parallel is None and present > 1:
            return None
        replicas = present // gpus
    return (gpus, replicas) if 1 <= gpus * replicas <= present else None


def _is_otherwise(arguments: Iterable[str]) -> bool:
    return any(_OTHERWISE.match(argument.replace("_", "-")) for argument in arguments)


def _dtype(wanted: str | None, shape: ModelShape, name: str) -> str | None:
    """The weights' format. A 16-bit dtype says how a quantised checkpoint is multiplied, not how it is stored.

    Raises `ConfigurationError` where only the name says that it is quantised.
    """
    if wanted not in _SIXTEEN_BIT:
        return wanted
    if shape.quantization is None and _QUANTISED.search(name.rstrip("/").rsplit("/", 1)[-1]):
        raise ConfigurationError(f"how {name} is quantised is not known")
    return None if shape.quantization is not None else wanted


class _Use(NamedTuple):
    """Of what is used in one run: the seconds that it took at its peak, and those that there were."""

    needed_s: float
    available_s: float


def _share(uses: Sequence[_Use | None]) -> float | None:
    """The share over all runs; None where one of them does not tell."""
    known = [use for use in uses if use is not None]
    available_s = sum(use.available_s for use in known)
    if len(known) < len(uses) or not available_s:
        return None
    return sum(use.needed_s for use in known) / available_s


def _prefill(run: RunRecord, roof: Roof) -> _Use | None:
    needed_s = 0.0
    waits = []
    for request in run.counted:
        wait = _wait(request)
        if not request.ok or wait is None:
            continue
        computed = _computed(request, roof)
        if computed is None:
            return None
        needed_s += roof.prefill_s(*computed)
        waits.append(wait)
    return _Use(needed_s, _busy_s(waits, roof.replicas))


def _wait(request: RequestRecord) -> tuple[int, int] | None:
    """From the send to the first token, ns."""
    if request.sent_ns is None or request.first_token_ns is None:
        return None
    return request.sent_ns, request.first_token_ns


def _computed(request: RequestRecord, roof: Roof) -> tuple[int, int] | None:
    """How many prompt tokens were computed, and after how many cached ones; None where the server does not say."""
    cached = 0 if roof.prefix_caching is False else request.cached_tokens
    if request.prompt_tokens is None or cached is None:
        return None
    return max(0, request.prompt_tokens - cached), cached


class _Stream(NamedTuple):
    """An answer after its first arrival."""

    first_ns: int
    last_ns: int
    steps: int
    """Tokens that came after it, each from a step of its own."""
    context: int
    """Tokens whose KV cache these steps read, added up."""
    request: RequestRecord


def _decode(run: RunRecord, roof: Roof, shared_tokens: Sequence[int]) -> _Use | None:
    answered = [request for request in run.counted if request.ok and len(request.arrivals)]
    if any(request.output_tokens is None or request.prompt_tokens is None for request in answered):
        return None
    streams = list(_streams(answered, shared_tokens))
    context = sum(stream.context for stream in streams)
    needed_s = roof.decode_s(_least_steps(streams), context)
    return _Use(needed_s, _busy_s([(stream.first_ns, stream.last_ns) for stream in streams], 1))


def _streams(answered: Iterable[RequestRecord], shared_tokens: Sequence[int]) -> Iterator[_Stream]:
    """The answers of which time between tokens was seen."""
    for request in answered:
        first_ns, last_ns = request.first_token_ns, request.last_token_ns
        prompt, output = request.prompt_tokens, request.output_tokens
        if first_ns is None or last_ns is None or prompt is None or output is None:
            continue
        at_first = request.arrivals[0].tokens
        # Where chunks are not counted, each holds a token at least.
        steps = len(request.arrivals) - 1 if at_first is None else output - at_first
        if steps < 1 or last_ns <= first_ns:
            continue
        shared = shared_tokens[request.session] if request.session < len(shared_tokens) else 0
        # The first of them reads the prompt's KV cache and that of what had come, its own input left out.
        own = max(0, prompt - shared) + (output - steps - 1)
        yield _Stream(first_ns, last_ns, steps, steps * own + steps * (steps - 1) // 2, request)


def _least_steps(streams: Iterable[_Stream]) -> int:
    """So many steps one replica made at least, each of which read the weights.

    One answer is followed to its end, then another of those under way, and so on. The tokens on this way came one
    after the other, so each is from another step. After a change the first arrival is left out: tokens of one step do
    not arrive at quite the same time.
    """
    ordered = sorted(streams, key=lambda stream: stream.first_ns)
    steps, reached_ns, begun = 0, -1, 0
    under_way: list[_Stream] = []
    while begun < len(ordered) or under_way:
        while begun < len(ordered) and ordered[begun].first_ns <= reached_ns:
            under_way.append(ordered[begun])
            begun += 1
        under_way = [stream for stream in under_way if stream.last_ns > reached_ns]
        if under_way:
            followed = _quickest(under_way, reached_ns)
            steps += _steps_after(followed, reached_ns)
            reached_ns = followed.last_ns
        elif begun < len(ordered):  # after a pause
            reached_ns = ordered[begun].first_ns
    return steps


def _quickest(streams: Sequence[_Stream], from_ns: int) -> _Stream:
    """The one with the most tokens per second left, about, the one lost by the change deducted.

    It need not be the best: a preempted answer is to be avoided, and one that ends at once.
    """
    return max(streams, key=lambda s: s.steps / (s.last_ns - s.first_ns) - 1 / (s.last_ns - from_ns))


def _steps_after(stream: _Stream, at_ns: int) -> int:
    """Tokens that certainly came from later steps than any that had arrived at some moment."""
    if at_ns == stream.first_ns:
        return stream.steps
    arrivals = columns(stream.request)
    later = arrivals.tokens[bisect_right(arrivals.at_ns, at_ns) + 1 :]
    return len(later) if UNKNOWN in later else sum(later)


def _link(run: RunRecord, roof: Roof) -> _Use | None:
    """A prefix is restored before the first token; where requests were preempted, perhaps also after it."""
    restored = run.cache.restored_bytes
    if restored is None:
        return None
    early = run.cache.preemptions == 0
    spans = []
    for request in run.requests:
        if request.sent_ns is not None:
            first_ns = request.first_token_ns if early and request.ok else None
            spans.append((request.sent_ns, request.end_ns if first_ns is None else first_ns))
    return _Use(roof.restore_s(restored), _busy_s(spans, roof.replicas))


def _busy_s(spans: Sequence[tuple[int, int]], replicas: int) -> float:
    """For how long so many replicas could be at work on these, added up: each on one of the spans at least."""
    if not spans:
        return 0.0
    edges = np.array(spans, np.int64)
    moments = np.concatenate([edges[:, 0], edges[:, 1]])
    changes = np.repeat(np.array([1, -1], np.int64), len(spans))
    order = np.argsort(moments, kind="stable")
    active = np.minimum(np.cumsum(changes[order]), replicas)
    return float(np.sum(active[:-1] * np.diff(moments[order]))) / NS_PER_S
