"""Text to token ids: with a tokenizer, or about as many ids as one would give."""

from __future__ import annotations

import re
import zlib
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np

from pytest_llmperf.engines.tokenizer import load_tokenizer
from pytest_llmperf.workloads.base import Ids

_PIECES = re.compile(r"\s?[A-Za-z]{1,8}|\s?[0-9]{1,3}|\s?[^\sA-Za-z0-9\x80-\U0010ffff]{1,3}|[^\x00-\x7f]{1,2}|\s+")
"""Some four characters of English each, as tokenizers have it; digits by threes, other scripts by twos."""


class Tokens(Protocol):
    """Turns text into ids; equal text into equal ids."""

    exact: bool
    """Whether these are the ids, and so the lengths, that the model itself would see."""

    def __call__(self, text: str) -> Ids: ...


class StandIn:
    """Pieces of about four characters, cut at the borders of words; each becomes the id that its checksum says.

    What the model is told is nonsense, but texts that begin alike give ids that begin alike, up to the
    last piece, and lengths are about right.
    """

    exact = False

    def __init__(self, token_ids: range) -> None:
        self._token_ids = token_ids

    def __call__(self, text: str) -> Ids:
        sums = [zlib.crc32(piece.encode()) for piece in _PIECES.findall(text)]
        drawn = np.array(sums, np.int64) % len(self._token_ids) + self._token_ids.start
        return drawn.astype(np.int32)


class Tokenizer:
    """The tokenizer of a model, without the tokens that it would put around a prompt."""

    exact = True

    def __init__(self, path: Path) -> None:
        """Raises `ConfigurationError` if the library is missing, or the file is none of its."""
        self._tokenizer = load_tokenizer(path)

    def __call__(self, text: str) -> Ids:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def tokens_of(tokenizer: str | PathLike[str] | None, token_ids: range) -> Tokens:
    """The tokenizer in this folder or file; None: the stand-in with these ids."""
    return StandIn(token_ids) if tokenizer is None else Tokenizer(Path(tokenizer))
