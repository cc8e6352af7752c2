"""The ways in which the gate can be used, each by the gate's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from model import Array, Machine

from pytest_llmperf.gate import SCREEN, Base, Criterion, Family, Trial, tried
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.option_values import LOOKS
from pytest_llmperf.stats import History, Looks, NightSpread, assumed, shared_spread

_METRIC = METRICS["ttft_p50"]
_CRITERION = Criterion(_METRIC.name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one night came to."""

    flagged: frozenset[int]
    runs: int
    """Measured tonight, both builds taken together."""


class Mode(Protocol):
    """A way to judge tonight, of which metric 0 is slower by `slower` on the log scale."""

    def __call__(self, machine: Machine, random: np.random.Generator, slower: float) -> Outcome: ...


def _history(nights: Array) -> History:
    return History(tuple(map(tuple, nights.tolist())))


def _trials(bases: Sequence[Base], tonight: Array, looks: Looks | None = None) -> list[Trial]:
    """One trial for each metric; the gate takes stored values, whose logarithms these are."""
    trials = [
        tried(_METRIC, _CRITERION, base, np.exp(values).tolist(), looks)
        for base, values in zip(bases, tonight, strict=True)
    ]
    return [trial for trial in trials if isinstance(trial, Trial)]


def _judged(trials: Sequence[Trial], *, is_screen: bool = False) -> frozenset[int]:
    family = Family(len(trials), SCREEN if is_screen else 0.01, is_screen=is_screen)
    for number, trial in enumerate(trials):
        family.put(str(number), [trial])
    return frozenset(n for n in range(len(trials)) if family.findings(str(n))[0].verdict.value == "REGRESSED")


def _slowed(values: Array, slower: float) -> Array:
    values[0] += slower
    return values


def _stored(nights: Array, spread: float | None) -> list[Base]:
    """What tonight is compared with: the spread is known from enough nights, or assumed."""
    histories = [_history(one) for one in nights]
    known: NightSpread = shared_spread(histories) or assumed(0.02 if spread is None else spread)
    return [Base(history=history, spread=known) for history in histories]


def stored(nights: int, stored_runs: int, runs: int, spread: float | None = None) -> Mode:
    """Tonight against stored nights."""

    def mode(machine: Machine, random: np.random.Generator, slower: float) -> Outcome:
        sds = machine.spreads(random)
        bases = _stored(machine.nights(random, sds, nights, stored_runs), spread)
        tonight = _slowed(machine.nights(random, sds, 1, runs)[:, 0], slower)
        return Outcome(_judged(_trials(bases, tonight)), runs)

    return mode


def in_turn(runs: int) -> Mode:
    """Two builds on one night."""

    def mode(machine: Machine, random: np.random.Generator, slower: float) -> Outcome:
        sds = machine.spreads(random)
        return Outcome(_in_turn(machine, random, sds, runs, slower, range(machine.metrics)), 2 * runs)

    return mode


def _in_turn(
    machine: Machine, random: np.random.Generator, sds: Array, runs: int, slower: float, wanted: Sequence[int]
) -> frozenset[int]:
    night = machine.nights(random, sds, 1, 2 * runs)[:, 0]
    base, head = night[:, :runs], _slowed(night[:, runs:].copy(), slower)
    chosen = list(wanted)
    bases = [Base(history=_history(base[n][None]), spread=None) for n in chosen]
    return frozenset(chosen[n] for n in _judged(_trials(bases, head[chosen])))


def two_tiers(nights: int, stored_runs: int, runs: int, confirm: int) -> Mode:
    """What the stored nights flag is measured in turn with the base build."""

    def mode(machine: Machine, random: np.random.Generator, slower: float) -> Outcome:
        sds = machine.spreads(random)
        bases = _stored(machine.nights(random, sds, nights, stored_runs), None)
        tonight = _slowed(machine.nights(random, sds, 1, runs)[:, 0], slower)
        flagged = sorted(n for n, trial in enumerate(_trials(bases, tonight)) if trial.p_worse <= SCREEN)
        if not flagged:
            return Outcome(frozenset(), runs)
        return Outcome(_in_turn(machine, random, sds, confirm, slower, flagged), runs + 2 * confirm)

    return mode


def sequential(mode_of: Callable[[Machine, np.random.Generator, Array, float], tuple[list[Base], Array]]) -> Mode:
    """Looks while it is measured; a metric is settled when it has regressed, or could have been seen to."""

    def mode(machine: Machine, random: np.random.Generator, slower: float) -> Outcome:
        sds = machine.spreads(random)
        bases, tonight = mode_of(machine, random, sds, slower)
        for number in LOOKS:
            seen = [
                base if base.spread is not None else replace(base, history=History((base.history.runs[:number],)))
                for base in bases
            ]
            trials = _trials(seen, tonight[:, :number], Looks(LOOKS))
            flagged = _judged(trials)
            family = Family(len(trials))
            if flagged or all(family.is_sharp(trial) and not trial.is_suspect for trial in trials):
                break
        return Outcome(flagged, number * (1 if bases[0].spread is not None else 2))

    return mode


def auto_stored(nights: int, stored_runs: int) -> Mode:
    """`--llmperf-runs auto` against stored nights."""

    def setting(machine: Machine, random: np.random.Generator, sds: Array, slower: float) -> tuple[list[Base], Array]:
        bases = _stored(machine.nights(random, sds, nights, stored_runs), None)
        return bases, _slowed(machine.nights(random, sds, 1, LOOKS[-1])[:, 0], slower)

    return sequential(setting)


def auto_in_turn() -> Mode:
    """`--llmperf-runs auto` with two builds on one night."""

    def setting(machine: Machine, random: np.random.Generator, sds: Array, slower: float) -> tuple[list[Base], Array]:
        night = machine.nights(random, sds, 1, 2 * LOOKS[-1])[:, 0]
        bases = [Base(history=_history(one[None, : LOOKS[-1]]), spread=None) for one in night]
        return bases, _slowed(night[:, LOOKS[-1] :].copy(), slower)

    return sequential(setting)
