"""Durations counted in bins."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.histogram import Histogram

DURATIONS = st.lists(st.integers(0, 10**12), min_size=1, max_size=50)


def histogram(*values):
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(values=DURATIONS, share=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_at_most_three_percent_above_the_true_one(values, share):
    """And never below it."""
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]

    found = histogram(*values).percentile(share)

    assert true <= found <= true * (1 + 1 / 32)


@pytest.mark.parametrize("value", range(64))
def test_small_durations_are_exact(value):
    """Up to 63 ns a bin is one value."""
    assert value == histogram(value).percentile(0.5)


def test_nothing_has_no_percentile():
    """None, not 0."""
    assert (None, 0) == (Histogram().percentile(0.5), Histogram().count)


def test_what_is_negative_counts_as_nothing():
    """A clock that was set may make a duration negative."""
    assert histogram(0, 0) == histogram(-5, -(10**9))


@given(values=DURATIONS, others=DURATIONS)
def test_merging_is_adding_all(values, others):
    """Two histograms make the one of all durations; the other one stays as it is."""
    mine, theirs = histogram(*values), histogram(*others)

    mine.merge(theirs)

    assert histogram(*values, *others) == mine
    assert (len(values) + len(others), histogram(*others)) == (mine.count, theirs)


@given(values=DURATIONS)
def test_it_survives_json(values):
    """Bins are written in rising order, under their lower edges."""
    made = histogram(*values)

    edges = [int(edge) for edge in made.to_json()]
    assert sorted(edges) == edges
    assert made == Histogram.from_json(made.to_json())


def test_memory_is_bounded_however_many_are_added():
    """Each power of two has 32 bins."""
    made = histogram(*range(0, 1 << 20, 3))

    assert len(made.bins) <= 64 + 14 * 32
