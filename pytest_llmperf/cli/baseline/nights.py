"""`pytest-llmperf baseline list | show | save | prune | promote`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import TextIO

from pytest_llmperf import units
from pytest_llmperf.acknowledged import FILE_NAME, selects
from pytest_llmperf.baselines import Baselines, check_name
from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.keeping import Night, Stored, nights_in, nights_of, stored, superfluous
from pytest_llmperf.reports import nights

# Python refuses to read numbers of thousands of digits, and nobody has as many nights.
_DIGITS = 10


def known_key(baselines: Baselines, hardware_key: str) -> str:
    """The key, if something is stored for it. Raises `ConfigurationError` otherwise."""
    keys = baselines.keys()
    if not keys:
        raise ConfigurationError(
            f"nothing is stored in {baselines.directory}; store a night with pytest --llmperf-save-baseline NAME, "
            "or name another folder with --baselines"
        )
    if hardware_key not in keys:
        raise ConfigurationError(unknown("hardware key", hardware_key, keys))
    return hardware_key


def known_measurements(baselines: Baselines, hardware_key: str, pattern: str) -> set[str]:
    """Stored measurements that a pattern means. Raises `ConfigurationError` if there is none."""
    names = {entry.measurement for entry in baselines.entries(hardware_key)}
    found = {name for name in names if selects(pattern, name)}
    if not found:
        near = difflib.get_close_matches(pattern, sorted(names), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(
            f"no stored test of {hardware_key} is {pattern!r}; {hint}baseline show {hardware_key} prints all; * and ? "
            "stand for any text and any character"
        )
    return found


def known_metrics(
    baselines: Baselines, hardware_key: str, measurements: Iterable[str], asked: Iterable[str] | None
) -> list[str]:
    """Metrics that are stored of some of these measurements, those asked for or all.

    Raises `ConfigurationError` for one that is not stored.
    """
    wanted = set(measurements)
    entries = baselines.entries(hardware_key)
    names = list(dict.fromkeys(entry.metric for entry in entries if entry.measurement in wanted))
    problems = [unknown("metric", metric, names) for metric in asked or () if metric not in names]
    if problems:
        raise ConfigurationError(*problems)
    return names if asked is None else list(dict.fromkeys(asked))


def _list(arguments: argparse.Namespace, out: TextIO) -> None:
    baselines = Baselines(arguments.baselines)
    if arguments.key is None:
        keys = baselines.keys()
        _say(out, nights.overview(baselines, keys) if keys else [f"nothing is stored in {baselines.directory}"])
        return
    key = known_key(baselines, arguments.key)
    _say(out, [*nights.overview(baselines, [key]), "", *nights.nights(baselines, key)])


def _show(arguments: argparse.Namespace, out: TextIO) -> None:
    baselines = Baselines(arguments.baselines)
    key = known_key(baselines, arguments.key)
    measurements = known_measurements(baselines, key, "*" if arguments.test is None else arguments.test)
    metrics = known_metrics(baselines, key, measurements, arguments.metric)
    _say(out, nights.levels(baselines, key, is_asked=measurements.__contains__, metrics=metrics))


def _save(arguments: argparse.Namespace, out: TextIO) -> None:
    check_name(arguments.name)
    found = nights_of(arguments.files, arguments.name, accept_regressed=arguments.accept_regressed)
    _store(out, found, Baselines(arguments.baselines))


def _promote(arguments: argparse.Namespace, out: TextIO) -> None:
    origin = Baselines(arguments.origin)
    if not origin.directory.is_dir():
        raise ConfigurationError(f"{origin.directory} is not a folder; give one with nights by hardware key")
    found = nights_in(origin, arguments.only)
    _store(out, found, Baselines(arguments.baselines))
    for key in dict.fromkeys(night.hardware_key for night in found):
        if (origin.directory / key / FILE_NAME).exists():
            _say(out, [f"left behind: {origin.directory / key / FILE_NAME}, as its nights have other numbers here"])


def _store(out: TextIO, found: Iterable[Night], baselines: Baselines) -> None:
    for one in stored(list(found), baselines):
        _say(out, [_told(one), *(f"  left out: {sentence}" for sentence in one.night.left_out)])


def _told(one: Stored) -> str:
    if not one.is_new:
        return f"there already: {one.night.source} is {one.path}"
    measurements = len({entry.measurement for entry in one.night.entries})
    return f"stored: {one.night.source} as {one.path} ({units.count(measurements, 'test')})"


def _prune(arguments: argparse.Namespace, out: TextIO) -> None:
    keep = whole_number("--keep", arguments.keep)
    baselines = Baselines(arguments.baselines)
    key = known_key(baselines, arguments.key)
    paths = superfluous(baselines, key, keep)
    for path in paths:
        if not arguments.dry_run:
            path.unlink(missing_ok=True)  # another process may be at the same
        _say(out, [f"{'would remove' if arguments.dry_run else 'removed'}: {path}"])
    if not paths:
        _say(out, [f"nothing to remove: {units.count(len(baselines.paths(key)), 'night')} of {key}"])


def whole_number(option: str, text: str) -> int:
    """Of at least 1. Raises `ConfigurationError` for another text."""
    if not (text.isascii() and text.isdecimal() and len(text) < _DIGITS and int(text) >= 1):
        raise ConfigurationError(f"{option}: expected a whole number of at least 1, got {text!r}")
    return int(text)


def _say(out: TextIO, lines: Iterable[str]) -> None:
    out.writelines(f"{line}\n" for line in lines)


ACTIONS = {"list": _list, "show": _show, "save": _save, "prune": _prune, "promote": _promote}
"""What is done, by its word in the command line."""
