"""LLMPerf's two tasks: multiple choice, and questions to a temporal knowledge graph."""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load import poisson
from pytest_llmperf.workloads import knowledge_graph, multiple_choice
from pytest_llmperf.workloads.graph import drawn_graph, facts_asked_about, read_graph
from pytest_llmperf.workloads.sharing import run_mark

MARK = len(run_mark("", TOKEN_IDS))
CHOICE = multiple_choice(requests=3, input_tokens=4, instruction_tokens=2, seed=7)
GRAPH = knowledge_graph(requests=40, facts=30, output_tokens=64, entities=50, relations=9, times=20, seed=7)

FILES = {
    "entity2id.txt": "China\t0\nIran\t1\nJohn_Kerry\t2\n",
    "relation2id.txt": "Consult\t0\nMake_a_visit\t1\n",
    "train.txt": "0\t0\t1\t5\n2\t1\t0\t6\n1\t0\t2\t5\n",
    "valid.txt": "1\t1\t2\t7\n",
    "test.txt": "0\t1\t2\t8\t0\n2\t0\t1\t8\t0\n",
}


@pytest.fixture
def folder(tmp_path):
    """A graph of six facts, with files of one's own instead of some."""

    def write(**contents):
        for name, content in FILES.items():
            given = contents.get(name.removesuffix(".txt"), content)
            if given is not None:
                (tmp_path / name).write_bytes(given if isinstance(given, bytes) else given.encode())
        return tmp_path

    return write


def prompts(workload):
    return [session.turns[0].input_tokens for session in workload]


def common(one, other):
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class TestMultipleChoice:
    def test_the_ids_are_those_of_every_other_machine(self):
        """The same arguments give the same ids for any numpy and Python."""
        assert [
            [1576, 1720, 1121, 1784, 1838, 1222, 1443, 1991],
            [1576, 1720, 1003, 1825, 1976, 1622, 1949],
            [1576, 1720, 1385, 1632],
        ] == prompts(CHOICE)
        assert "b9a26cbdf2c6cbb8" == CHOICE.digest

    def test_questions_follow_an_instruction_that_all_share(self):
        """And have nothing else in common; an answer is a letter."""
        sessions = list(multiple_choice(requests=200, input_tokens=100, instruction_tokens=32))

        assert {(32, 1)} == {(session.shared_tokens, session.turns[0].output_tokens) for session in sessions}
        assert 1 == len({tuple(session.context) for session in sessions})
        assert 200 == len({tuple(session.turns[0].new_ids[:8].tolist()) for session in sessions})

    def test_lengths_lie_evenly_around_the_one_that_was_asked_for(self):
        """From half to one and a half times, the mean where it should be."""
        lengths = [session.turns[0].new_tokens for session in multiple_choice(requests=2000, input_tokens=100)]

        assert (50, 150) == (min(lengths), max(lengths))
        assert 97 < np.mean(lengths) < 103
        assert [1, 1] == [session.turns[0].new_tokens for session in multiple_choice(requests=2, input_tokens=1)]

    def test_a_namespace_has_the_same_lengths_and_other_ids(self):
        """It is the same workload."""
        workload = multiple_choice(requests=20)
        one, other = workload.within("one"), workload.within("other")

        assert workload.digest == one.digest == other.digest
        assert list(map(len, prompts(one))) == list(map(len, prompts(other)))
        assert not {tuple(prompt[:16]) for prompt in prompts(one)} & {tuple(prompt[:16]) for prompt in prompts(other)}

    def test_all_bad_arguments_are_reported_at_once(self):
        """As with every workload."""
        with pytest.raises(ConfigurationError) as caught:
            multiple_choice(requests=0, input_tokens=0, output_tokens=0, instruction_tokens=-1, seed=-1)

        assert 5 == len(caught.value.problems)


