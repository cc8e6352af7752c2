"""What one client holds: long prompts, many conversations, a dense schedule, memory.

    python benchmarks/client/limits.py                 everything, some minutes
    python benchmarks/client/limits.py prompts memory --json FILE

The server with a known answer has one core to itself, the client another, as in compare.py. Prints
Markdown; each number stands beside what it should be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from compare import allow_open_files
from origin import Answer, Origin, pinned, running
from scipy import stats

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.client import Address, HttpClient, Limits
from pytest_llmperf.clock import NS_PER_MS, NS_PER_S, RealClock
from pytest_llmperf.driver import Job, LocalTeam, ProcessTeam, Team
from pytest_llmperf.engines.completions import CompletionsConnector, Dialect
from pytest_llmperf.load import Load, closed_loop, poisson
from pytest_llmperf.metrics import METRICS, latency, output_throughput
from pytest_llmperf.record_file import RecordFile
from pytest_llmperf.records import Phase, RequestRecord
from pytest_llmperf.selfcheck import error_bounds, excesses
from pytest_llmperf.workloads import Session, multi_round, single_turn

SERVER, CLIENT = {0}, {1}
MIB = 2**20
Verdict = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    allow_open_files()
    verdicts: list[Verdict] = []
    for name in options.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            verdicts += SECTIONS[name](Path(folder), options.repeats)
    if options.json:
        options.json.write_text(json.dumps({"verdicts": verdicts}, indent=1), encoding="utf-8")


def drive(url: str, sessions: Iterable[Session], load: Load, *, prompts: str = "ids", team: Team | None = None):
    """One run, as a test would make it."""
    connector = CompletionsConnector(
        address=Address.parse(url),
        model="origin",
        dialect=Dialect(extended=True, prompts=prompts),
        limits=Limits(silence_s=60),
    )
    requests: list[RequestRecord] = []
    job = Job(connector=connector, sessions=sessions, load=load, run=0, phase=Phase.MEASURED)
    driven = (team or LocalTeam(RealClock())).run(job, requests.append, check_engine=lambda: None)
    return driven.run(requests, index=0, phase=Phase.MEASURED)


def prompts(folder: Path, repeats: int) -> Iterable[Verdict]:
    """64 streams whose prompts have 50,000 tokens."""
    print("## 64 streams of 50,000-token prompts\n")
    print(
        "| prompts | TTFT mean reported | true | off by | error bound | failed |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    answer = Answer(ttft_s=0.1, itl_s=0.01, tokens=64)
    with running(folder, answer, SERVER) as origin, pinned(CLIENT):
        sessions = list(single_turn(requests=64, input_tokens=50_000, output_tokens=64)) * 3
        for form in ("ids", "text"):
            rows = [_prompt_run(origin, sessions, form) for _ in range(repeats)]
            reported, true, bound, failed = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"| {form} | {reported * 1e3:.2f} ms | {true * 1e3:.2f} ms | {(reported - true) * 1e3:+.2f} ms "
                f"| {bound * 1e3:.2f} ms | {failed:.0f} |"
            )
            what = f"64 streams of 50,000-token prompts as {form}: mean TTFT within 5 ms of the truth, none fails"
            shown = f"{(reported - true) * 1e3:+.2f} ms, {failed:.0f} failed (medians of {repeats})"
            yield {"what": what, "found": shown, "ok": abs(reported - true) < 0.005 and not failed}
    print()


def _prompt_run(origin: Origin, sessions: list[Session], form: str) -> tuple[float, float, float, int]:
    origin.reset()
    run = drive(origin.url, sessions, closed_loop(64), prompts=form)
    true_s = 0.1 + origin.served().late_mean_s
    bound = error_bounds([METRICS["ttft_mean"]], run)["ttft_mean"]
    return latency("ttft", run.requests).mean, true_s, bound, sum(not request.ok for request in run.requests)


def conversations(folder: Path, repeats: int) -> Iterable[Verdict]:
    """8,000 conversations at a time, at the pace that KubeAI published for that many: TTFT 237 ms, TPOT 80 ms."""
    print("## 8,000 concurrent conversations of 3 turns by 2 workers\n")
    print(
        "| reached | answered | TTFT mean reported | true | error bound | tokens/s | possible | CPU of a worker "
        "| verdict |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    )
    answer = Answer(ttft_s=0.237, itl_s=0.080, tokens=48)
    fewest, answered = 8000, []
    with running(folder, answer, SERVER) as origin, pinned(CLIENT):
        team = ProcessTeam(2, RealClock())
        try:
            for _ in range(repeats):
                origin.reset()
                workload = multi_round(users=8000, rounds=3, context_tokens=64, input_tokens=16, output_tokens=48)
                run = drive(origin.url, workload, closed_loop(8000), team=team)
                served = origin.served()
                found = list(map(str, excesses([METRICS["ttft_p50"], METRICS["tpot_p50"]], [run])))
                fewest = min(fewest, served.peak)
                answered.append(sum(r.ok for r in run.requests))
                print(
                    f"| {served.peak} | {answered[-1]} of {len(run.requests)} "
                    f"| {latency('ttft', run.requests).mean * 1e3:.1f} ms | {237 + served.late_mean_s * 1e3:.1f} ms "
                    f"| {error_bounds([METRICS['ttft_mean']], run)['ttft_mean'] * 1e3:.1f} ms "
                    f"| {output_throughput(run) or 0:,.0f} | {answer.tokens_per_second(8000):,.0f} "
                    f"| {max(run.client.cpu_shares):.0%} | {found[0] if found else 'valid'} |"
                )
        finally:
            team.close()
    print()
    yield {
        "what": "8,000 conversations of 3 turns by two workers on one core: all open at once, all answered",
        "found": f"{fewest:,} open, {min(answered):,} of 24,000 answered, at the worst of {repeats}",
        "ok": fewest == 8000 and min(answered) == 24_000,
    }


def schedule(folder: Path, repeats: int) -> Iterable[Verdict]:
    """10,000 Poisson arrivals at 500 per second."""
    print("## 10,000 Poisson arrivals at 500/s\n")
    print(
        "| late, mean | late, p99 | late, most | gaps as intended: Kolmogorov-Smirnov p | gaps as sent: p | failed |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    late_p99_ms, fit = [], []
    with running(folder, Answer(ttft_s=0.1, itl_s=0.01, tokens=16), SERVER) as origin, pinned(CLIENT):
        for seed in range(repeats):
            sessions = single_turn(requests=10_000, input_tokens=32, output_tokens=16)
            run = drive(origin.url, sessions, poisson(500, seed=seed))
            sent = sorted(r.sent_ns for r in run.requests if r.sent_ns is not None)
            meant = sorted(request.released_ns for request in run.requests)
            late_ms = [(r.sent_ns - r.released_ns) / NS_PER_MS for r in run.requests if r.sent_ns is not None]
            fits = [
                stats.kstest(np.diff(moments) / NS_PER_S, "expon", (0, 1 / 500)).pvalue for moments in (meant, sent)
            ]
            print(
                f"| {statistics.mean(late_ms):.3f} ms | {np.quantile(late_ms, 0.99):.3f} ms | {max(late_ms):.2f} ms "
                f"| {fits[0]:.2f} | {fits[1]:.2f} | {sum(not r.ok for r in run.requests)} |"
            )
            late_p99_ms.append(float(np.quantile(late_ms, 0.99)))
            fit.append(float(fits[0]))
    print()
    yield {
        "what": "10,000 Poisson arrivals at 500/s: p99 send lateness under 2 ms, and the schedule's gaps pass for "
        "exponential (Kolmogorov-Smirnov, p of 0.01 and more)",
        "found": f"{statistics.median(late_p99_ms):.2f} ms (median of {repeats}), p of {min(fit):.2f} and more",
        "ok": statistics.median(late_p99_ms) < 2 and min(fit) >= 0.01,
    }


def memory(folder: Path, repeats: int) -> Iterable[Verdict]:
    """Memory of the client's process, each size in a process of its own; nothing is wanted of it."""
    del repeats
    print("## Memory\n\n| what | resident | each |\n| --- | ---: | ---: |")
    with running(folder, Answer(ttft_s=3.0, itl_s=0.01, tokens=2), SERVER) as origin:
        _grow("open stream", (1000, 2000, 4000, 8000), lambda count: _open_streams(origin.url, count))
    _grow("recorded token arrival in memory", (250_000, 500_000, 1_000_000), lambda n: _record(folder, n, n))
    _grow("recorded token arrival on disk", (250_000, 500_000, 1_000_000), lambda n: _record(folder, n, 0))
    print()
    return ()


