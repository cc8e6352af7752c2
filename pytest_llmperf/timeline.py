"""What happened when, counted in bins: requests under way, answers, tokens, and the first tokens' times.

Memory is bounded however many requests there are: bins of time double their width when there are too
many, and durations are counted in histograms. It decides nothing and is for drawing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pytest_llmperf.arrivals import UNKNOWN
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.metrics import LATENCIES, columns, itl_s
from pytest_llmperf.records import Phase, RequestRecord, Window

_FINEST_BITS = 20
"""The narrowest bins hold 2^20 ns, a millisecond."""
_MOST_BINS = 480
"""Of a run while it is read, and of all runs together: more cannot be told apart on a screen."""
_FEWEST_BINS = 16
"""Of each of many runs."""
_FINE = 10
"""A drawn distribution's bins are 0.1 % wide: what is to be seen is whether it moved by a percent."""
_BATCH = 65_536
"""Gaps between tokens that are counted at once."""
_DRAWN = ("ttft", "scheduled_ttft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One run over time, in bins of equal width; each column has a value for each bin, in order."""

    run: int
    start_ns: int
    """Where the first bin begins, on the records' monotonic clock."""
    bin_ns: int
    in_flight: tuple[int, ...]
    """Requests under way at the end of each bin."""
    answered: tuple[int, ...]
    failed: tuple[int, ...]
    tokens: tuple[int, ...] | None
    """Generated tokens that arrived; None where the server does not say how many a chunk holds."""
    ttft_p50_s: tuple[float | None, ...]
    """Of the first tokens that arrived in the bin; None where none did."""

    @property
    def bins(self) -> int:
        return len(self.in_flight)

    @property
    def duration_s(self) -> float:
        return self.bins * self.bin_ns / NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The turns of one number, over all sessions and runs."""

    turn: int
    ttft: Histogram
    prompt_tokens: int | None
    """As the server counted them, the answered requests added up; None where it does not say of each."""
    cached_tokens: int | None
    """Of these, from any tier of a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A figure that was sampled beside the runs, such as a GPU's clock or power.

    `at_ns`: on the monotonic clock of the records, rising. `values`: one for each, in `unit`.
    """

    label: str
    of: str
    """What it was taken of, such as `GPU 0`; gauges of one label share a panel."""
    unit: str
    at_ns: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The measured runs of one measurement."""

    courses: tuple[Course, ...]
    distributions: Mapping[str, Histogram]
    """By name (`ttft`, `scheduled_ttft`, `itl`), the durations of the requests that count."""
    rounds: tuple[Round, ...]
    requests: int
    gauges: tuple[Gauge, ...] = ()


def timeline(
    requests: Iterable[RequestRecord], windows: Mapping[int, Window] | None = None, gauges: Sequence[Gauge] = ()
) -> Timeline:
    """Count requests, in any order; those that were not measured are left out.

    `windows`: by run, the part that counts, where it has a ramp or a tail. Courses show whole runs.
    """
    building = _Building(windows or {})
    for request in requests:
        if request.phase is Phase.MEASURED:
            building.add(request)
    return building.finished(gauges)


@dataclass(slots=True)
class _Bin:
    sent: int = 0
    ended: int = 0
    answered: int = 0
    failed: int = 0
    tokens: int = 0
    first: Histogram = field(default_factory=Histogram)

    def merge(self, other: _Bin) -> None:
        self.sent += other.sent
        self.ended += other.ended
        self.answered += other.answered
        self.failed += other.failed
        self.tokens += other.tokens
        self.first.merge(other.first)


class _Run:
    """The bins of a run while it is being read; a bin's number is its time divided by the width."""

    def __init__(self) -> None:
        self._bits = _FINEST_BITS
        self._bins: dict[int, _Bin] = {}
        self._low, self._high = 0, -1
        self._knows_tokens = True

    def add(self, request: RequestRecord) -> None:
        sent_ns, first_ns, end_ns = request.sent_ns, request.first_token_ns, request.end_ns
        moments = [at for at in (sent_ns, first_ns, request.last_token_ns, end_ns) if at is not None]
        self._reach(min(moments), max(moments))
        ended = self._at(end_ns)
        if sent_ns is not None:
            self._at(sent_ns).sent += 1
            ended.ended += 1
        if not request.ok:
            ended.failed += 1
            return
        ended.answered += 1
        if sent_ns is not None and first_ns is not None:
            self._at(first_ns).first.add(first_ns - sent_ns)
        self._add_tokens(request)

    def widen_to(self, most: int) -> None:
        """Make bins wider until there are no more than so many."""
        while self._high - self._low >= most:
            self._widen()

    def course(self, run: int) -> Course:
        rows = [self._bins.get(number, _NOTHING) for number in range(self._low, self._high + 1)]
        in_flight = np.cumsum([row.sent - row.ended for row in rows]).tolist()
        return Course(
            run=run,
            start_ns=self._low << self._bits,
            bin_ns=1 << self._bits,
            in_flight=tuple(in_flight),
            answered=tuple(row.answered for row in rows),
            failed=tuple(row.failed for row in rows),
            tokens=tuple(row.tokens for row in rows) if self._knows_tokens else None,
            ttft_p50_s=tuple(_seconds(row.first.percentile(0.5)) for row in rows),
        )

    def _at(self, moment_ns: int) -> _Bin:
        number = moment_ns >> self._bits
        found = self._bins.get(number)
        if found is None:
            found = self._bins[number] = _Bin()
        return found

    def _reach(self, first_ns: int, last_ns: int) -> None:
        """Make room for moments from one to the other, wider bins if need be."""
        while True:
            low, high = first_ns >> self._bits, last_ns >> self._bits
            if self._high >= self._low:
                low, high = min(self._low, low), max(self._high, high)
            if high - low < _MOST_BINS:
                break
            self._widen()
        self._low, self._high = low, high

    def _widen(self) -> None:
        wider: dict[int, _Bin] = {}
        for number, one in self._bins.items():
            wider.setdefault(number >> 1, _Bin()).merge(one)
        self._bins = wider
        self._low, self._high = self._low >> 1, self._high >> 1
        self._bits += 1

    def _add_tokens(self, request: RequestRecord) -> None:
        arrivals = columns(request)
        if UNKNOWN in arrivals.tokens:
            self._knows_tokens = False
        if not len(arrivals) or not self._knows_tokens:
            return
        numbers = np.frombuffer(arrivals.at_ns, np.int64) >> self._bits
        first = int(numbers.min())
        counts = np.bincount(numbers - first, weights=np.asarray(arrivals.tokens))
        for place in np.flatnonzero(counts).tolist():
            self._at(first + place << self._bits).tokens += int(counts[place])


_NOTHING = _Bin()


@dataclass(slots=True)
class _Turn:
    ttft: Histogram = field(default_factory=Histogram)
    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0


class _Building:
    """All that is counted while requests are read, one at a time."""

    def __init__(self, windows: Mapping[int, Window]) -> None:
        self._windows = windows
        self._runs: dict[int, _Run] = {}
        self._turns: dict[int, _Turn] = {}
        self._distributions = {name: Histogram(sub_bits=_FINE) for name in (*_DRAWN, "itl")}
        self._gaps: list[float] = []
        self._requests = 0

    def add(self, request: RequestRecord) -> None:
        self._requests += 1
        self._runs.setdefault(request.run, _Run()).add(request)
        window = self._windows.get(request.run)
        if request.ok and (window is None or window.has(request)):
            self._count(request)

    def finished(self, gauges: Sequence[Gauge]) -> Timeline:
        self._count_gaps()
        for run in self._runs.values():
            run.widen_to(max(_FEWEST_BINS, _MOST_BINS // len(self._runs)))
        return Timeline(
            courses=tuple(self._runs[run].course(run) for run in sorted(self._runs)),
            distributions={name: counted for name, counted in self._distributions.items() if counted.bins},
            rounds=tuple(self._round(turn) for turn in sorted(self._turns)),
            requests=self._requests,
            gauges=tuple(gauges),
        )

    def _count(self, request: RequestRecord) -> None:
        for name in _DRAWN:
            for value in LATENCIES[name](request):
                self._distributions[name].add(round(value * NS_PER_S))
        self._gaps.extend(itl_s(request))
        if len(self._gaps) >= _BATCH:
            self._count_gaps()
        turn = self._turns.setdefault(request.turn, _Turn())
        for value in LATENCIES["ttft"](request):
            turn.ttft.add(round(value * NS_PER_S))
        turn.prompt_tokens = _plus(turn.prompt_tokens, request.prompt_tokens)
        turn.cached_tokens = _plus(turn.cached_tokens, request.cached_tokens)

    def _count_gaps(self) -> None:
        if self._gaps:
            self._distributions["itl"].add_all(np.rint(np.array(self._gaps) * NS_PER_S).astype(np.int64))
            self._gaps.clear()

    def _round(self, number: int) -> Round:
        turn = self._turns[number]
        return Round(turn=number, ttft=turn.ttft, prompt_tokens=turn.prompt_tokens, cached_tokens=turn.cached_tokens)


def _plus(total: int | None, amount: int | None) -> int | None:
    """What one request does not say is not known of all."""
    return None if total is None or amount is None else total + amount


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / NS_PER_S
