"""Slowdowns that are put in on purpose, so that a gate can be shown what it should see.

`decode:+5%` makes that take 5 % more time, `host_link:-30%` takes 30 % of a rate or an amount away,
`prefix_cache:off` switches something off; several are separated by commas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pytest_llmperf.errors import ConfigurationError, unknown

TIMES = {
    "prefill": "what prompt tokens add to a step",
    "decode": "a step's time without the prompt tokens in it",
    "step_overhead": "the fixed time of a step",
    "request_overhead": "the time in front of the scheduler",
}
RATES = {
    "compute": "arithmetic",
    "memory": "the device memory's bandwidth",
    "host_link": "bandwidth between device and host memory",
    "gpu_link": "bandwidth between GPUs",
    "kv_capacity": "KV cache blocks on the device",
}
SWITCHES = {"prefix_cache": "reuse of prefixes", "kv_offload": "the tier in host memory"}

_CHANGE = re.compile(r"([+-])(\d+(?:\.\d+)?)%")


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Factors on times and on rates; 1 where nothing is said. `off`: what is switched off."""

    factors: dict[str, float] = field(default_factory=dict)
    off: frozenset[str] = frozenset()

    def factor(self, name: str) -> float:
        """By what a time, a rate or an amount is multiplied."""
        return self.factors.get(name, 1.0)


def parse_slowdown(text: str | None) -> Slowdown:
    """Read what `slow=` says. Raises `ConfigurationError` listing every mistake."""
    factors: dict[str, float] = {}
    off, problems = set(), []
    for part in (text or "").split(","):
        name, _, change = (word.strip() for word in part.partition(":"))
        if not name and not change:
            continue
        found = _CHANGE.fullmatch(change)
        if name in factors:
            problems.append(f"slow={part.strip()!r}: {name} is given twice; expected one change of it")
        elif name in SWITCHES and change == "off":
            off.add(name)
        elif name in TIMES | RATES and found and float(found[2]) < (100 if found[1] == "-" else float("inf")):
            factors[name] = 1 + float(found[1] + found[2]) / 100
        elif name in SWITCHES:
            problems.append(f"slow={part.strip()!r}: expected {name}:off")
        elif name in TIMES | RATES:
            problems.append(
                f"slow={part.strip()!r}: expected a change in percent, above -100 %, such as {name}:{_example(name)}"
            )
        else:
            problems.append(f"slow: {unknown('part of the engine', name, [*TIMES, *RATES, *SWITCHES])}")
    if problems:
        raise ConfigurationError(*problems)
    return Slowdown(factors, frozenset(off))


def _example(name: str) -> str:
    return "+5%" if name in TIMES else "-30%"
