"""Result files: pytest-benchmark's own JSON, with what pytest-llmperf keeps in it.

What is ours stands under `extra_info["llmperf"]` of each benchmark and `machine_info["llmperf"]`.
Files that pytest-benchmark wrote of other tests are read as well: each benchmark is then a
measurement of one metric, `time`.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pytest_llmperf import atomic
from pytest_llmperf.clock import timestamp
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.files import MIB, json_of, read_text
from pytest_llmperf.judged import Provenance
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.readings import TelemetrySummary, telemetry_from, working_clock
from pytest_llmperf.result_rows import LARGEST, READERS, SMALLEST, Entry, mapping_of, plain_entry

SCHEMA_VERSION = 1
MOST_BYTES = 256 * MIB
"""The largest file that is read. A test of ours takes some 100 kB; in memory JSON is up to twenty times as large."""
NO_DAY = "1970-01-01T00:00:00+00:00"
"""The date of simulated files, which owe nothing to the day on which they are made."""
UNKNOWN_KEY = "unknown"
"""The hardware key of a file that does not say what it was measured on."""
_LONGEST_KEY = 200
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_AHEAD = timedelta(days=1)
"""Clocks of test machines differ, by a time zone at most."""
_ACCEPTED = "a file that pytest wrote with --benchmark-json, or a stored night such as baselines/KEY/0001_main.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """What one file holds."""

    path: Path
    hardware_key: str
    saved_at: str
    entries: tuple[Entry, ...]
    is_ours: bool
    """Whether pytest-llmperf wrote it, so that it says what may be compared."""
    figures: Mapping[str, Sequence[Mapping[str, float]]]
    """By measurement, what was measured in each run and not gated."""
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By measurement, all figures under the names that tests use, as the file has them."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the hardware: driver, CUDA, host."""
    telemetry: Mapping[str, Sequence[TelemetrySummary | None]] = field(default_factory=dict)
    """By measurement, what was sampled beside each run; empty in files from before it was."""
    commit: str | None = None
    """Of the working tree that was measured; None where the file does not say."""
    is_dirty: bool = False
    """Whether that tree had changes that are in no commit."""

    def ungated(self, measurement: str, metric: str) -> Entry | None:
        """A metric that was measured beside the gated ones; None if it was not, in some run."""
        of = next((entry for entry in self.entries if entry.measurement == measurement), None)
        values = [run.get(metric) for run in self.figures.get(measurement, ())]
        known = [value for value in values if isinstance(value, (int, float)) and SMALLEST <= value <= LARGEST]
        if of is None or metric not in METRICS or not values or len(known) < len(values):
            return None
        quantity = METRICS[metric]
        return replace(of, quantity=quantity, stored_values=tuple(map(quantity.stored, known)), criterion={})


def comparable(provenance: Provenance) -> dict[str, Any]:
    """The parts of a measurement's provenance that two results must share to be compared."""
    return {
        "workload": provenance.workload_digest,
        "load": provenance.load,
        "cache": provenance.cache,
        "engine": provenance.engine_kind,
        **({"simulated": True} if provenance.simulated else {}),
        **{f"engine {word}": value for word, value in provenance.engine_identity.items()},
    }


_OTHER_KINDS = ("simulated", "imported", "published")
"""What marks figures that meet only their own kind."""


