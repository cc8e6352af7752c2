"""Conversations that people had with models, from a file: ShareGPT's form, or the messages of OpenAI's API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.units import count
from pytest_llmperf.workloads.base import Ids, Session, Turn, check_counts, digest
from pytest_llmperf.workloads.elements import complaint_at, elements
from pytest_llmperf.workloads.sharing import run_mark, shared_with_others
from pytest_llmperf.workloads.tokens import Tokens, tokens_of

_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_OPENAI = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_EXPECTED = 'an object with "conversations" (from, value), as ShareGPT has it, or with "messages" (role, content)'
_NOTHING: Ids = np.empty(0, np.int32)
_Kept = TypeVar("_Kept")


@dataclass(frozen=True, slots=True)
class _Conversation:
    """What was said, as ids: user and assistant by turns, the assistant last."""

    system: Ids
    messages: tuple[Ids, ...]

    @property
    def tokens(self) -> int:
        return len(self.system) + sum(map(len, self.messages))

    @property
    def answers(self) -> tuple[Ids, ...]:
        return self.messages[1::2]

    def said(self, messages: int) -> Ids:
        """The system message and so many others, one after another."""
        return np.concatenate([self.system, *self.messages[:messages]])


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
    kept: tuple[_Conversation, ...] = field(repr=False, compare=False)
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


def _turns(conversation: _Conversation, mark: Ids, *, recorded: bool) -> Iterator[Turn]:
    """A turn for each user message."""
    for number, answer in enumerate(conversation.answers):
        yield Turn(
            prefix=None if number else np.concatenate([mark, conversation.system]),
            new_ids=conversation.messages[2 * number],
            output_tokens=len(answer),
            answer_ids=answer if recorded else None,
        )


def _pieces(conversation: _Conversation, mark: Ids, shared: int, *, alone: bool) -> Iterator[Session]:
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
    filters = _Filters(min_messages, max_messages, most, max_output_tokens)
    reading = _Reading(file, tokens, filters, skip=unusable == "skip")
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


def _known(conversation: _Conversation, *, later: bool) -> Ids:
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


class _UnusableError(Exception):
    """A conversation that cannot be driven: what is wrong, and what was expected."""

    def __init__(self, problem: str, expected: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.expected = expected


class _Filters(NamedTuple):
    min_messages: int | None
    max_messages: int | None
    max_tokens: int | None
    max_output_tokens: int | None

    @property
    def take_all_lengths(self) -> bool:
        """Whether no conversation is left out for its ids."""
        return self.max_tokens is None and self.max_output_tokens is None

    def take_messages(self, messages: int) -> bool:
        """Whether a conversation of so many may stay."""
        return (self.min_messages or 0) <= messages and (self.max_messages is None or messages <= self.max_messages)

    def take_tokens(self, conversation: _Conversation) -> bool:
        """Whether it may stay as long as it is."""
        if self.max_tokens is not None and conversation.tokens > self.max_tokens:
            return False
        return self.max_output_tokens is None or max(map(len, conversation.answers)) <= self.max_output_tokens


class _Talk(NamedTuple):
    """A conversation that can be driven, as text. Each message has the texts that were one side's in a row."""

    place: str
    system: Sequence[str]
    messages: Sequence[Sequence[str]]


