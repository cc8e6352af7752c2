"""How often the step finder is wrong: steps found in healthy series, and real ones missed.

    python benchmarks/history/rates.py [--series N] [--json FILE]

Simulated nights, each the geometric mean of five runs whose logarithms have a standard deviation of
2 %. Prints the Markdown tables of docs/history.md; twenty seconds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pytest_llmperf.history import steps_in

RUNS, RUN_NOISE = 5, 0.02
NIGHT_NOISE = RUN_NOISE / math.sqrt(RUNS)
MOST_ALARMS = 0.02
Noise = Callable[[np.random.Generator, int], np.ndarray]


def independent(random: np.random.Generator, nights: int) -> np.ndarray:
    return NIGHT_NOISE * random.standard_normal(nights)


def heavy_tailed(random: np.random.Generator, nights: int) -> np.ndarray:
    """Student's t with 3 degrees of freedom."""
    return NIGHT_NOISE * random.standard_t(3, nights)


def following(correlation: float) -> Noise:
    """Each night like the one before."""

    def noise(random: np.random.Generator, nights: int) -> np.ndarray:
        fresh = random.standard_normal(nights)
        for night in range(1, nights):
            fresh[night] = correlation * fresh[night - 1] + math.sqrt(1 - correlation**2) * fresh[night]
        return NIGHT_NOISE * fresh

    return noise


HEALTHY: dict[str, Noise] = {
    "independent nights": independent,
    "correlation 0.2 from night to night": following(0.2),
    "correlation 0.4 from night to night": following(0.4),
    "heavy tails (t, 3 degrees of freedom)": heavy_tailed,
}


def alarms(noise: Noise, nights: int, count: int) -> float:
    """The share of healthy series in which a step is found."""
    random = np.random.default_rng(nights)
    return sum(bool(steps_in(noise(random, nights).tolist())) for _ in range(count)) / count


def found(change: float, before: int, after: int, count: int) -> float:
    """The share of series in which a real step is found, one night off at most."""
    random = np.random.default_rng(before + after)
    hits = 0
    for _ in range(count):
        levels = independent(random, before + after)
        levels[before:] += math.log1p(change)
        hits += any(abs(step.at - before) <= 1 for step in steps_in(levels.tolist()))
    return hits / count


def looked_at(first: int, last: int, count: int) -> float:
    """The share of healthy series in which any of the nightly looks, from night `first` to `last`, finds a step."""
    random = np.random.default_rng(last)
    series = (independent(random, last).tolist() for _ in range(count))
    return sum(any(steps_in(levels[:nights]) for nights in range(first, last + 1)) for levels in series) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=4000, help="simulated series per figure")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    count = arguments.series
    verdicts = []
    lengths = (5, 8, 10, 15, 20, 30, 60, 120)
    print(f"| healthy series, alarms in % | {' | '.join(f'{n} nights' for n in lengths)} |")
    print(f"| --- |{' ---: |' * len(lengths)}")
    for name, noise in HEALTHY.items():
        rates = [alarms(noise, nights, count) for nights in lengths]
        if noise is independent:
            what = f"of healthy series of independent nights, steps are found in less than {MOST_ALARMS:.0%}"
            found_most = f"at most {max(rates):.1%} of {count:,} series, at the worst of {len(lengths)} lengths"
            verdicts.append({"what": what, "found": found_most, "ok": max(rates) < MOST_ALARMS})
        print(f"| {name} | {' | '.join(f'{100 * rate:.1f}' for rate in rates)} |", flush=True)
    cases = [(before, after) for before in (10, 30) for after in (2, 3, 5)]
    print(f"\n| found after | {' | '.join(f'{before} + {after}' for before, after in cases)} |")
    print(f"| --- |{' ---: |' * len(cases)}")
    for change in (0.03, 0.05, 0.10):
        rates = (found(change, before, after, count) for before, after in cases)
        print(f"| {change:+.0%} | {' | '.join(f'{rate:.2f}' for rate in rates)} |", flush=True)
    for first, last in ((5, 35), (30, 60)):
        rate = looked_at(first, last, count // 4)
        print(f"\nany alarm from night {first} to night {last}, looking every night: {100 * rate:.1f} %")
    if arguments.json:
        arguments.json.write_text(json.dumps({"verdicts": verdicts}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
