"""An hour at moderate load against the simulated server in real time: does anything grow, drift or get lost?

    python benchmarks/soak/soak.py                       an hour; ends with 1 if anything does
    python benchmarks/soak/soak.py --minutes 1           the same, shorter, with wider errors

Server and client are processes of their own, and are looked at from outside every 10 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from client import Order, Tally, drive, kept_bytes
from judging import judge
from serving import answered, simulated
from watching import look

from pytest_llmperf.load import exponential, poisson
from pytest_llmperf.workloads import multi_round

ROUNDS = 4
RUNS = 12
"""All that a run needs is made before it and freed after it, so one run's memory is to be like the next one's."""
EVERY_S = 10.0
SCHEDULING = {"SCHED_OTHER": os.SCHED_OTHER, "SCHED_RR": os.SCHED_RR}
_SPARE_SIGMAS = 6


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder, simulated(Path(folder) / "server.log") as (url, server_pid):
        scheduling = "SCHED_RR" if options.realtime else "SCHED_OTHER"
        os.sched_setscheduler(server_pid, SCHEDULING[scheduling], os.sched_param(int(options.realtime)))
        measured = soak(url, server_pid, options, Path(folder), scheduling)
    verdicts = judge(measured)
    measured["verdicts"] = verdicts
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for verdict in verdicts:
        print(f"{'ok ' if verdict['ok'] else 'NOT'} {verdict['what']}: {verdict['found']}")
    return 0 if all(verdict["ok"] for verdict in verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sessions-per-second", type=float, default=10.0, help=f"of {ROUNDS} requests each")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two looks (default: 10)")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument(
        "--realtime", action="store_true",
        help="have both processes go before all others (SCHED_RR), on a machine that others use, too; needs the right",
    )  # fmt: skip
    return parser.parse_args()


def soak(url: str, server_pid: int, options: argparse.Namespace, folder: Path, scheduling: str) -> dict[str, Any]:
    """Drive as long as was asked for and return what was seen."""
    seconds, rate = options.minutes * 60 / RUNS, options.sessions_per_second
    expected = rate * seconds
    workload = multi_round(
        users=round(expected + _SPARE_SIGMAS * expected**0.5),  # more than can become due
        rounds=ROUNDS,
        context_tokens=256,
        input_tokens=32,
        output_tokens=32,
        seed=1,
    )
    load = poisson(rate, seed=1, duration_s=seconds, think_s=exponential(1.0))
    order = Order(url=url, workload=workload, load=load, folder=folder, runs=RUNS, server_counts=partial(answered, url))
    tally = Tally()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(drive(order, tally)))
    process.start()
    theirs.close()
    assert process.pid is not None
    os.sched_setscheduler(process.pid, SCHEDULING[scheduling], os.sched_param(int(scheduling != "SCHED_OTHER")))
    samples = _samples(process, tally, server_pid, ours, options.every)
    told = ours.recv()  # EOFError: the client has died, and said why
    process.join()
    (records,) = folder.glob("*.jsonl")
    return {
        "when": datetime.now(tz=timezone.utc).date().isoformat(),
        "machine": {"cpus": os.cpu_count(), "linux": platform.release(), "python": platform.python_version()},
        "scheduling": scheduling,
        "load": load.describe(),
        "workload": f"multi_round of {ROUNDS} rounds, context 256, input 32, output 32 tokens, {RUNS} runs in a row",
        "run_s": seconds,
        "kept_bytes_per_record": kept_bytes(records),
        **told,
        "samples": samples,
    }


def _samples(process: Any, tally: Tally, server_pid: int, told: Connection, every_s: float) -> list[dict[str, Any]]:
    """What both processes take while there is a run, until the client has told what came of it."""
    samples: list[dict[str, Any]] = []
    began_s = time.monotonic()
    while not told.poll(every_s):
        run = tally.run
        if run <= 0:
            continue
        ours, theirs = look(process.pid), look(server_pid)
        samples.append(
            {
                "s": round(time.monotonic() - began_s, 2),
                "run": run,
                "records": tally.records,
                "client_rss": ours.resident_bytes,
                "client_cpu_s": ours.cpu_s,
                "client_files": ours.open_files,
                "server_rss": theirs.resident_bytes,
                "server_cpu_s": theirs.cpu_s,
                "machine_load": round(os.getloadavg()[0], 2),
            }
        )
    return samples


if __name__ == "__main__":
    sys.exit(main())
