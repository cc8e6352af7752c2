"""Conversations that people had with models, from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.base import Ids, Session, Turn, check_counts, digest
from pytest_llmperf.workloads.conversation_file import Conversation, Filters, Reading
from pytest_llmperf.workloads.sharing import run_mark, shared_with_others
from pytest_llmperf.workloads.tokens import tokens_of

_Kept = TypeVar("_Kept")


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """See `conversations`."""

    path: str
    answers: str
    cut: bool
    token_ids: range
    exact_lengths: bool
    """Whether a tokenizer made the ids; otherwise lengths are about right."""
    skipped: int
    """How many conversations of the file were left out because they cannot be used."""
    kept: tuple[Conversation, ...] = field(repr=False, compare=False)
    shared: tuple[int, ...] = field(repr=False, compare=False)
    """By conversation: with how many of its ids another one begins, too."""
    namespace: str = ""

    name = "conversations"

    @cached_property
    def digest(self) -> str:
        return digest(replace(self, namespace=""))

    def within(self, namespace: str) -> Conversations:
        return replace(self, namespace=namespace)

    def __iter__(self) -> Iterator[Session]:
        mark = run_mark(self.namespace, self.token_ids)
        for conversation, shared in zip(self.kept, self.shared, strict=True):
            if self.cut:
                yield from _pieces(conversation, mark, shared, alone=len(self.kept) == 1)
            else:
                turns = tuple(_turns(conversation, mark, recorded=self.answers == "recorded"))
                yield Session(turns=turns, shared_tokens=len(mark) + shared if len(self.kept) > 1 else 0)


def _turns(conversation: Conversation, mark: Ids, *, recorded: bool) -> Iterator[Turn]:
    """A turn for each user message."""
    for number, answer in enumerate(conversation.answers):
        yield Turn(
            prefix=None if number else np.concatenate([mark, conversation.system]),
            new_ids=conversation.messages[2 * number],
            output_tokens=len(answer),
            answer_ids=answer if recorded else None,
        )


def _pieces(conversation: Conversation, mark: Ids, shared: int, *, alone: bool) -> Iterator[Session]:
    """A session of one turn for each user message, with all before it as context."""
    before = 0 if alone else len(mark) + shared
    last = len(conversation.messages) - 2
    for number in range(0, last + 1, 2):
        prefix = np.concatenate([mark, conversation.said(number)])
        turn = Turn(
            prefix=prefix,
            new_ids=conversation.messages[number],
            output_tokens=len(conversation.messages[number + 1]),
        )
        length = len(prefix) + turn.new_tokens
        # All but the last of a conversation's prompts are the beginning of the next one.
        yield Session(turns=(turn,), shared_tokens=length if number < last else min(length, before))
        before = max(before, length)


def conversations(  # noqa: PLR0913 - most have a default that changes nothing
    path: str | PathLike[str],
    *,
    answers: str = "real",
    cut: bool = False,
    min_messages: int | None = None,
    max_messages: int | None = None,
    max_tokens: int | None = None,
    max_output_tokens: int | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    unusable: str = "error",
    tokenizer: str | PathLike[str] | None = None,
    token_ids: range = TOKEN_IDS,
) -> Conversations:
    """The conversations of a file, a session each, with the file's texts and lengths.

    The file is a JSON array or JSONL, of ShareGPT's objects (`{"conversations": [{"from": "human",
    "value": ...}, ...]}`) or of OpenAI's (`{"messages": [{"role": "user", "content": ...}, ...]}`). It
    is read once, here, one conversation at a time; what is used of it is kept as ids.

    * `answers`: "real": the tokens that the engine produces go into the history, and the file says
      how many; "recorded": the file's own answers go into the history, so that every run sends the
      same prompts, also to servers that return no token ids.
    * `cut`: each conversation becomes one-turn sessions with its first 1, 3, 5, ... messages, the
      recorded answers among them: KubeAI's prefix benchmark.
    * `min_messages`, `max_messages`: messages of user and assistant, the last a message of the assistant.
    * `max_tokens`: of a whole conversation, all answers included. `max_output_tokens`: of each answer.
    * `limit`: the first so many conversations that are left; reading ends there.
    * `sample`: so many of those, drawn from `seed`, the same everywhere, in the order of the file.
    * `unusable`: a conversation that begins with the assistant, has an empty message, an unknown role or
      no answer at all is an "error"; "skip" leaves it out and counts it in `skipped`.
    * `tokenizer`: a `tokenizer.json` or the folder with it, for the model's own ids (the extra
      `tokenizers`). Without it texts become ids of `token_ids` that are about as many and begin alike
      where the texts do; `exact_lengths` is False then.

    A leading system message is the session's context. Messages of one side in a row are taken as one,
    and a question at the end that nobody answered is left out. Every session of a run begins with the
    same few ids of the run's own.

    Raises `ConfigurationError` listing every argument out of range, or naming the place in the file
    and what was expected there.
    """
    limits = {
        "min_messages": (min_messages, 2),
        "max_messages": (max_messages, 2),
        "max_tokens": (max_tokens, 1),
        "max_output_tokens": (max_output_tokens, 1),
        "limit": (limit, 1),
        "sample": (sample, 1),
    }
    _check({"answers": (answers, ("real", "recorded")), "unusable": (unusable, ("error", "skip"))}, cut=cut)
    given = {name: rule for name, rule in limits.items() if rule[0] is not None}
    check_counts("conversations", {**given, "seed": (seed, 0)}, token_ids)
    file, tokens = Path(path), tokens_of(tokenizer, token_ids)
    mark = run_mark("", token_ids)
    most = None if max_tokens is None else max_tokens - len(mark)
    filters = Filters(min_messages, max_messages, most, max_output_tokens)
    reading = Reading(file, tokens, filters, skip=unusable == "skip")
    if filters.take_all_lengths:  # no more has to become ids than is taken
        kept = list(reading.conversations(_chosen(reading.talks(), limit, sample, seed)))
    else:
        kept = _chosen(reading.conversations(reading.talks()), limit, sample, seed)
    if not kept:
        raise reading.nothing_left([name for name in given if name.startswith(("min_", "max_"))])
    known = [_known(conversation, later=cut or answers == "recorded") for conversation in kept]
    prompts = [len(each) if cut else len(one.said(1)) for one, each in zip(kept, known, strict=True)]
    return Conversations(
        path=str(path),
        answers=answers,
        cut=cut,
        token_ids=token_ids,
        exact_lengths=tokens.exact,
        skipped=reading.skipped,
        kept=tuple(kept),
        shared=tuple(map(min, shared_with_others(known), prompts)),
    )


def _known(conversation: Conversation, *, later: bool) -> Ids:
    """What it is known to send: up to its first question, or its last one."""
    return conversation.said(len(conversation.messages) - 1 if later else 1)


def _check(words: Mapping[str, tuple[object, Sequence[str]]], *, cut: object) -> None:
    problems = [
        f"conversations: {name} must be {' or '.join(map(repr, accepted))}, got {value!r}"
        for name, (value, accepted) in words.items()
        if value not in accepted
    ]
    if not isinstance(cut, bool):
        problems.append(f"conversations: cut must be True or False, got {cut!r}")
    if problems:
        raise ConfigurationError(*problems)


def _chosen(found: Iterable[_Kept], limit: int | None, sample: int | None, seed: int) -> list[_Kept]:
    """The first of them, or some of these."""
    first = _first(found, limit)
    return list(first) if sample is None else _sampled(first, sample, seed)


def _first(found: Iterable[_Kept], limit: int | None) -> Iterator[_Kept]:
    """The first of them; no more are asked for."""
    for number, one in enumerate(found, start=1):
        yield one
        if number == limit:
            return


def _sampled(found: Iterable[_Kept], count: int, seed: int) -> list[_Kept]:
    """`count` of them, each with the same chance, in their order: a reservoir, so that the others are not kept."""
    drawn = np.random.PCG64(seed)
    kept: list[tuple[int, _Kept]] = []
    for number, one in enumerate(found):
        if number < count:
            kept.append((number, one))
            continue
        place = int(drawn.random_raw()) % (number + 1)
        if place < count:
            kept[place] = (number, one)
    return [one for _, one in sorted(kept, key=lambda each: each[0])]
