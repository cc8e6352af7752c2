"""Results that were not measured by us: other tools' files, and published figures, in the form of our own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llmperf.errors import ForeignResultError
from pytest_llmperf.foreign.aiperf import AIPerf
from pytest_llmperf.foreign.guidellm import GuideLLM
from pytest_llmperf.foreign.runs import ForeignRun, Tool
from pytest_llmperf.foreign.sglang import BenchServing
from pytest_llmperf.foreign.source import Source, load
from pytest_llmperf.foreign.vllm import VllmBenchServe
from pytest_llmperf.metrics import METRICS

_LEAST, _MOST = 1e-12, 1e12

TOOLS: Mapping[str, Tool] = {
    "vllm": VllmBenchServe("vllm", "vllm bench serve", rust=False),
    "vllm-rust": VllmBenchServe("vllm-rust", "vllm bench serve (Rust)", rust=True),
    "aiperf": AIPerf(),
    "guidellm": GuideLLM(),
    "sglang": BenchServing(),
}
"""Name, as results keep it: tool."""


def read_runs(paths: Sequence[Path]) -> list[ForeignRun]:
    """The runs in these files, in their order.

    Raises `ForeignResultError` with a line for every file that cannot be used.
    """
    problems: list[str] = []
    sources: dict[str, list[Source]] = {name: [] for name in TOOLS}
    for path in {os.path.realpath(path): path for path in paths}.values():  # one file twice is one run
        try:
            source = load(path)
            sources[_tool_of(source)].append(source)
        except ForeignResultError as error:
            problems.append(str(error))
    runs: list[ForeignRun] = []
    for name, own in sources.items():
        for given in _read_together(own):
            try:
                runs += [_checked(run) for run in TOOLS[name].read(given)]
            except ForeignResultError as error:
                problems.append(str(error))
    if problems:
        raise ForeignResultError("\n".join(problems))
    return runs


def _checked(run: ForeignRun) -> ForeignRun:
    """Raises `ForeignResultError` for figures that no measurement has, in seconds or per second."""
    for name, value in run.values.items():
        if not _LEAST < value < _MOST:
            msg = f"{run.file}: {name} would be {value:g} {METRICS[name].unit}, which nothing measures; leave it out"
            raise ForeignResultError(msg)
    return run


def _read_together(sources: Sequence[Source]) -> list[list[Source]]:
    """Files of one folder may belong together; the mistakes of each folder are told by themselves."""
    folders: dict[Path, list[Source]] = {}
    for source in sources:
        folders.setdefault(source.path.parent, []).append(source)
    return list(folders.values())


def _tool_of(source: Source) -> str:
    """The name of the tool that wrote a file, told by its content."""
    first = source.objects[0]
    for name, tool in TOOLS.items():
        if tool.recognises(first):
            return name
    if "benchmarks" in first and "machine_info" in first:
        raise source.complaint("this is pytest-benchmark's form already", "a file of another tool")
    known = "; ".join(f"{tool.title}: {tool.wrote}" for tool in TOOLS.values())
    raise source.complaint("no known tool writes such a file", f"one of {known}")
