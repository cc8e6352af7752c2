"""KV tiers outside an engine's device: their files, and what the engine does not tell of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pytest_llmperf.records import CacheCounters

_UNPLACED = "external"
"""What an engine calls a tier of which it does not say where it is."""


class OuterTier(Protocol):
    """A tier outside the device of one server of ours."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where it keeps files, if anywhere: gone when the server is."""
        ...

    def empty(self) -> None:
        """Forget what is in it, where the server's own way of emptying does not reach. Nothing may be running."""
        ...

    def completed(self, counters: CacheCounters) -> CacheCounters:
        """The server's counters, with what can be known of the tier besides."""
        ...

    def remove(self) -> None:
        """Leave nothing behind, once the server has ended. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class NamedTier:
    """A tier that the engine fills, empties and counts itself; only where it is, it does not say."""

    name: str
    folders: tuple[Path, ...] = ()

    def empty(self) -> None:
        """The server's reset reaches it."""

    def completed(self, counters: CacheCounters) -> CacheCounters:
        return replace(counters, tokens_by_tier=_placed(counters.tokens_by_tier, self.name))

    def remove(self) -> None:
        """It ends with the server."""


class DiskTier:
    """A folder into which an engine writes the KV cache of each prompt: a folder of safetensors files, one a layer.

    Bytes are those of the tensors in the files. How many tokens came back, the engine counts; they are
    taken to have as many bytes each as those in the files.
    """

    name = "disk"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders = (folder,)
        self._emptied_bytes = 0
        self._token_bytes = 0

    def empty(self) -> None:
        self._emptied_bytes += self._stored_bytes()
        self.remove()

    def completed(self, counters: CacheCounters) -> CacheCounters:
        offloaded = self._emptied_bytes + self._stored_bytes()
        tiers = _placed(counters.tokens_by_tier, self.name)
        returned = None if tiers is None else tiers.get(self.name)
        return replace(
            counters,
            tokens_by_tier=tiers,
            offloaded_bytes=offloaded,
            restored_bytes=None if returned is None else returned * self._token_bytes,
        )

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stored_bytes(self) -> int:
        """Bytes of all tensors in the folder; on the way, how many a token has."""
        total = 0
        for prompt in self.folder.glob("*/"):
            tensors = [tensor for file in prompt.glob("*.safetensors") for tensor in tensors_of(file)]
            total += sum(tensor.bytes for tensor in tensors)
            if tensors and all(tensor.shape[0] for tensor in tensors):
                self._token_bytes = sum(tensor.bytes // tensor.shape[0] for tensor in tensors)
        return total


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a safetensors file says of one of its tensors."""

    shape: tuple[int, ...]
    bytes: int


def tensors_of(file: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file, by its header; none of a file that is not whole, or has gone."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        for entry in tensors:
            begin, end = entry["data_offsets"]
            yield Tensor(tuple(entry["shape"]), end - begin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return


def _placed(tiers: dict[str, int] | None, name: str) -> dict[str, int] | None:
    """Tokens by tier, those of the tier that has no place under its name."""
    if tiers is None or _UNPLACED not in tiers:
        return tiers
    return {tier: tokens for tier, tokens in tiers.items() if tier != _UNPLACED} | {
        name: tiers.get(name, 0) + tiers[_UNPLACED]
    }
