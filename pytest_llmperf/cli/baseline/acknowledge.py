"""`pytest-llmperf baseline acknowledge`: a change is accepted until a day, and its reason kept with the nights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import TextIO, TypeVar

from pytest_llmperf import units
from pytest_llmperf.acknowledged import (
    MOST_CHANGE,
    PLACEHOLDER,
    Acknowledgement,
    is_change,
    parsed_date,
    read_acknowledged,
    sort,
    write_acknowledged,
)
from pytest_llmperf.baselines import Baselines
from pytest_llmperf.cli.baseline.nights import known_key, known_measurements, known_metrics, whole_number
from pytest_llmperf.errors import ConfigurationError

_PERCENT = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?) ?%")
_NEEDED = ("key", "test", "metric", "change", "reason", "expires")
_OPTIONS = ("metric", "change", "reason", "expires", "since")

Made = TypeVar("Made")


def _acknowledge(arguments: argparse.Namespace, out: TextIO) -> None:
    baselines = Baselines(arguments.baselines)
    if arguments.list:
        _list(arguments, baselines, out)
    elif arguments.remove is not None:
        _remove(arguments, baselines, out)
    else:
        _add(arguments, baselines, out)


def _list(arguments: argparse.Namespace, baselines: Baselines, out: TextIO) -> None:
    _check_alone(arguments, "--list", "remove", "test", *_OPTIONS)
    keys = baselines.keys() if arguments.key is None else [known_key(baselines, arguments.key)]
    lines = [line for key in keys for line in _listed(baselines, key)]
    out.writelines(f"{line}\n" for line in lines or ["nothing is accepted"])


def _listed(baselines: Baselines, hardware_key: str) -> Iterator[str]:
    for place, one in enumerate(sort(read_acknowledged(baselines.directory / hardware_key)), 1):
        yield f"{hardware_key} {place}: {one.test}, since night {one.since:04d}"
        yield f"  {one.sentence(baselines.today)}"


def _remove(arguments: argparse.Namespace, baselines: Baselines, out: TextIO) -> None:
    _check_alone(arguments, "--remove", "test", *_OPTIONS)
    if arguments.key is None:
        raise ConfigurationError("KEY is missing: --remove INDEX takes back what --list shows for a hardware key")
    key = known_key(baselines, arguments.key)
    place = whole_number("--remove", arguments.remove)
    with baselines.writing(key, "taking an accepted change back"):
        accepted = sort(read_acknowledged(baselines.directory / key))
        if place > len(accepted):
            here = units.count(len(accepted), "accepted change")
            raise ConfigurationError(f"--remove {place}: {key} has {here}; --list shows them")
        removed = accepted.pop(place - 1)
        path = write_acknowledged(baselines.directory / key, accepted)
    out.write(f"taken back in {path}: {removed.test}, {removed.metric} {units.change(removed.change)}\n")


def _check_alone(arguments: argparse.Namespace, option: str, *others: str) -> None:
    given = [_word(name) for name in others if getattr(arguments, name) is not None]
    if given:
        raise ConfigurationError(f"{option} goes without {', '.join(given)}")


def _word(name: str) -> str:
    return name.upper() if name in ("key", "test") else f"--{name}"


def _add(arguments: argparse.Namespace, baselines: Baselines, out: TextIO) -> None:
    missing = [_word(name) for name in _NEEDED if getattr(arguments, name) is None]
    if missing:
        raise ConfigurationError(
            f"missing: {', '.join(missing)}; as in acknowledge KEY TEST --metric ttft_p50 --change +8% "
            "--reason 'safer sampling' --expires 2026-12-31"
        )
    new, measurements = _checked(arguments, baselines)
    folder = baselines.directory / arguments.key
    with baselines.writing(arguments.key, "accepting a change"):
        accepted = read_acknowledged(folder)
        if any(one.test == new.test and one.metric == new.metric and one.since == new.since for one in accepted):
            raise ConfigurationError(
                f"a change of {new.metric} of {new.test} since night {new.since:04d} is accepted already; take it back "
                "with --remove, and give the change since the older nights as one"
            )
        path = write_acknowledged(folder, [*accepted, new])
    out.write(f"accepted in {path}, for {units.count(len(measurements), 'test')} since night {new.since:04d}\n")
    out.write(f"  {new.sentence(baselines.today)}\n")
    quantities = {one.quantity for one in baselines.entries(arguments.key) if one.metric == new.metric}
    if any((new.change > 0) == quantity.higher_is_better for quantity in quantities):
        other = f"--change {-100 * new.change:+g}%"
        out.write(f"  that is for the better: a slowdown is {other}; if that was meant, take this back with --remove\n")


def _checked(arguments: argparse.Namespace, baselines: Baselines) -> tuple[Acknowledgement, set[str]]:
    """What is to be accepted, and the measurements that it is about.

    Raises `ConfigurationError` listing every mistake, `BaselineError` for stored files that cannot be used.
    """
    problems: list[str] = []
    change = _attempt(problems, lambda: _change(arguments.change))
    expires = _attempt(problems, lambda: _expires(arguments.expires, baselines.today))
    reason = _attempt(problems, lambda: _reason(arguments.reason))
    measurements = _attempt(problems, lambda: _measurements(arguments, baselines))
    since = _attempt(problems, lambda: _since(arguments.since, baselines.next_number(arguments.key)))
    if change is None or expires is None or reason is None or measurements is None or since is None:
        raise ConfigurationError(*problems)
    made = Acknowledgement(
        test=arguments.test, metric=arguments.metric, change=change, reason=reason, since=since, expires=expires
    )
    return made, measurements


def _attempt(problems: list[str], make: Callable[[], Made]) -> Made | None:
    try:
        return make()
    except ConfigurationError as error:
        problems += error.problems
        return None


def _measurements(arguments: argparse.Namespace, baselines: Baselines) -> set[str]:
    key = known_key(baselines, arguments.key)
    measurements = known_measurements(baselines, key, arguments.test)
    known_metrics(baselines, key, measurements, [arguments.metric])
    return measurements


def _change(text: str) -> float:
    """`+8%` is 0.08, digit by digit."""
    found = _PERCENT.fullmatch(text.strip())
    share = None if found is None else float(Decimal(found.group(1)) / 100)
    if not is_change(share):
        raise ConfigurationError(
            f"--change: expected a change in percent such as +8% or -5%, above -100% and at most {MOST_CHANGE:.0%}, "
            f"got {text!r}"
        )
    assert share is not None
    return share


def _expires(text: str, today: date) -> date:
    day = parsed_date(text)
    if day is None:
        raise ConfigurationError(f"--expires: expected a day such as 2026-12-31, got {text!r}")
    if day < today:
        raise ConfigurationError(f"--expires: {text} is over; give the last day on which the new level is expected")
    return day


def _reason(text: str) -> str:
    if not text.strip():
        raise ConfigurationError("--reason: expected a sentence on why the change is accepted, got nothing")
    if text.strip() == PLACEHOLDER:
        raise ConfigurationError(f"--reason: {PLACEHOLDER} stands for your own sentence on why the change is accepted")
    return " ".join(text.split())


def _since(text: str | None, next_number: int) -> int:
    if text is None:
        return next_number
    number = whole_number("--since", text)
    if number > next_number:
        raise ConfigurationError(f"--since {number}: the next night will be {next_number:04d}; give that or an earlier")
    return number


ACTIONS = {"acknowledge": _acknowledge}
"""What is done, by its word in the command line."""
