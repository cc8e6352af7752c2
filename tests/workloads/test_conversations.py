"""Conversations from files: what is sent, what is shared, and what is said of a file that is wrong."""

from __future__ import annotations

import json
import pickle
import random
import sys
import tracemalloc
from contextlib import suppress
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads import conversations
from pytest_llmperf.workloads import elements as elements_module
from pytest_llmperf.workloads.elements import elements
from pytest_llmperf.workloads.sharing import run_mark, shared_with_others
from pytest_llmperf.workloads.tokens import StandIn

MARK = len(run_mark("", TOKEN_IDS))
IDS = StandIn(TOKEN_IDS)
RULES = "Answer in one sentence, and be polite about it."

TALKS = [
    [("human", "How tall is the Eiffel tower?"), ("gpt", "It is 330 metres tall.")],
    [
        ("system", RULES),
        ("human", "Who wrote Faust?"),
        ("gpt", "Goethe did, over some sixty years."),
        ("human", "And the second part?"),
        ("gpt", "He, too."),
        ("human", "Thanks!"),
    ],
    [
        ("system", RULES),
        ("human", "Who wrote Hamlet?"),
        ("gpt", "Shakespeare."),
        ("human", "When?"),
        ("gpt", "About 1600."),
        ("human", "Where?"),
        ("gpt", "In London, as far as is known."),
    ],
]


def sharegpt(talk):
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in talk]}


def openai(talk):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return {"messages": [{"role": roles[who], "content": [{"type": "text", "text": text}]} for who, text in talk]}


def array(rows):
    return json.dumps(rows, indent=1)


