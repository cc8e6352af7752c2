"""The summary of a load without a test: the figures that serving benchmarks print, in their order."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pytest_llmperf import metrics, units
from pytest_llmperf.results import PerfResult, Tokens
from pytest_llmperf.stats import Sample

_WIDTH = 50
_COLUMNS = 80
_MS = 1000.0
_LATENCIES = {
    "scheduled_ttft": "Time to first token, from the schedule",
    "ttft": "Time to first token",
    "tpot": "Time per output token, first left out",
    "itl": "Inter-token latency",
    "e2e": "End to end",
}


def summary(result: PerfResult) -> Iterator[str]:
    """Lines of at most 80 columns; what was not measured is left out."""
    yield f"{' Serving load ':=^{_WIDTH}}"
    yield from _what(result)
    yield from _counts(result)
    yield from _rates(result)
    for name, title in _LATENCIES.items():
        if name != "scheduled_ttft" or result.is_open:
            yield from _latency(title, metrics.LABELS[name], getattr(result, name))
    yield from _gpu(result)
    yield from _client(result)
    yield "=" * _WIDTH
    yield from _wrapped("VALID" if result.validity else f"INVALID: {result.validity}")
    for doubt in result.doubts:
        yield from _wrapped(f"note: {doubt}")


def _what(result: PerfResult) -> Iterator[str]:
    engine = result.provenance.engine
    for label, word in (("Server:", "url"), ("Model:", "model")):
        if engine.get(word):
            yield _line(label, str(engine[word]))
    yield _line("Load:", result.provenance.load)


def _counts(result: PerfResult) -> Iterator[str]:
    """All requests; and how many of them count, where ramp or tail are cut off."""
    total = sum(len(run.requests) for run in result.records)
    failed = sum(result.errors.values())
    yield _line("Successful requests:", f"{total - failed}")
    yield _line("Failed requests:", f"{failed}")
    for kind, count in result.errors.items():
        yield _line(f"  {kind}:", f"{count}")
    if result.load.shed:
        yield _line("Requests that could not be sent:", f"{result.load.shed}")
    if result.requests != total:
        yield _line("Requests sent in the measured time:", f"{result.requests}")


def _rates(result: PerfResult) -> Iterator[str]:
    inputs = [metrics.input_tokens(run) for run in result.records]
    outputs = [metrics.output_tokens(run) for run in result.records]
    yield from _known("Measured time (s):", result.duration_s)
    yield from _known("Total input tokens:", inputs[0] if inputs else None, 0)
    yield from _asked("Input", result.input_tokens)
    yield from _known("Total generated tokens:", outputs[0] if outputs else None, 0)
    yield from _asked("Generated", result.output_tokens)
    if result.is_open:
        yield from _known("Offered load (req/s):", result.load.offered)
    yield from _known("Request throughput (req/s):", result.request_throughput)
    yield from _known("Request goodput (req/s):", result.goodput)
    yield from _known("Output token throughput (tok/s):", result.output_throughput)
    yield from _known("Total token throughput (tok/s):", result.total_throughput)


def _asked(what: str, tokens: Tokens) -> Iterator[str]:
    """Both lengths, where they are not the same."""
    if tokens.served is not None and tokens.served != tokens.asked:
        yield _line(f"  {what} tokens asked for / counted:", f"{tokens.asked} / {tokens.served}")


def _latency(title: str, short: str, sample: Sample) -> Iterator[str]:
    if not sample.count:
        return
    yield f"{title:-^{_WIDTH}}"
    for label, seconds in (("Mean", sample.mean), ("Median", sample.p50), ("P99", sample.p99)):
        yield _line(f"{label} {short} (ms):", f"{seconds * _MS:.2f}")


def _gpu(result: PerfResult) -> Iterator[str]:
    gpu = result.gpu
    if gpu is None:
        return
    yield f"{'GPUs':-^{_WIDTH}}"
    yield from _known("Energy per output token (J):", gpu.joules_per_token, 3)
    yield from _known("Power, mean of all together (W):", gpu.mean_power_w, 0)
    yield from _known("SM clock, mean (MHz):", gpu.mean_sm_clock_mhz, 0)
    yield from _known("SM clock, least (MHz):", gpu.min_sm_clock_mhz, 0)
    yield from _known("Temperature, highest (C):", gpu.max_temperature_c, 0)
    if gpu.utilisation is not None:
        yield _line("Utilisation:", units.share(gpu.utilisation))
    if gpu.max_memory_bytes is not None:
        yield _line("Memory, most on one:", units.size(gpu.max_memory_bytes))
    for reason, share in sorted(gpu.reasons.items()):
        if share > 0:
            yield _line(f"Clocks under {reason}:", units.share(share))


def _client(result: PerfResult) -> Iterator[str]:
    client = result.client
    yield f"{'The client itself':-^{_WIDTH}}"
    for name in metrics.gated_by_default(open_load=result.is_open):
        bound = client.error_bounds.get(name)
        if bound is not None:
            yield _line(f"Error of {name}, at most:", units.quantity(bound, metrics.METRICS[name].unit))
    for label, value in (
        ("Event loop away, P99:", client.lag_p99_s),
        ("Arrived to read, P99:", client.unread_p99_s),
        ("Due to sent, P99:", client.sent_late_p99_s),
        ("Connecting, median:", client.connect_p50_s),
    ):
        if value is not None:
            yield _line(label, units.seconds(value))
    if client.workers is not None:
        yield _line("Workers:", f"{client.workers}")
    if client.cpu_share is not None:
        yield _line("CPU, of the busiest worker:", units.share(client.cpu_share))
    if client.stamps is not None:
        yield _line("Arrival times from:", client.stamps)


def _known(label: str, value: float | None, digits: int = 2) -> Iterator[str]:
    if value is not None:
        yield _line(label, f"{value:.{digits}f}")


def _line(label: str, value: str) -> str:
    """A value that is too long for its column reaches to the left, or beyond it."""
    return f"{label:<{max(_WIDTH - len(value) - 1, len(label))}} {value}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
