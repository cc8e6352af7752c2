"""How git finds the commit behind a step: a shell script that measures the test between the two nights.

Nothing is run here. The script judges each commit by the nights before the step, which it copies
aside, as git changes the working tree; or in turn with another build.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from pytest_llmperf import units
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.history.series import Night, Series
from pytest_llmperf.history.steps import Step
from pytest_llmperf.result_rows import Entry

_SIMULATED = "sim-"
_NIGHTS = 30
"""As many as the gate takes, unless an option says otherwise."""


class Answer(IntEnum):
    """What `git bisect run` is told of a commit, as an exit code."""

    GOOD = 0
    BAD = 1
    SKIP = 125
    """It could not be built, measured, or told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the nights' files cannot say."""

    checkout: Path = Path()
    """The working tree in which git bisects."""
    install: str | None = None
    """Command that builds a commit there."""
    base: tuple[str, ...] = ()
    """WORD=VALUE of a build to measure in turn with each commit; empty: each is judged by the stored nights."""
    options: str = ""
    """Further options for pytest."""


def bisection(series: Series, step: Step, folder: Path, recipe: Recipe) -> Iterator[str]:
    """The script, line by line. `folder`: in which git knows nights that were read from it.

    Raises `BaselineError` where the nights around the step do not say two commits.
    """
    last, first = series.nights[step.at - 1], series.nights[step.at]
    good, bad = _commit(last), _commit(first)
    if good == bad:
        raise BaselineError(
            f"both nights around the step, {last.path.name} and {first.path.name}, are of commit {good}: what "
            "changed is not in this repository (the engine, the driver, the machine)"
        )
    yield from _introduction(series, step)
    yield "set -e"
    yield "work=$(mktemp -d)"
    if not recipe.base:
        yield from _copies(series, step, folder)
    yield "cat > \"$work/step.sh\" <<'END'"
    yield from _judge(series, step, recipe)
    yield "END"
    git = f"git -C {shlex.quote(str(recipe.checkout))} bisect"
    yield f"{git} start"
    yield f"{git} bad {bad}"
    yield f"{git} good {good}"
    yield f'{git} run sh "$work/step.sh" "$work"'


def _commit(night: Night) -> str:
    if night.commit is None:
        raise BaselineError(
            f"{night.path} does not say of which commit it is: commit_info.id; with --git the commits are those that "
            "brought the files"
        )
    return night.commit


def _introduction(series: Series, step: Step) -> Iterator[str]:
    last, first = series.nights[step.at - 1], series.nights[step.at]
    quantity = series.quantity
    before, after = (units.quantity(series.value(level), quantity.unit) for level in (step.before, step.after))
    yield f"# {quantity.name} of {series.measurement}: {before} -> {after} ({units.change(series.change(step))})"
    yield f"# last night before: {_named(last)}; first night after: {_named(first)}"
    for night in (last, first):
        if night.stored.blob is None and night.stored.file.is_dirty:
            yield f"# {night.path.name} was measured with changes that are in no commit: git may find another one."
    if not step.is_worse:
        yield '# The step is for the better: "bad" means here that it has been made.'
    if series.hardware_key.startswith("remote-"):
        yield "# A server behind a URL is not rebuilt by git: give --install a command that deploys the commit."
    yield f"# Nothing has been run: read it, then give it to sh on {series.hardware_key}, where pytest-llmperf is."


def _named(night: Night) -> str:
    parts = (night.path.name, None if night.at is None else f"{night.at:%Y-%m-%d}", night.engine_version)
    return ", ".join(part for part in parts if part is not None)


def _copies(series: Series, step: Step, folder: Path) -> Iterator[str]:
    """The nights before the step, as a folder of baselines that no checkout changes."""
    place = f'"$work"/baselines/{shlex.quote(series.hardware_key)}'
    yield f"mkdir -p {place}"
    for number, night in enumerate(_before(series, step), start=1):
        target = f"{place}/{number:04d}_night.json"
        if night.stored.blob is None:
            yield f"cp {shlex.quote(str(night.path.resolve()))} {target}"
        else:
            yield f"git -C {shlex.quote(str(folder.resolve()))} show {shlex.quote(night.stored.blob)} > {target}"


def _before(series: Series, step: Step) -> Sequence[Night]:
    """The nights of the step's old level alone, the newest of them."""
    earlier = [other.at for other in series.steps or () if other.at < step.at]
    return series.nights[max(earlier, default=0) : step.at][-_NIGHTS:]


def _judge(series: Series, step: Step, recipe: Recipe) -> Iterator[str]:
    yield f"# {Answer.GOOD:d}: good, {Answer.BAD:d}: bad, {Answer.SKIP:d}: cannot be told here"
    yield f"cd {shlex.quote(str(recipe.checkout))} || exit {Answer.SKIP:d}"
    if recipe.install is not None:
        yield f"( {recipe.install} ) || exit {Answer.SKIP:d}"
    yield 'rm -f "$1/result.json"'
    # With `=`, as pytest takes words that are folders for where tests lie, and names tests from there.
    options = [f"--llmperf-base={shlex.quote(word)}" for word in recipe.base]
    if series.hardware_key.startswith(_SIMULATED):
        options.append(f"--llmperf-hardware=sim:{series.hardware_key.removeprefix(_SIMULATED)}")
    if not recipe.base:
        options.append('--llmperf-baselines="$1/baselines"')
    options += [recipe.options] if recipe.options else []
    yield (
        f"python -m pytest {shlex.quote(series.test)} --llmperf-gate warn {' '.join(options)} "
        '--llmperf-output="$1/output" --benchmark-json="$1/result.json"'
    )
    yield (
        f'told=$(pytest-llmperf history verdict "$1/result.json" --test {shlex.quote(series.measurement)} '
        f"--metric {series.quantity.name} --change {series.change(step):.4g})"
    )
    # By its word and not its exit code, which is 1 as well where a commit has broken Python itself.
    yield 'echo "$told"'
    words = (f"{one.name.lower()}:*) exit {one:d} ;;" for one in (Answer.GOOD, Answer.BAD))
    yield f"case $told in {' '.join(words)} *) exit {Answer.SKIP:d} ;; esac"


def answer(entry: Entry, change: float) -> Answer:
    """What a judged result says of a commit, if a step of this size (of the metric itself) is looked for.

    Bad: a change of the step's direction was shown. Good: none was, and the interval does not hold
    the step, so that it would have been seen. Else it cannot be told.
    """
    found = _finding(entry)
    interval = _interval(found)
    if interval is None:
        return Answer.SKIP
    is_worse = (change < 0) == entry.quantity.higher_is_better
    if found.get("verdict") == ("REGRESSED" if is_worse else "IMPROVED"):
        return Answer.BAD
    low, high = interval
    return Answer.SKIP if low <= change <= high else Answer.GOOD


def _finding(entry: Entry) -> Mapping[str, Any]:
    findings = entry.judgement.get("findings")
    given = findings if isinstance(findings, list) else []
    return next((one for one in given if isinstance(one, dict) and one.get("metric") == entry.metric), {})


def _interval(found: Mapping[str, Any]) -> tuple[float, float] | None:
    """None where the judgement has none."""
    interval = found.get("interval")
    if not isinstance(interval, list) or not all(isinstance(end, (int, float)) for end in interval):
        return None
    return (interval[0], interval[1]) if len(interval) == 2 else None
