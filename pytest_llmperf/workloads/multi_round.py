"""Users with a long context each, who ask again and again: the shape of TensorRT-LLM's KV offload
benchmark (`benchmarks/python/kv_cache_offload`), with seeded tokens and real answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.workloads.base import Session, TokenSource, Turn, check_counts, digest


@dataclass(frozen=True, kw_only=True)
class MultiRound:
    """See `multi_round`."""

    users: int
    rounds: int
    context_tokens: int
    input_tokens: int
    output_tokens: int
    seed: int
    token_ids: range
    namespace: str = ""

    name = "multi_round"

    @cached_property
    def digest(self) -> str:
        return digest(replace(self, namespace=""))

    def within(self, namespace: str) -> MultiRound:
        return replace(self, namespace=namespace)

    def __iter__(self) -> Iterator[Session]:
        source = TokenSource(self.seed, self.namespace, self.token_ids)
        for user in range(self.users):
            context = source.draw(f"context {user}", self.context_tokens)
            fresh = source.draw(f"rounds {user}", self.rounds * self.input_tokens)
            yield Session(
                turns=tuple(
                    Turn(
                        prefix=context if number == 0 else None,
                        new_ids=new_ids,
                        output_tokens=self.output_tokens,
                    )
                    for number, new_ids in enumerate(np.split(fresh, self.rounds))
                )
            )


def multi_round(
    *,
    users: int,
    rounds: int,
    context_tokens: int,
    input_tokens: int,
    output_tokens: int,
    seed: int = 0,
    token_ids: range = TOKEN_IDS,
) -> MultiRound:
    """Sessions of `rounds` turns, each beginning with a private context.

    A turn's input is the previous input, the tokens that the engine produced for it, and
    `input_tokens` new ones; each asks for exactly `output_tokens`. A session ends at
    `context_tokens + rounds * (input_tokens + output_tokens)` tokens.

    Raises `ConfigurationError` listing every argument out of range.
    """
    check_counts(
        "multi_round",
        {
            "users": (users, 1),
            "rounds": (rounds, 1),
            "context_tokens": (context_tokens, 0),
            "input_tokens": (input_tokens, 1),
            "output_tokens": (output_tokens, 1),
            "seed": (seed, 0),
        },
        token_ids,
    )
    return MultiRound(
        users=users,
        rounds=rounds,
        context_tokens=context_tokens,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        seed=seed,
        token_ids=token_ids,
    )