def unlike(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What forbids comparing, each as `load was 'poisson(1)', is 'poisson(2)'`; nothing where it is allowed.

    Words that only an older file has do not count: they say what was not asked for then.
    """
    names = dict.fromkeys([*now, *(name for name in _OTHER_KINDS if name in before)])
    return [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names if before.get(name) != now.get(name)
    ]


def unlike_in_words(
    before: Mapping[str, Any], now: Mapping[str, Any], was: Mapping[str, Any], is_: Mapping[str, Any]
) -> list[str]:
    """The same for people: of another workload the words that differ, and not its digest.

    `was`, `is_`: the provenance of either, as a file has it; empty where it is not known.
    """
    found = unlike(before, now)
    names = was.get("workload"), is_.get("workload")
    if before.get("workload") == now.get("workload") or not all(isinstance(name, str) for name in names):
        return found
    return [*_other_workload(was, is_), *(one for one in found if not one.startswith("workload was "))]


def _other_workload(was: Mapping[str, Any], is_: Mapping[str, Any]) -> list[str]:
    if was["workload"] != is_["workload"]:
        return [f"workload was {was['workload']!r}, is {is_['workload']!r}"]
    before, now = mapping_of(was.get("workload_words")), mapping_of(is_.get("workload_words"))
    if not before:
        return [f"workload {is_['workload']} has other words or content, of which the stored night does not say more"]
    apart = [name for name in now if before.get(name) != now[name]]
    named = [f"workload {name} was {before.get(name)!r}, is {now[name]!r}" for name in apart]
    return named or [f"workload {is_['workload']} has other content"]


# Where an engine is, and the simulated night that it is: not what it is.
_NO_DIFFERENCE = frozenset({"url", "executable", "noise_seed"})


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = _NO_DIFFERENCE
) -> tuple[str, ...]:
    """How the engine's words differ, for the reader: `prefix_caching True -> False`."""
    before, now = _as_stored(before), _as_stored(now)
    words = sorted((set(before) | set(now)) - set(ignored))
    return tuple(
        f"{word} {before.get(word)!r} -> {now.get(word)!r}" for word in words if before.get(word) != now.get(word)
    )


def _as_stored(words: Mapping[str, Any]) -> dict[str, Any]:
    """As a file holds them: tuples have become lists."""
    known: dict[str, Any] = json.loads(json.dumps(words, default=repr))
    return known


def read(path: Path) -> ResultFile:
    """Everything in one file. Raises `BaselineError`, in one sentence, for one that cannot be used."""
    try:
        text = read_text(path, MOST_BYTES)
    except FileNotFoundError:
        raise BaselineError(f"{path} is not there; give {_ACCEPTED}") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return parsed(path, text)


def parsed(path: Path, text: str) -> ResultFile:
    """The same of a file's text, wherever it lies; `path` is what errors call it."""
    document = _document(path, text)
    machine = mapping_of(document.get("machine_info"))
    is_ours = "llmperf" in machine
    key = _hardware_key(path, machine["llmperf"]) if is_ours else UNKNOWN_KEY
    saved_at = document.get("datetime")
    saved_at = saved_at if isinstance(saved_at, str) else ""
    _check_date(path, saved_at)
    entries = tuple(
        (plain_entry if _is_plain(path, row, is_ours=is_ours) else _reader(machine))(path, saved_at, row)
        for row in document["benchmarks"]
    )
    _check_unique(path, entries)
    about_commit = mapping_of(document.get("commit_info"))
    telemetry = _telemetry(document["benchmarks"])
    clocks = {measurement: working_clock(runs) for measurement, runs in telemetry.items()}
    return ResultFile(
        path=path,
        hardware_key=key,
        saved_at=saved_at,
        entries=tuple(replace(entry, clock_mhz=clocks.get(entry.measurement)) for entry in entries),
        is_ours=is_ours,
        figures=_figures(document["benchmarks"]),
        results=_results(document["benchmarks"]),
        fingerprint=mapping_of(machine["llmperf"].get("fingerprint")) if is_ours else {},
        telemetry=telemetry,
        commit=_commit(about_commit),
        is_dirty=about_commit.get("dirty") is True,
    )


def write(document: Mapping[str, Any] | Sequence[Any], path: Path) -> None:
    """Write a file of JSON, sorted and indented so that it diffs well; complete or not at all. Raises `OSError`."""
    atomic.write(path, encoded(document))


def encoded(document: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """A file's content, the same for the same document. Raises `ValueError` for numbers that JSON does not know."""
    return f"{json.dumps(document, indent=1, sort_keys=True, allow_nan=False, default=repr)}\n".encode()


def _document(path: Path, text: str) -> dict[str, Any]:
    try:
        document = json_of(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise BaselineError(
            f"{path} is not a result file: expected pytest-benchmark's JSON with a list of benchmarks; "
            "pytest-llmperf import reads those of other tools"
        )
    return document


def _unreadable(path: Path, error: Exception) -> BaselineError:
    reason = getattr(error, "strerror", None) or _first_line(error)
    return BaselineError(f"{path} is not readable JSON: {reason}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _hardware_key(path: Path, about: Any) -> str:
    """What a file of ours was measured on."""
    if not isinstance(about, dict):
        raise BaselineError(f"{path}: machine_info.llmperf is not what pytest-llmperf stores; measure again")
    _check_version(path, about.get("schema_version"))
    key = about.get("hardware_key")
    if not isinstance(key, str) or not names_a_folder(key):
        raise BaselineError(
            f"{path} does not say what it was measured on: hardware_key is {reprlib.repr(key)}, which cannot name a "
            "folder; measure again"
        )
    return key


def names_a_folder(key: str) -> bool:
    """Whether a hardware key is the name of one folder, and can be shown: it comes from files of anybody."""
    return 0 < len(key) <= _LONGEST_KEY and key.isprintable() and Path(key).name == key and not key.startswith(".")


def _is_plain(path: Path, row: Any, *, is_ours: bool) -> bool:
    """Whether a benchmark is of another plugin's test, which a session may hold beside ours."""
    extra = row.get("extra_info") if isinstance(row, dict) else None
    has_ours = isinstance(extra, dict) and "llmperf" in extra
    if has_ours and not is_ours:
        msg = (
            f"{path} holds results of pytest-llmperf but not what they were measured on (machine_info.llmperf); "
            "measure again"
        )
        raise BaselineError(msg)
    return not has_ours and (isinstance(extra, dict) or not is_ours)


def _check_version(path: Path, version: object) -> None:
    if not isinstance(version, int) or version not in READERS:
        msg = (
            f"{path} has schema version {repr(version)[:60]}, this release reads {', '.join(map(str, READERS))}; "
            "move it away, or save a new one with --llmperf-save-baseline NAME"
        )
        raise BaselineError(msg)


def moment(saved_at: str) -> datetime | None:
    """When a file was saved; None where it does not say, or owes nothing to the day."""
    try:
        saved = datetime.fromisoformat(saved_at.replace("Z", "+00:00"))
    except ValueError:
        return None
    saved = saved if saved.tzinfo is not None else saved.replace(tzinfo=timezone.utc)
    return None if saved <= datetime.fromisoformat(NO_DAY) else saved


def _check_date(path: Path, saved_at: str) -> None:
    saved = moment(saved_at)  # no date, or one in another form: nothing is decided by it
    if saved is not None and saved > timestamp() + _AHEAD:
        raise BaselineError(f"{path} is from the future ({saved_at}); set the clock of this machine, or of that one")


def _commit(info: Mapping[str, Any]) -> str | None:
    """pytest-benchmark writes a word, such as `unversioned`, where it knows no commit."""
    commit = info.get("id")
    return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None


def _check_unique(path: Path, entries: tuple[Entry, ...]) -> None:
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.measurement, entry.metric) in seen:
            raise BaselineError(f"{path} has {entry.metric} of {entry.measurement} twice; measure again")
        seen.add((entry.measurement, entry.metric))


def _reader(machine: Mapping[str, Any]) -> Callable[[Path, str, Any], Entry]:
    """That of a file whose version was checked."""
    return READERS[machine["llmperf"]["schema_version"]]


def _results(rows: Sequence[Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        about = mapping_of(mapping_of(row.get("extra_info")).get("llmperf"))
        if isinstance(about.get("result"), dict):
            found.setdefault(about["measurement"], about["result"])
    return found


def _telemetry(rows: Sequence[Any]) -> dict[str, list[TelemetrySummary | None]]:
    return {name: [telemetry_from(run) for run in runs] for name, runs in _by_run(rows, "telemetry")}


def _by_run(rows: Sequence[Any], word: str) -> Iterator[tuple[str, list[Any]]]:
    """Each measurement's list of that name in its result, where it has one."""
    for measurement, result in _results(rows).items():
        runs = result.get(word)
        if isinstance(runs, list):
            yield measurement, runs


def _figures(rows: Sequence[Any]) -> dict[str, list[dict[str, float]]]:
    return {name: runs for name, runs in _by_run(rows, "runs") if all(isinstance(run, dict) for run in runs)}
