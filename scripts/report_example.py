"""Make an example of the HTML report and of the comment: `python scripts/report_example.py [FOLDER]`.

Simulated nights of a Llama on a GH200, of which the last three decode more slowly, then one more whose prefill is a
quarter slower. The same pages wherever it is run, but for their dates.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("report-example")
NIGHTS = 8
STEP_AT = 6
"""The first night that decodes more slowly."""
TESTS = """
import pytest
from pytest_llmperf import closed_loop, multi_round, poisson, single_turn

pytestmark = [pytest.mark.gh200, pytest.mark.llm_engine("vllm", model="llama-3.1-8b", prefix_caching=True)]


@pytest.mark.parametrize("rate", [2, 5, 10, 20, 30])
def test_rates(rate, llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=150, input_tokens=1000, output_tokens=64, seed=7), load=poisson(rate))


def test_chat(llm_engine, llm_perf):
    users = multi_round(users=16, rounds=12, context_tokens=4000, input_tokens=64, output_tokens=64, seed=7)
    llm_perf(llm_engine, users, load=closed_loop(8))


@pytest.mark.llm_gate(metric="tpot_p50")
def test_decoding(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=64, input_tokens=64, output_tokens=128, seed=7), load=closed_loop(8))
"""


def main(folder: Path) -> None:
    """Write `report.html` and `report.md` into the folder. Raises `CalledProcessError` if pytest cannot run."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "test_serving.py").write_text(TESTS, encoding="utf-8")
        for night in range(1, NIGHTS + 1):
            slow = ["slow=decode:+4%"] if night >= STEP_AT else []
            _pytest(scratch, _words(night, slow), "--llmperf-gate=off", "--llmperf-save-baseline=main")
        written = [f"--llmperf-{option}={folder.resolve() / f'report.{end}'}" for option, end in _FILES.items()]
        _pytest(scratch, _words(NIGHTS + 1, ["slow=prefill:+25%"]), "--llmperf-gate=warn", *written)


_FILES = {"report": "html", "markdown": "md"}


def _words(seed: int, further: list[str]) -> Iterator[str]:
    for word in ("run_noise=0.01", f"noise_seed={seed}", *further):
        yield f"--llmperf-set={word}"


def _pytest(folder: str, words: Iterator[str], *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--llmperf-hardware=sim:gh200"]
    subprocess.run([*command, *words, *options], cwd=folder, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
