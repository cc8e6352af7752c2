"""The summary of a load without a test: the figures that serving benchmarks print, in their order."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmperf import metrics, units
from pytest_llmperf.results import PerfResult
from pytest_llmperf.stats import Sample

_WIDTH = 50
_MS = 1000.0


def summary(result: PerfResult) -> Iterator[str]:
    """Lines of at most 80 columns; what was not measured is left out."""
    yield f"{' Serving load ':=^{_WIDTH}}"
    yield from _counts(result)
    for name, label in (
        ("scheduled_ttft", "Time to first token, from the schedule"),
        ("ttft", "Time to first token"),
        ("tpot", "Time per output token, first left out"),
        ("itl", "Inter-token latency"),
        ("e2e", "End to end"),
    ):
        if name != "scheduled_ttft" or result.is_open:
            yield from _latency(label, name.split("_")[-1].upper(), getattr(result, name))
    yield from _client(result)
    yield "=" * _WIDTH
    yield f"{'VALID' if result.validity else 'INVALID'}{'' if result.validity else ': ' + str(result.validity)}"
    for doubt in result.doubts:
        yield f"note: {doubt}"


def _counts(result: PerfResult) -> Iterator[str]:
    failed = sum(result.errors.values())
    inputs = [metrics.input_tokens(run) for run in result.records]
    outputs = [metrics.output_tokens(run) for run in result.records]
    yield _line("Successful requests:", f"{result.requests - failed}")
    yield _line("Failed requests:", f"{failed}")
    for kind, count in result.errors.items():
        yield _line(f"  {kind}:", f"{count}")
    yield from _known("Measured time (s):", result.duration_s)
    yield from _known("Total input tokens:", inputs[0] if inputs else None, 0)
    yield from _known("Total generated tokens:", outputs[0] if outputs else None, 0)
    if result.is_open:
        yield from _known("Offered load (req/s):", result.load.offered)
    yield from _known("Request throughput (req/s):", result.request_throughput)
    yield from _known("Request goodput (req/s):", result.goodput)
    yield from _known("Output token throughput (tok/s):", result.output_throughput)
    yield from _known("Total token throughput (tok/s):", result.total_throughput)


def _latency(label: str, short: str, sample: Sample) -> Iterator[str]:
    if not sample.count:
        return
    yield f"{label:-^{_WIDTH}}"
    yield _line(f"Mean {short} (ms):", f"{sample.mean * _MS:.2f}")
    yield _line(f"Median {short} (ms):", f"{sample.p50 * _MS:.2f}")
    yield _line(f"P99 {short} (ms):", f"{sample.p99 * _MS:.2f}")


def _client(result: PerfResult) -> Iterator[str]:
    client = result.client
    yield f"{'The client itself':-^{_WIDTH}}"
    name = "scheduled_ttft_p50" if result.is_open else "ttft_p50"
    for metric in (name, "tpot_p50", "output_throughput"):
        bound = client.error_bounds.get(metric)
        if bound is not None:
            yield _line(f"Error of {metric}, at most:", units.quantity(bound, metrics.METRICS[metric].unit))
    for label, value in (
        ("Event loop away, P99:", client.lag_p99_s),
        ("Arrived to read, P99:", client.unread_p99_s),
        ("Due to sent, P99:", client.sent_late_p99_s),
        ("Connecting, median:", client.connect_p50_s),
    ):
        if value is not None:
            yield _line(label, units.seconds(value))
    if client.cpu_share is not None:
        yield _line("CPU, of the busiest worker:", units.share(client.cpu_share))
    if client.stamps is not None:
        yield _line("Arrival times from:", client.stamps)


def _known(label: str, value: float | None, digits: int = 2) -> Iterator[str]:
    if value is not None:
        yield _line(label, f"{value:.{digits}f}")


def _line(label: str, value: str) -> str:
    return f"{label:<38}{value:>{_WIDTH - 38}}"
