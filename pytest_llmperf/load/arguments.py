"""What the arguments of a load may be, and how a load is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

from pytest_llmperf.errors import ConfigurationError


class Rule(NamedTuple):
    """What an argument must be: in words, and as a test of it."""

    words: str
    holds: Callable[[object], bool]

    def or_none(self) -> Rule:
        """The same rule for an argument that may be left out."""
        return Rule(f"{self.words}, or None", lambda value: value is None or self.holds(value))


def is_whole(value: object) -> bool:
    """Whether it is an integer, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_at_least_zero(value: object) -> bool:
    """Whether it is a finite number that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def is_above_zero(value: object) -> bool:
    """Whether it is a finite number above 0."""
    return is_at_least_zero(value) and value != 0


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
COUNT = Rule("a whole number of at least 1", lambda value: is_whole(value) and is_above_zero(value))
SEED = Rule("a whole number of at least 0", lambda value: is_whole(value) and is_at_least_zero(value))
POSITIVE = Rule("a number above 0", is_above_zero)
SECONDS = Rule("a number of seconds, at least 0", is_at_least_zero)
DURATION = Rule("a number of seconds above 0", is_above_zero)


def check(given: Any, rules: Mapping[str, Rule]) -> None:
    """Raise `ConfigurationError` naming every field of `given` that breaks its rule.

    If none does, `duration_s`, where there is one, must outlast `ramp_s` and `warmup_s`.
    """
    values = {name: getattr(given, name) for name in rules}
    problems = [
        f"{given.name}: {name} must be {rule.words}, got {values[name]!r}"
        for name, rule in rules.items()
        if not rule.holds(values[name])
    ]
    duration_s = values.get("duration_s")
    if not problems and duration_s is not None and duration_s <= values.get("ramp_s", 0) + values.get("warmup_s", 0):
        problems.append(
            f"{given.name}: duration_s must be longer than ramp_s and warmup_s together, or nothing is measured; "
            f"got duration_s={duration_s!r}, ramp_s={values['ramp_s']!r}, warmup_s={values['warmup_s']!r}"
        )
    if problems:
        raise ConfigurationError(*problems)


def written(given: Any) -> str:
    """A dataclass as its constructor is called, without the arguments that are the default.

    Its `name` is the constructor's. Equal numbers are written alike (2.0 as 2), as equal loads must be.
    """
    values = [(field, getattr(given, field.name)) for field in fields(given) if field.name != "name"]
    arguments = [
        _argument(field, value) for field, value in values if field.default is MISSING or value != field.default
    ]
    return f"{given.name}({', '.join(arguments)})"


def _argument(field: Field[Any], value: object) -> str:
    text = repr(float(value)).removesuffix(".0") if isinstance(value, float) else repr(value)
    return f"{field.name}={text}" if field.kw_only else text
