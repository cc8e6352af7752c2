"""What a file of conversations says: ShareGPT's form, or the messages of OpenAI's API; one conversation at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.units import count
from pytest_llmperf.workloads.base import Ids
from pytest_llmperf.workloads.elements import complaint_at, elements
from pytest_llmperf.workloads.tokens import Tokens

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


@dataclass(frozen=True, slots=True)
class Conversation:
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


class _UnusableError(Exception):
    """A conversation that cannot be driven: what is wrong, and what was expected."""

    def __init__(self, problem: str, expected: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.expected = expected


class Filters(NamedTuple):
    """Which conversations stay; None limits nothing."""

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

    def take_tokens(self, conversation: Conversation) -> bool:
        """Whether it may stay as long as it is."""
        if self.max_tokens is not None and conversation.tokens > self.max_tokens:
            return False
        return self.max_output_tokens is None or max(map(len, conversation.answers)) <= self.max_output_tokens


class Talk(NamedTuple):
    """A conversation that can be driven, as text. Each message has the texts that were one side's in a row."""

    place: str
    system: Sequence[str]
    messages: Sequence[Sequence[str]]


class Reading:
    """One pass through a file."""

    def __init__(self, path: Path, tokens: Tokens, filters: Filters, *, skip: bool) -> None:
        self._path = path
        self._tokens = tokens
        self._filters = filters
        self._skip = skip
        self._seen = 0
        self.skipped = 0

    def talks(self) -> Iterator[Talk]:
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

    def conversations(self, talks: Iterable[Talk]) -> Iterator[Conversation]:
        """The same as ids; those that are longer than they should be are left out."""
        for talk in talks:
            conversation = Conversation(self._ids(talk.system), tuple(map(self._ids, talk.messages)))
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


def _talk(place: str, said: Sequence[tuple[str, str]]) -> Talk:
    """Roles and texts in order. Raises `_UnusableError`."""
    sides = [(role, [text for _, text in each]) for role, each in groupby(said, key=lambda one: one[0])]
    system = sides.pop(0)[1] if sides and sides[0][0] == "system" else []
    if sides and sides[-1][0] == "user":
        sides.pop()
    _check_order([role for role, _ in sides])
    return Talk(place, system, [texts for _, texts in sides])


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
