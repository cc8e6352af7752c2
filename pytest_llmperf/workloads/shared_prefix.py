"""Groups of requests that begin alike: system prompts, few-shot examples, documents asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.workloads.base import Session, TokenSource, Turn, check_counts, digest


@dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """See `shared_prefix`."""

    prefixes: int
    requests_per_prefix: int
    prefix_tokens: int
    input_tokens: int
    output_tokens: int
    seed: int
    token_ids: range
    namespace: str = ""

    name = "shared_prefix"

    @cached_property
    def digest(self) -> str:
        return digest(replace(self, namespace=""))

    def within(self, namespace: str) -> SharedPrefix:
        return replace(self, namespace=namespace)

    def __iter__(self) -> Iterator[Session]:
        source = TokenSource(self.seed, self.namespace, self.token_ids)
        prefixes = [source.draw(f"prefix {group}", self.prefix_tokens) for group in range(self.prefixes)]
        for number in range(self.requests_per_prefix):
            for group, prefix in enumerate(prefixes):
                ids = source.draw(f"request {group} {number}", self.input_tokens)
                turn = Turn(prefix=prefix, new_ids=ids, output_tokens=self.output_tokens)
                yield Session(turns=(turn,), shared_tokens=self.prefix_tokens)


def shared_prefix(
    *,
    prefixes: int,
    requests_per_prefix: int,
    prefix_tokens: int,
    input_tokens: int,
    output_tokens: int,
    seed: int = 0,
    token_ids: range = TOKEN_IDS,
) -> SharedPrefix:
    """`prefixes` groups of `requests_per_prefix` one-turn sessions, taken from the groups in turn.

    Each input is its group's prefix and `input_tokens` ids of its own. Behind several replicas choose a number of
    prefixes that has no factor in common with theirs, or a router that knows nothing of prefixes sends each always to
    the same one, by accident.

    Raises `ConfigurationError` listing every argument out of range.
    """
    check_counts(
        "shared_prefix",
        {
            "prefixes": (prefixes, 1),
            "requests_per_prefix": (requests_per_prefix, 1),
            "prefix_tokens": (prefix_tokens, 1),
            "input_tokens": (input_tokens, 1),
            "output_tokens": (output_tokens, 1),
            "seed": (seed, 0),
        },
        token_ids,
    )
    return SharedPrefix(
        prefixes=prefixes,
        requests_per_prefix=requests_per_prefix,
        prefix_tokens=prefix_tokens,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        seed=seed,
        token_ids=token_ids,
    )
