"""Going on from a session that was cut short: which of its runs count for this one, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from pytest_llmperf import journal, units
from pytest_llmperf.clock import timestamp
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.journal import Account
from pytest_llmperf.judged import Provenance
from pytest_llmperf.record_file import Extant, read_extant, read_runs
from pytest_llmperf.records import RunRecord
from pytest_llmperf.results import Resumed

RECORDS = "records"
"""The folder of a session's record files, within that of the session."""
_UNREADABLE = (LLMPerfError, OSError, LookupError, TypeError, ValueError, AttributeError)
_BUILD = ("version", "package", "commit", "model_digest", "model")
"""What an engine says of itself once it runs that has to be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an earlier session has of one measurement. `count`: its first runs, all whole and none spoiled."""

    session: str
    path: Path
    count: int
    is_complete: bool
    provenance: Provenance

    def runs(self) -> Iterator[RunRecord]:
        """Each when it is asked for; a run that the session had itself taken from an earlier one says so."""
        for run in islice(read_runs(self.path), self.count):
            yield replace(run, session=run.session or self.session)

    def first(self, count: int) -> Kept:
        """Not all of it."""
        return self if count == self.count else replace(self, count=count, is_complete=False)

    def unlike(self, now: Provenance) -> list[str]:
        """What of the engine that now runs is not as it was."""
        before = self.provenance.engine
        named = {name: (before.get(name), now.engine.get(name)) for name in _BUILD}
        return [f"{name} {was!r} -> {is_!r}" for name, (was, is_) in named.items() if was != is_]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A record file of an earlier session."""

    account: Account
    path: Path
    extant: Extant


@dataclass(slots=True)
class Earlier:
    """A session that was cut short, and those that it had itself gone on from, the newest first.

    `notes`: a sentence on each measurement of theirs that is measured anew.
    """

    accounts: Sequence[Account]
    notes: list[str] = field(default_factory=list)
    _stored: dict[tuple[str, str | None], _Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for account in self.accounts:
            for path in sorted((account.folder / RECORDS).glob("*.jsonl")):
                try:
                    extant = read_extant(path)
                    key = str(extant.header["measurement"]), extant.header.get("arm")
                except _UNREADABLE as error:
                    self.notes.append(f"{path} cannot be gone on from: {error}")
                    continue
                self._stored.setdefault(key, _Stored(account, path, extant))

    def __str__(self) -> str:
        newest = self.accounts[0]
        complete = sum(one.extant.is_complete for one in self._stored.values())
        others = sum(one.extant.runs for one in self._stored.values() if not one.extant.is_complete)
        return (
            f"goes on from the session {newest.name}, begun {ago(newest)} ago and cut short: "
            f"{units.count(complete, 'measurement')} complete, {units.count(others, 'run')} of others"
        )

    def kept(self, measurement: str, arm: str | None, terms: Mapping[str, Any]) -> Kept | None:
        """What counts for a measurement on these terms; None where nothing does, of which `notes` says why."""
        stored = self._stored.get((measurement, arm))
        if stored is None or not (stored.extant.runs or stored.extant.is_complete):
            return None
        try:
            found = _kept(stored)
            differs = list(differences(stored.extant.header["terms"], plain(terms)))
        except _UNREADABLE as error:
            self.anew(measurement, [f"{stored.path} cannot be read: {error}"])
            return None
        if differs:
            self.anew(measurement, differs)
        return None if differs else found

    def anew(self, measurement: str, why: Iterable[str]) -> None:
        """Note why a measurement is not gone on with."""
        self.notes.append(f"measured anew: {measurement}: {'; '.join(why)}")

    def told(self, runs: Sequence[RunRecord]) -> tuple[Resumed, ...]:
        """Which of these runs are of an earlier session."""
        found: dict[str, list[int]] = {}
        for run in runs:
            if run.session is not None:
                found.setdefault(run.session, []).append(run.index)
        ages = {account.name: (timestamp() - account.began).total_seconds() for account in self.accounts}
        return tuple(
            Resumed(session=name, runs=tuple(numbers), began_before_s=ages.get(name)) for name, numbers in found.items()
        )


def _kept(stored: _Stored) -> Kept:
    """What a record file has. Raises what reading it raises, now and not half way through."""
    kept = Kept(
        session=stored.account.name,
        path=stored.path,
        count=stored.extant.runs,
        is_complete=stored.extant.is_complete,
        provenance=Provenance(**stored.extant.header["provenance"]),
    )
    for _ in kept.runs():
        pass
    return kept


def find(output: Path) -> tuple[Earlier | None, str]:
    """The newest session below `output`, if it can be gone on from; and a sentence on it, or on why not."""
    accounts = {account.name: account for account in _accounts(output)}
    newest = max(accounts.values(), key=lambda one: one.began, default=None)
    if newest is None:
        return None, f"nothing to resume: there is no session in {output}"
    if newest.is_running:
        assert newest.owner is not None
        return None, f"nothing to resume: the session {newest.name} still runs (pid {newest.owner.pid})"
    if newest.is_complete:
        return None, f"nothing to resume: the newest session, {newest.name}, was not cut short"
    earlier = Earlier(list(_chain(newest, accounts)))
    return earlier, str(earlier)


def ago(account: Account) -> str:
    """How long ago a session began, for people."""
    return str(timedelta(seconds=round((timestamp() - account.began).total_seconds())))


def doubts(resumed: Sequence[Resumed], of: int) -> Iterator[str]:
    """What a reader should know of runs from an earlier session, of so many in all."""
    for one in resumed:
        which = f"{units.count(of, 'run')}, all of them," if len(one.runs) == of else f"{len(one.runs)} of {of} runs"
        age = "" if one.began_before_s is None else f", begun {timedelta(seconds=round(one.began_before_s))} earlier"
        since = (
            "" if len(one.runs) == of else "; between them the engine was started anew, and hardware may have changed"
        )
        yield f"{which} were measured in the session {one.session}{age}{since}"


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two plain values differ, by their names."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif before != now:
        yield f"{name} {before!r} -> {now!r}"


def plain(value: Any) -> Any:
    """As it reads once it has been on disk."""
    return orjson.loads(orjson.dumps(value))


def _accounts(output: Path) -> Iterator[Account]:
    for folder in output.iterdir() if output.is_dir() else ():
        account = journal.read(folder)
        if account is not None:
            yield account


def _chain(newest: Account, accounts: Mapping[str, Account]) -> Iterator[Account]:
    """A session, that which it went on from, and so on; only those that lie beside it."""
    rest = dict(accounts)
    found: Account | None = newest
    while found is not None:
        yield rest.pop(found.name)
        found = rest.get(found.resumes or "")
