"""Changes that were accepted: `baselines/<hardware key>/acknowledged.json`.

An accepted change parts the stored nights in two levels. Those before `since` are at the old one,
the others at the new one. Until it expires the new one is expected, so that the older nights are
shifted up to it; afterwards the old one is again, and the newer nights are shifted back. Either way
a history is of one level: the step neither hides the next slowdown nor counts as a spread.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pytest_llmperf import units
from pytest_llmperf.atomic import sync_folder
from pytest_llmperf.errors import BaselineError, unknown
from pytest_llmperf.files import json_of, read_text
from pytest_llmperf.metrics import Quantity
from pytest_llmperf.result_file import MOST_BYTES, write
from pytest_llmperf.result_rows import Entry

FILE_NAME = "acknowledged.json"
MOST_CHANGE = 1000
"""Beyond it a level is not another one of the same test."""
PLACEHOLDER = "WHY"
"""What stands for the reason in commands that are printed to be filled in."""
# Some releases of Python read other forms of dates as well.
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """One accepted change of one metric."""

    test: str
    """The measurement; `*` and `?` stand for any text and any character."""
    metric: str
    change: float
    """A share, in the metric's own direction: 0.08 of `ttft_p50` is slower, -0.05 of a throughput is less."""
    reason: str
    since: int
    """The number of the first night at the new level."""
    expires: date
    """The last day, in UTC, on which the new level is expected."""

    def is_in_force(self, today: date) -> bool:
        return today <= self.expires

    def concerns(self, entry: Entry) -> bool:
        return entry.metric == self.metric and selects(self.test, entry.measurement)

    def shift(self, quantity: Quantity, night: int, today: date) -> float:
        """What brings the logarithms of a night, by its number, to the level that is expected today."""
        step = -math.log1p(self.change) if quantity.higher_is_better else math.log1p(self.change)
        if self.is_in_force(today):
            return step if night < self.since else 0.0
        return -step if night >= self.since else 0.0

    def sentence(self, today: date) -> str:
        """For the reader of a judgement that rests on it."""
        change = f"{self.metric}: an accepted change of {units.change(self.change)}"
        if self.is_in_force(today):
            return f"{change} is in the baseline until {self.expires}: {self.reason}"
        return f"{change} expired on {self.expires}, so that the level before it is expected again: {self.reason}"


def selects(pattern: str, measurement: str) -> bool:
    """Whether a pattern with `*` and `?` means this measurement. Brackets are those of pytest's parameters."""
    return fnmatchcase(measurement, pattern.replace("[", "[[]"))


def expected(entry: Entry, night: int, accepted: Iterable[Acknowledgement], today: date) -> Entry:
    """The entry of a night with the shift to the level that is expected today."""
    concerned = [one for one in accepted if one.concerns(entry)]
    if not concerned:
        return entry
    return replace(
        entry,
        shift=math.fsum(one.shift(entry.quantity, night, today) for one in concerned),
        accepted=tuple(one.sentence(today) for one in concerned),
    )


def read_acknowledged(folder: Path) -> tuple[Acknowledgement, ...]:
    """What is accepted for the hardware whose nights lie in `folder`; nothing without a file.

    Raises `BaselineError` naming every mistake, by the file and its place in the list.
    """
    path = folder / FILE_NAME
    if not os.path.lexists(path):  # a link that leads nowhere is a mistake
        return ()
    rows = _rows(path)
    problems = [f"{path}, entry {place}: {problem}" for place, row in enumerate(rows, 1) for problem in _mistakes(row)]
    if problems:
        raise BaselineError("\n".join(problems))
    return tuple(_made(row) for row in rows)


def write_acknowledged(folder: Path, accepted: Sequence[Acknowledgement]) -> Path:
    """Write them sorted; without any there is no file. It appears complete or not at all."""
    path = folder / FILE_NAME
    if not accepted:
        path.unlink(missing_ok=True)
        sync_folder(folder)
        return path
    write([{**asdict(one), "expires": one.expires.isoformat()} for one in sort(accepted)], path)
    return path


def sort(accepted: Iterable[Acknowledgement]) -> list[Acknowledgement]:
    """In the order of the file."""
    return sorted(accepted, key=lambda one: (one.test, one.metric, one.since, one.expires, one.change, one.reason))


def parsed_date(text: str) -> date | None:
    """A day such as 2026-12-31; None for another text."""
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        return None


_REMEDY = "pytest-llmperf baseline acknowledge writes it"


def _rows(path: Path) -> list[Any]:
    try:
        rows = json_of(read_text(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
        raise BaselineError(f"{path} is not readable JSON: {reason}; {_REMEDY}") from None
    if not isinstance(rows, list):
        raise BaselineError(f"{path}: expected a list of accepted changes, got {_short(rows)}; {_REMEDY}")
    return rows


def _made(row: Mapping[str, Any]) -> Acknowledgement:
    return Acknowledgement(**{**row, "expires": date.fromisoformat(row["expires"]), "change": float(row["change"])})


def _mistakes(row: Any) -> list[str]:
    """What is wrong with one entry, each with what is accepted."""
    if not isinstance(row, dict):
        return [f"expected an object with {', '.join(_FIELDS)}, got {_short(row)}; {_REMEDY}"]
    problems = [f"{name} is missing; expected {wanted}" for name, (_, wanted) in _FIELDS.items() if name not in row]
    problems += [unknown("field", name, _FIELDS) for name in row if name not in _FIELDS]
    problems += [
        f"{name} is {_short(row[name])}, expected {wanted}"
        for name, (is_good, wanted) in _FIELDS.items()
        if name in row and not is_good(row[name])
    ]
    return problems


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_change(value: Any) -> bool:
    """Whether it can be the share by which something changed."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -1 < value <= MOST_CHANGE and value != 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and parsed_date(value) is not None


_FIELDS = {
    "test": (_is_text, "a test, in which * and ? may stand for any text and any character"),
    "metric": (_is_text, "a metric such as 'ttft_p50'"),
    "change": (is_change, f"a share above -1, at most {MOST_CHANGE} and not 0, such as 0.08 for +8 %"),
    "reason": (_is_text, "a sentence on why it is accepted"),
    "since": (_is_number, "the number of the first night at the new level, such as 12"),
    "expires": (_is_date, "a day such as '2026-12-31'"),
}
