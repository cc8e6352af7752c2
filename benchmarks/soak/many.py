"""8,000 conversations at a time: are all accounted for, what may the client have falsified, what does each take?

    python benchmarks/soak/many.py                       some minutes
    python benchmarks/soak/many.py --sessions 2000

Against the built-in server with a known answer: first token after a second, further ones every half second, so that the
server, which is Python, can keep up. Memory is looked at from outside while all are open.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from client import Order, Tally, drive
from watching import look

from pytest_llmperf.load import closed_loop
from pytest_llmperf.origin import OriginProcess
from pytest_llmperf.workloads import multi_round

TTFT_S, ITL_S, TOKENS, ROUNDS = 1.0, 0.5, 24, 3
EVERY_S = 0.25
_SPARE_FILES = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--realtime", action="store_true", help="as in soak.py")
    options = parser.parse_args()
    allow_files(2 * options.sessions + _SPARE_FILES)
    measured = {
        "when": datetime.now(tz=timezone.utc).date().isoformat(),
        "machine": {"cpus": os.cpu_count(), "linux": platform.release(), "python": platform.python_version()},
        "scheduling": "SCHED_RR" if options.realtime else "SCHED_OTHER",
        "workers": options.workers,
        "empty": measure(1, options.workers, realtime=options.realtime),
        "full": measure(options.sessions, options.workers, realtime=options.realtime),
    }
    full, empty = measured["full"], measured["empty"]
    measured["bytes_per_session"] = (full["peak_rss"] - empty["peak_rss"]) / options.sessions
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))
    accounts = full["accounts"]
    wanted = options.sessions * ROUNDS
    ok = accounts["completed"] == wanted == accounts["sent"] and full["server"]["peak"] == options.sessions
    return 0 if ok else 1


def allow_files(needed: int) -> None:
    """As `ulimit -n` would; what the system does not allow is said by the client."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, most), most))


def measure(sessions: int, workers: int, *, realtime: bool) -> dict[str, Any]:
    """So many conversations at a time, each in a process that has done nothing before."""
    with tempfile.TemporaryDirectory() as folder, OriginProcess(ttft_s=TTFT_S, itl_s=ITL_S) as server:
        workload = multi_round(
            users=sessions, rounds=ROUNDS, context_tokens=64, input_tokens=16, output_tokens=TOKENS, seed=1
        )
        order = Order(
            url=server.url, workload=workload, load=closed_loop(sessions), folder=Path(folder), workers=workers
        )
        tally = Tally()
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(drive(order, tally)))
        if realtime and server.pid is not None:
            os.sched_setscheduler(server.pid, os.SCHED_RR, os.sched_param(1))
        process.start()
        theirs.close()
        assert process.pid is not None
        if realtime:
            os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(1))
        peak_rss = peak_files = 0
        while not ours.poll(EVERY_S):
            if tally.run > 0:
                reading = look(process.pid)
                peak_rss, peak_files = max(peak_rss, reading.resident_bytes), max(peak_files, reading.open_files)
        told = ours.recv()
        process.join()
        stats = server.stats()
    late_s = stats["late_us"]["mean"] / 1e6
    return {
        "sessions": sessions,
        "peak_rss": peak_rss,
        "peak_files": peak_files,
        "true_ttft_mean": TTFT_S + late_s,
        "server": stats,
        **told,
    }


if __name__ == "__main__":
    sys.exit(main())
