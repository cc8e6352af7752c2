"""One benchmark of a result file: one metric of one measurement, read and checked."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf import units
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.metrics import METRICS, Quantity

SMALLEST, LARGEST = 1e-300, 1e300
"""Beyond these a value's inverse or a mean of several is no number any more."""


_STORED_AS = ("value", "1/value")


_DEEPEST = 8
"""Levels of lists and objects in the words of an engine; deeper ones cannot be compared or printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One metric of one measurement in one file."""

    path: Path
    saved_at: str
    measurement: str
    quantity: Quantity
    stored_values: tuple[float, ...]
    """One per run, as pytest-benchmark keeps them: lower is better."""
    comparable: dict[str, Any]
    """What has to be equal for a comparison; see `comparable`."""
    engine_words: dict[str, Any]
    criterion: Mapping[str, float]
    """`detect` and `min_effect` as the test asked for them; empty where the file does not say."""
    simulated: bool = False
    shift: float = 0.0
    """What accepted changes add to the logarithms of the values, so that all nights are at the level expected now."""
    accepted: tuple[str, ...] = ()
    """What is accepted of this metric, for the reader; the same for every night."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Of what it was measured, as the file has it; empty where it does not say."""
    clock_mhz: float | None = None
    """At which the GPUs worked; None where the file does not say."""
    judgement: Mapping[str, Any] = field(default_factory=dict)
    """What the session that wrote the file said of the measurement; empty where it judged nothing."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The test's parameters, by name; empty where the file does not say."""

    @property
    def metric(self) -> str:
        return self.quantity.name

    @property
    def test(self) -> str:
        """The test's node id, of which the measurement's name is not a part."""
        known = self.provenance.get("test")
        return known if isinstance(known, str) else self.measurement


def mapping_of(value: object) -> dict[str, Any]:
    """What may be missing does not make a file unusable by being of another form."""
    return dict(value) if isinstance(value, dict) else {}


def _entry(path: Path, saved_at: str, row: Any) -> Entry:
    try:
        about = row["extra_info"]["llmperf"]
        entry = Entry(
            path=path,
            saved_at=saved_at,
            measurement=_text(about["measurement"]),
            quantity=_quantity(about),
            stored_values=_numbers(row["stats"]["data"]),
            comparable=_words(about["comparable"]),
            engine_words=_words(about["engine_words"]),
            criterion={name: _share(value) for name, value in about.get("criterion", {}).items()},
            simulated=bool(about["comparable"].get("simulated")),
            provenance=mapping_of(about.get("provenance")),
            judgement=mapping_of(about.get("judgement")),
            params=mapping_of(row.get("params")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        msg = f"{path}: the benchmark {name_of(row)} lacks what pytest-llmperf stores ({type(error).__name__}: {error})"
        raise BaselineError(msg) from None
    return _checked(entry)


READERS: Mapping[int, Callable[[Path, str, Any], Entry]] = {1: _entry}
"""What reads a benchmark of ours, by the file's schema version. Stored nights outlive a release: readers stay."""


def plain_entry(path: Path, saved_at: str, row: Any) -> Entry:
    """One that pytest-benchmark wrote of a test that is not ours. Raises `BaselineError`."""
    try:
        entry = Entry(
            path=path,
            saved_at=saved_at,
            measurement=_text(row["fullname"]),
            quantity=Quantity("time", units.SECONDS, higher_is_better=False),
            stored_values=_numbers(row["stats"]["data"]),
            comparable={},
            engine_words={},
            criterion={},
        )
    except (KeyError, TypeError, OverflowError) as error:
        msg = (
            f"{path}: the benchmark {name_of(row)} has no values of single runs ({type(error).__name__}: {error}); "
            "pytest-benchmark keeps them with --benchmark-json or --benchmark-save-data"
        )
        raise BaselineError(msg) from None
    return _checked(entry)


def _checked(entry: Entry) -> Entry:
    if not entry.stored_values or not all(SMALLEST <= value <= LARGEST for value in entry.stored_values):
        msg = f"{entry.path}: {entry.metric} of {entry.measurement} holds values that are not positive numbers"
        raise BaselineError(msg)
    return entry


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value.splitlines()) != 1:
        raise TypeError(f"expected a name, got {reprlib.repr(value)}")
    return value


def name_of(row: Any) -> str:
    """What an error calls a benchmark that is not as it has to be."""
    try:
        name = _text(row["fullname"])
    except (KeyError, TypeError):
        return "?"
    return name if name.isprintable() else repr(name)


def _number(value: Any) -> float:
    """A JSON number. Raises `TypeError` for what is none, `OverflowError` for too many digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {reprlib.repr(value)}")
    return float(value)


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of numbers, got {reprlib.repr(values)}")
    return tuple(map(_number, values))


def _share(value: Any) -> float:
    share = _number(value)
    if not 0 <= share < math.inf:  # a factor of four, 3.0, may be what a test asks to see
        raise ValueError(f"expected a share of at least 0, got {share}")
    return share


def _words(value: Any) -> dict[str, Any]:
    """An object that is going to be compared and printed."""
    if not isinstance(value, dict):
        raise TypeError(f"expected words with their values, got {reprlib.repr(value)}")
    _check_depth(value, _DEEPEST)
    return value


def _check_depth(value: Any, levels: int) -> None:
    if levels == 0:
        raise ValueError(f"words of an engine are nested {_DEEPEST} levels deep at most")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _check_depth(part, levels - 1)


def _quantity(about: Mapping[str, Any]) -> Quantity:
    """Ours by its name, so that what is better does not depend on the file; else as the file says."""
    name = _text(about["metric"])
    if name in METRICS:
        return METRICS[name]
    unit, stored_as = _text(about["unit"]), _text(about["stored_as"])
    if unit not in units.FORMATS or stored_as not in _STORED_AS:
        accepted = f"{', '.join(units.FORMATS)}, and {' or '.join(_STORED_AS)}"
        raise ValueError(f"{name} is in {unit!r}, stored as {stored_as!r}; accepted: {accepted}")
    return Quantity(name, unit, higher_is_better=stored_as == "1/value")
