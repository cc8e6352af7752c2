"""Base units, and the only place where a number becomes text.

Inside the package a duration is seconds, a size is bytes or tokens, a rate is per second and a
change is a ratio; scaling happens here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MIB = 2**20
GIB = 2**30

SECONDS = "s"
TOKENS_PER_SECOND = "tokens/s"
REQUESTS_PER_SECOND = "requests/s"
JOULES_PER_TOKEN = "J/token"
WATTS = "W"
RATIO = "1"
"""A share of a whole."""
FACTOR = "ratio"
"""How many times as much."""


def seconds(value: float) -> str:
    """Three significant digits in the unit that suits: `0.0412` is `41.2 ms`."""
    magnitude = abs(value)
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (math.inf, 1.0, "s")):
        if magnitude < limit:
            return f"{_significant(value * factor)} {unit}"
    return f"{value} s"


def left(value: float) -> str:
    """Time that is still to pass, in whole seconds: `3725.2` is `1:02:05`."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(value: float) -> str:
    """Bytes in binary units: `3221225472` is `3.00 GiB`."""
    for limit, factor, unit in ((2**10, 1, "B"), (2**20, 2**10, "KiB"), (GIB, 2**20, "MiB"), (math.inf, GIB, "GiB")):
        if abs(value) < limit:
            return f"{_significant(value / factor)} {unit}"
    return f"{value} B"


def change(ratio: float) -> str:
    """A relative change with its sign: `0.052` is `+5.2 %`, and `14.9` is `x15.9`."""
    if math.isinf(ratio):
        return "x∞"
    if ratio >= 1000:  # the far end of an interval of two runs: its digits say nothing
        return ">x1000"
    if ratio >= 1:
        return f"x{_significant(1 + ratio)}"
    return f"{round(100 * ratio, 1) + 0.0:+.1f} %"  # + 0.0: no change has no negative sign


def share(ratio: float) -> str:
    """A share of a whole: `0.984` is `98.4 %`."""
    return f"{100 * ratio:.1f} %"


def probability(value: float) -> str:
    """A p-value; what is too small to matter is said to be below a limit."""
    return "<1e-6" if value < 1e-6 else f"{value:.2g}"


def count(number: int, noun: str) -> str:
    """`1 run`, `5 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _in_unit(unit: str) -> Callable[[float], str]:
    return lambda value: f"{_significant(value)} {unit}"


def _significant(value: float) -> str:
    """Three significant digits, never in scientific notation for numbers that people read."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


FORMATS: dict[str, Callable[[float], str]] = {
    SECONDS: seconds,
    TOKENS_PER_SECOND: _in_unit("tok/s"),
    REQUESTS_PER_SECOND: _in_unit("req/s"),
    JOULES_PER_TOKEN: _in_unit("J/token"),
    WATTS: _in_unit("W"),
    RATIO: share,
    FACTOR: lambda value: f"{_significant(value)}x",
}


def quantity(value: float, unit: str) -> str:
    """Text of a value in one of the base units above. Raises `KeyError` for another unit."""
    return FORMATS[unit](value)
