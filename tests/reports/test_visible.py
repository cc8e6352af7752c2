"""Text that may hold anything, shown as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.reports.visible import visible


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("lone \ud800", "lone \\ud800"),
        ("two\nlines", "two\nlines"),
        ("a\u00a0b", "a b"),
        ("cr\rback", "cr\\rback"),
        (7, "7"),
    ],
)
def test_what_cannot_be_seen_is_written_out(given_text, shown):
    assert visible(given_text) == shown


def test_a_long_text_ends():
    assert visible("x" * 100, 10) == "x" * 9 + "…"


@given(st.text(st.characters()))
def test_anything_can_be_written_to_a_file_and_steers_nothing(text):
    shown = visible(text)

    assert shown.encode("utf-8").decode("utf-8") == shown
    assert all(one.isprintable() or one == "\n" for one in shown)