class TestKnowledgeGraph:
    def test_the_ids_are_those_of_every_other_machine(self):
        """Facts, popularity and questions are drawn the same everywhere."""
        assert "a541721f85490670" == GRAPH.digest

    def test_a_prompt_has_the_latest_earlier_facts_and_an_open_question(self, folder):
        """Written as text; names lose their underscores."""
        graph = read_graph(folder())

        assert [
            "5: [China, Consult, Iran]\n",
            "5: [Iran, Consult, John Kerry]\n",
            "6: [John Kerry, Make a visit, China]\n",
            "7: [Iran, Make a visit, John Kerry]\n",
        ] == [graph.written(fact) for fact in graph.facts[:4]]
        assert ["8: [China, Make a visit, ", "8: [John Kerry, Consult, "] == [graph.question(f) for f in graph.asked]
        assert [4, 4] == [graph.before(fact) for fact in graph.asked]

    def test_questions_of_one_time_share_all_facts(self, folder):
        """And the sessions say so."""
        one, other = knowledge_graph(requests=2, facts=3, output_tokens=9, path=folder())

        first, second = one.turns[0].input_tokens, other.turns[0].input_tokens
        assert one.context == other.context
        assert [common(first, second)] * 2 == [one.shared_tokens, other.shared_tokens]
        assert common(first, second) >= len(one.context)

    def test_shared_tokens_are_those_that_another_prompt_begins_with(self):
        """Over all of them."""
        sent = prompts(GRAPH)

        expected = [max(common(one, other) for m, other in enumerate(sent) if m != n) for n, one in enumerate(sent)]

        assert expected == [session.shared_tokens for session in GRAPH]
        assert len(set(expected)) > 2

    def test_a_drawn_graph_has_a_few_that_are_in_many_facts(self):
        """By Zipf's law: the second half as often as the first."""
        graph = drawn_graph(entities=1000, relations=100, times=50, least=10, seed=1)

        counts = Counter(graph.facts[:, 0].tolist())

        assert 0.4 < counts[1] / counts[0] < 0.6
        assert (np.diff(graph.facts[:, 3]) >= 0).all()
        assert 990 < len(set(graph.entities.values()))

    @given(times=st.integers(2, 400), least=st.integers(1, 3000), seed=st.integers(0, 99), requests=st.integers(1, 50))
    @settings(deadline=None, max_examples=30)
    def test_a_drawn_graph_has_enough_facts_for_every_prompt(self, times, least, seed, requests):
        """However many are asked for."""
        graph = drawn_graph(entities=3, relations=2, times=times, least=least, seed=seed)

        asked = facts_asked_about(graph, least, requests, seed)

        assert requests == len(asked)
        assert all(graph.before(fact) >= least for fact in asked)

    def test_no_question_comes_twice_until_all_were_asked(self, folder):
        """Then they begin again."""
        graph = read_graph(folder())

        asked = facts_asked_about(graph, 3, 5, 0)[:, 0].tolist()

        assert asked == [asked[0], asked[1], asked[0], asked[1], asked[0]]
        assert {0, 2} == set(asked)

    def test_a_namespace_has_the_same_shape_and_shares_no_beginning(self):
        """The rest of a prompt is the same in all runs."""
        one, other = GRAPH.within("one"), pickle.loads(pickle.dumps(GRAPH.within("other")))

        assert GRAPH.digest == one.digest == other.digest
        assert [prompt[MARK:] for prompt in prompts(one)] == [prompt[MARK:] for prompt in prompts(other)]
        assert prompts(one)[0][:MARK] != prompts(other)[0][:MARK] != prompts(GRAPH)[0][:MARK]

    @pytest.mark.parametrize(
        "change", [{"requests": 39}, {"facts": 29}, {"output_tokens": 63}, {"entities": 49}, {"times": 19}, {"seed": 8}]
    )
    def test_every_argument_is_part_of_the_digest(self, change):
        """Workloads that differ anywhere have different digests."""
        words = {"requests": 40, "facts": 30, "output_tokens": 64, "entities": 50, "relations": 9, "times": 20}

        assert GRAPH.digest == knowledge_graph(**words, seed=7).digest
        assert GRAPH.digest != knowledge_graph(**{**words, "seed": 7, **change}).digest

    def test_all_bad_arguments_are_reported_at_once(self):
        """As with every workload."""
        with pytest.raises(ConfigurationError) as caught:
            knowledge_graph(requests=0, facts=0, output_tokens=0, entities=1, relations=0, times=1, seed=-1)

        assert 7 == len(caught.value.problems)


