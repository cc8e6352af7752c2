"""Clocks at which GPUs worked, against those of the baseline."""

from __future__ import annotations

import pytest

from pytest_llmperf.gate.clocks import clock_since


def test_off():
    sentence = clock_since(1980, 1700)
    assert "worked at 1700 MHz and at 1980 MHz when the baseline was stored, off by 14.1 % where 5.0 %" in sentence


@pytest.mark.parametrize("pair", [(1980, 1930), (1980, 2070), (None, 1700), (1980, None)])
def test_near_or_unknown(pair):
    assert clock_since(*pair) is None
