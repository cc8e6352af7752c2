"""From samples to what they come to: folded one by one, so that a long run needs no more memory than a short one.

Values are taken within the part of the run that counts. Counters and energy are taken at its two ends,
between the samples on either side of each, so that none of the time around it is in them. What links
carried is of the whole run, as the engine's own counters are that it is held against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_llmperf.clock import NS_PER_S, seconds_between
from pytest_llmperf.readings import (
    LINK_BYTES,
    Course,
    GpuSample,
    GpuSummary,
    HostSample,
    HostSummary,
    ProcessSeen,
    Spread,
    Xid,
    reasons_in,
)
from pytest_llmperf.telemetry.clocks import BusyFold
from pytest_llmperf.telemetry.gpu import GpuAddress

_LONGEST_GAP_NS = 2 * NS_PER_S
"""Between two samples of power; over a longer one an integral would be a guess."""
_OVERFULL = 1.05
"""A share of time beyond this is of a counter that does not count nanoseconds."""
_ENOUGH = 10
"""Samples that are enough to contradict a counter."""
_CONTRADICTED = 0.25
"""By how much more of the samples show a reason than of the time, where the counter is not believed."""


def summaries(
    samples: Iterable[GpuSample | HostSample | Xid],
    gpus: Sequence[GpuAddress],
    span: tuple[int, int],
    lost: Mapping[int, str],
    period_ns: int,
    watched: Container[int] = (),
) -> tuple[tuple[GpuSummary, ...], HostSummary | None]:
    """Fold the samples of one run.

    `span`: the part of it that counts, by the samples' clock. `lost`: NVML's errors by GPU. `period_ns`: how
    often power was sampled. `watched`: the GPUs that report Xids.
    """
    folds = {address.gpu: _GpuFold(span, max(_LONGEST_GAP_NS, 3 * period_ns)) for address in gpus}
    host = _HostFold(span)
    xids: dict[int, list[int]] = {}

    def xids_of(gpu: int) -> tuple[int, ...] | None:
        return tuple(xids.get(gpu, ())) if gpu in watched else None

    for sample in samples:
        if isinstance(sample, HostSample):
            host.add(sample)
        elif isinstance(sample, Xid):
            xids.setdefault(sample.gpu, []).append(sample.code)
        else:
            folds[sample.gpu].add(sample)
    found = (replace(folds[one.gpu].summary(one, lost.get(one.gpu)), xids=xids_of(one.gpu)) for one in gpus)
    return tuple(found), host.summary()


class _Values:
    """Mean, least and most of values, and the first and the last of them."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0.0
        self._min = self._max = self._first = self._last = 0.0

    def add(self, value: float | None) -> None:
        if value is None:
            return
        if not self.count:
            self._min = self._max = self._first = value
        self.count += 1
        self._sum += value
        self._min, self._max, self._last = min(self._min, value), max(self._max, value), value

    @property
    def mean(self) -> float | None:
        return self._sum / self.count if self.count else None

    @property
    def first(self) -> float | None:
        return self._first if self.count else None

    @property
    def min(self) -> float | None:
        return self._min if self.count else None

    @property
    def max(self) -> float | None:
        return self._max if self.count else None

    def spread(self) -> Spread | None:
        return Spread(self._sum / self.count, self._min, self._max) if self.count else None

    def course(self) -> Course | None:
        return Course(self._first, self._last, self._max) if self.count else None


class _Gain:
    """What a counter gained between two moments, each read between the samples on either side of it."""

    def __init__(self, span: tuple[int, int]) -> None:
        self._span = span
        self._ends: list[float | None] = [None, None]
        self._last: tuple[int, float] | None = None
        self._is_whole = True

    def add(self, at_ns: int, value: float) -> None:
        before, self._last = self._last, (at_ns, value)
        if before is None:
            before = self._last
        self._is_whole = self._is_whole and value >= before[1]  # a driver that is loaded anew begins at 0
        for index, end_ns in enumerate(self._span):
            if before[0] <= end_ns <= at_ns:
                self._ends[index] = _between(before, (at_ns, value), end_ns)

    @property
    def gained(self) -> float | None:
        start, end = self._ends
        return end - start if self._is_whole and start is not None and end is not None else None


