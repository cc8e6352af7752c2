"""What the value of an option may be: converters, each of which raises `ConfigurationError` saying what is accepted."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.secret import without_credentials


class GateMode(str, Enum):
    """What a verdict does to a test. INVALID_RUN is an error in every mode."""

    OFF = "off"
    WARN = "warn"
    FAIL = "fail"
    STRICT = "strict"


_MOST_WORKERS = 256


LOOKS = (3, 5, 8, 12, 20)
"""Runs after which `auto` looks whether a verdict is clear: each time about half as many again."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many runs may be spent on a measurement."""

    looks: tuple[int, ...]
    """After how many runs it is looked at; the last is the most there may be."""
    minutes: float | None = None

    @property
    def runs(self) -> int:
        return self.looks[-1]


def budget(text: str) -> Budget:
    """What `--llmperf-runs` means: `5`, `auto`, `auto:12`, `auto:15min`. Raises `ConfigurationError`."""
    if text.isdecimal() and int(text) >= 1:
        return Budget((int(text),))
    limit = re.fullmatch(r"auto(?::(\d+)(min)?)?", text)
    number = int(limit.group(1) or LOOKS[-1]) if limit else 0
    if limit is None or number < 1:
        msg = f"expected a whole number of at least 1, auto, auto:N for N runs or auto:Nmin for N minutes, got {text!r}"
        raise ConfigurationError(msg)
    if limit.group(2):
        return Budget(LOOKS, minutes=float(number))
    return Budget((*(look for look in LOOKS if look < number), number))


def literal(text: str) -> Any:
    """A Python or JSON literal where it is one, else the text itself."""
    for parse in (ast.literal_eval, json.loads):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return text


def engine_kind(text: str) -> str:
    """A kind of engine that there is."""
    from pytest_llmperf.engines import check_kind  # noqa: PLC0415 - as above

    check_kind(text)
    return text


def url(text: str) -> str:
    """The address of a server."""
    from pytest_llmperf.client import Address  # noqa: PLC0415 - as above

    Address.parse(text)
    return text


def hardware_key(text: str) -> str:
    """A hardware key, or `sim:` and a part."""
    from pytest_llmperf.hardware import declared  # noqa: PLC0415 - as above

    declared(text)
    return text


def baseline_name(text: str) -> str:
    """A name that a stored file may have."""
    from pytest_llmperf.baselines import check_name  # noqa: PLC0415 - as above

    check_name(text)
    return text


def gate_mode(text: str) -> GateMode:
    """What a verdict does."""
    try:
        return GateMode(text)
    except ValueError:
        accepted = ", ".join(mode.value for mode in GateMode)
        raise ConfigurationError(f"unknown mode {text!r}; accepted: {accepted}") from None


def servers(text: str) -> str:
    """Which servers two builds have."""
    if text not in ("fresh", "both"):
        raise ConfigurationError(f"expected fresh or both, got {text!r}")
    return text


def whole(minimum: int) -> Callable[[str], int]:
    """A converter to whole numbers of at least `minimum`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise ConfigurationError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return convert


def workers(text: str) -> int | str:
    """What `--llmperf-workers` means: a number of processes, or `ray://...`. Raises `ConfigurationError`."""
    quoted = without_credentials(text)
    if text.startswith("ray://") and len(text) > len("ray://"):
        if quoted != text:
            raise ConfigurationError(f"expected ray://auto or ray://HOST:PORT and nothing else in it, got {quoted!r}")
        return text
    if text.isdecimal() and 1 <= int(text) <= _MOST_WORKERS:
        return int(text)
    raise ConfigurationError(f"expected a number of processes from 1 to {_MOST_WORKERS}, or ray://..., got {quoted!r}")


def rate_hz(text: str) -> float | None:
    """What `--llmperf-telemetry` means: samples per second, None for `off`. Raises `ConfigurationError`."""
    if text == "off":
        return None
    return _number_from(text, 0.1, 100.0, "a number of samples per second from 0.1 to 100, or off")


def rules(text: str) -> frozenset[str]:
    """What `--llmperf-tolerate` means: names of rules on the hardware. Raises `ConfigurationError`."""
    from pytest_llmperf.telemetry import TOLERABLE  # noqa: PLC0415 - only where it is asked for

    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [unknown("rule", name, TOLERABLE) for name in names if name not in TOLERABLE]
    if wrong:
        raise ConfigurationError(*wrong)
    return frozenset(names)


def seconds(text: str) -> float:
    """A time that is waited, s."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"expected a positive number of seconds, got {text!r}")
    return value


def _number_from(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ConfigurationError(f"expected {what}, got {text!r}")
    return value


def probability(text: str) -> float:
    """An error rate."""
    return _number_from(text, 1e-9, 0.5, "a probability from 1e-9 to 0.5, such as 0.01")


def share(text: str) -> float:
    """A share of 1."""
    return _number_from(text, 0.0, 1.0, "a share from 0 to 1, such as 0.02 for 2 %")
