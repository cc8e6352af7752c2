"""Recorded traffic, from the formats in which traces are published, and our own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.base import check_counts
from pytest_llmperf.workloads.trace.columns import UNTIMED, Columns, load
from pytest_llmperf.workloads.trace.formats import FORMATS, reading
from pytest_llmperf.workloads.trace.linking import Flags
from pytest_llmperf.workloads.trace.rows import MOST_TOKENS
from pytest_llmperf.workloads.trace.workload import Trace
from pytest_llmperf.workloads.trace.writing import write_trace

__all__ = ["FORMATS", "Trace", "trace", "write_trace"]


def trace(  # noqa: PLR0913 # all but the first are optional, keyword-only, and independent of one another
    path: str | Path,
    format: str | None = None,  # noqa: A002 # what everybody calls it
    *,
    block_tokens: int | None = None,
    window: tuple[float, float] | None = None,
    sample: float | None = None,
    limit: int | None = None,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
    sort: bool = False,
    seed: int = 0,
    token_ids: range = TOKEN_IDS,
) -> Trace:
    """The requests of a trace file: their times, lengths and, where it tells them, shared prefixes.

    Each request sends as many ids as were recorded and asks for exactly the output that was. Equal block numbers
    become equal ids, so that a prefix cache finds the reuse that was recorded; other ids are drawn per request. `load=
    replay()` sends at the recorded times, counted from the first request that is kept, `replay(speed=2)` twice as
    fast; every other load ignores them.

    Where the format has sessions, the rows of one are its turns. A row with blocks is sent as it was recorded; one
    without continues from the session's real answers, and adds what its input is longer than those and the inputs
    before. A turn for which that is impossible, or whose predecessor is missing, begins a session of its own.

    * `format`: one of `FORMATS`; None: told by how the file begins.
    * `block_tokens`: how many tokens a block number stands for; None: as the format has it.
    * `window`: only sessions that begin within, in seconds from the file's first request, the end left out.
    * `sample`: only this share of the sessions, drawn from `seed`.
    * `limit`: only the first so many requests of those, session by session.
    * `max_input_tokens`, `max_output_tokens`: longer requests are left out, with those that continue from them, and
      counted in `left_out`; so are requests without any input or output.
    * `sort`: rows may be out of order; without it that is a mistake in the file.
    * `seed`, `token_ids`: where ids come from.

    Raises `ConfigurationError` listing every argument out of range, or naming the line of the file that is wrong.
    """
    counts = {
        "block_tokens": block_tokens,
        "limit": limit,
        "max_input_tokens": max_input_tokens,
        "max_output_tokens": max_output_tokens,
    }
    _check_arguments(counts, window, sample, seed, token_ids)
    where = Path(path)
    name, opened = reading(where, format)
    size = opened.block_tokens if block_tokens is None else block_tokens
    loaded = load(where, opened.rows, size, sort=sort)
    fits = _fitting(loaded, max_input_tokens, max_output_tokens)
    keep = fits.copy()
    if window is not None:
        keep &= _beginning_in(where, loaded, window)
    if sample is not None:
        keep &= _sampled(loaded, sample, seed)
    if limit is not None:
        keep &= np.cumsum(keep) <= limit
    if not keep.any():
        raise ConfigurationError(
            f"{where}: none of the {len(loaded)} requests is left, {np.count_nonzero(~fits)} of them being too long or "
            "empty; expected a wider window, a larger sample or longer lengths"
        )
    return Trace(
        path=str(path),
        format=name,
        block_tokens=size,
        left_out=int(np.count_nonzero(~fits)),
        seed=seed,
        token_ids=token_ids,
        columns=loaded.only(keep),
    )


def _check_arguments(
    counts: Mapping[str, int | None], window: object, sample: object, seed: int, token_ids: range
) -> None:
    problems: list[str] = []
    try:
        given: dict[str, tuple[object, int]] = {name: (n, 1) for name, n in counts.items() if n is not None}
        check_counts("trace", {**given, "seed": (seed, 0)}, token_ids)
    except ConfigurationError as error:
        problems += error.problems
    if not problems and (counts["block_tokens"] or 1) > MOST_TOKENS:
        problems.append(f"trace: block_tokens must be at most {MOST_TOKENS:,}, got {counts['block_tokens']!r}")
    if sample is not None and not (_is_number(sample) and 0 < sample <= 1):  # type: ignore[operator] # a number
        problems.append(f"trace: sample must be a share above 0 and up to 1, or None, got {sample!r}")
    if window is not None and not _is_window(window):
        problems.append(f"trace: window must be two times in seconds, 0 <= start < end, or None, got {window!r}")
    if problems:
        raise ConfigurationError(*problems)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_window(value: object) -> bool:
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value))):
        return False
    return bool(0 <= value[0] < value[1])


def _fitting(columns: Columns, max_input: int | None, max_output: int | None) -> Flags:
    """The requests that can be sent: not empty, not too long, not in want of one that is."""
    fits = (columns.new_tokens > 0) & (columns.output_tokens > 0)
    if max_input is not None:
        fits &= columns.total_tokens <= max_input
    if max_output is not None:
        fits &= columns.output_tokens <= max_output
    for number in np.flatnonzero(columns.continues).tolist():
        fits[number] &= fits[number - 1]
    return fits


def _beginning_in(path: Path, columns: Columns, window: tuple[float, float]) -> Flags:
    begin_ns = columns.at_ns[columns.first[:-1]]
    if (begin_ns == UNTIMED).any():
        raise ConfigurationError(f"{path}: window needs a time for each session, and some have none; leave it out")
    start, end = window
    return np.asarray((start * 1e9 <= begin_ns) & (begin_ns < end * 1e9))[columns.session_of]


def _sampled(columns: Columns, share: float, seed: int) -> Flags:
    drawn = np.random.PCG64(seed).random_raw(columns.sessions)
    return np.asarray(drawn < np.uint64(min(round(share * 2**64), 2**64 - 1)))[columns.session_of]
