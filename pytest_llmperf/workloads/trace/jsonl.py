"""Traces in JSONL: Mooncake's, AIPerf's, vLLM's and Qwen Bailian's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_llmperf.workloads.files import json_lines
from pytest_llmperf.workloads.trace.rows import MS, Fields, Input, Reading, Row, S

MOONCAKE = "timestamp in ms, input_length, output_length, hash_ids (of 512-token blocks, or none)"
VLLM = "timestamp in s, input_length, output_length, hash_ids (of 16-token blocks, or none)"
AIPERF = (
    "input_length, output_length and, where known, timestamp in ms, hash_ids (of 512-token blocks), session_id, delay"
)
QWEN = "chat_id, parent_chat_id, timestamp in s, input_length, output_length, hash_ids (of 16-token blocks)"


def mooncake(path: Path) -> Reading:
    """The traces of kvcache-ai/Mooncake."""
    return Reading(512, _single(path, MOONCAKE, MS))


def vllm_timed_trace(path: Path) -> Reading:
    """What `vllm bench serve --dataset-name timed_trace` reads with its defaults."""
    return Reading(16, _single(path, VLLM, S))


def aiperf(path: Path) -> Reading:
    """AIPerf's `mooncake_trace`: the rows of one `session_id` are its turns, each with what it adds."""
    return Reading(512, _aiperf(path))


def qwen_bailian(path: Path) -> Reading:
    """The traces of alibaba-edu/qwen-bailian-usagetraces-anon: each row has its whole input."""
    return Reading(16, _qwen(path))


def _fields(path: Path, expected: str) -> Iterator[Fields]:
    expected = f"an object with {expected}"
    for line, row in json_lines(path, expected):
        yield Fields(path, line, row, expected)


def _single(path: Path, expected: str, unit_ns: int) -> Iterator[Row]:
    for fields in _fields(path, expected):
        if "session_id" in fields.row:
            raise fields.complaint("session_id, which is read with format='aiperf'")
        yield Row(
            fields.line,
            fields.time_ns("timestamp", unit_ns),
            fields.tokens("input_length"),
            fields.tokens("output_length"),
            fields.blocks("hash_ids"),
        )


def _aiperf(path: Path) -> Iterator[Row]:
    for fields in _fields(path, AIPERF):
        session = fields.label("session_id")
        fields.time_ns("delay", MS, optional=True)
        yield Row(
            fields.line,
            fields.time_ns("timestamp", MS, optional=True),
            fields.tokens("input_length"),
            fields.tokens("output_length"),
            fields.blocks("hash_ids"),
            key=session,
            follows=session,
            input=Input.NEW,
        )


def _qwen(path: Path) -> Iterator[Row]:
    for fields in _fields(path, QWEN):
        parent, blocks = fields.label("parent_chat_id"), fields.blocks("hash_ids")
        yield Row(
            fields.line,
            fields.time_ns("timestamp", S),
            fields.tokens("input_length"),
            fields.tokens("output_length"),
            blocks,
            key=fields.label("chat_id"),
            follows=None if parent == -1 else parent,
            input=Input.TOTAL if blocks is None else Input.WHOLE,
        )
