"""What is printed: medians over the repeats, held against the server's answer, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attempts import Attempt, last_lines
from origin import Answer, Served
from peers import CLIENTS, OURS, Report

RULES = """\
* Figures are medians of {repeats} run(s), clients in turn; a run is {requests} requests per stream.
* The truth for TTFT is {ttft:g} ms plus the server's own lateness in that very run (the mean beside the mean, p99
  beside p99). In brackets: what the client reported less the truth.
* The truth for ITL is {itl:g} ms. Tokens/s are as reported; in brackets the share of what is possible: streams x
  tokens / (TTFT + (tokens - 1) x ITL).
* Tokens per CPU second: tokens that the server sent / processor time of all the client's processes; then the same
  without start-up, which is the processor time of a run of one request."""

DISTURBED = 0.05
"""From this share of a core on, figures taken while others used it are marked."""

HEAD = (
    "client",
    "version",
    "streams reached",
    "TTFT mean, ms",
    "TTFT p99, ms",
    "ITL mean, ms",
    "tokens/s",
    "tokens per CPU s",
    "without start-up",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A client at a number of streams; `*_error_s` is what it reported less the truth."""

    client: str
    reached: float
    ttft_mean_s: float
    ttft_mean_error_s: float
    ttft_p99_s: float
    ttft_p99_error_s: float
    itl_mean_s: float
    tokens_per_second: float
    tokens_per_cpu_s: float
    tokens_per_cpu_s_running: float | None
    """Without start-up; None if that was not seen to cost less than the whole run."""


RATIOS: dict[str, tuple[Callable[[Row], float | None], Callable[..., tuple[float, str]]]] = {
    "error of the TTFT mean": (lambda row: abs(row.ttft_mean_error_s), min),
    "error of the TTFT p99": (lambda row: abs(row.ttft_p99_error_s), min),
    "tokens/s": (lambda row: row.tokens_per_second, max),
    "tokens per CPU s": (lambda row: row.tokens_per_cpu_s, max),
    "tokens per CPU s without start-up": (lambda row: row.tokens_per_cpu_s_running, max),
}
"""What is compared: the figure, and which of several is the best."""


def section(attempts: Sequence[Attempt], streams: int, answer: Answer, versions: dict[str, str]) -> str:
    """All that is to be said of the runs at one number of streams."""
    names = list(dict.fromkeys(attempt.client for attempt in attempts))
    rows = {name: row(name, attempts, streams, answer) for name in names}
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for name in names:
        found = rows[name]
        told = ["failed", *[""] * (len(HEAD) - 3)] if found is None else _cells(found, streams, answer)
        lines.append(_line([CLIENTS[name].title, versions[name], *told]))
    notes = [note for name in names for note in _notes(name, attempts, streams)]
    ratios = _ratios([found for found in rows.values() if found is not None])
    return "\n".join([f"### {streams} streams", "", *lines, "", *ratios, *notes])


def row(name: str, attempts: Sequence[Attempt], streams: int, answer: Answer) -> Row | None:
    """The medians of a client's runs that succeeded; None if there is none."""
    mine = [a for a in attempts if a.client == name and a.streams == streams and a.report is not None]
    done = [(a, a.served, a.report) for a in mine if a.requests > 1 and a.report is not None]
    if not done:
        return None

    def median(figure: Callable[[Served, Report], float]) -> float:
        return statistics.median(figure(served, report) for _, served, report in done)

    cpu_s = statistics.median(a.cpu_s for a, _, _ in done)
    tokens = median(lambda served, _: served.tokens)
    start_up_s = [a.cpu_s for a in mine if a.requests == 1]
    running_s = cpu_s - statistics.median(start_up_s) if start_up_s else 0.0
    return Row(
        client=name,
        reached=median(lambda served, _: served.peak),
        ttft_mean_s=median(lambda _, report: report.ttft_mean_s),
        ttft_mean_error_s=median(lambda served, report: report.ttft_mean_s - answer.ttft_s - served.late_mean_s),
        ttft_p99_s=median(lambda _, report: report.ttft_p99_s),
        ttft_p99_error_s=median(lambda served, report: report.ttft_p99_s - answer.ttft_s - served.late_p99_s),
        itl_mean_s=median(lambda _, report: report.itl_mean_s),
        tokens_per_second=median(lambda _, report: report.tokens_per_second),
        tokens_per_cpu_s=tokens / cpu_s,
        tokens_per_cpu_s_running=tokens / running_s if running_s > 0 else None,
    )


def _cells(found: Row, streams: int, answer: Answer) -> list[str]:
    share = found.tokens_per_second / answer.tokens_per_second(streams)
    running = found.tokens_per_cpu_s_running
    return [
        f"{found.reached:.0f}",
        f"{1e3 * found.ttft_mean_s:.2f} ({1e3 * found.ttft_mean_error_s:+.2f})",
        f"{1e3 * found.ttft_p99_s:.2f} ({1e3 * found.ttft_p99_error_s:+.2f})",
        f"{1e3 * found.itl_mean_s:.2f}",
        f"{found.tokens_per_second:,.0f} ({share:.0%})",
        f"{found.tokens_per_cpu_s:,.0f}",
        "?" if running is None else f"{running:,.0f}",
    ]


def _ratios(rows: Sequence[Row]) -> list[str]:
    """Ours over the best of the others, figure by figure."""
    ours = [row for row in rows if row.client == OURS]
    peers = [row for row in rows if row.client != OURS]
    lines = []
    for what, (figure, best) in RATIOS.items():
        known = [(found, peer.client) for peer in peers if (found := figure(peer))]  # nothing is divided by 0
        mine = figure(ours[0]) if ours else None
        if known and mine is not None:
            found, name = best(known)
            lines.append(f"* ours / best peer, {what}: {mine / found:.3g} ({CLIENTS[name].title})")
    return lines


def _notes(name: str, attempts: Sequence[Attempt], streams: int) -> list[str]:
    """What has to be known beside a client's figures."""
    mine = [a for a in attempts if a.client == name and a.streams == streams]
    title = CLIENTS[name].title
    return [*_failures(title, mine), *(f"* {title}: {doubt}" for doubt in _doubts(mine))]


def _failures(title: str, attempts: Sequence[Attempt]) -> list[str]:
    """How many, and the end of the last one's log."""
    failed = [a for a in attempts if a.failure is not None]
    if not failed:
        return []
    last = failed[-1]
    count = f"* {title}: {len(failed)} of {len(attempts)} runs failed, at last: {last.failure}; {last.log} ends with"
    return [count, "", *(f"      {line}" for line in last_lines(last.log).splitlines()), ""]


def _doubts(attempts: Sequence[Attempt]) -> list[str]:
    """What disturbed the runs, and what the client said of the last one."""
    done = [(a, a.report) for a in attempts if a.requests > 1 and a.report is not None]
    if not done:
        return []
    doubts = []
    disturbed = max(a.others_share for a, _ in done)
    if disturbed > DISTURBED:
        doubts.append(f"DISTURBED, other processes had up to {disturbed:.0%} of its core or the server's")
    last, report = done[-1]
    if report.failed:
        doubts.append(f"{report.failed} requests failed")
    if last.served.requests != last.requests:
        doubts.append(f"the server had {last.served.requests} requests, {last.requests} were asked for")
    return doubts + [f"it says: {remark}" for remark in report.remarks]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
