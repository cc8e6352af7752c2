"""`pytest-llmperf serve` as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = "import sys; from pytest_llmperf.cli import main; sys.exit(main())"
SIMULATED = ("--part", "gh200", "--model", "llama-3.1-8b")


@contextmanager
def simulated(log: Path, *words: str) -> Iterator[tuple[str, int]]:
    """The URL and the process id of a server; the simulated engine unless `words` say otherwise."""
    command = [sys.executable, "-c", _PROGRAM, "serve", "--port", "0", *(words or SIMULATED)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = next((word for word in line.split() if word.startswith("http://")), None)
        if address is None:
            raise SystemExit(f"the server did not start: {line}{log.read_text(encoding='utf-8')}")
        yield address.rstrip(",;."), process.pid
    finally:
        process.terminate()
        process.wait()


def answered(url: str) -> int:
    """How many requests the simulated server says that it has answered in full."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as page:
        text = page.read().decode()
    counts = [line.split()[-1] for line in text.splitlines() if line.startswith("vllm:request_success")]
    return round(sum(map(float, counts)))
