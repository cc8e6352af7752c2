"""Two stored results against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pytest_llmperf.baselines import Match
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.gate.clocks import clock_since
from pytest_llmperf.gate.criterion import ALPHA, DETECT, NIGHT_SPREAD, Criterion
from pytest_llmperf.gate.family import Family
from pytest_llmperf.gate.stored import SIMULATED_RESOLUTION, invalid, judgement
from pytest_llmperf.gate.trial import Base, Trial, own_change, tried, typical
from pytest_llmperf.metrics import Quantity
from pytest_llmperf.result_file import ResultFile, differences, unlike, unlike_in_words
from pytest_llmperf.result_rows import Entry
from pytest_llmperf.stats import NightSpread, assumed, shared_spread
from pytest_llmperf.verdicts import Finding, Judgement

_Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How results are to be compared."""

    alpha: float = ALPHA
    night_spread: float | None = NIGHT_SPREAD
    """Deviation between nights until enough are there to know it; None: both were measured in turn on one night."""
    detect: float | None = None
    """In place of what the tests asked to see."""
    min_effect: float | None = None
    metrics: frozenset[str] | None = None
    """Only these."""
    renamed: tuple[tuple[str, str], ...] = ()
    """What is replaced in the base's names, old and new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One metric on both sides where nothing may be judged."""

    quantity: Quantity
    base: float
    new: float
    change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileComparison:
    """What came of comparing two results."""

    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """By measurement; empty where it may not be compared."""
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    """By measurement, also where it may not be compared."""
    refusals: tuple[str, ...] = ()
    """Why results may not be compared, one sentence for each field that differs."""
    vanished: tuple[str, ...] = ()
    """Measurements and metrics that only the base has, one sentence each."""
    appeared: tuple[str, ...] = ()


def compared(base: Sequence[ResultFile], new: ResultFile, terms: Terms) -> FileComparison:
    """Compare a result with one or more of earlier nights, newest first.

    Raises `BaselineError` where the new names would give two measurements of the base one name.
    """
    wanted = {(entry.measurement, entry.metric): entry for entry in new.entries if _is_asked(entry, terms)}
    stored: dict[_Pair, list[Entry]] = {}
    for file in base:
        for pair, entry in _by_new_name(file, terms).items():
            stored.setdefault(pair, []).append(entry)
    wanted |= _beside(stored, wanted, new)
    common = [pair for pair in wanted if pair in stored]
    refusals = tuple(dict.fromkeys([*_other_hardware(base, new), *_unlike(common, stored, wanted)]))
    return FileComparison(
        judgements={} if refusals else _judged(common, stored, wanted, terms),
        changes=_changes(common, stored, wanted),
        refusals=refusals,
        vanished=tuple(_vanished(stored, wanted, base)),
        appeared=tuple(_appeared(stored, wanted)),
    )


def _by_new_name(file: ResultFile, terms: Terms) -> dict[_Pair, Entry]:
    found: dict[_Pair, Entry] = {}
    for entry in filter(partial(_is_asked, terms=terms), file.entries):
        name = _renamed(entry.measurement, terms)
        other = found.setdefault((name, entry.metric), entry)
        if other is not entry:
            msg = f"--rename gives {other.measurement} and {entry.measurement} of {file.path} one name, {name}"
            raise BaselineError(msg)
    return found


def _beside(
    stored: Mapping[_Pair, Sequence[Entry]], wanted: Mapping[_Pair, Entry], new: ResultFile
) -> dict[_Pair, Entry]:
    """What the new result has beside its gated metrics of what others published or measured."""
    found = {}
    for pair, entries in stored.items():
        if pair not in wanted and not {"published", "imported"}.isdisjoint(entries[0].comparable):
            entry = new.ungated(*pair)
            if entry is not None:
                found[pair] = entry
    return found


def _renamed(measurement: str, terms: Terms) -> str:
    for old, new in terms.renamed:
        measurement = measurement.replace(old, new)
    return measurement


def _is_asked(entry: Entry, terms: Terms) -> bool:
    return terms.metrics is None or entry.metric in terms.metrics


def _other_hardware(base: Sequence[ResultFile], new: ResultFile) -> Iterator[str]:
    for file in base:
        if file.hardware_key != new.hardware_key:
            yield f"hardware was {file.hardware_key}, is {new.hardware_key}"


def _unlike(
    common: Sequence[_Pair], stored: Mapping[_Pair, Sequence[Entry]], wanted: Mapping[_Pair, Entry]
) -> Iterator[str]:
    """What differs, each with how many measurements it is so for."""
    names: dict[str, set[str]] = {}
    for pair in common:
        for difference in _apart_in_words(stored[pair][0], wanted[pair]):
            names.setdefault(difference, set()).add(pair[0])
    for difference, measurements in names.items():
        first, *others = sorted(measurements)
        yield f"{difference} ({first}{f' and {len(others)} more' if others else ''})"


def _apart(before: Entry, now: Entry) -> list[str]:
    """What forbids comparing two entries. Either may be the older file, so words that one lacks are None there."""
    return [*unlike(before.comparable, _of_both(before, now)), *_other_quantity(before, now)]


def _apart_in_words(before: Entry, now: Entry) -> list[str]:
    found = unlike_in_words(before.comparable, _of_both(before, now), before.provenance, now.provenance)
    return [*found, *_other_quantity(before, now)]


def _of_both(before: Entry, now: Entry) -> dict[str, Any]:
    return {**dict.fromkeys(before.comparable), **now.comparable}


