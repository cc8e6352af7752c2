"""Texts of an exact number of tokens, for servers that take no token ids.

When connecting, pieces of text are found that are one token each wherever they stand, with whatever
counts tokens as the server does. A text then has a piece for each of its tokens, less those that
stand around every prompt: its length is right by construction, and nothing is counted while requests
are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_llmperf.splitmix import mixed

WORDS = (  # noqa: SIM905 - as a list it takes a page
    "the of and to in is that it was for on are with as his they be at one have this from or had by hot but some "
    "what there we can out other were all your when up use word how said an each she which do their time if will way "
    "about many then them would write like so these her long make thing see him two has look more day could go come "
    "did my sound no most number who over know water than call first people may down side been now find any new work "
    "part take get place made live where after back little only round man year came show every good me give our under"
).split()
"""Common words. With a space before them each is one token in all seven vocabularies that come with mistral-common
(SentencePiece of 32,000 and Tekken of 131,072 tokens); what a server has is found out, not assumed."""
_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

Count = Callable[[str], "int | None"]
"""How many tokens a prompt with this text comes to, up to a constant. None: there is no telling."""

USAGE = "server usage"
"""The server's count of served prompts stood in for a tokenizer."""
UNKNOWN = "unknown"
"""There are no texts whose lengths are known; what the server counts is on record."""

_FEWEST = 16
"""Pieces that must be left: with 16 of them, the first 16 tokens of two prompts are the same once in 2**64."""
_KEPT = 16
"""Leading ids that are always in the text: what tells runs and users apart stands there."""
_SAMPLES = (24, 96, 384)
"""Lengths of the texts that are counted in the end, in pieces."""
_GROUP = 8
"""So many pieces of which one is no token are left out together: looking further costs requests."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How ids become a text with as many tokens.

    `opener` begins every text, because the first word of a prompt may be cut otherwise than the same
    word further on. `overhead`: the tokens that every prompt has beside the pieces: the opener, what
    the tokenizer puts before a text, the chat template.
    """

    opener: str
    pieces: tuple[str, ...]
    overhead: int

    def text(self, token_ids: Sequence[int] | npt.NDArray[np.int32]) -> str:
        """A text that makes a prompt of as many tokens as there are ids, if those are no fewer than the overhead.

        Ids behind the first few give way to the overhead: always the same places, so that prompts
        whose ids begin alike have texts that begin alike.
        """
        ids = np.asarray(token_ids, np.int64)
        length = max(0, len(ids) - self.overhead)
        kept = min(_KEPT, length)
        chosen = np.concatenate([ids[:kept], ids[len(ids) - (length - kept) :]]) % len(self.pieces)
        return self.opener + "".join(map(self.pieces.__getitem__, chosen.tolist()))


_FAMILIES = (
    Wording("the", tuple(f" {word}" for word in WORDS[1:]), 0),
    # For vocabularies of bytes and characters, where no word is one token.
    Wording("A", tuple(_CHARACTERS), 0),
)


def settled(tokenizers: Mapping[str, Count], used: Count, room: int) -> tuple[str, Wording | None]:
    """Texts of exact lengths, and what they were found with.

    `tokenizers`: what counts without a prompt being served, by name, the best one first. `used`: what
    the server counts when it serves a prompt; it stands in for a tokenizer and has the last word about
    the overhead. `room`: the longest prompt that the server takes, tokens. Without any such texts the
    name is `UNKNOWN`.
    """
    for name, count in tokenizers.items():
        found = find_wording(count, room)
        confirmed = None if found is None else _confirmed(found, used, room)
        if confirmed is not None:
            return name, confirmed
    found = find_wording(used, room)
    return (UNKNOWN, None) if found is None else (USAGE, found)


def find_wording(count: Count, room: int) -> Wording | None:
    """The texts for whatever `count` counts; None if there are none, or it cannot count.

    Takes six calls of `count` where common words are tokens, some tens where many are not.
    """
    fitted = (_fitted(family, count, room) for family in _FAMILIES)
    return next((wording for wording in fitted if wording is not None), None)


def _confirmed(wording: Wording, used: Count, room: int) -> Wording | None:
    """The same with the overhead of served prompts, such as a chat template that a tokenizer does not know.

    As it is where the server tells nothing; None if it counts otherwise all the same.
    """
    overheads: set[int] = set()
    for pieces in (min(length, room // 4) for length in _SAMPLES[:2]):
        served = used(sample_text(wording, wording.overhead + pieces))
        if served is None:
            return wording
        overheads.add(served - pieces)
    overhead = overheads.pop()
    return None if overheads or overhead < 0 else replace(wording, overhead=overhead)


def _fitted(family: Wording, count: Count, room: int) -> Wording | None:
    """The pieces of a family that are one token, if they are enough."""
    # Counted twice over, with as much room again for what stands around them.
    candidates = family.pieces[: room // 4]
    leading = family.opener + "".join(candidates)
    base = count(leading)
    if base is None:
        return None
    pieces = tuple(_single_tokens(candidates, lambda text: count(leading + text), base))
    if len(pieces) < _FEWEST:
        return None
    whole = count(family.opener + "".join(pieces))
    if whole is None or whole < len(pieces):
        return None
    wording = Wording(family.opener, pieces, whole - len(pieces))
    return wording if _is_exact(wording, count, room) else None


def _single_tokens(pieces: tuple[str, ...], count: Count, base: int) -> list[str]:
    """Those that add one token each. `base`: the count without any of them.

    All at once where that is right, else by halves; a small group, or one of which most are not, is left
    out as it is.
    """
    counted = count("".join(pieces))
    excess = None if counted is None else counted - base - len(pieces)
    if excess == 0:
        return list(pieces)
    if excess is None or len(pieces) <= _GROUP or not 0 < excess <= len(pieces) // 2:
        return []
    half = len(pieces) // 2
    return _single_tokens(pieces[:half], count, base) + _single_tokens(pieces[half:], count, base)


def _is_exact(wording: Wording, count: Count, room: int) -> bool:
    """Whether texts of several lengths, with pieces in no order, have the tokens that they should."""
    lengths = [min(wording.overhead + pieces, room // 2) for pieces in _SAMPLES]
    return all(count(sample_text(wording, length)) == length for length in lengths)


def sample_text(wording: Wording, length: int) -> str:
    """A text that should make a prompt of `length` tokens, of pieces in no order."""
    return wording.text((mixed(np.arange(length, dtype=np.uint64)) >> np.uint64(33)).astype(np.int32))
