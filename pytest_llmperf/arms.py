"""Two builds on one machine and night, measured in turn.

Whatever the night does to the machine it does to both, so that nights do not count; and a drift
within the night touches both alike, as long as neither comes first more often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pytest_llmperf.engines import Engine, EngineSpec, with_words
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.request import Request
from pytest_llmperf.results import PerfResult
from pytest_llmperf.resume import Kept
from pytest_llmperf.session import Measurement, Setting, kept_of

HEAD, BASE = "head", "base"
_SEED = 1
"""Of the order; any would do, a fixed one makes a session repeatable."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One build and where it is measured."""

    engine: Engine
    setting: Setting


@dataclass(frozen=True, slots=True)
class SecondBuild:
    """The build to compare with: the same engine with some words changed."""

    words: Mapping[str, Any]
    servers: str | None
    """`fresh`, `both`, or None: both stay up where we start neither, or both are simulated."""
    is_given: bool = True
    """Whether there is one: it may differ only by what it lacks of the head's words."""

    def spec_of(self, plain: EngineSpec) -> EngineSpec:
        """The base build's specification, from that of both builds without what only one has.

        Raises `ConfigurationError` for words that the engine does not know.
        """
        words = dict(self.words)
        if plain.kind == "sim" and "noise_seed" not in words:
            words["noise_seed"] = (plain.noise_seed or 0) + 1  # else both builds would have the same luck
        return with_words(plain, words)

    def problems(self, plain: Iterable[EngineSpec]) -> Iterator[str]:
        """What is wrong with the words, for the engines that are going to be measured."""
        for spec in dict.fromkeys(plain) if self.is_given else ():
            try:
                self.spec_of(spec)
            except ConfigurationError as error:
                yield from (f"--llmperf-base: {problem}" for problem in error.problems)

    def stays_up(self, head: Engine, base: Engine) -> bool:
        """Whether both engines run all the time."""
        if self.servers is not None:
            return self.servers == "both"
        return head.is_simulated or (head.spec.url is not None and base.spec.url is not None)


def sameness(head: EngineSpec, base: EngineSpec) -> tuple[str, ...]:
    """A doubt where a build is compared with itself, which passes whatever is wrong with it; luck is no difference."""
    if replace(base, noise_seed=head.noise_seed) != head:
        return ()
    return (
        "both builds have the same words; what only the base has is said with --llmperf-base, what only the head has "
        "with --llmperf-head (--llmperf-set changes both)",
    )


def order(runs: int, seed: int = _SEED) -> Iterator[str]:
    """Pairs of one run of each build; either comes first equally often, give or take one."""
    head_first = [pair % 2 == 0 for pair in range(runs)]
    random.Random(seed).shuffle(head_first)
    for first in head_first:
        yield from (HEAD, BASE) if first else (BASE, HEAD)


def measure_in_turn(
    head: Arm,
    base: Arm,
    request: Request,
    *,
    together: bool,
    is_enough: Callable[[PerfResult, PerfResult], bool] | None = None,
) -> tuple[PerfResult, PerfResult]:
    """Measure both builds, `request.runs` times each; returns the head's result and the base's.

    `together`: both engines stay up. Else only one is at a time, started afresh for every run and
    warmed up by as many runs as the request says: two engines seldom fit one GPU. A spoiled run of
    either ends both; so does `is_enough`, asked at each look before the last. The base's engine is
    stopped in the end. Raises as `measure` does.
    """
    turns = _Turns({HEAD: head, BASE: base}, request, together=together)
    with turns:
        for name in turns.missing:
            if not turns.run(name):
                break
            if is_enough is not None and turns.pairs in request.budget.looks[:-1] and is_enough(*turns.results()):
                break
        turns.finish()
        return turns.results()


class _Turns:
    """Whose turn it is, and what that takes."""

    def __init__(self, arms: Mapping[str, Arm], request: Request, *, together: bool) -> None:
        self._arms = arms
        self._request = request
        self._together = together
        self._measurements: dict[str, Measurement] = {}
        self._kept = _kept_pairs(arms, request)
        self._done = {name: 0 if kept is None else kept.count for name, kept in self._kept.items()}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with ExitStack() as ending:  # a record file that cannot be finished keeps no engine up
            ending.callback(self._arms[BASE].engine.stop)
            for measurement in self._measurements.values():
                ending.callback(measurement.close)

    def run(self, name: str) -> bool:
        """The next run of one build; False if it was spoiled."""
        if not self._together:
            self._stop_all()
        measurement = self._measurement(name)
        measurement.engine.start()
        done = self._done[name]
        warm_up = 0 if self._together and done else self._request.warmup_runs
        self._done[name] += 1
        return all(measurement.run(index) for index in (*range(-warm_up, 0), done))

    @property
    def missing(self) -> Iterator[str]:
        """Whose turns are to be measured, in their order."""
        if all(kept is not None and kept.is_complete for kept in self._kept.values()):
            return iter(())
        return islice(order(self._request.runs), sum(self._done.values()), None)

    def finish(self) -> None:
        """No more runs are wanted."""
        for measurement in self._measurements.values():
            measurement.finish()

    @property
    def pairs(self) -> int | None:
        """How many runs both have; None where one is ahead."""
        first, second = self._done.values()
        return first if first == second else None

    def results(self) -> tuple[PerfResult, PerfResult]:
        """The head's and the base's."""
        return self._result(HEAD), self._result(BASE)

    def _result(self, name: str) -> PerfResult:
        """What was measured of one build: without a run where the other's was spoiled before its turn came."""
        if name not in self._measurements and not self._together:
            self._stop_all()
        return self._measurement(name).result()

    def _measurement(self, name: str) -> Measurement:
        if name not in self._measurements:
            arm = self._arms[name]
            self._measurements[name] = Measurement(arm.engine, self._request, arm.setting, self._kept[name])
        return self._measurements[name]

    def _stop_all(self) -> None:
        for arm in self._arms.values():
            arm.engine.stop()


def _kept_pairs(arms: Mapping[str, Arm], request: Request) -> dict[str, Kept | None]:
    """What an earlier session has of both builds: whole pairs only, which had one and the same hour.

    Nothing of builds behind URLs, of which only a start tells whether they are the same.
    """
    ours = all(arm.engine.is_ours for arm in arms.values())
    kept = {name: kept_of(arm.engine, request, arm.setting) if ours else None for name, arm in arms.items()}
    found = [one for one in kept.values() if one is not None]
    if len(found) < len(arms):
        return dict.fromkeys(arms)
    pairs = min(one.count for one in found)
    return {name: None if one is None else one.first(pairs) for name, one in kept.items()}
