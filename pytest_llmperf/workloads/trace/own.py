"""Our own form of a trace: a header, then one row per request, a session's rows together.

`input_tokens` is what the row sends by itself: all of its input, or, with `continues`, what it adds to its session.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from pytest_llmperf.atomic import why, writing
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.files import complaint, json_lines
from pytest_llmperf.workloads.trace.rows import Fields, Input, Reading, Row, S

MARK = "llmperf_trace"
VERSION = 1
HEADER = f'a header such as {{"{MARK}": {VERSION}, "block_tokens": 512, "requests": 1000}}'
ROW = "an object with at_s, input_tokens, output_tokens and, where known, blocks, session, continues"


def llmperf(path: Path) -> Reading:
    """What `write_trace` writes."""
    lines = json_lines(path, HEADER)
    line, header = next(lines, (1, {}))
    fields = Fields(path, line, header, HEADER)
    if header.get(MARK) != VERSION:
        raise fields.complaint(f"{MARK} is {header.get(MARK)!r}")
    block_tokens, requests = fields.tokens("block_tokens"), fields.tokens("requests")
    if block_tokens < 1:
        raise fields.complaint("block_tokens is 0")
    return Reading(block_tokens, _counted(path, requests, _rows(path, lines)))


def _rows(path: Path, lines: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    begun: set[str | int] = set()
    for line, row in lines:
        fields = Fields(path, line, row, ROW)
        session, continues = fields.label("session"), row.get("continues", False)
        if type(continues) is not bool:
            raise fields.complaint(f"continues is {str(continues)[:60]!r}, which is neither true nor false")
        if continues and session not in begun:
            raise fields.complaint("continues, but no earlier row has its session")
        begun.update(() if session is None else (session,))
        yield Row(
            line,
            fields.time_ns("at_s", S, optional=True),
            fields.tokens("input_tokens"),
            fields.tokens("output_tokens"),
            fields.blocks("blocks"),
            key=session,
            follows=session,
            input=Input.NEW if continues else Input.WHOLE,
        )


def _counted(path: Path, requests: int, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows. Raises `ConfigurationError` unless they are as many as the header has announced."""
    line, read = 1, 0
    for row in rows:
        line, read = row.line, read + 1
        yield row
    if read != requests:
        raise complaint(path, line, f"the file ends after {read} requests", f"{requests}, as its header says")


def write(path: Path, block_tokens: int, requests: int, rows: Iterable[Mapping[str, object]]) -> None:
    """Write the file, complete or not at all. Raises `ConfigurationError` if it cannot be written."""
    try:
        with writing(path) as stream:
            stream.write(orjson.dumps({MARK: VERSION, "block_tokens": block_tokens, "requests": requests}) + b"\n")
            for row in rows:
                stream.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    except OSError as error:
        raise ConfigurationError(f"write_trace: {why(error, path)}") from None
