"""`arrivals.py`: arrivals in columns behave like a sequence of arrivals."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.arrivals import UNKNOWN, Arrival, Arrivals

arrivals = st.builds(
    Arrival,
    at_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    tokens=st.one_of(st.none(), st.integers(0, (1 << 31) - 1)),
    late_ns=st.integers(0, (1 << 63) - 1),
)
lists = st.lists(arrivals, max_size=12)


@given(lists)
def test_sequence(rows):
    """Rows go in and come out the same."""
    columns = Arrivals.of(rows)
    assert rows == list(columns)
    assert rows[::-1] == list(reversed(columns))
    assert len(rows) == len(columns)
    assert bool(rows) == bool(columns)
    for index in range(-len(rows), len(rows)):
        assert rows[index] == columns[index]
        assert rows[index] in columns


@pytest.mark.slow
@given(lists, st.slices(12))
def test_slices(rows, part):
    """A slice is of the same kind."""
    sliced = Arrivals.of(rows)[part]
    assert isinstance(sliced, Arrivals)
    assert rows[part] == list(sliced)


@given(lists)
def test_what_is_kept_is_the_same(rows):
    """In less room, whatever the values; also on its way to another process and through a file."""
    columns = Arrivals.of(rows)
    columns.keep()

    assert rows == list(columns)
    assert columns == pickle.loads(pickle.dumps(columns))
    assert columns == Arrivals.from_json(json.loads(json.dumps(columns.to_json())))


def test_what_is_kept_of_an_answer_is_small():
    """One token a chunk, each seen less than 2 s late: 8 and 4 bytes a token, and a column for all such answers."""
    one, other = (Arrivals(range(1000), [1] * 1000, range(0, 2_000_000_000, 2_000_000)) for _ in range(2))
    one.keep()
    other.keep()

    assert (8000, 1000, 4000) == tuple(column.itemsize * len(column) for column in (one.at_ns, one.tokens, one.late_ns))
    assert one.tokens is other.tokens


@pytest.mark.parametrize("index", [1, -2])
def test_no_such_row(index):
    """A row that is not there is an error."""
    with pytest.raises(IndexError):
        Arrivals([1], [1], [0])[index]


@pytest.mark.slow
@given(lists, lists)
def test_equality(mine, theirs):
    """They equal a sequence of the same arrivals, and have the hash of a tuple of them."""
    columns = Arrivals.of(mine)
    assert columns == tuple(mine)
    assert tuple(mine) == columns
    assert columns == mine
    assert hash(columns) == hash(tuple(mine))
    assert (mine == theirs) == (columns == Arrivals.of(theirs)) == (columns == tuple(theirs))


@pytest.mark.parametrize("other", [5, None, {1}, "x", (1,), [(1, 1, 0)]])
def test_inequality(other):
    """They equal nothing else."""
    assert Arrivals([1], [1], [0]) != other


def test_unequal_in_one_thing():
    """Each column counts, and so does the length."""
    columns = Arrivals([1, 2], [1, 1], [0, 0])
    others = [Arrivals([1, 3], [1, 1], [0, 0]), Arrivals([1, 2], [1, 2], [0, 0]), Arrivals([1, 2], [1, 1], [0, 5])]
    assert all(columns != other for other in [*others, columns[:1], Arrivals()])


@pytest.mark.slow
@given(lists)
def test_copies(rows):
    """They can be pickled and copied, and a copy has columns of its own."""
    columns = Arrivals.of(rows)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert columns == pickle.loads(pickle.dumps(columns, protocol))
    copied = copy.deepcopy(columns)
    copied.append(1, 1, 1)
    assert rows == list(columns)


@given(lists)
def test_json(rows):
    """What is written is JSON and is read back as it was; lateness is written where there is some."""
    columns = Arrivals.of(rows)
    content = json.loads(json.dumps(columns.to_json()))
    assert columns == Arrivals.from_json(content)
    assert any(row.late_ns for row in rows) == ("late_ns" in content)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16])
def test_json_without_lateness(count):
    """However many arrivals there are, none is late where it is not said."""
    columns = Arrivals.from_json({"at_ns": list(range(count)), "tokens": [1] * count})
    assert [Arrival(at_ns, 1) for at_ns in range(count)] == list(columns)


def test_unknown_tokens():
    """A number of tokens that is not known is None in a row."""
    columns = Arrivals()
    columns.append(1, None, 0)
    columns.append(2, 3, 4)
    assert [UNKNOWN, 3] == columns.tokens.tolist()
    assert [Arrival(1, None), Arrival(2, 3, 4)] == list(columns)


def test_repr():
    """What is shown can be read as an expression."""
    columns = Arrivals([1, 2], [1, UNKNOWN], [0, 3])
    assert columns == eval(repr(columns))


def test_memory():
    """A token takes 20 bytes, and some room to grow."""
    columns = Arrivals()
    for number in range(10_000):
        columns.append(number, 1, 0)
    assert sum(sys.getsizeof(column) for column in (columns.at_ns, columns.tokens, columns.late_ns)) < 24 * 10_000
