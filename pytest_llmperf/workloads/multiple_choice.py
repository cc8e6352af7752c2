"""Questions with four options, answered in a token or a few: one of the two tasks of LLMPerf.

Short prompts, short answers: what it costs to take a request in and to compute it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.workloads.base import Session, TokenSource, Turn, check_counts, digest


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """See `multiple_choice`."""

    requests: int
    input_tokens: int
    output_tokens: int
    instruction_tokens: int
    seed: int
    token_ids: range
    namespace: str = ""

    name = "multiple_choice"

    @cached_property
    def digest(self) -> str:
        return digest(replace(self, namespace=""))

    def within(self, namespace: str) -> MultipleChoice:
        return replace(self, namespace=namespace)

    def __iter__(self) -> Iterator[Session]:
        source = TokenSource(self.seed, self.namespace, self.token_ids)
        instruction = source.draw("instruction", self.instruction_tokens)
        shared = self.instruction_tokens if self.requests > 1 else 0
        for number, length in enumerate(self._lengths()):
            question = source.draw(f"question {number}", length)
            turn = Turn(prefix=instruction, new_ids=question, output_tokens=self.output_tokens)
            yield Session(turns=(turn,), shared_tokens=shared)

    def _lengths(self) -> list[int]:
        """Of the questions with their options: the same in each namespace."""
        half = self.input_tokens // 2
        evenly = range(self.input_tokens - half, self.input_tokens + half + 1)
        if len(evenly) == 1:
            return [self.input_tokens] * self.requests
        lengths: list[int] = TokenSource(self.seed, "", evenly).draw("lengths", self.requests).tolist()
        return lengths


def multiple_choice(
    *,
    requests: int,
    input_tokens: int = 128,
    output_tokens: int = 1,
    instruction_tokens: int = 64,
    seed: int = 0,
    token_ids: range = TOKEN_IDS,
) -> MultipleChoice:
    """`requests` sessions of one turn: an instruction that all share, then a question with its four options.

    * `input_tokens`: how long a question is with its options on average; the lengths are drawn from
      `seed`, evenly from half of it to one and a half times as much.
    * `output_tokens`: how long the answer is: the letter of an option, or a few tokens more.
    * `instruction_tokens`: how long the instruction is, 0 for none.

    Made for `poisson(rate, duration_s=...)`: give `rate * duration_s` requests and a few more, so that
    they do not run out before the time does.

    Raises `ConfigurationError` listing every argument out of range.
    """
    check_counts(
        "multiple_choice",
        {
            "requests": (requests, 1),
            "input_tokens": (input_tokens, 1),
            "output_tokens": (output_tokens, 1),
            "instruction_tokens": (instruction_tokens, 0),
            "seed": (seed, 0),
        },
        token_ids,
    )
    return MultipleChoice(
        requests=requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        instruction_tokens=instruction_tokens,
        seed=seed,
        token_ids=token_ids,
    )
