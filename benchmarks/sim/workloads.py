"""The published experiments' inputs, as far as they are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from drive import single

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.workloads import Session, Trace, trace
from pytest_llmperf.workloads.base import TokenSource


def mooncake(folder: Path) -> Trace:
    """The conversation trace at its own times."""
    return trace(folder / "mooncake" / "conversation_trace.jsonl")


def cut_up_conversations(
    *, prompts: int, requests: int, mean_input: float, mean_output: float, seed: int
) -> list[Session]:
    """What KubeAI's script makes of ShareGPT conversations of 16 messages and more.

    Each conversation becomes prompts of its first 1, 3, 5, ... messages; the first `prompts` of them are shuffled and
    repeated in that order. The file itself is not here: there are eight prompts to a conversation, the fewest that the
    file allows, and the messages' lengths are lognormal, scaled to the published means.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    source = TokenSource(seed, "", TOKEN_IDS)
    turns = 8
    cut: list[tuple[int, int, int]] = []
    for number in range(-(-prompts // turns)):
        scale = rng.lognormal(0, 0.6)
        asked = np.maximum(4, rng.lognormal(math.log(20 * scale), 0.8, turns).astype(int))
        answered = np.maximum(4, rng.lognormal(math.log(50 * scale), 0.6, turns).astype(int))
        lengths = np.cumsum(asked + answered) - answered
        cut += [(number, length, answer) for length, answer in zip(lengths.tolist(), answered.tolist(), strict=True)]
    cut = cut[:prompts]
    stretch = mean_input / np.mean([length for _, length, _ in cut])
    longer = mean_output / np.mean([answer for _, _, answer in cut])
    texts = [source.draw(f"conversation {number}", 40_000) for number in range(-(-prompts // turns))]
    made = [
        single(texts[number][: max(4, round(length * stretch))], max(1, round(answer * longer)))
        for number, length, answer in cut
    ]
    order = rng.permutation(len(made))
    return [made[order[number % len(made)]] for number in range(requests)]
