"""How many streams this machine can measure truthfully: runs against the built-in server with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pytest_llmperf.client import Address, Limits
from pytest_llmperf.client.origin import OriginProcess
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import Job, LocalTeam
from pytest_llmperf.engines.completions import CompletionsConnector, Dialect
from pytest_llmperf.load import closed_loop
from pytest_llmperf.metrics import METRICS, latency, output_throughput
from pytest_llmperf.records import Phase, RequestRecord, RunRecord
from pytest_llmperf.selfcheck import excesses
from pytest_llmperf.workloads import single_turn

TTFT_S = 0.1
ITL_S = 0.01
STREAMS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_OUTPUT_TOKENS = 32
_ROUNDS = 3
_ERROR = 0.01
"""What a mean TTFT may be off by, as a share."""
_RATE = 0.9
"""The share of the possible tokens per second that has to be reached."""
_LIMITS = Limits(silence_s=20.0, exchange_s=60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run: what was reported of a server whose answer is known. Times in seconds, rates in tokens/s."""

    streams: int
    reported_s: float
    """Mean TTFT, as measured."""
    true_s: float
    """The server's own mean, its lateness included."""
    rate: float
    possible: float
    """What a perfect client would have got from this server."""
    complaint: str | None
    """Why the run cannot be trusted, by the client's own check or by the known answer."""


def calibrate(progress: Callable[[int], None]) -> Iterator[Step]:
    """Double the streams until a run is not truthful any more. `progress` is told each number of streams."""
    with OriginProcess(ttft_s=TTFT_S, itl_s=ITL_S) as server:
        for streams in STREAMS:
            progress(streams)
            step = _step(server, streams)
            yield step
            if step.complaint is not None:
                return


def _step(server: OriginProcess, streams: int) -> Step:
    server.reset()
    connector = CompletionsConnector(
        address=Address.parse(server.url), model="origin", dialect=Dialect(extended=False), limits=_LIMITS
    )
    sessions = single_turn(requests=streams * _ROUNDS, input_tokens=16, output_tokens=_OUTPUT_TOKENS)
    requests: list[RequestRecord] = []
    job = Job(connector=connector, sessions=sessions, load=closed_loop(streams), run=0, phase=Phase.MEASURED)
    driven = LocalTeam(RealClock()).run(job, requests.append, check_engine=lambda: None)
    run = RunRecord(
        index=0,
        phase=Phase.MEASURED,
        start_ns=driven.start_ns,
        end_ns=driven.end_ns,
        requests=tuple(requests),
        window=driven.window,
        client=driven.client,
    )
    stats = server.stats()
    true_s = TTFT_S + stats["late_us"]["mean"] / 1e6
    ttft = latency("ttft", run.requests)
    reported_s = ttft.mean if ttft.count else float("nan")
    rate = output_throughput(run) or 0.0
    possible = streams * _OUTPUT_TOKENS / (true_s + ITL_S * (_OUTPUT_TOKENS - 1))
    return Step(
        streams=streams,
        reported_s=reported_s,
        true_s=true_s,
        rate=rate,
        possible=possible,
        complaint=_complaint(run, streams, stats["peak"], reported_s, true_s, rate, possible),
    )


def _complaint(
    run: RunRecord, streams: int, peak: int, reported_s: float, true_s: float, rate: float, possible: float
) -> str | None:
    failed = sum(not request.ok for request in run.requests)
    if failed:
        return f"{failed} of {len(run.requests)} requests failed"
    if peak < streams:
        return f"only {peak} streams were open at a time"
    beyond = [str(excess) for excess in excesses([METRICS["ttft_p50"], METRICS["tpot_p50"]], [run])]
    if beyond:
        return beyond[0]
    if abs(reported_s - true_s) > _ERROR * true_s:
        return f"mean TTFT was reported as {reported_s * 1e3:.1f} ms and was {true_s * 1e3:.1f} ms"
    if rate < _RATE * possible:
        return f"{rate:,.0f} of {possible:,.0f} tokens/s were reached"
    return None
