"""Tests that are one another at several loads, as a curve of throughput over load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llmperf.reports.content import Section, number
from pytest_llmperf.stats import FEWEST_LOADS, knee

_RATES = ("rate", "qps", "rps", "request_rate")
_COUNTS = ("users", "concurrency", "clients", "sessions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One load of a sweep; what was not measured there is None."""

    section: Section
    load: float
    """What was offered: requests per second, or users."""
    output_throughput: float | None
    request_throughput: float | None
    ttft_p50: float | None
    ttft_p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Measurements that differ in one parameter of the load only, by rising load."""

    name: str
    parameter: str
    is_rate: bool
    points: tuple[Point, ...]

    @property
    def knee(self) -> int | None:
        """The place of the last load that brings throughput in proportion; None where no knee was seen."""
        curve = [(point.load, point.output_throughput) for point in self.points]
        known = [(load, throughput) for load, throughput in curve if throughput is not None]
        if len(known) < len(curve):
            return None
        return knee([load for load, _ in known], [throughput for _, throughput in known])


def sweeps_in(sections: Iterable[Section]) -> tuple[Sweep, ...]:
    """The sweeps of at least three loads, in the order of their first tests; invalid measurements are left out."""
    found: dict[tuple[str, ...], list[Section]] = {}
    for section in sections:
        for parameter in (*_RATES, *_COUNTS):
            if not section.invalid and (number(section.params, parameter) or 0) > 0:
                found.setdefault(_key(section, parameter), []).append(section)
    return tuple(
        _sweep(key[0], key[-1], group)
        for key, group in found.items()
        if len({number(section.params, key[-1]) for section in group}) >= FEWEST_LOADS
    )


def _key(section: Section, parameter: str) -> tuple[str, ...]:
    """What all measurements of one sweep share: function, name, hardware, the other parameters."""
    others = [f"{name}={value!r}" for name, value in sorted(section.params.items()) if name != parameter]
    function = section.test.partition("[")[0]
    name = function + section.name.removeprefix(section.test)
    return (f"{name} ({', '.join(others)})" if others else name, section.hardware_key, parameter)


def _sweep(name: str, parameter: str, group: Sequence[Section]) -> Sweep:
    is_rate = parameter in _RATES
    points = sorted((_point(section, parameter, is_rate=is_rate) for section in group), key=lambda point: point.load)
    return Sweep(name=name, parameter=parameter, is_rate=is_rate, points=tuple(points))


def _point(section: Section, parameter: str, *, is_rate: bool) -> Point:
    """Of a rate, what the schedule came to; the parameter itself where that is not known."""
    given = number(section.params, parameter) or 0.0
    offered = section.number("load", "offered") if is_rate else None
    return Point(
        section=section,
        load=given if offered is None else offered,
        output_throughput=section.number("output_throughput"),
        request_throughput=section.number("request_throughput"),
        ttft_p50=section.number(section.ttft, "p50"),
        ttft_p99=section.number(section.ttft, "p99"),
    )
