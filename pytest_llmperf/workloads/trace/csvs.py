"""Traces in CSV: Azure's and BurstGPT's. Neither knows what the requests have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from pytest_llmperf.workloads.files import complaint, csv_rows
from pytest_llmperf.workloads.trace.rows import MOST_TOKENS, Input, Reading, Row, S

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
_VLLM_BLOCK = 16
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 # dates and this are compared after their zone was taken off
_SECOND = timedelta(seconds=1)
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?", re.ASCII
)  # day, time, fraction, offset
_NUMBER = re.compile(r"\d{1,12}(\.\d{1,20})?", re.ASCII)


def azure(path: Path) -> Reading:
    """Azure's LLM inference traces of 2023 and 2024."""
    return Reading(_VLLM_BLOCK, _azure(path))


def burstgpt(path: Path) -> Reading:
    """BurstGPT's; those with a `Session ID` have sessions, whose rows count the whole input."""
    return Reading(_VLLM_BLOCK, _burstgpt(path))


def _azure(path: Path) -> Iterator[Row]:
    time, context, generated = AZURE_COLUMNS
    for line, row in csv_rows(path, AZURE_COLUMNS):
        at_ns = _date_ns(path, line, row[time])
        yield Row(
            line, at_ns, _tokens(path, line, context, row[context]), _tokens(path, line, generated, row[generated])
        )


def _burstgpt(path: Path) -> Iterator[Row]:
    time, asked, answered = BURSTGPT_COLUMNS
    for line, row in csv_rows(path, BURSTGPT_COLUMNS):
        if _NUMBER.fullmatch(row[time]) is None:
            raise complaint(path, line, f"{time} is {row[time][:60]!r}", "seconds of 0 or more")
        session = row.get("Session ID") or None
        yield Row(
            line,
            round(float(row[time]) * S),
            _tokens(path, line, asked, row[asked]),
            _tokens(path, line, answered, row[answered]),
            key=session,
            follows=session,
            input=Input.TOTAL,
        )


def _tokens(path: Path, line: int, name: str, text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= MOST_TOKENS:
        return int(text)
    raise complaint(path, line, f"{name} is {text[:60]!r}", f"a whole number from 0 to {MOST_TOKENS:,}")


def _date_ns(path: Path, line: int, text: str) -> int:
    found = _DATE.fullmatch(text)
    expected = "a date such as 2023-11-16 18:15:46.6805900 or 2024-05-10 00:00:00.009930+00:00"
    if found is None:
        raise complaint(path, line, f"TIMESTAMP is {text[:60]!r}", expected)
    day, time, fraction, sign, hours, minutes = found.groups()
    try:
        seconds = (datetime.fromisoformat(f"{day} {time}") - _EPOCH) // _SECOND
    except ValueError as error:
        raise complaint(path, line, f"TIMESTAMP is {text!r} ({error})", expected) from None
    if sign is not None:
        seconds -= int(f"{sign}1") * (int(hours) * 3600 + int(minutes) * 60)
    return seconds * S + int((fraction or "0").ljust(9, "0"))
