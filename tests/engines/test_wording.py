"""`engines/wording.py`: texts whose length in tokens is known without counting."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.engines import tiny_llama
from pytest_llmperf.engines.wording import UNKNOWN, USAGE, WORDS, Wording, find_wording, sample_text, settled

tokenizers = pytest.importorskip("tokenizers")

ROOM = 4096
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=300)


def learnt(*, spaces, begin=False):
    """A BPE vocabulary learnt from our words, as models have it; `spaces`: how it treats them."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = spaces
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    if begin:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return made


def characters():
    """A vocabulary without a single merge: one token for each byte."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def byte_level(begin=False):
    return learnt(spaces=tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), begin=begin)


def sentence_piece():
    return learnt(spaces=tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first"), begin=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tokenizers.Tokenizer.from_file(str(tiny_llama.ensure(tmp_path_factory.mktemp("m")) / "tokenizer.json"))


def counted_by(tokenizer, asked=None):
    """What counts with it; the texts are noted in `asked`."""

    def count(text):
        if asked is not None:
            asked.append(text)
        return len(tokenizer.encode(text).ids)

    return count


def words(text, *, long=(), before=0):
    """A tokenizer of words, some of which are two tokens."""
    return before + sum(2 if word in long else 1 for word in text.split())


def neighbours(text, *, apart):
    """How often a word is followed by the one that stands so far behind it in our list."""
    return sum(WORDS.index(b) - WORDS.index(a) == apart for a, b in pairwise(text.split()) if {a, b} <= {*WORDS})


class TestExactLengths:
    """Whatever the ids are, the text has as many tokens."""

    @pytest.mark.parametrize(
        ("make", "overhead", "pieces"),
        [
            (byte_level, 1, len(WORDS) - 1),
            (lambda: byte_level(begin=True), 2, len(WORDS) - 1),
            (sentence_piece, 2, len(WORDS) - 1),
            (characters, 1, 36),
        ],
    )
    def test_of_any_ids(self, make, overhead, pieces):
        """With vocabularies as models have them, with and without a token that begins a text."""
        count = counted_by(make())
        wording = find_wording(count, ROOM)
        assert (overhead, pieces) == (wording.overhead, len(wording.pieces))

        @settings(max_examples=50, deadline=None)
        @given(IDS.filter(lambda ids: len(ids) >= overhead))
        def check(ids):
            assert len(ids) == count(wording.text(ids))

        check()

    def test_of_the_tiny_llama(self, tiny):
        """It has no words; its characters do, if there are none of the letters that it joins."""
        wording = find_wording(counted_by(tiny), ROOM)
        assert (1, 36) == (wording.overhead, len(wording.pieces))
        lengths = (1, 2, 17, 500, 20_000)
        assert list(lengths) == [counted_by(tiny)(sample_text(wording, length)) for length in lengths]

    def test_words_that_are_more_tokens_are_left_out(self):
        """And a few of their neighbours with them; the rest is exact."""
        long = ("people", "number", "under")
        wording = find_wording(lambda text: words(text, long=long, before=3), ROOM)
        assert 90 < len(wording.pieces) < len(WORDS) - len(long)
        assert not {f" {word}" for word in long} & set(wording.pieces)
        assert 4 == wording.overhead

    def test_it_takes_few_calls_and_short_texts(self):
        """Six where words are tokens; none that the server could not take."""
        asked = []
        find_wording(counted_by(byte_level(), asked), ROOM)
        assert 6 == len(asked)
        asked.clear()
        count = counted_by(byte_level(), asked)
        wording = find_wording(count, 128)
        assert wording is not None
        assert max(map(count, list(asked))) <= 128
        asked.clear()
        assert find_wording(lambda text: asked.append(text) or words(text, long=WORDS[::9]), ROOM) is not None
        assert len(asked) < 60


class TestNoSuchTexts:
    """What cannot be known to be exact is not used."""

    @pytest.mark.parametrize(
        "count",
        [
            pytest.param(lambda text: None, id="cannot count"),
            pytest.param(lambda text: len(text) // 4, id="a guess"),
            pytest.param(lambda text: 7, id="a constant"),
            pytest.param(lambda text: 2 * len(text), id="two tokens a character"),
            pytest.param(lambda text: min(100, words(text)), id="cuts"),
            pytest.param(lambda text: words(text) - neighbours(text, apart=1), id="joins words"),
            pytest.param(lambda text: words(text) - neighbours(text, apart=-5), id="joins words in a certain order"),
        ],
    )
    def test_none_is_found(self, count):
        """Each of these is noticed."""
        assert find_wording(count, ROOM) is None

    def test_a_count_that_fails_later(self):
        """Wherever that is."""
        for last in range(6):
            left = iter(range(last))
            assert find_wording(lambda text, left=left: next(left, None) and words(text), ROOM) is None

    def test_a_server_with_no_room(self):
        assert find_wording(words, 40) is None


class TestTexts:
    WORDING = Wording("the", tuple(f" {word}" for word in WORDS[1:]), 5)

    def test_what_begins_alike_stays_alike(self):
        """But for the tokens at the end that a template puts behind it; and the rest differs."""
        one, other = [*range(100), 7, 7, 7], [*range(100), 8, 8, 8]
        texts = [self.WORDING.text(ids).split() for ids in (one, other)]
        assert texts[0][:-3] == texts[1][:-3]
        assert 1 + 103 - 5 == len(texts[0])
        assert not set(texts[0][-3:]) & set(texts[1][-3:])

    def test_the_first_ids_are_always_in_the_text(self):
        """They are what tells one run from another."""
        for length in (21, 22, 40):
            one, other = [[first, *range(1, length)] for first in (0, 1)]
            assert self.WORDING.text(one) != self.WORDING.text(other)
            assert [f" {word}" for word in self.WORDING.text(one).split()[1:17]] == list(self.WORDING.pieces[:16])

    @pytest.mark.parametrize("length", [0, 1, 5])
    def test_no_longer_than_the_overhead(self, length):
        """The shortest text that there is."""
        assert self.WORDING.text(range(length)) == "the"


class TestSettled:
    """Which count is believed."""

    def test_a_tokenizer_and_the_overhead_of_what_is_served(self):
        """The template that only the server knows is counted."""
        name, wording = settled({"a": words}, lambda text: words(text, before=30), ROOM)
        assert ("a", 31) == (name, wording.overhead)

    def test_a_server_that_tells_nothing(self):
        """The tokenizer's word stands."""
        name, wording = settled({"a": lambda text: words(text, before=2)}, lambda text: None, ROOM)
        assert ("a", 3) == (name, wording.overhead)

    def test_the_tokenizer_of_another_model(self):
        """The server's own count of what it serves goes first, in whatever way they differ."""
        wrong = {"two for one": lambda text: len(text.replace(" ", "")), "none": lambda text: None}
        long = WORDS[1::2]
        name, wording = settled(wrong, lambda text: words(text, long=long[:9]), ROOM)
        assert USAGE == name
        assert not {f" {word}" for word in long[:9]} & set(wording.pieces)
        assert words(sample_text(wording, 300), long=long[:9]) == 300

    def test_nothing_that_counts(self):
        assert (UNKNOWN, None) == settled({"a": lambda text: None}, lambda text: len(text) // 4, ROOM)