class _Reading:
    """One pass through a file."""

    def __init__(self, path: Path, tokens: Tokens, filters: _Filters, *, skip: bool) -> None:
        self._path = path
        self._tokens = tokens
        self._filters = filters
        self._skip = skip
        self._seen = 0
        self.skipped = 0

    def talks(self) -> Iterator[_Talk]:
        """Those that can be used and have as many messages as they should."""
        for place, row in elements(self._path, _EXPECTED):
            self._seen += 1
            messages, said = self._messages(place, row)
            try:
                talk = _talk(place, [said(message) for message in messages])
            except _UnusableError as error:
                self._leave_out(place, error)
            else:
                if self._filters.take_messages(len(talk.messages)):
                    yield talk

    def conversations(self, talks: Iterable[_Talk]) -> Iterator[_Conversation]:
        """The same as ids; those that are longer than they should be are left out."""
        for talk in talks:
            conversation = _Conversation(self._ids(talk.system), tuple(map(self._ids, talk.messages)))
            if not all(map(len, conversation.messages)):
                self._leave_out(talk.place, _UnusableError("a message of no tokens", "at least one token in each"))
            elif self._filters.take_tokens(conversation):
                yield conversation

    def _ids(self, texts: Sequence[str]) -> Ids:
        return np.concatenate([_NOTHING, *map(self._tokens, texts)])

    def _leave_out(self, place: str, why: _UnusableError) -> None:
        """Count it, or raise `ConfigurationError` where that was not asked for."""
        if not self._skip:
            expected = f"{why.expected} (unusable='skip' leaves out what cannot be used)"
            raise complaint_at(self._path, place, why.problem, expected) from None
        self.skipped += 1

    def nothing_left(self, filters: Sequence[str]) -> ConfigurationError:
        """Why there is no session."""
        if not self._seen:
            return ConfigurationError(f"{self._path}: no conversation in the file; expected {_EXPECTED}")
        seen = count(self._seen, "conversation")
        causes = [f"{self.skipped} cannot be used"] if self.skipped else []
        causes += [f"{', '.join(filters)} left out {self._seen - self.skipped}"] if filters else []
        return ConfigurationError(f"{self._path}: nothing is left of {seen}: {'; '.join(causes)}; give wider limits")

    def _messages(self, place: str, row: Mapping[str, Any]) -> tuple[list[object], Callable[[object], tuple[str, str]]]:
        """The messages of an object, and what reads one."""
        for key, said in (("conversations", _said_sharegpt), ("messages", _said_openai)):
            if isinstance(row.get(key), list):
                return row[key], said
        problem = f"an object with {', '.join(map(repr, list(row)[:5])) or 'nothing in it'}"
        raise complaint_at(self._path, place, problem, _EXPECTED)


def _talk(place: str, said: Sequence[tuple[str, str]]) -> _Talk:
    """Roles and texts in order. Raises `_UnusableError`."""
    sides = [(role, [text for _, text in each]) for role, each in groupby(said, key=lambda one: one[0])]
    system = sides.pop(0)[1] if sides and sides[0][0] == "system" else []
    if sides and sides[-1][0] == "user":
        sides.pop()
    _check_order([role for role, _ in sides])
    return _Talk(place, system, [texts for _, texts in sides])


def _check_order(roles: Sequence[str]) -> None:
    """Raise `_UnusableError` unless it is user and assistant by turns, at least once."""
    if not roles:
        raise _UnusableError("no question with an answer", "at least one message of the user and one of the assistant")
    if roles[0] == "assistant":
        raise _UnusableError("it begins with the assistant", "the user, or a system message, first")
    if "system" in roles:
        raise _UnusableError("a system message between the others", "system messages at the beginning only")


def _said_sharegpt(message: object) -> tuple[str, str]:
    return _role(message, "from", _SHAREGPT), _text(message, "value")


def _said_openai(message: object) -> tuple[str, str]:
    return _role(message, "role", _OPENAI), _text(message, "content")


def _role(message: object, key: str, known: Mapping[str, str]) -> str:
    role = message.get(key) if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(role, str) or role not in known:
        shown = (
            f"a message from {role!r}" if isinstance(message, Mapping) else f"a message that is {str(message)[:40]!r}"
        )
        raise _UnusableError(shown, f'"{key}" as one of {", ".join(known)}')
    return known[role]


def _text(message: object, key: str) -> str:
    """What a message says. OpenAI's may be a list of parts."""
    content = message.get(key) if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) and key == "content" else [content]
    text = "".join(map(_part, parts))
    if not text.strip():
        raise _UnusableError("an empty message", f'text in "{key}"')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnusableError("half a surrogate pair, which is no character", f'Unicode text in "{key}"') from None
    return text


def _part(part: object) -> str:
    if isinstance(part, Mapping):
        kind = part.get("type", "text")
        if kind != "text":
            raise _UnusableError(f"a part of the type {kind!r}", "parts of text only")
        part = part.get("text")
    if not isinstance(part, str):
        raise _UnusableError(f"{str(part)[:40]!r} instead of text", "a string, or a list of parts of text")
    return part
