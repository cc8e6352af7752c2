"""Load generators side by side against a server with a known answer.

    python benchmarks/client/compare.py --streams 100 --streams 1000

The server has a core to itself and each client another, with all its processes. Prints Markdown;
what the clients wrote stays in the folder of --out. Run with the Python in which pytest-llmperf is
installed; needs Linux, two cores and a C compiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from attempts import Attempt, attempt
from origin import Answer, Origin, running
from peers import CLIENTS, Client, Job
from table import RULES, row, section
from wanted import verdicts

from pytest_llmperf.engines import tiny_llama

HERE = Path(__file__).resolve().parent
INPUT_TOKENS = 32


def main() -> int:
    options = parse()
    missing = {options.server_core, *options.client_cores} - os.sched_getaffinity(0)
    if missing:
        sys.exit(f"compare: there is no core {min(missing)} here; see --server-core and --client-cores")
    allow_open_files()
    clients = {name: CLIENTS[name] for name in options.clients}
    versions = {name: installed(client, options.envs / name) for name, client in clients.items()}
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    answer = Answer(ttft_s=options.ttft_ms / 1e3, itl_s=options.itl_ms / 1e3, tokens=options.tokens)
    machine = describe_machine(options)
    with running(options.out, answer, {options.server_core}) as origin:
        attempts = measure(options, clients, answer, origin)
    if options.json is not None:
        content = {
            "machine": machine,
            "answer": dataclasses.asdict(answer),
            "versions": versions,
            "attempts": [dataclasses.asdict(one) for one in attempts],
            "verdicts": [
                verdict
                for streams in options.streams
                for verdict in verdicts([row(name, attempts, streams, answer) for name in clients], streams, answer)
            ],
        }
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    report(options, machine, answer, versions, attempts)
    return int(any(one.failure is not None for one in attempts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, action="append", metavar="N", help="repeatable (default: 1000)")
    parser.add_argument("--requests-per-stream", type=int, default=3, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument(
        "--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS), metavar="NAME", help=", ".join(CLIENTS)
    )
    parser.add_argument("--ttft-ms", type=float, default=100.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of a request")
    parser.add_argument("--envs", type=Path, default=HERE / ".envs", help="folder of the clients' installations")
    parser.add_argument("--out", type=Path, default=HERE / ".results", help="folder for logs; emptied first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    parser.add_argument("--server-core", type=int, default=0, metavar="N")
    parser.add_argument("--client-cores", type=int, nargs="+", default=[1], metavar="N")
    options = parser.parse_args()
    options.streams = options.streams or [1000]
    options.envs, options.out = options.envs.resolve(), options.out.resolve()
    return options


def allow_open_files() -> None:
    """A socket for each stream, in this process's children."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def installed(client: Client, folder: Path) -> str:
    """Install a client unless it is there already; returns its version."""
    if client.installed is not None and not (folder / client.installed).exists():
        say(f"installing {client.title} in {folder}")
        for command in client.install(folder):
            subprocess.run(command, check=True, stdout=sys.stderr)
    return client.version(folder)


def measure(options: argparse.Namespace, clients: dict[str, Client], answer: Answer, origin: Origin) -> list[Attempt]:
    """All runs. Clients take turns, so that what happens to the machine happens to all of them."""
    tokenizer = tiny_llama.ensure(options.out)

    def run(name: str, streams: int, requests: int, turn: str) -> Attempt:
        job = Job(
            url=origin.url,
            streams=streams,
            requests=requests,
            input_tokens=INPUT_TOKENS,
            output_tokens=answer.tokens,
            environment=options.envs / name,
            tokenizer=tokenizer,
            output=options.out / f"{name}-{streams}-streams-{requests}-requests-{turn}",
        )
        one = attempt(name, clients[name], job, origin, options.client_cores)
        say(f"{job.output.name}: {one.failure or 'done'} in {one.wall_s:.1f} s, {one.cpu_s:.1f} s of CPU")
        return one

    for name in clients:
        run(name, options.streams[0], 1, "discarded")  # fills the byte code and page caches
    return [
        run(name, streams, requests, str(repeat))
        for repeat, streams, name in itertools.product(range(options.repeats), options.streams, clients)
        for requests in (1, streams * options.requests_per_stream)
    ]


def describe_machine(options: argparse.Namespace) -> list[str]:
    """What the figures depend on; taken before the first run."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{options.server_core}/topology/thread_siblings_list")
    shared = siblings.read_text(encoding="utf-8").strip() if siblings.exists() else "unknown"
    cores = ", ".join(map(str, options.client_cores))
    return [
        f"{processor()}, {os.cpu_count()} logical cores, load {os.getloadavg()[0]:.2f} at the start",
        f"server on core {options.server_core} (threads of that core: {shared}), clients on core {cores}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    ]


def processor() -> str:
    """The processor's name where the system tells it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def report(
    options: argparse.Namespace, machine: list[str], answer: Answer, versions: dict[str, str], attempts: list[Attempt]
) -> None:
    """Print all that was found."""
    print("## Load generators against a known answer\n")
    print("\n".join(f"* {line}" for line in machine))
    rules = {"repeats": options.repeats, "requests": options.requests_per_stream}
    print(RULES.format(ttft=1e3 * answer.ttft_s, itl=1e3 * answer.itl_s, **rules))
    for streams in options.streams:
        print(f"\n{section(attempts, streams, answer, versions)}")


def say(text: str) -> None:
    """One line to the person who waits."""
    print(f"compare: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