class _Growth:
    """What a counter gained from before one moment until after another: what was seen in between is all in it."""

    def __init__(self, span: tuple[int, int]) -> None:
        self._span = span
        self._first: float | None = None
        self._last: tuple[int, float] | None = None
        self._is_whole = True

    def add(self, at_ns: int, value: float) -> None:
        if self._last is None:
            self._first = value if at_ns <= self._span[0] else None
        elif value < self._last[1]:  # a driver that is loaded anew begins at 0
            self._is_whole = False
        self._last = (at_ns, value)

    @property
    def gained(self) -> float | None:
        if not self._is_whole or self._first is None or self._last is None or self._last[0] < self._span[1]:
            return None
        return self._last[1] - self._first


class _Integral:
    """A value's integral over the time between two moments, in its unit times seconds; None over a gap."""

    def __init__(self, span: tuple[int, int], longest_gap_ns: int) -> None:
        self._start_ns, self._end_ns = span
        self._longest_gap_ns = longest_gap_ns
        self._sum = 0.0
        self._reached_ns: int | None = None
        self._last: tuple[int, float] | None = None

    def add(self, at_ns: int, value: float) -> None:
        before, self._last = self._last, (at_ns, value)
        if before is None or at_ns - before[0] > self._longest_gap_ns:
            return
        low_ns, high_ns = max(before[0], self._start_ns), min(at_ns, self._end_ns)
        if low_ns > high_ns or (self._reached_ns or self._start_ns) != low_ns:
            return
        ends = (_between(before, (at_ns, value), edge_ns) for edge_ns in (low_ns, high_ns))
        self._sum += sum(ends) / 2 * seconds_between(low_ns, high_ns)
        self._reached_ns = high_ns

    @property
    def total(self) -> float | None:
        return self._sum if self._reached_ns == self._end_ns else None


def _between(before: tuple[int, float], after: tuple[int, float], at_ns: int) -> float:
    """The value at a moment between two samples, as if it went in a straight line."""
    if after[0] == before[0]:
        return after[1]
    return before[1] + (after[1] - before[1]) * (at_ns - before[0]) / (after[0] - before[0])


_VALUES = ("sm_clock_mhz", "memory_clock_mhz", "power_w", "utilisation")
_WHENEVER = ("temperature_c", "memory_used_bytes", "pcie_generation", "pcie_width")
"""What is taken of all samples, also those just before and after the part that counts: it is read but once a second."""


