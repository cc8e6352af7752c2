"""Independent requests of one length: the plainest load there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.workloads.base import Session, TokenSource, Turn, check_counts, digest

_NO_CONTEXT = np.empty(0, np.int32)


@dataclass(frozen=True, kw_only=True)
class SingleTurn:
    """See `single_turn`."""

    requests: int
    input_tokens: int
    output_tokens: int
    seed: int
    token_ids: range
    namespace: str = ""

    name = "single_turn"

    @cached_property
    def digest(self) -> str:
        return digest(replace(self, namespace=""))

    def within(self, namespace: str) -> SingleTurn:
        return replace(self, namespace=namespace)

    def __iter__(self) -> Iterator[Session]:
        source = TokenSource(self.seed, self.namespace, self.token_ids)
        for number in range(self.requests):
            ids = source.draw(f"request {number}", self.input_tokens)
            yield Session(turns=(Turn(prefix=_NO_CONTEXT, new_ids=ids, output_tokens=self.output_tokens),))


def single_turn(
    *, requests: int, input_tokens: int, output_tokens: int, seed: int = 0, token_ids: range = TOKEN_IDS
) -> SingleTurn:
    """`requests` sessions of one turn, with nothing in common.

    Raises `ConfigurationError` listing every argument out of range.
    """
    check_counts(
        "single_turn",
        {
            "requests": (requests, 1),
            "input_tokens": (input_tokens, 1),
            "output_tokens": (output_tokens, 1),
            "seed": (seed, 0),
        },
        token_ids,
    )
    return SingleTurn(
        requests=requests, input_tokens=input_tokens, output_tokens=output_tokens, seed=seed, token_ids=token_ids
    )
