"""A trace file's rows in arrays, in the file's order."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llmperf.workloads.files import complaint
from pytest_llmperf.workloads.trace.rows import LONGEST_NS, Input, Row

INPUTS = (Input.WHOLE, Input.TOTAL, Input.NEW)
"""By their numbers in `Raw.kind`."""
NONE = -1
"""Stands for no key."""
MISSING = -(2**62)
"""Stands for no time."""


def _longs() -> array[int]:
    return array("q")


@dataclass
class Raw:
    """What the rows say, in the file's order."""

    line: array[int] = field(default_factory=_longs)
    at_ns: array[int] = field(default_factory=_longs)
    input_tokens: array[int] = field(default_factory=_longs)
    output_tokens: array[int] = field(default_factory=_longs)
    kind: array[int] = field(default_factory=_longs)
    key: array[int] = field(default_factory=_longs)
    follows: array[int] = field(default_factory=_longs)
    blocks: array[int] = field(default_factory=lambda: array("Q"))
    blocks_from: array[int] = field(default_factory=lambda: array("q", [0]))


def read(path: Path, rows: Iterable[Row], block_tokens: int) -> Raw:
    """All rows. Raises `ConfigurationError` at one that cannot be."""
    raw = Raw()
    names: dict[object, int] = {None: NONE}
    kinds = {kind: number for number, kind in enumerate(INPUTS)}
    base: int | None = None
    for row in rows:
        if row.at_ns is None:
            at_ns = None
        else:
            base = row.at_ns if base is None else base
            at_ns = row.at_ns - base
            if abs(at_ns) > LONGEST_NS:
                raise complaint(path, row.line, "over a hundred years from the first row", "times of one trace")
        blocks = () if row.blocks is None else row.blocks
        _check_blocks(path, row, block_tokens)
        raw.line.append(row.line)
        raw.at_ns.append(MISSING if at_ns is None else at_ns)
        raw.input_tokens.append(row.input_tokens)
        raw.output_tokens.append(row.output_tokens)
        raw.kind.append(kinds[row.input])
        raw.key.append(names.setdefault(row.key, len(names)))
        raw.follows.append(names.setdefault(row.follows, len(names)))
        raw.blocks.extend(blocks)
        raw.blocks_from.append(len(raw.blocks))
    if not raw.line:
        raise complaint(path, 1, "no request in the file", "one request per row")
    return raw


def _check_blocks(path: Path, row: Row, size: int) -> None:
    """A row has a number for each block, or for each whole one."""
    if row.blocks is None or len(row.blocks) in (-(-row.input_tokens // size), row.input_tokens // size):
        return
    raise complaint(
        path,
        row.line,
        f"{len(row.blocks)} blocks for {row.input_tokens} tokens",
        f"{-(-row.input_tokens // size)}, as blocks have {size} tokens (or say block_tokens=)",
    )
