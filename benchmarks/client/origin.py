"""The server with a known answer: built from `sse_origin.c`, started, asked what it did."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("sse_origin.c")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
"""In which the kernel counts processor time."""
_PATIENCE_S = 10.0
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server does, and a client without error would report."""

    ttft_s: float
    itl_s: float
    tokens: int

    def tokens_per_second(self, streams: int) -> float:
        """What a client gets that sends each stream's next request at the end of the last."""
        return streams * self.tokens / (self.ttft_s + (self.tokens - 1) * self.itl_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the server did since it was last reset.

    `peak`: the largest number of requests that were open at once. `late_*`: by how much first tokens
    left later than the answer says, which no client can be blamed for.
    """

    requests: int
    tokens: int
    aborted: int
    peak: int
    late_mean_s: float
    late_p99_s: float


class Origin:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, cores: Collection[int]) -> None:
        self._process = process
        self.cores = cores
        self.url = f"http://127.0.0.1:{port}"

    def reset(self) -> None:
        """Wait until no request of an earlier client is open, then count from zero."""
        end = time.monotonic() + _PATIENCE_S
        while self._stats()["active"] and time.monotonic() < end:
            time.sleep(0.05)
        self._ask("/reset", b"")

    def served(self) -> Served:
        """Ask for the counts since the last reset."""
        stats = self._stats()
        late = stats["late_us"]
        counts = {name: stats[name] for name in ("requests", "tokens", "aborted", "peak")}
        return Served(**counts, late_mean_s=late["mean"] / 1e6, late_p99_s=late["p99"] / 1e6)

    def cpu_s(self) -> float:
        """The server's processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        user, system = fields[11:13]
        return (int(user) + int(system)) / TICKS_PER_S

    def wait(self) -> None:
        """Return when the server answers. Raises `RuntimeError` if it does not."""
        end = time.monotonic() + _PATIENCE_S
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                self._ask("/health")
                return
            time.sleep(0.02)
        raise RuntimeError(f"the server on {self.url} did not start; its exit code is {self._process.poll()}")

    def _stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = json.loads(self._ask("/stats"))
        return stats

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        with _LOCAL.open(self.url + path, body, timeout=_PATIENCE_S) as response:
            content: bytes = response.read()
        return content


@contextlib.contextmanager
def running(folder: Path, answer: Answer, cores: Collection[int]) -> Iterator[Origin]:
    """Build the server in `folder` and run it on `cores` for as long as the context lasts."""
    program = folder / "sse_origin"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", str(program), str(SOURCE)], check=True)
    port = _free_port()
    options = {
        "--port": port,
        "--ttft-ms": 1e3 * answer.ttft_s,
        "--itl-ms": 1e3 * answer.itl_s,
        "--tokens": answer.tokens,
    }
    words = [str(word) for option in options.items() for word in option]
    with pinned(cores):
        process = subprocess.Popen([str(program), *words])
    try:
        origin = Origin(process, port, cores)
        origin.wait()
        yield origin
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """What is started here, and all that it starts, runs on `cores` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