class _GpuFold:
    """One GPU's samples."""

    def __init__(self, span: tuple[int, int], longest_gap_ns: int) -> None:
        self._span = span
        self._at = _Values()
        self._values = {name: _Values() for name in (*_VALUES, *_WHENEVER)}
        self._busy = BusyFold(span)
        self._energy = _Gain(span)
        self._power = _Integral(span, longest_gap_ns)
        self._links = {name: _Growth(span) for name in LINK_BYTES}
        self._throttled: dict[str, _Gain] = {}
        self._ecc: dict[str, tuple[int, int]] = {}
        self._reasons: Counter[str] = Counter()
        self._bits: int | None = None
        self._asked_reasons = 0
        self._processes: dict[int, int | None] | None = None

    def add(self, sample: GpuSample) -> None:
        for name in _WHENEVER:
            self._values[name].add(getattr(sample, name))
        self._add_counters(sample)
        self._add_processes(sample)
        if not self._span[0] <= sample.at_ns <= self._span[1]:
            return
        self._at.add(sample.at_ns)
        self._busy.add(sample)
        for name in _VALUES:
            self._values[name].add(getattr(sample, name))
        if sample.clock_reasons is not None:
            self._asked_reasons += 1
            self._bits = (self._bits or 0) | sample.clock_reasons
            self._reasons.update(reasons_in(sample.clock_reasons))

    def _add_counters(self, sample: GpuSample) -> None:
        at_ns = sample.at_ns
        if sample.energy_j is not None:
            self._energy.add(at_ns, sample.energy_j)
        if sample.power_w is not None:
            self._power.add(at_ns, sample.power_w)
        for name, link in self._links.items():
            value = getattr(sample, name)
            if value is not None:
                link.add(at_ns, value)
        for name, value in (sample.throttled_ns or {}).items():
            self._throttled.setdefault(name, _Gain(self._span)).add(at_ns, value)
        for name, value in (sample.ecc or {}).items():
            self._ecc[name] = (self._ecc.get(name, (value, value))[0], value)

    def _add_processes(self, sample: GpuSample) -> None:
        if sample.processes is None:
            return
        seen = self._processes = {} if self._processes is None else self._processes
        for pid, memory in sample.processes.items():
            seen[pid] = max((known for known in (memory, seen.get(pid)) if known is not None), default=None)

    def summary(self, address: GpuAddress, lost: str | None) -> GpuSummary:
        values = self._values
        energy_j, energy_from = self._energy_of()
        reasons, counted = self._reason_shares()
        at = self._at.spread()
        links: dict[str, Any] = {name: _whole(link.gained) for name, link in self._links.items()}
        return GpuSummary(
            gpu=address.gpu,
            uuid=address.uuid,
            name=address.name,
            samples=self._at.count,
            duration_s=0.0 if at is None else (at.max - at.min) / NS_PER_S,
            sm_clock_mhz=values["sm_clock_mhz"].spread(),
            busy_clock=self._busy.found(),
            memory_clock_mhz=values["memory_clock_mhz"].spread(),
            power_w=values["power_w"].spread(),
            temperature_c=values["temperature_c"].course(),
            utilisation=values["utilisation"].mean,
            memory_before_bytes=_whole(values["memory_used_bytes"].first),
            memory_max_bytes=_whole(values["memory_used_bytes"].max),
            energy_j=energy_j,
            energy_from=energy_from,
            clock_reasons=self._bits,
            reasons=reasons,
            counted_reasons=counted,
            pcie_generation=_whole(values["pcie_generation"].max),
            pcie_width=_whole(values["pcie_width"].max),
            ecc={name: last - first for name, (first, last) in self._ecc.items()} or None,
            processes=None if self._processes is None else _seen(self._processes),
            lost=lost,
            **links,
        )

    def _energy_of(self) -> tuple[float | None, str | None]:
        """By the counter; by power where there is none."""
        if self._energy.gained is not None:
            return self._energy.gained, "counter"
        total = self._power.total
        return total, None if total is None else "power"

    def _reason_shares(self) -> tuple[dict[str, float] | None, tuple[str, ...]]:
        """Shares of time, and which of them are by counters."""
        seconds = seconds_between(*self._span)
        sampled = {name: count / self._asked_reasons for name, count in self._reasons.items()}
        counted = {}
        for name, counter in self._throttled.items():
            gained = counter.gained
            if gained is not None and seconds > 0 and self._is_believed(gained / NS_PER_S / seconds, sampled.get(name)):
                counted[name] = min(1.0, gained / NS_PER_S / seconds)
        shares = {**sampled, **counted}
        return (shares if self._asked_reasons or counted else None), tuple(sorted(counted))

    def _is_believed(self, share: float, sampled: float | None) -> bool:
        """Whether a counter counts nanoseconds, which NVIDIA documents nowhere for field values."""
        contradicted = self._asked_reasons >= _ENOUGH and (sampled or 0.0) - share > _CONTRADICTED
        return share <= _OVERFULL and not contradicted


class _HostFold:
    """The machine's samples: each tells of the time since the one before."""

    def __init__(self, span: tuple[int, int]) -> None:
        self._span = span
        self._before_ns: int | None = None
        self._values = {name: _Values() for name in HostSample.__slots__}

    def add(self, sample: HostSample) -> None:
        before_ns, self._before_ns = self._before_ns, sample.at_ns
        if before_ns is not None and self._span[0] <= sample.at_ns and before_ns < self._span[1]:
            for name, values in self._values.items():
                values.add(getattr(sample, name))

    def summary(self) -> HostSummary | None:
        values = self._values
        if not values["at_ns"].count:
            return None
        return HostSummary(
            samples=values["at_ns"].count,
            cpu_share=values["cpu_share"].spread(),
            memory_available_min_bytes=_whole(values["memory_available_bytes"].min),
            swap_used_max_bytes=_whole(values["swap_used_bytes"].max),
            cpu_pressure_max=values["cpu_pressure"].max,
            memory_pressure_max=values["memory_pressure"].max,
            io_pressure_max=values["io_pressure"].max,
        )


def _seen(processes: Mapping[int, int | None]) -> tuple[ProcessSeen, ...]:
    return tuple(ProcessSeen(pid, memory) for pid, memory in sorted(processes.items()))


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
