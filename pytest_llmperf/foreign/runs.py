"""One run as another tool measured it: its figures under our names, where they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_llmperf.foreign.source import Fields, Source
from pytest_llmperf.metrics import LATENCIES, STATISTICS
from pytest_llmperf.stats import Sample

MS = 1e-3
"""Seconds in a millisecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRun:
    """What a file says of one run, in base units.

    A figure is in `values` if its definition is ours, up to what `definitions` says of its family
    (`family`); what is near to one of ours and not the same is in `apart`, under another name.
    """

    tool: str
    """A key of `TOOLS`."""
    tool_version: str | None = None
    file: str
    """Its name, without folders."""
    configuration: Mapping[str, Any]
    """What the tool says of the work and how it was sent; runs that share all of it are runs of one measurement."""
    load: str
    open_load: bool = False
    model: str | None = None
    engine_words: Mapping[str, Any] = field(default_factory=dict)
    """What the tool says of the engine, and what its user had it write down."""
    values: Mapping[str, float]
    """Metric to value; a metric that was not measured is absent."""
    definitions: Mapping[str, str]
    """Family to how the tool defines it. Part of what has to be equal: other words are another metric."""
    answered: int
    failed: int | None = None
    """None where the tool does not say."""
    output_tokens: int | None = None
    measured_at: str | None = None
    """As the tool writes it."""
    apart: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    original: Mapping[str, Any] = field(default_factory=dict)
    """The tool's own fields, without those of single requests."""


class Tool(Protocol):
    """A tool whose result files can be read."""

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    @property
    def wrote(self) -> str:
        """What its files are called or how they are made, for people."""
        ...

    def recognises(self, document: Mapping[str, Any]) -> bool:
        """Whether the tool wrote this object (the first one of a file)."""
        ...

    def read(self, sources: Sequence[Source]) -> Iterable[ForeignRun]:
        """The runs in files of this tool that were given together. Raises `ForeignResultError`."""
        ...


def family(metric: str) -> str:
    """What the statistics of one distribution share: `ttft` of `ttft_p50`; any other metric itself."""
    name, _, statistic = metric.rpartition("_")
    return name if name in LATENCIES and statistic in STATISTICS else metric


def stated(name: str, value: Callable[[str], float | None], scale: float) -> dict[str, float]:
    """The statistics of a distribution that a tool states.

    `value`: from a statistic of ours to the tool's figure. 0 is what tools write for a distribution of nothing.
    """
    found = {statistic: value(statistic) for statistic in STATISTICS if statistic != "gmean"}  # no tool states it
    return {f"{name}_{statistic}": figure * scale for statistic, figure in found.items() if figure}


def of_requests(name: str, values: Sequence[float]) -> dict[str, float]:
    """The statistics of a distribution whose values, in seconds, are known."""
    if not values:
        return {}
    sample = Sample(tuple(values), of=name)
    return {f"{name}_{statistic}": form(sample) for statistic, form in STATISTICS.items()}


def known(**values: float | None) -> dict[str, float]:
    """Those that were measured."""
    return {name: value for name, value in values.items() if value}


def require_answers(fields: Fields, name: str, answered: int) -> None:
    """Raises `ForeignResultError` where no request was answered."""
    if not answered:
        raise fields.complaint(name, "at least one answered request, as there are no figures of none")


def failures(answered: int, failed: int | None) -> tuple[str, ...]:
    """The doubt about a run in which requests failed."""
    if not failed:
        return ()
    return (f"{failed} of {answered + failed} requests failed; measured here, such a run would be invalid",)


def one_length(tokens: int, answers: int) -> int | None:
    """Output tokens of each answer, if all may have been asked for the same; None where they certainly differ."""
    return tokens // answers if answers and tokens % answers == 0 else None
