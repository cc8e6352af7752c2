"""Error rate and power of the gate, by simulation: `python benchmarks/gate/simulate.py [--sessions N] [--json FILE]`.

Each session has 20 metrics. The error rate is the share of healthy sessions in which any is called
regressed; the smallest detectable change is the slowdown of one metric that is found in 80 % of
sessions. The figures of docs/gate.md come from 2,000 healthy sessions per cell, and
500 for each slowdown.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import modes
import numpy as np
from model import Machine, request_noise

METRICS = 20
RUN_NOISE = (0.01, 0.02, 0.03)
NIGHTS = (0.0, 0.01, 0.02)
MIDDLE = 0.02
"""The run noise at which power is simulated."""
SLOWDOWNS = (0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.10, 0.12, 0.15, 0.20, 0.30)
MODES = {
    "stored, 1 night of 5, + 5": (modes.stored(1, 5, 5), "p50"),
    "stored, 6 nights of 5, + 5": (modes.stored(6, 5, 5), "p50"),
    "stored, 20 nights of 5, + 5": (modes.stored(20, 5, 5), "p50"),
    "stored, 20 nights of 5, + 5, gmean": (modes.stored(20, 5, 5), "gmean"),
    "stored, 20 nights of 10, + 10": (modes.stored(20, 10, 10), "p50"),
    "in turn, 5 + 5": (modes.in_turn(5), "p50"),
    "in turn, 10 + 10": (modes.in_turn(10), "p50"),
    "in turn, 10 + 10, gmean": (modes.in_turn(10), "gmean"),
    "two tiers, 20 nights, 5, 10 + 10": (modes.two_tiers(20, 5, 5, 10), "p50"),
    "auto, 20 nights of 5": (modes.auto_stored(20, 5), "p50"),
    "auto in turn": (modes.auto_in_turn(), "p50"),
}
ALIKE = {
    "stored, 30 runs, nights alike, + 5": (modes.stored(1, 30, 5, spread=0.0), "p50"),
    "stored, 30 runs, nights alike, + 10": (modes.stored(1, 30, 10, spread=0.0), "p50"),
    "stored, 30 runs, nights alike, + 5, gmean": (modes.stored(1, 30, 5, spread=0.0), "gmean"),
    "stored, 30 runs, nights alike, + 10, gmean": (modes.stored(1, 30, 10, spread=0.0), "gmean"),
}
"""What `--llmperf-night-spread 0` says of nights has to be true of them."""
ERROR = 0.01
WANTED = {
    ("stored, 30 runs, nights alike, + 5", 0.0): 0.061,
    ("stored, 30 runs, nights alike, + 10", 0.0): 0.046,
    ("in turn, 10 + 10", 0.0): 0.062,
    ("two tiers, 20 nights, 5, 10 + 10", 0.01): 0.056,
}
"""Detectable slowdowns by mode and nights, as a simulation of the plain methods had them before there was a gate."""
_POOLS: dict[str, np.ndarray] = {}


def cell(task: tuple[str, float, float, int]) -> dict[str, object]:
    """One mode on one machine: its error rate, its detectable change, the runs it takes."""
    name, run, night, sessions = task
    mode, statistic = (MODES | ALIKE)[name]
    if statistic not in _POOLS:
        _POOLS[statistic] = request_noise(statistic)
    machine = Machine(_POOLS[statistic], METRICS, run, night)
    healthy = [mode(machine, np.random.default_rng((1, seed)), 0.0) for seed in range(sessions)]
    found: dict[str, object] = {"mode": name, "run": run, "night": night, "sessions": sessions}
    found["error"] = float(np.mean([bool(outcome.flagged) for outcome in healthy]))
    found["runs"] = float(np.mean([outcome.runs for outcome in healthy]))
    if run == MIDDLE:
        found |= _power(mode, machine, max(200, sessions // 4))
    return found


def _power(mode: modes.Mode, machine: Machine, sessions: int) -> dict[str, float]:
    """The slowdown found in 80 % of sessions, and the runs that finding 10 % takes."""
    found = {}
    before = (0.0, 0.0)
    for slowdown in SLOWDOWNS:
        slowed = [mode(machine, np.random.default_rng((2, seed)), math.log1p(slowdown)) for seed in range(sessions)]
        power = float(np.mean([0 in outcome.flagged for outcome in slowed]))
        if slowdown == 0.10:
            found["runs_10"] = float(np.mean([outcome.runs for outcome in slowed]))
        if power >= 0.8 and "detectable" not in found:
            found["detectable"] = float(np.interp(0.8, (before[1], power), (before[0], slowdown)))
        if "detectable" in found and slowdown >= 0.10:
            break
        before = (slowdown, power)
    return found


def tasks(sessions: int) -> Iterator[tuple[str, float, float, int]]:
    for name in MODES:
        yield from ((name, run, night, sessions) for run in RUN_NOISE for night in NIGHTS)
    for name in ALIKE:
        yield from ((name, run, 0.0, sessions) for run in RUN_NOISE)


def table(cells: list[dict[str, object]]) -> Iterator[str]:
    """Markdown: error rate and detectable change at each noise, and the runs where they vary."""
    yield "| mode | run noise | night 0 % | night 1 % | night 2 % | runs, healthy | runs, one metric 10 % slower |"
    yield "|---|---|---|---|---|---|---|"
    rows: dict[tuple[str, float], dict[float, dict[str, object]]] = {}
    for one in cells:
        rows.setdefault((str(one["mode"]), float(one["run"])), {})[float(one["night"])] = one
    for (name, run), nights in rows.items():
        shown = [_shown(nights.get(night)) for night in NIGHTS]
        first = nights[0.0]
        runs = [f"{first['runs']:.1f}", f"{first['runs_10']:.1f}" if "runs_10" in first else ""]
        yield f"| {name} | {run:.0%} | {' | '.join([*shown, *runs])} |"


def _shown(one: dict[str, object] | None) -> str:
    if one is None:
        return ""
    detectable = one.get("detectable")
    error = f"{100 * float(str(one['error'])):.1f}"
    return error if detectable is None else f"{error} / {100 * float(str(detectable)):.1f}"


def judged(cells: list[dict[str, object]]) -> list[dict[str, object]]:
    """The error rate of the worst cell, and what is detected in the four cells of which something was wanted."""
    worst = max(cells, key=lambda one: float(str(one["error"])))
    error, sessions = float(str(worst["error"])), int(str(worst["sessions"]))
    allowed = ERROR + 2 * math.sqrt(ERROR * (1 - ERROR) / sessions)
    where = f"{worst['mode']}, runs {worst['run']:.0%}, nights {worst['night']:.0%}"
    verdicts: list[dict[str, object]] = [
        {
            "what": f"at most {ERROR:.0%} of healthy sessions fail, in the worst of {len(cells)} cells, within two "
            "standard errors of the simulation",
            "found": f"{error:.2%} of {sessions:,} sessions, where {allowed:.2%} is within them ({where})",
            "ok": error <= allowed,
        }
    ]
    for (mode, night), wanted in WANTED.items():
        found = next(
            (c.get("detectable") for c in cells if (c["mode"], c["run"], c["night"]) == (mode, MIDDLE, night)), None
        )
        if found is not None:
            what = f"{mode}, runs {MIDDLE:.0%}, nights {night:.0%}: {wanted:.1%} is found in 80 % of sessions"
            shown = f"one of {float(str(found)):.1%} is"
            verdicts.append({"what": what, "found": shown, "ok": round(float(str(found)), 3) <= wanted})
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cells = []
    with multiprocessing.Pool(arguments.processes) as pool:
        for number, found in enumerate(pool.imap(cell, list(tasks(arguments.sessions)))):
            cells.append(found)
            sys.stderr.write(f"\r{number + 1}  ")
            if arguments.json:
                arguments.json.write_text(json.dumps({"cells": cells}, indent=1) + "\n")
    print("\n".join(table(cells)))
    if arguments.json:
        arguments.json.write_text(json.dumps({"cells": cells, "verdicts": judged(cells)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
