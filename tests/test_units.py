"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from pytest_llmperf import units


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0 us"),
        (0.0000012, "1.20 us"),
        (0.000999, "999 us"),
        (0.001, "1.00 ms"),
        (0.0412, "41.2 ms"),
        (0.5, "500 ms"),
        (1.0, "1.00 s"),
        (83.25, "83.2 s"),
        (1234.5, "1,234 s"),
        (-0.0412, "-41.2 ms"),
        (math.inf, "inf s"),
    ],
)
def test_seconds_are_shown_in_the_unit_that_suits(value, expected):
    """A duration has three significant digits in us, ms or s."""
    assert expected == units.seconds(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (2**20, "1.00 MiB"),
        (5 * 2**20, "5.00 MiB"),
        (2**30, "1.00 GiB"),
        (3221225472, "3.00 GiB"),
        (400 * units.GIB, "400 GiB"),
        (-2048, "-2.00 KiB"),
        (math.inf, "inf B"),
    ],
)
def test_sizes_are_shown_in_binary_units(value, expected):
    """Bytes are scaled by powers of 1024."""
    assert expected == units.size(value)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.052, "+5.2 %"),
        (0.0, "+0.0 %"),
        (-0.0, "+0.0 %"),
        (-0.0004, "+0.0 %"),
        (-0.1, "-10.0 %"),
        (0.999, "+99.9 %"),
        (1.0, "x2.00"),
        (14.9, "x15.9"),
        (math.inf, "x∞"),
        (1e9, ">x1000"),
    ],
)
def test_changes_have_a_sign_or_are_factors(ratio, expected):
    """A change is a signed percentage, from a doubling on a factor."""
    assert expected == units.change(ratio)


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, "0.0 %"), (0.984, "98.4 %"), (1.0, "100.0 %")])
def test_shares_are_percentages_without_a_sign(ratio, expected):
    """A share of a whole has one digit after the point."""
    assert expected == units.share(ratio)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "<1e-6"), (9e-7, "<1e-6"), (1e-6, "1e-06"), (0.0123, "0.012"), (1.0, "1")]
)
def test_tiny_probabilities_are_said_to_be_below_a_limit(value, expected):
    """Nobody needs the size of a p-value below one in a million."""
    assert expected == units.probability(value)


@pytest.mark.parametrize(("number", "expected"), [(0, "0 runs"), (1, "1 run"), (5, "5 runs")])
def test_counted_nouns_have_their_plural(number, expected):
    """One run, otherwise runs."""
    assert expected == units.count(number, "run")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0412, units.SECONDS, "41.2 ms"),
        (12345.6, units.TOKENS_PER_SECOND, "12,346 tok/s"),
        (0.4123, units.JOULES_PER_TOKEN, "0.412 J/token"),
        (655.4, units.WATTS, "655 W"),
        (3.14159, units.REQUESTS_PER_SECOND, "3.14 req/s"),
        (0.984, units.RATIO, "98.4 %"),
    ],
)
def test_a_quantity_is_shown_in_its_unit(value, unit, expected):
    """Each base unit has one form."""
    assert expected == units.quantity(value, unit)


def test_a_unit_that_is_not_a_base_unit_has_no_form():
    """Milliseconds do not exist inside the package."""
    with pytest.raises(KeyError, match="ms"):
        units.quantity(1.0, "ms")


@pytest.mark.parametrize(
    ("value", "expected"), [(0.2, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (754, "12:34"), (3725.2, "1:02:05")]
)
def test_time_left_is_shown_as_a_clock_does(value, expected):
    """In whole seconds."""
    assert expected == units.left(value)
