"""How many streams this machine can measure truthfully: runs against the built-in server with a known answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import Clock, RealClock, seconds_between
from pytest_llmperf.driver import Job, LocalTeam
from pytest_llmperf.engines.completions import CompletionsConnector, Dialect
from pytest_llmperf.load import closed_loop
from pytest_llmperf.metrics import METRICS, gated_by_default, latency, output_throughput
from pytest_llmperf.origin import OriginProcess
from pytest_llmperf.records import Phase, RequestRecord, RunRecord
from pytest_llmperf.selfcheck import excesses
from pytest_llmperf.workloads import single_turn

TTFT_S = 0.1
ITL_S = 0.01
STREAMS = (16, 64, 256, 512, 1024, 2048, 4096, 8192)
BUDGET_S = 12.0
"""No run is begun after this time. One takes about 2 s."""
ATTEMPTS = 3
"""A run that another process has disturbed says nothing of the client."""

_OUTPUT_TOKENS = 32
_ROUNDS = 3
_STEP_S = 1.5
_ERROR = 0.01
"""What a mean TTFT may be off by, as a share."""
_RATE = 0.9
"""The share of the possible tokens per second that has to be reached."""
_BUSY = 0.9
"""The share of a processor from which on a process is at its limit."""
_LIMITS = Limits(silence_s=5.0, exchange_s=10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run: what was reported of a server whose answer is known. Times in seconds, rates in tokens/s."""

    streams: int
    failures: str | None
    """Requests without an answer, and why."""
    peak: int
    """The most streams at a time, as the server has counted them."""
    reported_s: float
    """Mean TTFT, as measured."""
    true_s: float
    """The server's own mean, its lateness included."""
    rate: float
    possible: float
    """What a perfect client would have got from a server that is never late again after the first token."""
    excess: str | None
    """Why the client does not trust its own figures."""
    client_cpu: float
    """The share of a processor."""
    server_cpu: float

    @property
    def complaint(self) -> str | None:
        """Why the client cannot be trusted, by its own check or by the known answer."""
        if self.failures is not None:
            return self.failures
        if self.peak < self.streams:
            return f"only {self.peak} streams were open at a time"
        if not abs(self.reported_s - self.true_s) <= _ERROR * self.true_s:
            return f"mean TTFT was reported as {self.reported_s * 1e3:.1f} ms and was {self.true_s * 1e3:.1f} ms"
        return self.excess

    @property
    def doubt(self) -> str | None:
        """Why the answer is not known: the server may have been late with further tokens, too."""
        if self.rate >= _RATE * self.possible:
            return None
        return f"the server sent {self.rate:,.0f} of {self.possible:,.0f} tokens/s: {self._scarce()}"

    @property
    def is_good(self) -> bool:
        return self.complaint is None and self.doubt is None

    def _scarce(self) -> str:
        if self.server_cpu > _BUSY:
            return f"it has no more to give ({self.server_cpu:.0%} of a processor)"
        return "it was not given the processor time that it needs"


def calibrate(progress: Callable[[int], None]) -> Iterator[Step]:
    """Raise the number of streams until a run is not truthful any more. `progress` is told each number.

    Raises `RuntimeError` if the server does not start.
    """
    with OriginProcess(ttft_s=TTFT_S, itl_s=ITL_S) as server:
        yield from climb(partial(_step, server), progress, RealClock())


def climb(measure: Callable[[int], Step], progress: Callable[[int], None], clock: Clock) -> Iterator[Step]:
    """The last attempt for each number of streams, up to the first without a good one, or until time is up."""
    began_ns = clock.now_ns()

    def is_time_left() -> bool:
        return seconds_between(began_ns, clock.now_ns()) < BUDGET_S

    for streams in STREAMS:
        if not is_time_left():
            return
        progress(streams)
        step = measure(streams)
        for _ in range(1, ATTEMPTS):
            if not step.is_good and is_time_left():
                step = measure(streams)
        yield step
        if not step.is_good:
            return


def verdict(steps: Sequence[Step]) -> str:
    """What this machine can measure truthfully, as a sentence."""
    good = [step for step in steps if step.is_good]
    if not good:
        return "measures no load truthfully at the moment; do other processes use the processors?"
    best = good[-1]
    reach = f"truthful up to {best.streams} streams and {best.rate:,.0f} tokens/s with one worker, beside the server"
    if len(good) == len(steps):
        return f"{reach}; more was not tried"
    return reach if steps[-1].complaint is not None else f"{reach}; what it can do beyond that cannot be told here"


def _step(server: OriginProcess, streams: int) -> Step:
    server.reset()
    before = server.stats()
    requests: list[RequestRecord] = []
    clock = RealClock()
    began_ns = clock.now_ns()
    driven = LocalTeam(clock).run(_job(server.url, streams), requests.append, check_engine=lambda: None)
    passed_s = seconds_between(began_ns, clock.now_ns())
    stats = server.stats()
    run = driven.run(requests, index=0, phase=Phase.MEASURED)
    true_s = TTFT_S + (stats["late_us"]["mean"] or 0.0) / 1e6
    ttft = latency("ttft", run.requests)
    return Step(
        streams=streams,
        failures=_failures(run),
        peak=stats["peak"],
        reported_s=ttft.mean if ttft.count else float("nan"),
        true_s=true_s,
        rate=output_throughput(run) or 0.0,
        possible=streams * _OUTPUT_TOKENS / (true_s + ITL_S * (_OUTPUT_TOKENS - 1)),
        excess=next(map(str, excesses([METRICS[name] for name in gated_by_default(open_load=False)], [run])), None),
        client_cpu=max(driven.client.cpu_shares),
        server_cpu=(stats["cpu_s"] - before["cpu_s"]) / passed_s,
    )


def _job(url: str, streams: int) -> Job:
    return Job(
        connector=CompletionsConnector(
            address=Address.parse(url), model="origin", dialect=Dialect(extended=False), limits=_LIMITS
        ),
        sessions=single_turn(requests=streams * _ROUNDS, input_tokens=16, output_tokens=_OUTPUT_TOKENS),
        load=closed_loop(streams, duration_s=_STEP_S),
        run=0,
        phase=Phase.MEASURED,
    )


def _failures(run: RunRecord) -> str | None:
    failures = [request.failure for request in run.requests if request.failure is not None]
    if not failures:
        return None
    ((kind, _),) = Counter(failure.kind for failure in failures).most_common(1)
    example = next(failure.detail for failure in failures if failure.kind == kind)
    return f"{len(failures)} of {len(run.requests)} requests failed, as in {kind} ({example})"
