"""The trace formats, and how a file's own is told."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.workloads.files import complaint, json_lines, text_lines
from pytest_llmperf.workloads.trace import csvs, jsonl, own
from pytest_llmperf.workloads.trace.rows import Reading

_ROWS_LOOKED_AT = 32


@dataclass(frozen=True, slots=True)
class Sample:
    """How a file begins: the names in its header if it is CSV, its first objects if it is JSONL."""

    columns: list[str]
    objects: list[dict[str, Any]]

    def has(self, *names: str) -> bool:
        """Whether all of its rows have these fields."""
        return bool(self.objects) and all(name in row for row in self.objects for name in names)

    def fits_blocks(self, size: int) -> bool:
        """Whether those rows that have blocks have as many as blocks of this size would be."""
        with_blocks = [
            (row["input_length"], len(row["hash_ids"]))
            for row in self.objects
            if isinstance(row.get("hash_ids"), list) and isinstance(row.get("input_length"), int)
        ]
        return bool(with_blocks) and all(are in (-(-n // size), n // size) for n, are in with_blocks)


@dataclass(frozen=True, slots=True)
class Format:
    """One format: how it is read, how it is told, what it looks like in words."""

    read: Callable[[Path], Reading]
    fits: Callable[[Sample], bool]
    words: str


def _is_aiperf(sample: Sample) -> bool:
    told = any("session_id" in row or "delay" in row or "timestamp" not in row for row in sample.objects)
    return told and sample.has("input_length")


# The first that fits is taken, so that the more particular ones come first.
FORMATS: Mapping[str, Format] = {
    "llmperf": Format(own.llmperf, lambda s: s.has() and own.MARK in s.objects[0], own.HEADER),
    "qwen_bailian": Format(jsonl.qwen_bailian, lambda s: s.has("chat_id", "parent_chat_id"), jsonl.QWEN),
    "aiperf": Format(jsonl.aiperf, _is_aiperf, jsonl.AIPERF),
    "vllm_timed_trace": Format(
        jsonl.vllm_timed_trace,
        lambda s: s.has("timestamp", "input_length") and s.fits_blocks(16) and not s.fits_blocks(512),
        jsonl.VLLM,
    ),
    "mooncake": Format(jsonl.mooncake, lambda s: s.has("timestamp", "input_length"), jsonl.MOONCAKE),
    "azure": Format(csvs.azure, lambda s: set(csvs.AZURE_COLUMNS) <= {*s.columns}, ", ".join(csvs.AZURE_COLUMNS)),
    "burstgpt": Format(
        csvs.burstgpt, lambda s: set(csvs.BURSTGPT_COLUMNS) <= {*s.columns}, ", ".join(csvs.BURSTGPT_COLUMNS)
    ),
}


def told(path: Path) -> str:
    """The name of the file's format. Raises `ConfigurationError` if none fits."""
    line, first = next(text_lines(path), (1, ""))
    if not first:
        raise complaint(path, line, "nothing in the file", "a trace")
    if first.startswith("{"):
        sample = Sample([], [row for _, row in islice(json_lines(path, "one JSON object per line"), _ROWS_LOOKED_AT)])
    else:
        sample = Sample(_columns(first), [])
    for name, entry in FORMATS.items():
        if entry.fits(sample):
            return name
    accepted = "; ".join(f"{name}: {entry.words}" for name, entry in FORMATS.items())
    raise complaint(path, line, f"no known trace format begins with {first[:80]!r}", f"one of {accepted}")


def _columns(header: str) -> list[str]:
    try:
        return next(csv.reader([header]), [])
    except csv.Error:
        return []


def reading(path: Path, name: str | None) -> tuple[str, Reading]:
    """The file, opened as this format or, without one, as the one it has."""
    if name is not None and name not in FORMATS:
        raise ConfigurationError(unknown("trace format", name, FORMATS))
    name = told(path) if name is None else name
    return name, FORMATS[name].read(path)
