"""When tokens arrived, in columns."""

from __future__ import annotations

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.arrivals import Arrival, Arrivals

NS = st.integers(0, 2**63 - 1)
ROWS = st.lists(st.builds(Arrival, NS, st.none() | st.integers(0, 2**31 - 1), st.just(0) | NS), max_size=6)


@given(rows=ROWS)
def test_columns_read_like_the_rows_that_they_are_made_of(rows):
    """As a sequence of arrivals: by number from both ends, in slices, and in order."""
    columns = Arrivals.of(rows)

    assert rows == list(columns)
    assert (len(rows), bool(rows)) == (len(columns), bool(columns))
    for number in range(-len(rows), len(rows)):
        assert rows[number] == columns[number]
    assert rows[1:3] == list(columns[1:3])
    assert rows[::-1] == list(reversed(columns))


@given(rows=ROWS)
def test_they_survive_json_and_another_process(rows):
    """Nothing is lost on the way."""
    columns = Arrivals.of(rows)

    assert columns == Arrivals.from_json(columns.to_json())
    assert columns == pickle.loads(pickle.dumps(columns))


@given(rows=ROWS, others=ROWS)
def test_equal_arrivals_are_equal_in_any_form(rows, others):
    """Columns compare with columns and with rows, and equal ones have one hash."""
    columns = Arrivals.of(rows)

    assert (columns == Arrivals.of(others)) == (rows == others) == (columns == tuple(others)) == (columns == others)
    assert hash(columns) == hash(Arrivals.of(rows))
    assert columns != 7


def test_lateness_stands_in_json_only_where_there_is_some():
    """Most answers are stamped exactly."""
    exact, late = Arrivals([5, 6], [1, -1], [0, 0]), Arrivals([5, 6], [1, -1], [0, 2])

    assert {"at_ns": [5, 6], "tokens": [1, -1]} == exact.to_json()
    assert {"at_ns": [5, 6], "tokens": [1, -1], "late_ns": [0, 2]} == late.to_json()
    assert [0, 0] == list(Arrivals.from_json(exact.to_json()).late_ns)


def test_what_does_not_exist_is_an_error():
    """As with any sequence."""
    with pytest.raises(IndexError):
        Arrivals([5], [1], [0])[1]


def test_they_are_shown_as_they_can_be_made():
    """The text in a failed assertion is the arrivals."""
    columns = Arrivals.of([Arrival(5, None, 2)])

    assert "Arrivals.of([Arrival(at_ns=5, tokens=None, late_ns=2)])" == repr(columns)
    assert columns == eval(repr(columns))


def test_a_token_takes_twenty_bytes():
    """A million of them take little more than 20 MB."""
    tracemalloc.start()
    try:
        columns = Arrivals()
        for number in range(100_000):
            columns.append(number, 1, 0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 100_000 == len(columns)
    assert held < 100_000 * 20 * 1.2
