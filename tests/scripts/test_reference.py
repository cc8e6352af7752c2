"""docs/reference.md is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import pytest_llmperf
from pytest_llmperf.cli import SUBCOMMANDS
from pytest_llmperf.engines.spec import WORDS
from pytest_llmperf.metrics import LATENCIES, METRICS
from pytest_llmperf.options import OPTIONS, Option
from pytest_llmperf.plugin import FIXTURES, PART_MARKS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(reference):
    """Otherwise: make reference."""
    assert reference.page() == reference.PAGE.read_text(encoding="utf-8")


def test_nothing_is_left_out(reference):
    """Every option with its twin, mark, fixture, metric, word, name and command has a line that says something."""
    page = reference.page()

    for option in OPTIONS:
        assert f"| `{option.flag}" in page
        assert f"`{option.key} =" in page
    assert all(f"`{name}`" in page for name in (*PART_MARKS, *FIXTURES, *LATENCIES, *WORDS))
    assert all(f"`{name}`" in page for name in METRICS if name.rpartition("_")[0] not in LATENCIES)
    assert all(f"`{name}" in page for name in pytest_llmperf.__all__)
    assert all(f"### pytest-llmperf {name}\n" in page for name in SUBCOMMANDS)
    assert not [line for line in page.splitlines() if "|  |" in line and not line.startswith("| `p")]


def test_a_new_option_makes_it_out_of_date(reference, monkeypatch):
    """So that the page cannot be forgotten."""
    monkeypatch.setattr(reference, "OPTIONS", (*OPTIONS, Option("new", "does something new", "N")))

    assert "| `--llmperf-new N` | `llmperf_new =` | does something new |" in reference.page()
    assert reference.page() != reference.PAGE.read_text(encoding="utf-8")
