"""A result file of ours from plain values: what another tool measured, or what somebody published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest_benchmark
import pytest_benchmark.stats

from pytest_llmperf.errors import ForeignResultError
from pytest_llmperf.judged import Provenance
from pytest_llmperf.result_file import SCHEMA_VERSION, comparable

NO_DAY = "1970-01-01T00:00:00+00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric of a measurement: a value for each run, in the metric's unit."""

    metric: str
    unit: str
    inverted: bool
    """Whether the file keeps 1/value, so that lower is better there."""
    values: Sequence[float]
    comparable: Mapping[str, Any] = field(default_factory=dict)
    """What two results must share beyond what their provenance says."""

    def stored(self) -> list[float]:
        """As the file keeps them. Raises `ForeignResultError` for what is no measurement."""
        values = [1 / value if self.inverted and value else value for value in self.values]
        if not values or not all(0 < value < math.inf for value in values):
            msg = f"{self.metric} is {list(self.values)}; expected finite numbers above 0, one for each run"
            raise ForeignResultError(msg)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a file says of one measurement.

    `about`: what stands beside its provenance in every row, such as `{"imported": ...}`. `result`: the remaining
    figures.
    """

    provenance: Provenance
    figures: Sequence[Figure]
    about: Mapping[str, Any]
    result: Mapping[str, Any]


def document(
    measurements: Sequence[Measurement],
    hardware_key: str,
    *,
    saved_at: str = NO_DAY,
    originals: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A whole result file, in pytest-benchmark's form.

    `saved_at`: ISO 8601. `originals`: the measurement's name to what the other tool wrote; kept once, beside the
    rows. This machine is not in it: nothing was measured here. Raises `ForeignResultError` for figures that are no
    measurements.
    """
    return {
        "machine_info": {
            "llmperf": {"schema_version": SCHEMA_VERSION, "hardware_key": hardware_key, "fingerprint": {}}
        },
        "commit_info": {},
        "benchmarks": [_row(measurement, figure) for measurement in measurements for figure in measurement.figures],
        "datetime": saved_at,
        "version": pytest_benchmark.__version__,
        **({"llmperf": {"originals": dict(originals)}} if originals else {}),
    }


def _row(measurement: Measurement, figure: Figure) -> dict[str, Any]:
    provenance = measurement.provenance
    stats = pytest_benchmark.stats.Stats()
    for value in figure.stored():
        stats.update(value)
    return {
        "group": figure.metric,
        "name": f"{_without_file(provenance.measurement)}::{figure.metric}",
        "fullname": f"{provenance.measurement}::{figure.metric}",
        "params": None,
        "param": None,
        "extra_info": {
            "llmperf": {
                "schema_version": SCHEMA_VERSION,
                "measurement": provenance.measurement,
                "metric": figure.metric,
                "unit": figure.unit,
                "stored_as": "1/value" if figure.inverted else "value",
                "comparable": {**comparable(provenance), **figure.comparable},
                "engine_words": provenance.engine_words,
                "provenance": provenance.to_json(),
                **measurement.about,
                "result": dict(measurement.result),
            }
        },
        "options": {"timer": "llmperf", "disable_gc": False, "warmup": False},
        "stats": {**stats.as_dict(), "data": stats.data, "iterations": 1},
    }


def _without_file(measurement: str) -> str:
    """As pytest-benchmark names a test in its tables."""
    file, _, rest = measurement.partition("::")
    return rest if file.endswith(".py") else measurement
