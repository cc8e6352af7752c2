"""What every workload is: a stream of sessions, each a sequence of turns."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.splitmix import GOLDEN, mixed

Ids = np.ndarray
"""Token ids: one-dimensional, int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request of a session.

    `prefix` is what a session starts with, its context; a later turn has none and continues from
    the session's history: the input of an earlier turn and its answer.
    """

    prefix: Ids | None
    new_ids: Ids
    output_tokens: int
    at_s: float | None = None
    """When to send, in seconds from the run's start; None: when the load model says so."""
    answer_ids: Ids | None = None
    """What stands for the answer in the history; None: the tokens that the engine really produced."""
    after: int | None = None
    """The turn of its session that it continues from; None: the one before. Several after one turn are forks."""

    @property
    def new_tokens(self) -> int:
        """How many tokens this turn adds to its session, the context left out."""
        return len(self.new_ids)

    @property
    def input_tokens(self) -> list[int] | None:
        """The ids to send, or None as long as an earlier answer is not known."""
        return None if self.prefix is None else [*self.prefix.tolist(), *self.new_ids.tolist()]

    def input_after(self, history: Ids) -> Ids:
        """The ids to send once `history`, all that the session has exchanged so far, is known."""
        return np.concatenate([history if self.prefix is None else self.prefix, self.new_ids])


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The turns of one user, in order."""

    turns: tuple[Turn, ...]
    shared_tokens: int = 0
    """How many leading tokens other sessions of the same run begin with, too."""

    @property
    def context(self) -> list[int]:
        """What can be sent ahead, unmeasured, so that the first turn finds it cached."""
        first = self.turns[0].prefix
        return [] if first is None else first.tolist()

    @property
    def total_tokens(self) -> int:
        """The most tokens that one of its turns comes to, input and output together."""
        lengths: list[int] = []
        ends: list[int] = []
        for number, turn in enumerate(self.turns):
            before = 0 if number == 0 else lengths[self.continued(number)]
            length = (before if turn.prefix is None else len(turn.prefix)) + turn.new_tokens
            ends.append(length + turn.output_tokens)
            lengths.append(length + (turn.output_tokens if turn.answer_ids is None else len(turn.answer_ids)))
        return max(ends)

    @property
    def fewest_input_tokens(self) -> int:
        """The shortest input of its turns, tokens; one that continues is longer than what it continues from."""
        return min(
            (0 if turn.prefix is None else len(turn.prefix)) + turn.new_tokens
            for number, turn in enumerate(self.turns)
            if number == 0 or turn.prefix is not None
        )

    def continued(self, number: int) -> int:
        """The turn that this later one continues from."""
        after = self.turns[number].after
        return number - 1 if after is None else after

    @property
    def continued_from(self) -> frozenset[int]:
        """The turns whose real answers later ones need."""
        later = (n for n in range(1, len(self.turns)) if self.turns[n].prefix is None)
        return frozenset(before for before in map(self.continued, later) if self.turns[before].answer_ids is None)

    @property
    def has_forks(self) -> bool:
        """Whether a turn continues from another one than that before it."""
        return any(turn.after is not None for turn in self.turns)


class Workload(Protocol):
    """A seeded set of sessions.

    Iterating yields the same sessions each time, on every machine and Python. `within(namespace)`
    has the same shape with other token ids: two namespaces share no cacheable prefix.
    """

    @property
    def name(self) -> str:
        """The constructor's name."""
        ...

    @property
    def token_ids(self) -> range:
        """The ids that are drawn from."""
        ...

    @property
    def digest(self) -> str:
        """Names the workload: equal for equal ids, sessions and schedule. Free of the namespace."""
        ...

    def within(self, namespace: str) -> Workload:
        """The same workload with token ids of its own."""
        ...

    def __iter__(self) -> Iterator[Session]: ...


