"""Names of blocks, and what a simulated model says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulations import ids

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.engines.sim.blocks import answer_ids, as_ids, block_hashes, prompt_name

TOKENS = st.lists(st.integers(1000, 1003), min_size=1, max_size=40)


@given(one=TOKENS, other=TOKENS, size=st.integers(1, 8))
def test_blocks_have_one_name_exactly_where_all_up_to_their_end_is_equal(one, other, size):
    """Equal names mean equal prefixes, so that one comparison of two names is one of two prefixes."""
    names, others = block_hashes(ids(*one), size), block_hashes(ids(*other), size)

    assert (len(one) // size, len(other) // size) == (len(names), len(others))
    for number, (mine, theirs) in enumerate(zip(names, others, strict=False)):
        end = (number + 1) * size
        assert (mine == theirs) == (one[:end] == other[:end])


def test_blocks_that_change_places_have_other_names():
    """What a block holds is not all: where it stands counts."""
    assert block_hashes(ids(1, 1, 2, 2), 2)[-1] != block_hashes(ids(2, 2, 1, 1), 2)[-1]


def test_a_longer_prompt_does_not_change_the_names_of_its_beginning():
    """Also beyond the table of positions that was there before."""
    short, long = (block_hashes(np.arange(length, dtype=np.int32), 1) for length in (5000, 20_000))

    assert short.tolist() == long[:5000].tolist()


@given(one=TOKENS, other=TOKENS, size=st.integers(1, 8))
def test_a_prompt_has_one_name_for_all_of_it(one, other, size):
    """What stands behind its last full block counts, too."""
    names = [prompt_name(ids(*tokens), block_hashes(ids(*tokens), size), size) for tokens in (one, other)]

    assert (names[0] == names[1]) == (one == other)


@given(tokens=TOKENS, count=st.integers(1, 50))
def test_an_answer_is_ordinary_tokens_and_the_same_for_the_same_prompt(tokens, count):
    """A shorter answer is the beginning of a longer one."""
    prompt = ids(*tokens)
    hashes = block_hashes(prompt, 4)

    answer = answer_ids(prompt, hashes, 4, count).tolist()

    assert len(answer) == count
    assert all(token in TOKEN_IDS for token in answer)
    assert answer_ids(prompt, hashes, 4, 60).tolist()[:count] == answer


def test_prompts_that_differ_get_different_answers():
    """Also if only the last token differs, or a token is missing."""
    prompts = [ids(1, 2, 3, 4, 5), ids(1, 2, 3, 4, 6), ids(1, 2, 3, 4), ids(1, 2, 3)]

    answers = {tuple(answer_ids(one, block_hashes(one, 2), 2, 20).tolist()) for one in prompts}

    assert 4 == len(answers)


@pytest.mark.parametrize("given_ids", [[5, 6], (5, 6), np.array([5, 6], np.int64)])
def test_ids_come_in_any_sequence(given_ids):
    """They are kept as int32."""
    made = as_ids(given_ids)

    assert (np.int32, [5, 6]) == (made.dtype, made.tolist())


def test_ids_in_an_array_are_not_copied():
    """A prompt of a million tokens is there once."""
    given_ids = np.array([5, 6], np.int32)

    assert as_ids(given_ids) is given_ids
