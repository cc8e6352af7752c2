"""Questions about what comes next in a temporal knowledge graph: the other task of LLMPerf.

Long prompts, long answers: what the KV cache has room for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.workloads.base import Ids, Session, Turn, check_counts, digest
from pytest_llmperf.workloads.graph import Graph, Rows, drawn_graph, facts_asked_about, read_graph
from pytest_llmperf.workloads.sharing import run_mark, shared_with_others
from pytest_llmperf.workloads.tokens import Tokens, tokens_of

_INSTRUCTION = (
    "The following facts are events between parties, each as time: [subject, relation, object], the earliest first. "
    "Complete the last one with the object that is most likely, then list the further candidates and say why.\n"
)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What is asked, as ids."""

    contexts: dict[int, Ids]
    """By how many facts are earlier than the question: the instruction and the latest of them."""
    asked: tuple[tuple[int, Ids], ...]
    """Each question, and which context it has."""
    shared: tuple[int, ...]
    """With how many of its ids another prompt begins, too."""


@dataclass(frozen=True, kw_only=True)
class KnowledgeGraph:
    """See `knowledge_graph`."""

    path: str | None
    requests: int
    facts: int
    output_tokens: int
    seed: int
    token_ids: range
    exact_lengths: bool
    """Whether a tokenizer made the ids; otherwise lengths are about right."""
    prompts: _Prompts = field(repr=False, compare=False)
    namespace: str = ""

    name = "knowledge_graph"

    @cached_property
    def digest(self) -> str:
        return digest(replace(self, namespace=""))

    def within(self, namespace: str) -> KnowledgeGraph:
        return replace(self, namespace=namespace)

    def __iter__(self) -> Iterator[Session]:
        mark = run_mark(self.namespace, self.token_ids)
        contexts = {end: np.concatenate([mark, ids]) for end, ids in self.prompts.contexts.items()}
        for (end, question), shared in zip(self.prompts.asked, self.prompts.shared, strict=True):
            turn = Turn(prefix=contexts[end], new_ids=question, output_tokens=self.output_tokens)
            yield Session(turns=(turn,), shared_tokens=len(mark) + shared if self.requests > 1 else 0)


def knowledge_graph(
    *,
    requests: int,
    facts: int,
    output_tokens: int,
    path: str | PathLike[str] | None = None,
    entities: int = 1000,
    relations: int = 100,
    times: int = 365,
    seed: int = 0,
    tokenizer: str | PathLike[str] | None = None,
    token_ids: range = TOKEN_IDS,
) -> KnowledgeGraph:
    """`requests` sessions of one turn: an instruction, `facts` facts in the order of their times, and a question.

    A question is a fact with its object left open; before it stand the latest facts that are earlier
    than it. Questions of one time have all of these in common, questions of different times the
    instruction only, although they tell the same facts: as such prompts do.

    * `facts`: how many there are in a prompt; one takes some 13 to 18 tokens.
    * `path`: a folder in the form of ICEWS14 (`entity2id.txt`, `relation2id.txt`, `train.txt`, `valid.txt`
      and `test.txt`, whose facts are asked about). Without it a graph is drawn from `seed`, with this
      many `entities`, `relations` and `times`, few of which are in many facts.
    * `seed`: also of which facts are asked about; none twice until all were.
    * `tokenizer`: a `tokenizer.json` or the folder with it, for the model's own ids (the extra
      `tokenizers`). Without it lengths are about right, and `exact_lengths` is False.

    Made for `poisson(rate, duration_s=...)`: give `rate * duration_s` requests and a few more, so that
    they do not run out before the time does. Every session of a run begins with the same few ids of the
    run's own.

    Raises `ConfigurationError` listing every argument out of range, or naming the line of a file that
    is wrong and what was expected there.
    """
    check_counts(
        "knowledge_graph",
        {
            "requests": (requests, 1),
            "facts": (facts, 1),
            "output_tokens": (output_tokens, 1),
            "entities": (entities, 2),
            "relations": (relations, 1),
            "times": (times, 2),
            "seed": (seed, 0),
        },
        token_ids,
    )
    tokens = tokens_of(tokenizer, token_ids)
    if path is None:
        graph = drawn_graph(entities=entities, relations=relations, times=times, least=facts, seed=seed)
    else:
        graph = read_graph(Path(path))
    return KnowledgeGraph(
        path=None if path is None else fspath(path),
        requests=requests,
        facts=facts,
        output_tokens=output_tokens,
        seed=seed,
        token_ids=token_ids,
        exact_lengths=tokens.exact,
        prompts=_prompts(graph, facts_asked_about(graph, facts, requests, seed), facts, tokens),
    )


def _prompts(graph: Graph, asked: Rows, facts: int, tokens: Tokens) -> _Prompts:
    instruction, lines = tokens(_INSTRUCTION), _Lines(graph, tokens)
    ends = [graph.before(fact) for fact in asked]
    contexts = {
        end: np.concatenate([instruction, *(lines[number] for number in range(end - facts, end))])
        for end in sorted(set(ends))
    }
    each = tuple((end, tokens(graph.question(fact))) for end, fact in zip(ends, asked, strict=True))
    return _Prompts(contexts, each, tuple(_shared(contexts, each)))


def _shared(contexts: Mapping[int, Ids], asked: Sequence[tuple[int, Ids]]) -> list[int]:
    """With how many of its ids another prompt begins: its context's, and more where others have the same one."""
    shared = [0] * len(asked)
    by_context: dict[int, list[int]] = {end: [] for end in contexts}
    for number, (end, _) in enumerate(asked):
        by_context[end].append(number)
    for end, alone in zip(contexts, shared_with_others(list(contexts.values())), strict=True):
        numbers = by_context[end]
        questions = shared_with_others([asked[number][1] for number in numbers])
        for number, question in zip(numbers, questions, strict=True):
            shared[number] = alone if len(numbers) == 1 else len(contexts[end]) + question
    return shared


class _Lines(dict[int, Ids]):
    """The facts as ids, made when they are first needed: prompts near in time have most of them in common."""

    def __init__(self, graph: Graph, tokens: Tokens) -> None:
        super().__init__()
        self._graph = graph
        self._tokens = tokens

    def __missing__(self, number: int) -> Ids:
        self[number] = self._tokens(self._graph.written(self._graph.facts[number]))
        return self[number]
