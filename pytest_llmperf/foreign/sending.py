"""How requests were sent, in the words of our own loads where it is the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.foreign.source import Fields

ALL_AT_ONCE = "all at once"


@dataclass(frozen=True, slots=True)
class Way:
    """A load in words, and whether it sends without waiting for answers."""

    words: str
    is_open: bool


def sent(fields: Fields, *, rate: Any, shape: float | None, concurrency: int | None) -> Way:
    """The load of a client with a schedule and a limit of open requests, as vLLM's and SGLang's have.

    `rate`: requests per second; unlimited as infinity or "inf". `shape`: of gamma-distributed gaps.
    Raises `ForeignResultError` for a rate that is none.
    """
    limit = "" if concurrency is None else f", at most {concurrency} open"
    if rate == "trace":
        return Way(f"replay(){limit}", True)
    if rate in (None, "inf", math.inf):
        # The schedule is over at once; the limit makes a closed loop of it.
        return Way(ALL_AT_ONCE, True) if concurrency is None else Way(f"closed_loop({concurrency})", False)
    per_second = fields.required("request_rate")
    if not per_second:
        raise fields.complaint("request_rate", 'requests per second above 0, or "inf"')
    if shape in (None, 1.0):
        return Way(f"poisson({per_second:g}){limit}", True)
    return Way(f"burst({per_second:g}, shape={shape:g}){limit}", True)
