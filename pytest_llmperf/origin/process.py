"""The server in a process of its own."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 10.0

_STOP_TIMEOUT_S = 5.0
_ROOT = Path(__file__).parents[2]


class OriginProcess:
    """The server in a process that ends with the context or with this process.

    `ttft_s`, `itl_s`: seconds, as for `Origin`. Entering, `stats` and `reset` raise `RuntimeError`
    with what the process had to say, and end it, if it does not answer within `START_TIMEOUT_S`.
    """

    def __init__(self, ttft_s: float = 0.1, itl_s: float = 0.01) -> None:
        # Quick to start, as it needs no installed package; and run where this one was found.
        self._command = [sys.executable, "-E", "-S", "-m", "pytest_llmperf.origin", "--with-parent"]
        self._command += ["--ttft-ms", str(ttft_s * 1e3), "--itl-ms", str(itl_s * 1e3)]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        """Its base URL."""

    def __enter__(self) -> OriginProcess:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, cwd=_ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if poll.poll(START_TIMEOUT_S * 1000):
            self.url = self._process.stdout.readline().decode().rpartition(" ")[2].strip()
        if not self.url:
            raise self._failure("did not come up")
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def pid(self) -> int | None:
        """Of the process; None before and after."""
        return None if self._process is None else self._process.pid

    def stats(self) -> dict[str, Any]:
        """What `GET /stats` says."""
        stats: dict[str, Any] = self._ask("GET /stats")
        return stats

    def reset(self) -> None:
        """Begin the stats anew."""
        self._ask("POST /reset")

    def _ask(self, route: str) -> Any:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        try:
            with socket.create_connection((host, int(port)), START_TIMEOUT_S) as sock, sock.makefile("rb") as answer:
                sock.sendall(f"{route} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                return json.loads(answer.read().partition(b"\r\n\r\n")[2])
        except (OSError, ValueError) as error:
            raise self._failure(f"did not answer {route}: {error}") from error

    def _failure(self, problem: str) -> RuntimeError:
        return RuntimeError(f"the server with a known answer {problem}\n{self._end()}".rstrip())

    def _end(self) -> str:
        """End the process; what it had to say."""
        process, self._process, self.url = self._process, None, ""
        if process is None:
            return ""
        process.terminate()
        try:
            _, said = process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        return said.decode(errors="replace").strip()