def _grow(what: str, sizes: tuple[int, ...], use: Callable[[int], object]) -> None:
    empty = _resident(use, 0)
    for size in sizes:
        used = _resident(use, size) - empty
        print(f"| {size:,} x {what} | {used / MIB:.1f} MiB | {used / size:,.0f} bytes |")


def _resident(use: Callable[[int], object], size: int) -> int:
    """The memory of a fresh process that holds what `use` returns, bytes."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run() -> None:
        held = use(size)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        theirs.send(pages * resource.getpagesize())
        del held

    process = context.Process(target=run)
    process.start()
    resident: int = ours.recv()
    process.join()
    return resident


def _open_streams(url: str, count: int) -> HttpClient:
    clock = RealClock()
    client = HttpClient(Address.parse(url), clock, headers={}, limits=Limits(silence_s=30))
    client.open(count)
    body = b'{"model":"origin","prompt":[1000],"max_tokens":2,"stream":true}'
    for number in range(count):
        client.send(number, client.encode("POST", "/v1/completions", body))
    client.poll(0.01)
    return client


def _record(folder: Path, arrivals: int, in_memory: int) -> tuple[RecordFile, list[RequestRecord]]:
    """Requests of 100 tokens each, as a run keeps them."""
    rows = RecordFile(folder / "rows.jsonl", {}, arrivals_in_memory=in_memory)
    kept = []
    for number in range(arrivals // 100):
        times = range(number * 1000, number * 1000 + 100)
        record = RequestRecord(
            run=0,
            phase=Phase.MEASURED,
            session=number,
            turn=0,
            released_ns=0,
            sent_ns=1,
            end_ns=2,
            arrivals=Arrivals(times, [1] * 100, [0] * 100),
            new_tokens=1,
            input_tokens=1,
            output_tokens_asked=100,
        )
        kept.append(rows.request(record))
    return rows, kept


SECTIONS: dict[str, Callable[[Path, int], Iterable[Verdict]]] = {
    "prompts": prompts,
    "conversations": conversations,
    "schedule": schedule,
    "memory": memory,
}

if __name__ == "__main__":
    main()
