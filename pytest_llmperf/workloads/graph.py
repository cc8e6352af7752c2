"""Temporal knowledge graphs: facts of subject, relation, object and time, from a folder or drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads.base import TokenSource
from pytest_llmperf.workloads.files import complaint, text_lines

Rows = npt.NDArray[np.int64]
"""One fact a row: the numbers of subject, relation and object, and the time."""

_PARTS = ("train.txt", "valid.txt", "test.txt")
_FACT = "the numbers of subject, relation, object and time, between tabs"
_FACTS_A_TIME = 250
"""As many as ICEWS14 has a day."""
_ASKED_SHARE = 0.1
"""The last part of a drawn graph is asked about."""
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


@dataclass(frozen=True, slots=True)
class Graph:
    """Facts in the order of their times, and which of them can be asked about."""

    entities: Mapping[int, str]
    relations: Mapping[int, str]
    facts: Rows
    asked: Rows

    def written(self, fact: Rows) -> str:
        """A fact as a line of a prompt."""
        subject, relation, other, time = fact.tolist()
        return f"{time}: [{self._entity(subject)}, {self._relation(relation)}, {self._entity(other)}]\n"

    def question(self, fact: Rows) -> str:
        """The same with its object left open."""
        subject, relation, _, time = fact.tolist()
        return f"{time}: [{self._entity(subject)}, {self._relation(relation)}, "

    def before(self, fact: Rows) -> int:
        """How many facts are earlier than this one."""
        return int(np.searchsorted(self.facts[:, 3], fact[3], side="left"))

    def _entity(self, number: int) -> str:
        return self.entities[number].replace("_", " ")

    def _relation(self, number: int) -> str:
        return self.relations[number].replace("_", " ")


def read_graph(folder: Path) -> Graph:
    """A graph in the form of ICEWS14: `entity2id.txt`, `relation2id.txt`, `train.txt`, `valid.txt`, `test.txt`.

    The facts of `test.txt` are asked about. Raises `ConfigurationError`.
    """
    entities, relations = _names(folder / "entity2id.txt"), _names(folder / "relation2id.txt")
    parts = [_facts(folder / name, entities, relations) for name in _PARTS]
    facts = np.concatenate(parts)
    return Graph(entities, relations, facts[np.argsort(facts[:, 3], kind="stable")], parts[-1])


def _names(path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for line, text in text_lines(path):
        name, _, number = text.rpartition("\t")
        if not name or not _is_number(number):
            raise complaint(path, line, f"{text[:60]!r}", "a name and its number, between them a tab")
        if int(number) in names:
            raise complaint(
                path, line, f"{number} is the number of {names[int(number)]!r} already", "one name a number"
            )
        names[int(number)] = name.strip()
    if not names:
        raise complaint(path, 1, "nothing in the file", "a name and its number in each line")
    return names


def _facts(path: Path, entities: Mapping[int, str], relations: Mapping[int, str]) -> Rows:
    rows = []
    for line, text in text_lines(path):
        values = text.split("\t")[:4]
        if len(values) < 4 or not all(map(_is_number, values)):
            raise complaint(path, line, f"{text[:60]!r}", _FACT)
        subject, relation, other, time = map(int, values)
        unknown = [number for number in (subject, other) if number not in entities]
        if unknown or relation not in relations:
            what = f"entity {unknown[0]}" if unknown else f"relation {relation}"
            home = "entity2id.txt" if unknown else "relation2id.txt"
            raise complaint(path, line, f"the unknown {what}", f"a number that {home} has")
        rows.append((subject, relation, other, time))
    if not rows:
        raise complaint(path, 1, "nothing in the file", _FACT)
    return np.array(rows, np.int64)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def drawn_graph(*, entities: int, relations: int, times: int, least: int, seed: int) -> Graph:
    """A graph in which few entities and relations are in many facts, as Zipf's law has it.

    It has at least `least` facts before the first that can be asked about.
    """
    count = max(_FACTS_A_TIME * times, int(least / (1 - _ASKED_SHARE) * (1 + 2 / times)) + times)
    source = _Numbers(seed)
    facts = np.stack(
        [
            source.popular("subjects", entities, count),
            source.popular("relations", relations, count),
            source.popular("objects", entities, count),
            np.sort(source.evenly("times", times, count)),
        ],
        axis=1,
    )
    names = {
        kind: _drawn_names(source, kind, number) for kind, number in (("entity", entities), ("relation", relations))
    }
    return Graph(names["entity"], names["relation"], facts, facts[-max(1, int(count * _ASKED_SHARE)) :])


class _Numbers:
    """Seeded whole numbers, the same everywhere."""

    def __init__(self, seed: int) -> None:
        self._source = TokenSource(seed, "graph", range(2**31 - 1))

    def evenly(self, label: str, below: int, count: int) -> npt.NDArray[np.int64]:
        """Each number below a limit as often as any other."""
        return self._source.draw(label, count).astype(np.int64) % below

    def popular(self, label: str, below: int, count: int) -> npt.NDArray[np.int64]:
        """Number n in proportion to 1 / (n + 1)."""
        ends = np.cumsum(10**6 // np.arange(1, below + 1)).clip(1)
        drawn = self._source.draw(label, count).astype(np.int64) % int(ends[-1])
        return np.searchsorted(ends, drawn, side="right").astype(np.int64)


def _drawn_names(source: _Numbers, kind: str, count: int) -> dict[int, str]:
    """Pronounceable names of one to three words."""
    words = source.evenly(f"{kind} words", 3, count) + 1
    return {number: _drawn_name(source, f"{kind} {number}", int(words[number])) for number in range(count)}


def _drawn_name(source: _Numbers, label: str, words: int) -> str:
    consonants = source.evenly(f"{label} consonants", len(_CONSONANTS), 3 * words)
    vowels = source.evenly(f"{label} vowels", len(_VOWELS), 3 * words)
    text = "".join(_CONSONANTS[one] + _VOWELS[other] for one, other in zip(consonants, vowels, strict=True))
    return "_".join(text[at : at + 6].capitalize() for at in range(0, len(text), 6))


def facts_asked_about(graph: Graph, facts: int, count: int, seed: int) -> Rows:
    """`count` of the facts that can be asked about and have so many before them; none twice until all were.

    Raises `ConfigurationError` if there is none.
    """
    usable = graph.asked[np.searchsorted(graph.facts[:, 3], graph.asked[:, 3], side="left") >= facts]
    if not len(usable):
        most = graph.before(graph.asked[np.argmax(graph.asked[:, 3])])
        raise ConfigurationError(
            f"knowledge_graph: no fact that can be asked about has {facts} earlier ones; facts can be at most {most}"
        )
    keys = _Numbers(seed).evenly("questions", 2**31 - 1, len(usable))
    order = np.argsort(keys, kind="stable")
    return usable[order[np.arange(count) % len(order)]]
