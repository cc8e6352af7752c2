"""Text as token ids and back, without a tokenizer.

A text is cut at its blanks; a run of letters and digits is one token for every `LONGEST` characters,
any other character is one by itself. Equal beginnings have equal ids, up to the last word. Each
ordinary id has a word of its own, every other id `n` is written `tn`, and the text of ids gives the
same ids again, so that a conversation that is sent back finds its prefix in the cache. Any other
word shares the id of a word of ours, drawn by its checksum.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterable

from pytest_llmperf.engines.base import TOKEN_IDS

LONGEST = 12
"""Characters of a word that make one token."""
MOST_ID = 2**31 - 1
"""Ids are kept in 32 bits."""

_PIECE = re.compile(rf"\w{{1,{LONGEST}}}|[^\w\s]")
_NUMBERED = re.compile(r"t(0|[1-9][0-9]{0,9})", re.ASCII)
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_WORDS = [f"{_SYLLABLES[n // len(_SYLLABLES)]}{_SYLLABLES[n % len(_SYLLABLES)]}" for n in range(len(TOKEN_IDS))]
# So many words of such a length are remembered; any other is looked at anew.
_MOST_KNOWN = 1 << 17
_LONGEST_KNOWN = 64

# What stands between the messages of a chat. Not ordinary ids: no word can be taken for them by chance.
ROLES = {"system": 1, "developer": 1, "user": 2, "assistant": 3, "tool": 4}
"""The id that opens a message, by its author."""
END = 5
"""The id that ends a message."""


def _id_of(piece: str) -> int:
    numbered = _NUMBERED.fullmatch(piece)
    if numbered is not None and int(numbered[1]) <= MOST_ID:
        return int(numbered[1])
    return TOKEN_IDS[zlib.crc32(piece.encode()) % len(TOKEN_IDS)]


class _Vocabulary(dict[str, bytes]):
    """What stands between blanks, as far as it was met: its ids, 32 bits each."""

    def __missing__(self, text: str) -> bytes:
        found = array("i", [_OWN.get(piece) or _id_of(piece) for piece in _PIECE.findall(text)]).tobytes()
        if len(self) < _MOST_KNOWN and len(text) <= _LONGEST_KNOWN:
            self[text] = found
        return found


_OWN = dict(zip(_WORDS, TOKEN_IDS, strict=True))
_VOCABULARY = _Vocabulary()


def ids_of(text: str) -> array[int]:
    """The token ids of a text."""
    ids = array("i")
    ids.frombytes(b"".join(map(_VOCABULARY.__getitem__, text.split())))
    return ids


def word_of(token_id: int) -> str:
    """The word of one id."""
    return _WORDS[token_id - TOKEN_IDS.start] if token_id in TOKEN_IDS else f"t{token_id}"


def text_of(token_ids: Iterable[int]) -> str:
    """The words of these ids."""
    return " ".join(map(word_of, token_ids))


def chat_ids(messages: Iterable[tuple[str, str]]) -> array[int]:
    """The ids of a conversation of authors and texts, up to where the assistant's next words begin."""
    ids = array("i")
    for role, text in messages:
        ids.append(ROLES[role])
        ids += ids_of(text)
        ids.append(END)
    ids.append(ROLES["assistant"])
    return ids