def lines(rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.fixture
def file(tmp_path):
    """Writes a file of talks, or of a text or bytes as they are."""

    def write(content, form=sharegpt, layout=array):
        path = tmp_path / "talks.json"
        if isinstance(content, list):
            content = layout([form(talk) for talk in content])
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def shape(workload):
    """Per session: lengths of context, inputs and answers."""
    return [
        (len(s.context), [turn.new_tokens for turn in s.turns], [turn.output_tokens for turn in s.turns])
        for s in workload
    ]


def length(text):
    return len(IDS(text))


class TestForms:
    @pytest.mark.parametrize("layout", [array, lines])
    @pytest.mark.parametrize("form", [sharegpt, openai])
    def test_each_form_in_each_layout_says_the_same(self, file, form, layout):
        """What a file is is told by what is in it."""
        assert "daa05226ed107c80" == conversations(file(TALKS, form, layout)).digest

    def test_a_session_has_the_texts_of_its_conversation(self, file):
        """The system message is the context; the lengths of the answers are the file's."""
        workload = conversations(file(TALKS))

        assert [
            (MARK, [length(TALKS[0][0][1])], [length(TALKS[0][1][1])]),
            (
                MARK + length(RULES),
                [length(TALKS[1][1][1]), length(TALKS[1][3][1])],
                [length(TALKS[1][2][1]), length(TALKS[1][4][1])],
            ),
            (
                MARK + length(RULES),
                [length(TALKS[2][n][1]) for n in (1, 3, 5)],
                [length(TALKS[2][n][1]) for n in (2, 4, 6)],
            ),
        ] == shape(workload)
        assert [None, None] == [turn.answer_ids for turn in list(workload)[1].turns]
        assert {0, 1} == list(workload)[2].continued_from

    def test_the_ids_are_those_of_every_other_machine(self, file):
        """Checksums of pieces, and the run's mark."""
        first = next(iter(conversations(file(TALKS))))

        assert [1303, 1843, 1676, 1930, 1402, 1410, 1032] == first.context
        assert [1149, 1805, 1618, 1414, 1493, 1784, 1400] == first.turns[0].new_ids.tolist()

    def test_recorded_answers_need_nothing_from_the_server(self, file):
        """The file's answers stand in the history."""
        session = list(conversations(file(TALKS), answers="recorded"))[2]

        assert not session.continued_from
        assert [IDS(TALKS[2][n][1]).tolist() for n in (2, 4, 6)] == [turn.answer_ids.tolist() for turn in session.turns]

    def test_a_cut_conversation_is_its_first_1_3_5_messages(self, file):
        """A prompt each, with what came before as its context and the file's own answers in it."""
        sessions = list(conversations(file([TALKS[2][1:]]), cut=True))

        inputs = [session.turns[0].input_tokens for session in sessions]
        said = [IDS(text).tolist() for _, text in TALKS[2][1:]]
        mark = run_mark("", TOKEN_IDS).tolist()
        assert [[*mark, *chain(*said[: 2 * n - 1])] for n in (1, 2, 3)] == inputs
        assert [len(said[n]) for n in (1, 3, 5)] == [session.turns[0].output_tokens for session in sessions]
        assert [inputs[n][: len(session.context)] for n, session in enumerate(sessions)] == [
            session.context for session in sessions
        ]
        assert [len(inputs[0]), len(inputs[1]), len(inputs[1])] == [session.shared_tokens for session in sessions]

    def test_messages_of_one_side_in_a_row_are_one(self, file):
        """Some interfaces send a long message in parts."""
        talk = [("human", "Hello. "), ("human", "Are you there?"), ("gpt", "I am. "), ("gpt", "What is it?")]

        workload = conversations(file([talk]))

        assert [
            (MARK, [length("Hello. ") + length("Are you there?")], [length("I am. ") + length("What is it?")])
        ] == shape(workload)


class TestValue:
    @pytest.mark.parametrize("words", [{}, {"answers": "recorded"}, {"cut": True}])
    def test_namespaces_have_the_same_shape_and_no_beginning_in_common(self, file, words):
        """Within a run all sessions share its mark; between runs nothing is shared."""
        workload = conversations(file(TALKS), **words)
        runs = [workload, workload.within("one"), workload.within("other")]

        assert 1 == len({run.digest for run in runs})
        assert 1 == len({str(shape(run)) for run in runs})
        firsts = [{tuple(session.turns[0].input_tokens[:MARK]) for session in run} for run in runs]
        assert [1, 1, 1] == [len(first) for first in firsts]
        assert 3 == len(set.union(*firsts))

    def test_iterating_again_yields_the_same_without_the_file(self, file):
        """Also on another machine: what is used travels with the workload."""
        path = file(TALKS)
        workload = conversations(path).within("run")
        before = [session.turns[0].input_tokens for session in workload]
        path.unlink()

        assert before == [session.turns[0].input_tokens for session in pickle.loads(pickle.dumps(workload))]

    def test_lengths_without_a_tokenizer_are_called_inexact(self, file):
        """Whoever reads a result can ask."""
        assert not conversations(file(TALKS)).exact_lengths

    def test_shared_tokens_are_those_that_another_session_begins_with(self, file):
        """The mark, the rules, and what the questions have in common."""
        asked = "Who wrote Faust?", "Who wrote Hamlet?"
        one, other = (IDS(text).tolist() for text in asked)
        common = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)

        shared = [session.shared_tokens for session in conversations(file(TALKS))]

        assert [MARK, *[MARK + length(RULES) + common] * 2] == shared
        assert common > 0

    def test_one_session_shares_with_nobody(self, file):
        """Not even its mark."""
        assert [0] == [session.shared_tokens for session in conversations(file(TALKS[:1]))]


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8))
def test_what_is_shared_is_the_longest_beginning_that_any_other_has(sequences):
    """Found by sorting, checked by comparing all with all."""

    def common(one, other):
        return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    expected = [
        max((common(one, other) for m, other in enumerate(sequences) if m != n), default=0)
        for n, one in enumerate(sequences)
    ]
    assert expected == shared_with_others([np.array(sequence, np.int32) for sequence in sequences])


