"""Holm's rule against its definition, and the ranking that keeps p-values in order."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.stats import Ranking, holm


def holm_by_definition(p_values, alpha):
    """Holm's procedure as the closure of Bonferroni tests.

    A hypothesis is rejected if every intersection that contains it is rejected, and the
    intersection of k hypotheses is rejected if the smallest of its p-values is at most alpha / k.
    """
    names = list(p_values)
    subsets = [[n for i, n in enumerate(names) if bits >> i & 1] for bits in range(1, 2 ** len(names))]
    kept = [s for s in subsets if min(p_values[n] for n in s) > alpha / len(s)]
    return {name for name in names if not any(name in subset for subset in kept)}


# Near the thresholds alpha / k, and exactly on them, besides anywhere.
P = st.floats(0, 1) | st.floats(0, 0.05) | st.integers(1, 8).map(lambda k: 0.05 / k)
P_VALUES = st.dictionaries(st.integers(0, 9), P, max_size=7)


@pytest.mark.slow
@given(p_values=P_VALUES)
@settings(deadline=None, max_examples=300)
def test_holm_rejects_what_its_definition_rejects(p_values):
    """The step-down over sorted p-values equals the closure of all Bonferroni tests."""
    assert holm_by_definition(p_values, 0.05) == holm(p_values, len(p_values), 0.05)


@given(p_values=P_VALUES, unknown=st.integers(1, 3))
@settings(deadline=None)
def test_what_is_not_known_counts_as_not_rejected(p_values, unknown):
    """A family that is larger than the p-values known is judged as if the rest were 1."""
    rest = {1000 + n: 1.0 for n in range(unknown)}

    assert holm({**p_values, **rest}, len(p_values) + unknown, 0.05) == holm(p_values, len(p_values) + unknown, 0.05)


@given(p_values=P_VALUES, later=st.dictionaries(st.integers(100, 105), P, min_size=1))
@settings(deadline=None)
def test_a_later_p_value_never_takes_back_a_rejection(p_values, later):
    """With the family's size fixed beforehand, knowing more can only add rejections."""
    size = len(p_values) + len(later)

    assert holm(p_values, size, 0.05) <= holm({**p_values, **later}, size, 0.05)


@given(p_values=P_VALUES)
@settings(deadline=None)
def test_holm_rejects_at_least_what_bonferroni_rejects(p_values):
    """The step-down is never weaker than dividing alpha by the family's size."""
    bonferroni = {name for name, p in p_values.items() if p <= 0.05 / len(p_values)}

    assert bonferroni <= holm(p_values, len(p_values), 0.05)


def test_holm_does_not_depend_on_the_order_of_the_p_values():
    """Every order of the same p-values gives the same rejections."""
    p_values = {"a": 0.001, "b": 0.004, "c": 0.03, "d": 0.2}

    found = {frozenset(holm(dict(order), 5, 0.02)) for order in permutations(p_values.items())}

    assert {frozenset({"a", "b"})} == found


def test_holm_stops_at_the_first_that_is_not_rejected():
    """What follows is kept even where it would pass its own, wider threshold."""
    assert set() == holm({"a": 0.03, "b": 0.04}, 2, 0.05)


def test_of_no_p_values_none_is_rejected():
    """An empty family has no rejections."""
    assert set() == holm({}, 0, 0.01)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1))), st.integers(0, 5))
def test_a_ranking_keeps_the_last_p_value_of_each_name(entries, gone):
    """What comes and goes leaves what a mapping would hold."""
    ranking, expected = Ranking(), {}
    for name, p in entries:
        ranking.add(name, p)
        expected[name] = p
    ranking.discard(gone)
    expected.pop(gone, None)

    assert len(expected) == len(ranking)
    assert holm(expected, 6, 0.3) == set(ranking.rejected(6, 0.3))
