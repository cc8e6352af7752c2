"""What a session says of itself on disk: that it runs, and how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pytest_llmperf import atomic
from pytest_llmperf.clock import timestamp
from pytest_llmperf.engines.identity import Identity
from pytest_llmperf.files import read_bytes

FILE = "session.json"
_SCHEMA, _VERSION = "pytest-llmperf-session", 1
_LONGEST = 1 << 16


@dataclass(slots=True)
class Stand:
    """How far a measurement has come: runs that count, of how many at most."""

    of: int
    done: int = 0
    is_complete: bool = False


class Journal:
    """Kept by the session itself, in the folder of its records.

    A session whose file says nothing of an end runs still, or was killed: its owner's identity tells which.
    """

    def __init__(self, folder: Path, resumes: str | None = None) -> None:
        """`resumes`: the earlier session that this one goes on from."""
        self.folder = folder
        self._began = timestamp()
        self._resumes = resumes
        self.is_open = False
        """Whether it has begun to measure."""
        self._stands: dict[str, Stand] = {}

    def open(self) -> None:
        """Say that it runs, from the first measurement on. Idempotent. Raises `OSError`."""
        if not self.is_open:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(None)
            self.is_open = True

    def begin(self, measurement: str, of: int) -> Stand:
        """A measurement begins; whoever makes it keeps its stand current."""
        self._stands[measurement] = Stand(of)
        return self._stands[measurement]

    @property
    def unfinished(self) -> Mapping[str, tuple[int, int]]:
        """How many runs there are of each measurement that is not complete, and of how many."""
        return {name: (stand.done, stand.of) for name, stand in self._stands.items() if not stand.is_complete}

    @property
    def has_runs(self) -> bool:
        """Whether anything is there that another session could go on from."""
        return any(stand.done or stand.is_complete for stand in self._stands.values())

    def close(self, *, cut_short: bool) -> None:
        """Say how it ended. Raises `OSError`."""
        if self.is_open:
            self._write("cut short" if cut_short or self.unfinished else "complete")

    def _write(self, ended: str | None) -> None:
        owner = Identity.of(os.getpid())
        content = {
            "schema": _SCHEMA,
            "version": _VERSION,
            "began": self._began.isoformat(),
            "owner": None if owner is None else owner.to_json(),
            "resumes": self._resumes,
            "ended": ended,
        }
        atomic.write(self.folder / FILE, json.dumps(content))


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A session's journal, read by another one."""

    folder: Path
    began: datetime
    owner: Identity | None
    resumes: str | None
    ended: str | None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_complete(self) -> bool:
        return self.ended == "complete"

    @property
    def is_running(self) -> bool:
        return self.ended is None and self.owner is not None and self.owner.is_alive()


def read(folder: Path) -> Account | None:
    """The journal in a session's folder; None where there is none that can be read."""
    try:
        told: Any = json.loads(read_bytes(folder / FILE, _LONGEST))
        began = datetime.fromisoformat(told["began"])
        is_ours = (told["schema"], told["version"]) == (_SCHEMA, _VERSION) and began.tzinfo is not None
        resumes, ended = told["resumes"], told["ended"]
        owner = None if told["owner"] is None else Identity.from_json(told["owner"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not is_ours or not isinstance(resumes, (str, type(None))):
        return None
    return Account(folder=folder, began=began, owner=owner, resumes=resumes, ended=ended)