class TestStandIn:
    def test_a_piece_is_about_four_characters(self):
        """Of English prose, as it is with tokenizers."""
        text = (
            "Beautiful is better than ugly. Explicit is better than implicit. Simple is better than complex, and "
            "complex is better than complicated. Although practicality beats purity, errors should never pass silently."
        )

        assert 3.5 < len(text) / length(text) < 5.5

    @given(st.text(), st.text())
    def test_texts_that_begin_alike_have_ids_that_begin_alike(self, one, other):
        """Up to the last piece of what they share, which may be cut elsewhere."""
        one, other = (text.encode("utf-8", "ignore").decode() for text in (one, other))
        alone, longer = IDS(one).tolist(), IDS(one + other).tolist()

        assert alone[:-1] == longer[: max(0, len(alone) - 1)]
        assert all(token in TOKEN_IDS for token in longer)
        assert bool(one) == bool(alone)


MANY = [[("human", f"Question {n}"), ("gpt", "word " * (n + 1))] * (1 + n % 3) for n in range(30)]


class TestFilters:
    def test_limits_leave_out_what_is_beyond_them(self, file):
        """By messages, by the length of an answer and by that of the whole."""
        path = file(MANY)

        assert 20 == len(shape(conversations(path, min_messages=4)))
        assert 20 == len(shape(conversations(path, max_messages=4)))
        assert all(max(outputs) <= 10 for _, _, outputs in shape(conversations(path, max_output_tokens=10)))
        assert all(session.total_tokens <= 40 for session in conversations(path, max_tokens=40))
        assert 40 - 6 < max(session.total_tokens for session in conversations(path, max_tokens=40))

    def test_a_limit_takes_the_first_and_reads_no_further(self, file):
        """What follows may even be broken."""
        path = file(array([sharegpt(talk) for talk in MANY])[:-200])

        assert shape(conversations(file(MANY)))[:5] == shape(conversations(path, limit=5))

    def test_a_sample_is_drawn_by_its_seed(self, file):
        """The same everywhere, in the order of the file."""
        path = file(MANY)
        everything = shape(conversations(path))

        def places(**words):
            return [everything.index(each) for each in shape(conversations(path, sample=5, **words))]

        assert [6, 11, 12, 23, 28] == places()
        assert places() == places() != places(seed=1)
        assert all(one < other for one, other in pairwise(places(seed=9)))
        assert all(place < 10 for place in places(limit=10))
        assert everything == shape(conversations(path, sample=99))
        assert places() == places(max_tokens=10_000)

    def test_every_conversation_has_the_same_chance(self, file):
        """Over many seeds each of ten is taken about half the time, by five of ten."""
        path = file(MANY[:10])
        everything = shape(conversations(path))
        taken = [
            everything.index(each) for seed in range(200) for each in shape(conversations(path, sample=5, seed=seed))
        ]

        assert all(70 < taken.count(place) < 130 for place in range(10))


def wrong(path, **words):
    """The sentences of the error."""
    with pytest.raises(ConfigurationError) as caught:
        conversations(path, **words)
    return "\n".join(caught.value.problems)


GOOD = json.dumps(sharegpt(TALKS[0]))


