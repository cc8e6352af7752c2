"""What it costs a pytest run that pytest-llmperf is installed.

    python benchmarks/import_cost.py [--pairs N] [--json FILE]

Collects an empty suite with and without the plugin, in turn, and prints medians of the wall and CPU
time of whole processes and of the paired differences. Exits with 1 if the median difference is over
the limit, or if the plugin has imported anything heavy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 0.050
HEAVY = ("numpy", "scipy", "httptools", "prometheus_client", "pynvml", "vllm", "torch")
PYTEST = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
PROBE = f"""
import sys
def pytest_unconfigure():
    print("HEAVY:", *[name for name in {HEAVY!r} if name in sys.modules])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pairs = arguments.pairs
    # Only what is compared is loaded, so that other installed plugins add no noise.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    without = (*PYTEST, "-p", "pytest_benchmark.plugin")
    with_plugin = (*without, "-p", "pytest_llmperf.plugin")
    with tempfile.TemporaryDirectory() as folder:
        for command in (without, with_plugin):
            measure(command, folder, environment)  # fills the byte code cache
        measured = [
            (measure(without, folder, environment), measure(with_plugin, folder, environment)) for _ in range(pairs)
        ]
        heavy = heavy_imports(with_plugin, folder, environment)
    verdicts = []
    for index, name in enumerate(("wall", "CPU")):
        base = [before[index] for before, _ in measured]
        new = [after[index] for _, after in measured]
        difference = statistics.median(b - a for a, b in zip(base, new, strict=True))
        ratio = statistics.median(b / a for a, b in zip(base, new, strict=True))
        found = (
            f"without {1e3 * statistics.median(base):.1f} ms, with {1e3 * statistics.median(new):.1f} ms, difference "
            f"{1e3 * difference:+.1f} ms, ratio {ratio:.3f} (medians of {pairs} pairs)"
        )
        print(f"{name}: {found}")
        what = f"installed, it costs an empty `pytest --collect-only` less than {1e3 * LIMIT_S:.0f} ms of {name} time"
        verdicts.append({"what": what, "found": found, "ok": difference < LIMIT_S})
    print(f"heavy modules that it imports: {', '.join(heavy) or 'none'}")
    what = f"it imports none of {', '.join(HEAVY)}"
    verdicts.append({"what": what, "found": ", ".join(heavy) or "none", "ok": not heavy})
    if arguments.json:
        arguments.json.write_text(json.dumps({"verdicts": verdicts}, indent=1), encoding="utf-8")
    return int(not all(verdict["ok"] for verdict in verdicts))


def measure(command: tuple[str, ...], folder: str, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def heavy_imports(command: tuple[str, ...], folder: str, environment: dict[str, str]) -> list[str]:
    """The heavy modules that were imported, as a probe tells."""
    with open(os.path.join(folder, "probe.py"), "w", encoding="utf-8") as stream:
        stream.write(PROBE)
    environment = {**environment, "PYTHONPATH": folder}
    done = subprocess.run(
        (*command, "-p", "probe"), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("HEAVY"))


if __name__ == "__main__":
    sys.exit(main())