class TokenSource:
    """Seeded token ids, the same for the same seed, namespace and label everywhere.

    Built on the raw output of PCG64, whose stream numpy guarantees, unlike that of the methods of
    `Generator`; a draw is reduced by remainder, whose bias over 2**64 is beyond measuring.
    """

    def __init__(self, seed: int, namespace: str, token_ids: range) -> None:
        self._root = hashlib.sha256(f"{seed}\0{namespace}".encode()).digest()
        self._token_ids = token_ids

    def draw(self, label: str, count: int) -> Ids:
        """`count` ids for this label; another label gives unrelated ones."""
        key = hashlib.sha256(self._root + label.encode()).digest()
        return self._reduced(np.random.PCG64(int.from_bytes(key[:16], "little")).random_raw(count))

    def blocks(self, numbers: npt.ArrayLike, size: int) -> Ids:
        """Numbered blocks of `size` ids one after another: the same number gives the same block.

        SplitMix64 of the ids' places, so that many small blocks cost no more than one large one.
        """
        first = np.asarray(numbers, np.uint64) * np.uint64(size)
        places: npt.NDArray[np.uint64] = np.add.outer(first, np.arange(size, dtype=np.uint64)).ravel()
        state = np.uint64(int.from_bytes(self._root[:8], "little"))
        return self._reduced(mixed(places * np.uint64(GOLDEN) + state))

    def _reduced(self, raw: npt.NDArray[np.uint64]) -> Ids:
        count = np.uint64(len(self._token_ids))
        rest = raw // count  # what follows is raw % count; numpy has a fast loop for quotients only
        rest *= count
        np.subtract(raw, rest, out=rest)
        drawn = rest.astype(np.int32)
        drawn += self._token_ids.start
        return drawn


def digest(sessions: Iterable[Session]) -> str:
    """A hash over token ids, session structure and intended schedule, as 16 hexadecimal digits."""
    state = hashlib.sha256(b"pytest-llmperf workload 1")
    for session in sessions:
        state.update(struct.pack("<qq", len(session.turns), session.shared_tokens))
        for turn in session.turns:
            prefix = b"" if turn.prefix is None else turn.prefix.astype("<i4").tobytes()
            prefix_bytes = -1 if turn.prefix is None else len(prefix)
            at_s = float("nan") if turn.at_s is None else turn.at_s
            state.update(struct.pack("<qqqd", prefix_bytes, turn.new_tokens, turn.output_tokens, at_s))
            state.update(prefix)
            state.update(turn.new_ids.astype("<i4").tobytes())
            if turn.answer_ids is not None:
                state.update(b"answer" + turn.answer_ids.astype("<i4").tobytes())
            if turn.after is not None:
                state.update(struct.pack("<6sq", b"after ", turn.after))
    return state.hexdigest()[:16]


def words_of(workload: object) -> dict[str, Any]:
    """The constructor's words that a workload was made with, for people; nothing of one that is no dataclass.

    Of a file its name: where it lies is no property of what is in it.
    """
    named = [one for one in fields(workload) if one.repr] if is_dataclass(workload) else []
    values = {one.name: getattr(workload, one.name) for one in named if one.name != "namespace"}
    return {name: _word(name, value) for name, value in values.items()}


def _word(name: str, value: object) -> object:
    if name == "path" and isinstance(value, str):
        return PurePath(value).name
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def check_counts(workload: str, at_least: Mapping[str, tuple[object, int]], token_ids: range = TOKEN_IDS) -> None:
    """Raise `ConfigurationError` naming every argument that is not a whole number of its minimum.

    `at_least`: argument name to value and minimum.
    """
    problems = [
        f"{workload}: {name} must be a whole number of at least {minimum}, got {value!r}"
        for name, (value, minimum) in at_least.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum
    ]
    if token_ids.step != 1 or token_ids.start < 0 or len(token_ids) < 2:
        problems.append(f"{workload}: token_ids must be a range of at least two ids with step 1, got {token_ids!r}")
    if problems:
        raise ConfigurationError(*problems)
