"""Any workload as a trace in our own form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.base import Workload
from pytest_llmperf.workloads.trace import own
from pytest_llmperf.workloads.trace.columns import UNTIMED
from pytest_llmperf.workloads.trace.workload import Trace

_BLOCK = 16
"""Of the blocks in which other workloads' prefixes are told; what vLLM's cache has by default."""


def write_trace(workload: Workload, path: str | Path) -> None:
    """Write a workload as JSONL that `trace` reads: a header, then one row per request.

    A trace comes back with the same digest if `seed` and `token_ids` are given again. Of another workload the times,
    lengths, sessions and, in blocks of 16 ids, shared prefixes come back, with other ids.

    Raises `ConfigurationError` for what the form cannot say (forks, answers that are told), and if the file cannot be
    written.
    """
    if isinstance(workload, Trace):
        own.write(Path(path), workload.block_tokens, workload.requests, _rows_of_trace(workload))
        return
    rows = list(_rows(workload))
    own.write(Path(path), _BLOCK, len(rows), rows)


def _rows_of_trace(trace: Trace) -> Iterator[dict[str, object]]:
    columns = trace.columns
    for number in range(len(columns)):
        at_ns = int(columns.at_ns[number])
        blocks = columns.blocks[columns.blocks_from[number] : columns.blocks_from[number + 1]]
        yield _row(
            at_s=None if at_ns == UNTIMED else at_ns / 1e9,
            input_tokens=int(columns.new_tokens[number]),
            output_tokens=int(columns.output_tokens[number]),
            blocks=blocks.tolist(),
            session=int(columns.session_of[number]),
            continues=bool(columns.continues[number]),
        )


def _rows(workload: Workload) -> Iterator[dict[str, object]]:
    numbers: dict[bytes, int] = {}
    for number, session in enumerate(workload):
        if session.has_forks or any(turn.answer_ids is not None for turn in session.turns):
            raise ConfigurationError(
                f"write_trace: session {number} of {workload.name} has forks or answers that are told; a trace has "
                "turns that continue from the one before and its real answer"
            )
        for turn in session.turns:
            ids = turn.new_ids if turn.prefix is None else np.concatenate([turn.prefix, turn.new_ids])
            whole = range(0, len(ids) - _BLOCK + 1, _BLOCK)
            yield _row(
                at_s=turn.at_s,
                input_tokens=len(ids),
                output_tokens=turn.output_tokens,
                blocks=[numbers.setdefault(ids[at : at + _BLOCK].tobytes(), len(numbers)) for at in whole],
                session=number,
                continues=turn.prefix is None,
            )


def _row(*, at_s: float | None, blocks: list[int], continues: bool, **fields: object) -> dict[str, object]:
    """One row, without the fields that say nothing."""
    row = fields if at_s is None else {"at_s": at_s, **fields}
    if blocks:
        row["blocks"] = blocks
    if continues:
        row["continues"] = True
    return row
