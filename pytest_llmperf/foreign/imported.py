"""Runs of other tools as measurements of ours: which of them belong together, under which name, and what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.foreign import TOOLS
from pytest_llmperf.foreign.document import Figure, Measurement
from pytest_llmperf.foreign.runs import ForeignRun, family
from pytest_llmperf.foreign.source import printable
from pytest_llmperf.judged import Provenance
from pytest_llmperf.metrics import METRICS

# Answers of runs of the same work may differ in length by as much before it is said.
_OUTPUT_SPREAD = 0.05
_DIGEST_CHARACTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What the user says of the files. `test`: the measurement's name, or None for one made of tool and load."""

    hardware_key: str
    test: str | None = None
    engine_kind: str = "unknown"


@dataclass(frozen=True, slots=True)
class Imported:
    """One measurement, and what its files said."""

    measurement: Measurement
    runs: tuple[ForeignRun, ...]
    doubts: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.measurement.provenance.measurement


def measurements(runs: Iterable[ForeignRun], naming: Naming) -> list[Imported]:
    """Runs that share tool, configuration and what is known of the engine are one measurement, a value from each."""
    groups: dict[str, list[ForeignRun]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    names = _names([group[0] for group in groups.values()], naming)
    return [_imported(group, naming, *name) for group, name in zip(groups.values(), names, strict=True)]


def digest(configuration: Mapping[str, Any]) -> str:
    """A hash over what a tool says of the work, free of the order in which it says it."""
    return hashlib.sha256(_canonical(configuration).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _identity(run: ForeignRun) -> str:
    return _canonical([run.tool, run.configuration, run.load, run.model, _words(run)])


def _words(run: ForeignRun) -> dict[str, Any]:
    """What is known of engine and tool. Runs that differ in it are not runs of one measurement."""
    return {**run.engine_words, "tool_version": run.tool_version}


def _names(firsts: Sequence[ForeignRun], naming: Naming) -> list[tuple[str, str | None]]:
    """Test and name of each measurement.

    A name depends on the measurement alone and not on what is imported beside it, but for those that differ only
    in the engine: these have to be told apart.
    """
    if naming.test is not None and len(firsts) == 1:
        return [(naming.test, None)]
    labels = [f"{run.load} {digest(run.configuration)[:8]}" for run in firsts]
    return [
        (naming.test or firsts[number].tool, f"{label}{_difference(firsts, labels, number)}")
        for number, label in enumerate(labels)
    ]


def _difference(firsts: Sequence[ForeignRun], labels: Sequence[str], number: int) -> str:
    """The words in which a measurement differs from others of the same label."""
    same = [_words(run) for run, label in zip(firsts, labels, strict=True) if label == labels[number]]
    own = _words(firsts[number])
    names = sorted({name for words in same for name in words})
    differing = [name for name in names if len({_canonical(words.get(name)) for words in same}) > 1]
    return "".join(printable(f"; {name}={own.get(name)}") for name in differing)


def _imported(runs: Sequence[ForeignRun], naming: Naming, test: str, name: str | None) -> Imported:
    first = runs[0]
    doubts = tuple(dict.fromkeys(_doubts(runs)))
    provenance = Provenance(
        test=test,
        name=name,
        hardware_key=naming.hardware_key,
        workload=f"of {TOOLS[first.tool].title}",
        workload_digest=digest(first.configuration),
        load=first.load,
        open_load=first.open_load,
        cache="as_is",
        engine_kind=naming.engine_kind,
        engine_identity={} if first.model is None else {"model": first.model},
        engine_words={
            "kind": naming.engine_kind,
            **({} if first.model is None else {"model": first.model}),
            **first.engine_words,
        },
        engine={},
    )
    figures = tuple(_figures(runs))
    families = {family(figure.metric) for figure in figures}
    about = {
        "imported": {
            "tool": first.tool,
            **({} if first.tool_version is None else {"tool_version": first.tool_version}),
            "files": [run.file for run in runs],
            "measured_at": [run.measured_at for run in runs if run.measured_at is not None],
            "configuration": first.configuration,
            "definitions": {name: text for name, text in first.definitions.items() if name in families},
        }
    }
    return Imported(
        Measurement(provenance=provenance, figures=figures, about=about, result=_result(runs, doubts)),
        tuple(runs),
        doubts,
    )


def _figures(runs: Sequence[ForeignRun]) -> Iterator[Figure]:
    """The metrics that every run has, got in the same way."""
    for name, metric in METRICS.items():
        values = [run.values[name] for run in runs if name in run.values]
        definitions = {run.definitions[family(name)] for run in runs if name in run.values}
        if len(values) == len(runs) and len(definitions) == 1:
            yield Figure(
                metric=name,
                unit=metric.unit,
                inverted=metric.higher_is_better,
                values=values,
                comparable={"imported": runs[0].tool, "definition": definitions.pop()},
            )


def _result(runs: Sequence[ForeignRun], doubts: Sequence[str]) -> dict[str, Any]:
    failed = [run.failed for run in runs]
    return {
        "requests": sum(run.answered + (run.failed or 0) for run in runs),
        **({} if None in failed else {"errors": {"failed": sum(filter(None, failed))} if any(failed) else {}}),
        "runs": [dict(run.values) for run in runs],
        **({"apart": [dict(run.apart) for run in runs]} if any(run.apart for run in runs) else {}),
        "doubts": list(doubts),
    }


def _doubts(runs: Sequence[ForeignRun]) -> Iterator[str]:
    for number, run in enumerate(runs, 1):
        yield from (doubt if len(runs) == 1 else f"run {number}: {doubt}" for doubt in run.doubts)
    for number, run in enumerate(runs, 1):
        if any(run.values == other.values for other in runs[: number - 1]):
            yield f"run {number} has the figures of one before it to the last digit: is it a copy?"
    for name in METRICS:
        given = [run for run in runs if name in run.values]
        if len({run.definitions[family(name)] for run in given}) > 1:
            yield f"{family(name)} is left out: the files define it in different ways"
        elif 0 < len(given) < len(runs):
            yield f"{name} is left out: not every run has it"
    lengths = [run.output_tokens / run.answered for run in runs if run.output_tokens]
    if lengths and max(lengths) > (1 + _OUTPUT_SPREAD) * min(lengths):
        yield f"answers of {min(lengths):.1f} to {max(lengths):.1f} tokens on average: are the runs of one workload?"


def originals(imported: Iterable[Imported]) -> dict[str, list[Mapping[str, Any]]]:
    """What the files said in the tools' own words, by measurement, a run each."""
    return {one.name: [run.original for run in one.runs] for one in imported}