class TestWrongFolders:
    @pytest.mark.parametrize(
        ("contents", "problem"),
        [
            (
                {"test": "0\t1\t2\n"},
                "test.txt, line 1: '0\\t1\\t2'; expected the numbers of subject, relation, object and",
            ),
            ({"train": "0\t1\t2\t1\nx\t1\t2\t1\n"}, "train.txt, line 2: 'x\\t1\\t2\\t1'; expected the numbers of"),
            (
                {"train": "9\t1\t2\t1\n"},
                "train.txt, line 1: the unknown entity 9; expected a number that entity2id.txt has",
            ),
            (
                {"valid": "1\t7\t2\t1\n"},
                "valid.txt, line 1: the unknown relation 7; expected a number that relation2id",
            ),
            ({"test": ""}, "test.txt, line 1: nothing in the file; expected the numbers of"),
            (
                {"entity2id": "China\n"},
                "entity2id.txt, line 1: 'China'; expected a name and its number, between them a tab",
            ),
            ({"entity2id": "A\t0\nB\t0\n"}, "entity2id.txt, line 2: 0 is the number of 'A' already; expected one name"),
            ({"entity2id": "\n"}, "entity2id.txt, line 1: nothing in the file; expected a name"),
            ({"relation2id": b"\xff\t0\n"}, "relation2id.txt, line 1: byte 0 is not UTF-8"),
            ({"valid": None}, "valid.txt cannot be read: No such file or directory; give the path of a file"),
            ({"train": "0\t1\t2\t9\n"}, "no fact that can be asked about has 3 earlier ones; facts can be at most 1"),
        ],
    )
    def test_the_file_the_line_and_what_was_expected_are_told(self, folder, contents, problem):
        """One sentence."""
        with pytest.raises(ConfigurationError) as caught:
            knowledge_graph(requests=2, facts=3, output_tokens=9, path=folder(**contents))

        assert 1 == len(caught.value.problems)
        assert problem in caught.value.problems[0]

    @pytest.mark.slow
    @given(name=st.sampled_from(sorted(FILES)), seed=st.integers(0, 2**32), changes=st.integers(1, 3))
    @settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_no_corruption_raises_anything_else(self, folder, name, seed, changes):
        """Bytes lost, doubled or changed: a workload, or a sentence."""
        drawn = random.Random(seed)
        content = bytearray(FILES[name].encode())
        for _ in range(changes):
            at = drawn.randrange(len(content) + 1)
            until = at + drawn.choice([0, 1, 3, 100])
            content[at:until] = drawn.choice(
                [b"", bytes([drawn.randrange(256)]), b"\t", b"99", bytes(content[at:until]) * 2]
            )

        with suppress(ConfigurationError):
            where = folder(**{name.removesuffix(".txt"): bytes(content)})
            assert 2 == len(prompts(knowledge_graph(requests=2, facts=1, output_tokens=9, path=where)))


@pytest.mark.parametrize("workload", [multiple_choice(requests=700), GRAPH], ids=lambda workload: workload.name)
def test_a_load_of_a_stated_time_is_measured_to_its_end(workload):
    """With enough requests it is the time that ends the run, not the workload."""
    sessions = [[None] for _ in workload]

    schedule = poisson(len(sessions) / 70, duration_s=60).schedule(sessions)

    assert 60_000_000_000 == schedule.steady().end_ns


@pytest.mark.slow
@pytest.mark.skipif(
    "LLMPERF_ICEWS" not in os.environ, reason="LLMPERF_ICEWS is not set: a folder in the form of ICEWS14"
)
def test_a_published_graph_is_read():
    """All of it, and asked about by the hundred."""
    sessions = list(knowledge_graph(requests=300, facts=200, output_tokens=64, path=Path(os.environ["LLMPERF_ICEWS"])))

    assert 300 == len(sessions)
    assert all(12 * 200 < len(session.context) < 25 * 200 for session in sessions)
