"""The benchmarks of the page of numbers, in its order."""

from __future__ import annotations

import string
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A script that writes what was wanted and what it found as `verdicts` to the file of its option `--json`."""

    title: str
    script: str
    """Under `benchmarks/`."""
    arguments: tuple[str, ...] = ()
    """`{vllm}` and `{traces}` stand for what the page's command was given."""
    minutes: float
    """About how long it takes."""
    missed: str = ""
    """Why it misses what was wanted, where it does and that is known."""

    @property
    def needs(self) -> set[str]:
        """What has to be given."""
        fields = (field for word in self.arguments for _, field, _, _ in string.Formatter().parse(word))
        return {field for field in fields if field}


BENCHMARKS = {
    "client": Benchmark(
        title="The client's truth, beside its peers",
        script="client/compare.py",
        arguments=("--streams", "1000"),
        minutes=20,
    ),
    "client-4000": Benchmark(
        title="The same with 4,000 streams, beside what is left to any client",
        script="client/compare.py",
        arguments=("--streams", "4000", "--clients", "ours", "reader", "--repeats", "9"),
        minutes=10,
        missed=(
            "The server fills its core, and the machine's own hours move both rows by a tenth: `reader`, which only "
            "polls, reads and throws away, is what is left to any client at that moment."
        ),
    ),
    "client-limits": Benchmark(
        title="What one client holds",
        script="client/limits.py",
        minutes=6,
        missed="The processors belong to a virtual machine that others interrupt: wake-ups come late by milliseconds.",
    ),
    "gate": Benchmark(
        title="The gate's error rate and power",
        script="gate/simulate.py",
        arguments=("--sessions", "2000"),
        minutes=60,
        missed=(
            "500 sessions for each slowdown leave a detectable change uncertain by about a tenth of a percent. The "
            "default way of taking metrics together, the geometric mean (`gmean`), is below the plain median's figure."
        ),
    ),
    "gate-on-vllm": Benchmark(
        title="The gate on a real vLLM",
        script="gate/on_vllm.py",
        arguments=("--python", "{vllm}"),
        minutes=30,
        missed=(
            "Two processors serve and drive at once, and the machine's hours differ by tens of percent, which stored "
            "nights cannot tell from a slowdown; `pytest-llmperf ab`, which measures in turn, can."
        ),
    ),
    "gate-speed": Benchmark(
        title="What judging takes",
        script="gate/speed.py",
        minutes=1,
        missed="It depends on the processor: the same code took 1.6 s on an AMD EPYC.",
    ),
    "history": Benchmark(title="Steps in series of nights", script="history/rates.py", minutes=1),
    "simulation": Benchmark(
        title="The simulator against published figures",
        script="sim/page.py",
        arguments=("--check",),
        minutes=2,
        missed="[Simulation](simulation.md) has each figure, and why.",
    ),
    "simulation-speed": Benchmark(
        title="What simulating takes", script="sim/speed.py", arguments=("--traces", "{traces}"), minutes=1
    ),
    "workloads": Benchmark(
        title="What making workloads takes",
        script="workloads/generate.py",
        arguments=("--traces", "{traces}"),
        minutes=1,
    ),
    "import": Benchmark(title="What it costs to have it installed", script="import_cost.py", minutes=1),
    "telemetry": Benchmark(title="What sampling GPUs takes", script="telemetry/cost.py", minutes=1),
    "telemetry-gh200": Benchmark(
        title="The same with NVLink-C2C", script="telemetry/cost.py", arguments=("--part", "gh200"), minutes=1
    ),
    "telemetry-on-vllm": Benchmark(
        title="What sampling changes",
        script="telemetry/on_vllm.py",
        arguments=("--python", "{vllm}"),
        minutes=15,
    ),
    "soak": Benchmark(
        title="An hour at moderate load",
        script="soak/soak.py",
        minutes=61,
        missed="The processors belong to a virtual machine that others interrupt; such a run's error bound says so.",
    ),
    "newcomer": Benchmark(title="A newcomer's wait, and the suite's", script="newcomer.py", minutes=4),
}