def _other_quantity(before: Entry, now: Entry) -> Iterator[str]:
    if before.quantity != now.quantity:
        yield f"{now.metric} was {_in_words(before.quantity)}, is {_in_words(now.quantity)}"


def _in_words(quantity: Quantity) -> str:
    return f"in {quantity.unit}, {'higher' if quantity.higher_is_better else 'lower'} is better"


def _judged(
    common: Sequence[_Pair], stored: Mapping[_Pair, Sequence[Entry]], wanted: Mapping[_Pair, Entry], terms: Terms
) -> dict[str, Judgement]:
    family = Family(len(common), terms.alpha)
    matches = {pair: Match(_alike(stored[pair], wanted[pair])) for pair in common}
    spreads = _spreads(matches, terms)
    outcomes: dict[str, list[Trial | Finding]] = {}
    for pair in common:
        trial = _tried(matches[pair], wanted[pair], spreads[pair[1]], terms)
        outcomes.setdefault(pair[0], []).append(trial)
    otherwise = {pair[0]: clock_since(matches[pair].newest.clock_mhz, wanted[pair].clock_mhz) for pair in common}
    for measurement, found in outcomes.items():
        family.put(measurement, [] if otherwise[measurement] else found)
    return {
        measurement: invalid((reason,))
        if (reason := otherwise[measurement])
        else judgement(
            family.findings(measurement),
            against=next(match.name for pair, match in matches.items() if pair[0] == measurement),
            doubts=_doubts(measurement, matches, wanted),
            in_turn=terms.night_spread is None,
        )
        for measurement in outcomes
    }


def _alike(stored: Sequence[Entry], now: Entry) -> tuple[Entry, ...]:
    return tuple(entry for entry in stored if not _apart(entry, now))


def _spreads(matches: Mapping[_Pair, Match], terms: Terms) -> dict[str, NightSpread | None]:
    """How much nights differ, by metric; None where they do not count."""
    if terms.night_spread is None:
        return {metric: None for _, metric in matches}
    histories: dict[str, list[Match]] = {}
    for (_, metric), match in matches.items():
        histories.setdefault(metric, []).append(match)
    taken = assumed(terms.night_spread)
    return {metric: shared_spread([match.history for match in found]) or taken for metric, found in histories.items()}


def _tried(match: Match, now: Entry, spread: NightSpread | None, terms: Terms) -> Trial | Finding:
    asked = now.criterion
    criterion = Criterion(
        now.metric,
        detect=asked.get("detect", DETECT) if terms.detect is None else terms.detect,
        min_effect=asked.get("min_effect", 0.0) if terms.min_effect is None else terms.min_effect,
    )
    base = Base(
        history=match.history,
        spread=assumed(0.0) if now.simulated and spread is not None else spread,
        resolution=SIMULATED_RESOLUTION if now.simulated else 0.0,
    )
    return tried(now.quantity, criterion, base, now.stored_values)


def _doubts(measurement: str, matches: Mapping[_Pair, Match], wanted: Mapping[_Pair, Entry]) -> tuple[str, ...]:
    own = {pair: match for pair, match in matches.items() if pair[0] == measurement}
    changed = (
        f"the engine differs: {difference}"
        for pair, match in own.items()
        for difference in differences(match.newest.engine_words, wanted[pair].engine_words)
    )
    accepted = (sentence for match in own.values() for sentence in match.accepted)
    return tuple(dict.fromkeys((*changed, *accepted)))


def _changes(
    common: Sequence[_Pair], stored: Mapping[_Pair, Sequence[Entry]], wanted: Mapping[_Pair, Entry]
) -> dict[str, tuple[Change, ...]]:
    found: dict[str, list[Change]] = {}
    for pair in common:
        quantity = wanted[pair].quantity
        base, new = Match(tuple(stored[pair])).history.level, Match((wanted[pair],)).history.level
        change = Change(
            quantity=quantity,
            base=typical([base], quantity),
            new=typical([new], quantity),
            change=own_change(quantity, new - base),
        )
        found.setdefault(pair[0], []).append(change)
    return {measurement: tuple(changes) for measurement, changes in found.items()}


def _vanished(
    stored: Mapping[_Pair, Sequence[Entry]], wanted: Mapping[_Pair, Entry], base: Sequence[ResultFile]
) -> Iterator[str]:
    """What the newest night or most nights have and the new result has not, with the name that it may have now."""
    missing: dict[str, list[Entry]] = {}
    for pair, entries in stored.items():
        is_kept = entries[0].path == base[0].path or len(entries) >= len(base) / 2
        if pair not in wanted and is_kept:
            missing.setdefault(pair[0], []).append(entries[0])
    known = {name for name, _ in stored}
    unknown = [entry for entry in wanted.values() if entry.measurement not in known and entry.comparable]
    for name, entries in missing.items():
        alike = next((e.measurement for e in unknown if e.comparable == entries[0].comparable), None)
        renamed = f"; was it renamed to {alike}? (--rename OLD=NEW)" if alike is not None else ""
        yield f"{_metrics(entries)} of {name}: only in the base ({entries[0].path.name}){renamed}"


def _appeared(stored: Mapping[_Pair, Sequence[Entry]], wanted: Mapping[_Pair, Entry]) -> Iterator[str]:
    names: dict[str, list[Entry]] = {}
    for pair, entry in wanted.items():
        if pair not in stored:
            names.setdefault(pair[0], []).append(entry)
    for name, entries in names.items():
        yield f"{_metrics(entries)} of {name}: only in the new result"


def _metrics(entries: Sequence[Entry]) -> str:
    return ", ".join(entry.metric for entry in entries)