def talk(*messages):
    return json.dumps(sharegpt(messages))


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("", "line 1: nothing in the file; expected an object with"),
            (" \n ", "line 1: nothing in the file; expected an object with"),
            ("[]", "no conversation in the file; expected an object with"),
            (f"[{GOOD},\n{GOOD[:40]}", "element 2: the file ends within it; expected an object with"),
            (f"[{GOOD}", "element 1: the file ends behind it; expected a comma or the end of the array"),
            (f"[{GOOD},", "element 2: the file ends within it; expected"),
            (f"[{GOOD} {GOOD}]", 'element 1: \'{"id": "x"'),
            (f"[{GOOD},]", "element 2: no JSON: ']'; expected"),
            (f"[{GOOD}, 7]", "element 2: no JSON object: '7'; expected"),
            (f"[{GOOD}] and more", "element 1: 'and more' behind the array; expected nothing more"),
            (f"[{GOOD}, {{'id': 3}}]", "element 2: no JSON: \"'id': 3}]\"; expected"),
            ("[" + "[" * 100_000, "element 1: JSON that cannot be read"),
            ("[" + "1" * 5_000 + "]", "element 1: "),
            (f"{GOOD}\n{GOOD[:40]}\n", "line 2: no JSON: "),
            (f"{GOOD}\nhello\n", "line 2: no JSON: 'hello'; expected an object with"),
            ('{"a": 1}', "line 1: an object with 'a'; expected an object with"),
            ("[{}]", "element 1: an object with nothing in it; expected"),
            ('{"conversations": "x"}', "line 1: an object with 'conversations'; expected"),
            (
                f"[{talk(('gpt', 'Hi.'), ('human', 'Hi?'))}]",
                "element 1: it begins with the assistant; expected the user",
            ),
            (talk(("human", "Hi.")), "line 1: no question with an answer; expected at least one message of"),
            (
                talk(("human", "Hi."), ("robot", "Ho.")),
                "line 1: a message from 'robot'; expected \"from\" as one of human",
            ),
            (talk(("human", ""), ("gpt", "Ho.")), 'line 1: an empty message; expected text in "value"'),
            (talk(("human", 7), ("gpt", "Ho.")), "line 1: '7' instead of text; expected a string"),
            (
                talk(("human", "a"), ("gpt", "b"), ("system", "c"), ("human", "d"), ("gpt", "e")),
                "system message between",
            ),
            ('[{"conversations": ["hello"]}]', "element 1: a message that is 'hello'; expected"),
            ('[{"conversations": [{"from": "human", "value": "\\ud800"}]}]', "element 1: half a surrogate pair"),
            ('{"messages": [{"role": "tool", "content": "x"}]}', "line 1: a message from 'tool'; expected \"role\" as"),
            (
                '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
                "line 1: a part of the type 'image",
            ),
            ('{"messages": [{"role": "user", "content": null}]}', "line 1: 'None' instead of text; expected"),
            (GOOD.encode() + b"\n\xff", "line 2: byte 0 is not UTF-8; expected a file in UTF-8"),
            (b"[" + GOOD.encode() + b",\n\n\xff]", "line 3: byte 0 is not UTF-8; expected a file in UTF-8"),
            (b"[" + GOOD.encode() + b",\xc3", "is not UTF-8; expected a file in UTF-8"),
        ],
    )
    def test_the_place_and_what_was_expected_are_told(self, file, content, problem):
        """One sentence that begins with the file."""
        path = file(content)

        said = wrong(path)

        assert said.startswith(str(path))
        assert problem in said

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        """A folder is no file, either."""
        assert "cannot be read: No such file or directory; give the path of a file" in wrong(tmp_path / "x.json")
        assert "cannot be read: it is a folder; expected a regular file; give the path of a file" in wrong(tmp_path)

    def test_what_cannot_be_used_can_be_left_out(self, file):
        """ShareGPT's own files begin many conversations in the middle. How many is said."""
        content = f"[{talk(('gpt', 'Hi.'), ('human', 'Hi?'))}, {GOOD}, {talk()}]"

        workload = conversations(file(content), unusable="skip")

        assert (1, 2) == (len(shape(workload)), workload.skipped)

    def test_nothing_left_is_an_error_that_says_why(self, file):
        """With what was left out by which argument."""
        content = f"[{talk(('gpt', 'Hi.'), ('human', 'Hi?'))}, {GOOD}]"

        said = wrong(file(content), unusable="skip", max_tokens=9, min_messages=2)

        assert "nothing is left of 2 conversations: 1 cannot be used; min_messages, max_tokens left out 1; give" in said

    def test_arguments_out_of_range_are_named_before_the_file_is_read(self, tmp_path):
        """All of a kind at once."""
        assert "conversations: answers must be 'real' or 'recorded', got 'yes'" in wrong(tmp_path, answers="yes", cut=1)
        assert "conversations: cut must be True or False, got 1" in wrong(tmp_path, cut=1)
        assert "sample must be a whole number of at least 1, got 0" in wrong(tmp_path, sample=0, seed=-1)
        assert "there is no" in wrong(tmp_path, tokenizer=tmp_path)

    @pytest.mark.slow
    @given(
        layout=st.sampled_from([array, lines]),
        form=st.sampled_from([sharegpt, openai]),
        seed=st.integers(0, 2**32),
        changes=st.integers(1, 4),
        skip=st.booleans(),
    )
    @settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_no_corruption_raises_anything_else(self, file, layout, form, seed, changes, skip):
        """Bytes lost, doubled or changed: a workload, or a sentence."""
        drawn = random.Random(seed)
        content = bytearray(layout([form(each) for each in TALKS]).encode())
        for _ in range(changes):
            at, until = sorted(drawn.randrange(len(content) + 1) for _ in range(2))
            until = min(until, at + drawn.choice([0, 1, 20, 10**6]))
            what = drawn.choice([b"", bytes([drawn.randrange(256)]), bytes(content[at:until] * 2), b'"', b"{", b"]"])
            content[at:until] = what

        with suppress(ConfigurationError):
            assert shape(conversations(file(bytes(content)), unusable="skip" if skip else "error"))


