"""What was measured beside the gated metrics, as words: each with its name; what was not measured is left out."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmperf import units
from pytest_llmperf.metrics import LABELS, METRICS
from pytest_llmperf.reports.content import Section, items, numbers

ABSENT = "-"
_IDLE = "gpu_idle"
"""Why a clock is low that nobody has to look into."""
_SMALLEST = 1e-9
"""A nanosecond is the resolution of all times; less is how numbers are rounded."""


def client_error(section: Section, metric: str) -> str:
    """By how much the client may have falsified a metric at most, in its unit."""
    bound = section.number("client", "error_bounds", metric)
    if bound is None or metric not in METRICS:
        return ABSENT
    return units.quantity(bound if bound >= _SMALLEST else 0.0, METRICS[metric].unit)


def facts(section: Section) -> Iterator[tuple[str, str]]:
    """Name and value of everything that was measured, and of what it was measured."""
    for label, value in section.about.items():
        if value:
            yield label, value
    for name in dict.fromkeys((section.ttft, *LABELS)):
        p50, p99 = section.number(name, "p50"), section.number(name, "p99")
        if p50 is not None and p99 is not None and (name != "scheduled_ttft" or section.is_open):
            yield f"{LABELS[name]} of all requests, p50 (p99)", f"{units.seconds(p50)} ({units.seconds(p99)})"
    yield from _rates(section)
    yield from _counts(section)
    yield from _cache(section)
    yield from _gpu(section)
    yield from _client(section)


def _rates(section: Section) -> Iterator[tuple[str, str]]:
    for label, path, unit in (
        ("output", ("output_throughput",), units.TOKENS_PER_SECOND),
        ("input and output", ("total_throughput",), units.TOKENS_PER_SECOND),
        ("requests", ("request_throughput",), units.REQUESTS_PER_SECOND),
        ("goodput", ("goodput",), units.REQUESTS_PER_SECOND),
        ("offered", ("load", "offered"), units.REQUESTS_PER_SECOND),
    ):
        value = section.number(*path)
        if value is not None and (label != "offered" or section.is_open):
            yield label, units.quantity(value, unit)


def _counts(section: Section) -> Iterator[tuple[str, str]]:
    requests, duration, shed = section.number("requests"), section.number("duration_s"), section.number("load", "shed")
    runs = len(items(section.figures, "runs"))
    if requests is not None:
        within = f" in {units.count(runs, 'run')}" if runs else ""
        over = "" if duration is None else f", {units.seconds(duration)}"
        yield "measured", f"{requests:,.0f} requests{within}{over}"
    if shed:
        yield "not sent", f"{shed:,.0f} turns that the load meant to send"
    for label, name in (("failed", "errors"), ("remarks", "remarks")):
        found = [f"{count:,.0f} {kind}" for kind, count in numbers(section.figures, name)]
        if found:
            yield label, ", ".join(found)


def _cache(section: Section) -> Iterator[tuple[str, str]]:
    hit_rate = section.number("cache", "hit_rate")
    if hit_rate is not None:
        yield "cache hit rate", units.share(hit_rate)
    tiers = dict(numbers(section.figures.get("cache"), "tiers"))
    total = sum(tiers.values())
    if total:
        shown = [f"{tier} {units.share(count / total)}" for tier, count in tiers.items() if count]
        yield "prompt tokens from", ", ".join(shown)
    for label in ("offloaded", "restored"):
        amount = section.number("cache", f"{label}_bytes")
        if amount:
            yield f"KV cache {label}", units.size(amount)
    preemptions = section.number("cache", "preemptions")
    if preemptions:
        yield "preemptions", f"{preemptions:,.0f}"


def _gpu(section: Section) -> Iterator[tuple[str, str]]:
    """Of the engine's GPUs, all runs together."""
    for label, name, written in (
        ("energy", "joules_per_token", lambda value: units.quantity(value, units.JOULES_PER_TOKEN)),
        ("GPU power, all together", "mean_power_w", lambda value: units.quantity(value, units.WATTS)),
        ("SM clock, mean", "mean_sm_clock_mhz", lambda value: f"{value:,.0f} MHz"),
        ("GPU temperature, at most", "max_temperature_c", lambda value: f"{value:.0f} °C"),
        ("GPU memory, at most", "max_memory_bytes", units.size),
        ("time with a kernel running", "utilisation", units.share),
    ):
        value = section.number("gpu", name)
        if value is not None:
            yield label, written(value)
    shares = numbers(section.figures.get("gpu"), "reasons")
    reasons = [f"{name} {units.share(share)}" for name, share in shares if share and name != _IDLE]
    if reasons:
        yield "clocks held down by", ", ".join(reasons)


def _client(section: Section) -> Iterator[tuple[str, str]]:
    for label, name in (("client away p99", "lag_p99_s"), ("client sent late p99", "sent_late_p99_s")):
        value = section.number("client", name)
        if value is not None:
            yield label, units.seconds(value)
    share = section.number("client", "cpu_share")
    if share is not None:
        yield "client CPU, busiest worker", units.share(share)
