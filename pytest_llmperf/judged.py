"""What a verdict can be given on: what was measured of what, whether it may be believed, and its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pytest_llmperf import metrics, units
from pytest_llmperf.verdicts import Judgement, Verdict


@dataclass(frozen=True, slots=True)
class Validity:
    """Whether the figures may be believed; true if there is no reason against it."""

    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "valid"

    def without(self, *reasons: str) -> Validity:
        """The same with further reasons against it."""
        return Validity((*self.reasons, *reasons))


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a measurement is of; two results are compared only where this allows it."""

    test: str
    """The test's node id."""
    name: str | None
    """The measurement's name within the test, if it has several."""
    hardware_key: str
    workload: str
    workload_digest: str
    load: str
    open_load: bool
    """Whether the load sends without waiting for answers."""
    cache: str
    engine_kind: str
    engine_identity: dict[str, Any]
    engine_words: dict[str, Any]
    engine: dict[str, Any]
    simulated: bool = False
    """Whether the figures were computed by the simulated engine."""
    workload_words: dict[str, Any] = field(default_factory=dict)
    """What the workload was made with, for people: two digests only say that they differ."""

    def to_json(self) -> dict[str, Any]:
        """Field by field; without the words of a workload of which none are known."""
        fields = asdict(self)
        return fields if self.workload_words else {name: fields[name] for name in fields if name != "workload_words"}

    @property
    def measurement(self) -> str:
        """The key under which the measurement is found again: node id and name."""
        return measurement_name(self.test, self.name)


def measurement_name(test: str, name: str | None) -> str:
    """The key under which a measurement of a test is found again."""
    return test if name is None else f"{test}::{name}"


class Judged:
    """What a verdict can be given on.

    `verdict`: None where nothing is judged. `doubts`: what a reader should know although the figures stand.
    """

    def __init__(
        self, provenance: Provenance, validity: Validity, doubts: tuple[str, ...] = (), looks: tuple[int, ...] = ()
    ) -> None:
        """`looks`: after how many runs it was, or would have been, looked whether they are enough."""
        self.provenance = provenance
        self.validity = validity
        self.doubts = doubts
        self.looks = looks
        self.judgement: Judgement | None = None
        self.is_level = True
        """Whether others may be held against it; not where its figures stand and are not of what was declared."""
        self.advice: str | None = None
        """What to do about the machine, also where the verdict asks for nothing."""

    @property
    def verdict(self) -> Verdict | None:
        """PASS, REGRESSED, ...; None where the gate is off or benchmarks are disabled."""
        return None if self.judgement is None else self.judgement.verdict

    def __len__(self) -> int:
        """How many runs there are."""
        raise NotImplementedError

    def __bool__(self) -> bool:
        return True

    @property
    def clock_mhz(self) -> float | None:
        """At which the GPUs worked; None where that was not sampled."""
        return None

    def quantity(self, name: str) -> metrics.Quantity:
        """What the metric of that name is."""
        return metrics.METRICS[name]

    def values(self, name: str) -> list[float | None]:
        """The metric of each run, in their order."""
        raise NotImplementedError

    def why_absent(self, name: str) -> str | None:
        """Why a run has not that metric; None where every run has it, or nobody knows."""
        del name
        return None


class RatioResult(Judged):
    """One figure over another, run by run: recorded and judged like a metric."""

    def __init__(self, name: str, ratios: Sequence[float], *, higher_is_better: bool, parts: Sequence[Judged]) -> None:
        """`parts`: the measurements of the test, whose provenance the ratio shares and whose faults it has."""
        reasons = (reason for part in parts for reason in part.validity.reasons)
        super().__init__(_of_parts(name, parts), Validity(tuple(dict.fromkeys(reasons))))
        self.is_level = all(part.is_level for part in parts)
        self.ratios = tuple(ratios)
        self._quantity = metrics.Quantity(f"{RATIO_PREFIX}{name}", units.FACTOR, higher_is_better)

    def __len__(self) -> int:
        return len(self.ratios)

    @property
    def name(self) -> str:
        return self._quantity.name

    def quantity(self, name: str) -> metrics.Quantity:
        assert name == self._quantity.name, f"a ratio is one metric, {self._quantity.name}, not {name}"
        return self._quantity

    def values(self, name: str) -> list[float | None]:
        del name
        return list(self.ratios)


RATIO_PREFIX = "ratio:"
"""What the metrics' names of ratios begin with."""


def _of_parts(name: str, parts: Sequence[Judged]) -> Provenance:
    """The provenance of a ratio: comparable where all that went into it is."""
    first = parts[0].provenance
    words = [(p.workload_digest, p.load, p.cache) for p in (part.provenance for part in parts)]
    joined = [" and ".join(dict.fromkeys(column)) for column in zip(*words, strict=True)]
    of_all = all(part.provenance.workload_words == first.workload_words for part in parts)
    return replace(
        first,
        name=f"{RATIO_PREFIX}{name}",
        workload_digest=joined[0],
        load=joined[1],
        cache=joined[2],
        workload_words=first.workload_words if of_all else {},
    )
