"""Users with a long context each, who ask again and again: the shape of TensorRT-LLM's KV offload
benchmark (`benchmarks/python/kv_cache_offload`), with seeded tokens and real answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.base import Ids, Session, TokenSource, Turn, check_counts, digest


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
    shared_context_tokens: int = 0
    input_growth: int = 0
    output_growth: int = 0
    forks: int = 1
    namespace: str = ""

    name = "multi_round"

    @cached_property
    def digest(self) -> str:
        return digest(replace(self, namespace=""))

    def within(self, namespace: str) -> MultiRound:
        return replace(self, namespace=namespace)

    def __iter__(self) -> Iterator[Session]:
        source = TokenSource(self.seed, self.namespace, self.token_ids)
        shared = source.draw("shared context", self.shared_context_tokens)
        for user in range(self.users):
            own = source.draw(f"context {user}", self.context_tokens - self.shared_context_tokens)
            yield Session(
                turns=tuple(self._turns(source, user, np.concatenate([shared, own]))),
                shared_tokens=self.shared_context_tokens if self.users > 1 else 0,
            )

    def _turns(self, source: TokenSource, user: int, context: Ids) -> Iterator[Turn]:
        """The first round, then the others of one branch after those of another."""
        for branch in range(self.forks):
            for number, new_ids in enumerate(self._inputs(source, user, branch)):
                if branch and not number:
                    continue  # the first round is that of all branches
                yield Turn(
                    prefix=None if number else context,
                    new_ids=new_ids,
                    output_tokens=self.output_tokens + number * self.output_growth,
                    after=0 if branch and number == 1 else None,
                )

    def _inputs(self, source: TokenSource, user: int, branch: int) -> list[Ids]:
        """The new ids of each round."""
        ends = np.cumsum([self.input_tokens + number * self.input_growth for number in range(self.rounds)])
        label = f"rounds {user} branch {branch}" if branch else f"rounds {user}"
        return np.split(source.draw(label, int(ends[-1])), ends[:-1])


def multi_round(  # noqa: PLR0913 - each is a word of its own, and most have a default
    *,
    users: int,
    rounds: int,
    context_tokens: int,
    input_tokens: int,
    output_tokens: int,
    shared_context_tokens: int = 0,
    input_growth: int = 0,
    output_growth: int = 0,
    forks: int = 1,
    seed: int = 0,
    token_ids: range = TOKEN_IDS,
) -> MultiRound:
    """Sessions of `rounds` turns, each beginning with a context.

    A turn's input is the previous input, the tokens that the engine produced for it, and
    `input_tokens` new ones; each asks for exactly `output_tokens`. A session ends at
    `context_tokens + rounds * (input_tokens + output_tokens)` tokens.

    * `shared_context_tokens`: so many leading tokens of the context are the same for all users; the
      others, and without it all, are each user's own.
    * `input_growth`, `output_growth`: how many tokens more the input and the answer of a round have
      than those of the round before.
    * `forks`: how many branches follow the first round. Each has the further rounds, with inputs of its
      own, and continues from the same first answer; a user goes through one after the other, in
      `1 + forks * (rounds - 1)` turns.

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
            "shared_context_tokens": (shared_context_tokens, 0),
            "input_growth": (input_growth, 0),
            "output_growth": (output_growth, 0),
            "forks": (forks, 1),
            "seed": (seed, 0),
        },
        token_ids,
    )
    if shared_context_tokens > context_tokens:
        raise ConfigurationError(
            "multi_round: shared_context_tokens is a part of context_tokens and can be no more than "
            f"{context_tokens}, got {shared_context_tokens}"
        )
    if forks > 1 and rounds < 2:
        raise ConfigurationError(f"multi_round: forks={forks} needs a second round to fork into; got rounds={rounds}")
    return MultiRound(
        users=users,
        rounds=rounds,
        context_tokens=context_tokens,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        shared_context_tokens=shared_context_tokens,
        input_growth=input_growth,
        output_growth=output_growth,
        forks=forks,
        seed=seed,
        token_ids=token_ids,
    )