class TestStreaming:
    @pytest.mark.slow
    @given(
        rows=st.lists(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False)), max_size=6),
        chunk=st.integers(1, 40),
    )
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_an_array_is_read_the_same_in_pieces_of_any_size(self, file, rows, chunk):
        """Also where a piece ends within a character, a word or an escape."""
        path = file(json.dumps(rows, ensure_ascii=chunk % 2 == 0, indent=chunk % 3 or None))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(elements_module, "_CHUNK", chunk)

            assert rows == [row for _, row in elements(path, "rows")]

    def test_an_array_larger_than_memory_is_not_kept(self, tmp_path):
        """Each element is gone when the next is read."""
        path = tmp_path / "large.json"
        row = json.dumps({"text": "x" * 10_000})
        with path.open("w") as stream:
            stream.write("[" + ",".join([row] * 3_000) + "]")
        tracemalloc.start()
        try:
            assert 3_000 == sum(1 for _ in elements(path, "rows"))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert peak < 10_000_000 < path.stat().st_size


class TestTokenizer:
    @pytest.fixture
    def folder(self, tmp_path):
        """A tokenizer of words, as a model's folder has it."""
        tokenizers = pytest.importorskip("tokenizers")
        words = {word: n for n, word in enumerate(["[UNK]", "How", "tall", "is", "It", "."])}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.enable_truncation(2)
        made.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    def test_a_tokenizer_gives_the_model_s_own_ids(self, file, folder):
        """From a file or its folder, the whole text whatever the tokenizer says of truncation."""
        for where in (folder, folder / "tokenizer.json"):
            workload = conversations(file(TALKS[:1]), tokenizer=where)

            (turn,) = next(iter(workload)).turns
            assert workload.exact_lengths
            assert [1, 2, 3, 0, 0, 0, 0] == turn.new_ids.tolist()
            assert 6 == turn.output_tokens

    def test_a_broken_tokenizer_is_named(self, file, folder):
        """With what the library says."""
        (folder / "tokenizer.json").write_text("{}")

        assert "tokenizer.json cannot be read: " in wrong(file(TALKS), tokenizer=folder)

    def test_a_missing_library_is_named_with_the_command_that_installs_it(self, file, folder, monkeypatch):
        """It is an extra."""
        monkeypatch.setitem(sys.modules, "tokenizers", None)

        assert "needs the tokenizers library: pip install 'pytest-llmperf[tokenizers]'" in wrong(
            file(TALKS), tokenizer=folder
        )
