"""What was wanted of the client at some numbers of streams, held against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from origin import Answer
from peers import CLIENTS, OURS
from table import Row

CPU_RATIO = 3.0
"""Tokens per CPU second, ours over the best Python peer's."""
_NATIVE = ("vllm-rust", "reader")


@dataclass(frozen=True)
class Wanted:
    """At so many streams; seconds."""

    ttft_mean_s: float
    tokens_per_second: float
    ttft_p99_s: float | None = None
    itl_mean_s: float | None = None


WANTED = {
    1000: Wanted(ttft_mean_s=0.001, ttft_p99_s=0.005, itl_mean_s=0.0001, tokens_per_second=85_000),
    4000: Wanted(ttft_mean_s=0.008, tokens_per_second=150_000),
}


def verdicts(rows: Sequence[Row | None], streams: int, answer: Answer) -> Iterator[dict[str, object]]:
    """One for each figure of which something was wanted."""
    ours = next((row for row in rows if row is not None and row.client == OURS), None)
    wanted = WANTED.get(streams)
    if ours is None or wanted is None:
        return
    yield _verdict(f"{streams:,} streams: all are reached", f"{ours.reached:,.0f}", ok=ours.reached == streams)
    errors = {
        "mean TTFT": (ours.ttft_mean_error_s, wanted.ttft_mean_s),
        "p99 TTFT": (ours.ttft_p99_error_s, wanted.ttft_p99_s),
        "mean ITL": (ours.itl_mean_s - answer.itl_s, wanted.itl_mean_s),
    }
    for name, (error, most) in errors.items():
        if most is not None:
            what = f"{streams:,} streams: {name} within {1e3 * most:g} ms of the truth"
            yield _verdict(what, f"{1e3 * error:+.2f} ms", ok=abs(error) <= most)
    speed, least = ours.tokens_per_second, wanted.tokens_per_second
    yield _verdict(f"{streams:,} streams: at least {least:,} tokens/s", f"{speed:,.0f} tokens/s", ok=speed >= least)
    peers = [row for row in rows if row is not None and row.client not in (OURS, *_NATIVE)]
    if peers:
        best = max(peers, key=lambda row: row.tokens_per_cpu_s)
        ratio = ours.tokens_per_cpu_s / best.tokens_per_cpu_s
        what = f"{streams:,} streams: at least {CPU_RATIO:g} times the tokens per CPU second of the best Python peer"
        yield _verdict(what, f"{ratio:.1f} times ({CLIENTS[best.client].title})", ok=ratio >= CPU_RATIO)


def _verdict(what: str, found: str, *, ok: bool) -> dict[str, object]:
    return {"what": what, "found": found, "ok": ok}
