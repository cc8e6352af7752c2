"""`histogram.py`: many durations in little memory."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llmperf.histogram import Histogram

durations = st.one_of(st.integers(0, 200), st.integers(0, 10**10), st.integers(0, 1 << 80))
values = st.lists(durations, min_size=1, max_size=80)
shares = st.floats(0, 1)


def histogram(added):
    """All of them counted."""
    counted = Histogram()
    for value in added:
        counted.add(value)
    return counted


@given(values, shares)
@example([63, 64, 65, 127, 128], 0.5)
@example([0], 0.0)
def test_percentile(added, share):
    """A percentile is the exact one, or as much above it as its bin is wide: 1/32 at most."""
    exact = sorted(added)[max(0, math.ceil(share * len(added)) - 1)]
    found = histogram(added).percentile(share)
    assert exact <= found <= exact + exact // 32


@given(st.integers(0, 63))
def test_small_values_are_exact(value):
    """Below 64 each value has a bin of its own."""
    assert value == histogram([value]).percentile(1.0)


@pytest.mark.slow
@given(values)
def test_bins(added):
    """A bin begins at a value that is in it, and there are no more than 32 for each power of two."""
    counted = histogram(added)
    assert len(added) == counted.count
    for edge in counted.bins:
        assert counted.bins.keys() >= histogram([edge]).bins.keys()
    assert len(histogram(range(1 << 12)).bins) == 64 + 6 * 32


@given(values, values)
def test_merge(mine, theirs):
    """Merging is counting all of both, and leaves the other one as it is."""
    merged, other = histogram(mine), histogram(theirs)
    merged.merge(other)
    assert histogram(mine + theirs) == merged
    assert histogram(theirs) == other


def test_merge_with_itself():
    """Merging with itself counts everything twice."""
    counted = histogram([1, 2, 100])
    counted.merge(counted)
    assert histogram([1, 2, 100] * 2) == counted


@given(values)
def test_json(added):
    """What is written is JSON in rising order, and is read back as it was."""
    counted = histogram(added)
    content = json.loads(json.dumps(counted.to_json()))
    assert counted == Histogram.from_json(content)
    edges = [int(edge) for edge in content]
    assert sorted(edges) == edges


@pytest.mark.parametrize("value", [-1, -63, -64, -65, -(10**30)])
def test_negative(value):
    """What is negative, as two clocks may make it, counts as 0."""
    assert histogram([0]) == histogram([value])


def test_nothing():
    """Of nothing there is no percentile."""
    assert None is Histogram().percentile(0.5)
    assert (0, {}) == (Histogram().count, Histogram().to_json())
    assert Histogram() == Histogram.from_json({})
