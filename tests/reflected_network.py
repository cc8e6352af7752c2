"""A network between client and server that delays, loses and reorders packets, and one measurement through it.

    python tests/reflected_network.py '{"delay_s": 0.05, "loss": 0.02}'

Runs itself in a network namespace of its own (`unshare -rn`), where it makes a TUN device. Whatever is sent to the
far address comes out of that device, has its two addresses exchanged, which leaves every checksum right, and goes back
in: the kernel finds a packet for itself. So client and server speak TCP of the kernel over a wire that this process
holds, without netem, and without root where the system lets users have namespaces.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import math
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

NEAR, FAR = "10.9.0.1", "10.9.0.2"
LIMIT_S = 60.0
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_INSIDE = "--inside"


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What the wire does to packets, in either direction. Times in seconds, shares from 0 to 1."""

    delay_s: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    """The share of the packets that are overtaken by those of the next 20 ms."""
    cut_after_s: float | None = None
    """So long after the run has begun nothing arrives any more, and nobody is told."""


@cache
def refusal() -> str | None:
    """Why there can be no such network here; None where there can."""
    missing = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)} here"
    try:
        tried = _run("--try", 10.0)
    except subprocess.TimeoutExpired:
        return "a network namespace takes more than 10 s to make here"
    return None if tried.returncode == 0 else f"no TUN device in a network namespace: {tried.stderr.strip()[-200:]}"


def measured(weather: Weather = Weather(), **measurement: Any) -> dict[str, Any]:
    """What a measurement through this weather says; `measurement` as the arguments of `measure`."""
    order = json.dumps({"weather": asdict(weather), "measurement": measurement})
    done = _run(order, LIMIT_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(order: str, limit_s: float) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "-rn", sys.executable, __file__, _INSIDE, order]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)


# Within the namespace.


class Wire:
    """The TUN device, and the thread that holds what is on its way."""

    def __init__(self, weather: Weather) -> None:
        self._weather = weather
        self._random = random.Random(7)
        self._cut_s = math.inf
        self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._tun, _TUNSETIFF, struct.pack("16sH", b"tun0", _IFF_TUN | _IFF_NO_PI))
        for words in ("link set lo up", f"addr add {NEAR}/24 dev tun0", "link set tun0 up"):
            subprocess.run(["ip", *words.split()], check=True)

    def begin(self) -> None:
        threading.Thread(target=self._carry, daemon=True).start()

    def run_begins(self) -> None:
        if self._weather.cut_after_s is not None:
            self._cut_s = time.monotonic() + self._weather.cut_after_s

    def _carry(self) -> None:
        under_way: list[tuple[float, int, bytes]] = []
        number = 0
        while True:
            wait_s = None if not under_way else max(0.0, under_way[0][0] - time.monotonic())
            readable, _, _ = select.select([self._tun], [], [], wait_s)
            now_s = time.monotonic()
            if readable:
                packet = os.read(self._tun, 65536)
                if packet[0] >> 4 != 4:  # the kernel also says hello in IPv6
                    continue
                number += 1
                if now_s < self._cut_s and self._random.random() >= self._weather.loss:
                    heapq.heappush(under_way, (now_s + self._takes_s(), number, reflected(packet)))
            while under_way and under_way[0][0] <= time.monotonic():
                os.write(self._tun, heapq.heappop(under_way)[2])

    def _takes_s(self) -> float:
        overtaken = self._random.random() < self._weather.reorder
        return self._weather.delay_s + (0.02 if overtaken else 0.0)


def reflected(packet: bytes) -> bytes:
    """The packet with its IPv4 addresses exchanged."""
    return packet[:12] + packet[16:20] + packet[12:16] + packet[20:]


def measure(
    wire: Wire,
    *,
    requests: int = 40,
    concurrency: int = 4,
    tokens: int = 16,
    ttft_ms: float = 50.0,
    itl_ms: float = 10.0,
    silence_s: float = 15.0,
    keepalive_s: int | None = None,
) -> dict[str, Any]:
    """Measure a server with a known answer at the far address."""
    from pytest_llmperf.client import Limits, sockets
    from pytest_llmperf.clock import RealClock
    from pytest_llmperf.driver import LocalTeam
    from pytest_llmperf.engines import make_spec, openai
    from pytest_llmperf.engines.base import Surroundings
    from pytest_llmperf.load import closed_loop
    from pytest_llmperf.request import checked_request
    from pytest_llmperf.session import Measurement, Setting
    from pytest_llmperf.workloads import single_turn

    if keepalive_s is not None:
        sockets._KEEPALIVE.update(TCP_KEEPIDLE=keepalive_s, TCP_KEEPINTVL=keepalive_s, TCP_KEEPCNT=1)
    words = ["--host", NEAR, "--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms), "--with-parent"]
    origin = subprocess.Popen(
        [sys.executable, "-m", "pytest_llmperf.origin", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert origin.stdout is not None
    port = origin.stdout.readline().rpartition(":")[2].strip()
    clock = RealClock()
    request = checked_request(
        single_turn(requests=requests, input_tokens=16, output_tokens=tokens),
        load=closed_loop(concurrency), runs=1, warmup_runs=0, cache="as_is", prefill_context=False, slo=None, name=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        surroundings = Surroundings(
            clock=clock, log_dir=Path(folder), cache_dir=Path(folder), start_timeout_s=30,
            limits=Limits(silence_s=silence_s), api_key=None, progress=lambda *_: None,
        )  # fmt: skip
        engine = openai.make(make_spec("openai", {"url": f"http://{FAR}:{port}"}), surroundings)
        setting = Setting(
            test="network", hardware_key="here", clock=clock, record_dir=Path(folder),
            progress=lambda *_: None, team=LocalTeam(clock),
        )  # fmt: skip
        measurement = Measurement(engine, request, setting)
        wire.run_begins()
        measurement.run(0)
        result = measurement.result()
        (run,) = result.records
        kinds: dict[str, int] = {}
        for row in run.requests:
            if row.failure is not None:
                kinds[row.failure.kind] = kinds.get(row.failure.kind, 0) + 1
        return {
            "requests": len(run.requests),
            "ok": sum(row.ok for row in run.requests),
            "kinds": kinds,
            "reasons": list(result.validity.reasons),
            "doubts": list(result.doubts),
            "ttft_p50": result.ttft.p50 if any(row.ok for row in run.requests) else None,
            "tpot_p50": result.tpot.p50 if any(row.ok for row in run.requests) else None,
            "retransmitted": run.client.retransmitted,
            "out_of_order": run.client.out_of_order,
            "disturbed_connections": run.client.disturbed_connections,
        }


def _inside(order: str) -> None:
    if order == "--try":
        Wire(Weather())
        return
    given = json.loads(order)
    wire = Wire(Weather(**given["weather"]))
    wire.begin()
    print(json.dumps(measure(wire, **given["measurement"])), flush=True)  # noqa: T201 - what the parent reads
    os._exit(0)  # the wire's thread waits for packets that nobody sends any more


if __name__ == "__main__":
    if sys.argv[1] == _INSIDE:
        _inside(sys.argv[2])
    else:
        print(json.dumps(measured(Weather(**json.loads(sys.argv[1]))), indent=1))  # noqa: T201
