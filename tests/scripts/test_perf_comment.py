"""The comment that quotes a report of a branch's own making."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "scripts" / "perf_comment.py"
_SPEC = importlib.util.spec_from_file_location("perf_comment", SCRIPT)
perf_comment = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(perf_comment)

EVENT = {"outcome": "success", "head": "0123456789abcdef", "url": "https://host/o/r/actions/runs/1"}


def quoted(made):
    """The lines below the heading, as far as there is a report."""
    return made.split("\n\n", 1)[1].rstrip("\n").split("\n")


def test_a_report_is_quoted_below_what_is_known_of_it():
    made = perf_comment.comment("REGRESSED test_it\n  ttft_p50\n", **EVENT)

    assert made.startswith("**Performance of 0123456789 against its base: no regression was shown.**\n")
    assert ["    REGRESSED test_it", "      ttft_p50"] == quoted(made)


@settings(deadline=None)
@given(st.text())
def test_nothing_in_a_report_gets_out_of_the_quotation(report):
    """Whatever it holds, each of its lines is indented and has no character that is no text."""
    lines = quoted(perf_comment.comment(f"first\n{report}\nlast", **EVENT))

    assert all(line.startswith("    ") and line.isprintable() for line in lines)
    assert 1 == len({len(re.match(" *", line)[0]) >= 4 for line in lines})


def test_colours_are_taken_out_and_other_escapes_are_shown():
    lines = quoted(perf_comment.comment("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x07 \u202e", **EVENT))

    assert ["    red  ? ?"] == lines


def test_a_long_report_keeps_its_end_and_fits_a_comment():
    made = perf_comment.comment("\n".join(f"line {n}" for n in range(100_000)), **EVENT)

    assert len(made) < 65_536
    assert "... (the whole report is in the artifact)" in made
    assert made.endswith("line 99999\n")


@pytest.mark.parametrize(
    ("outcome", "said"), [("failure", "a regression, or"), ("cancelled", "nothing is known"), ("new*word", "new?word")]
)
def test_it_says_how_the_job_ended(outcome, said):
    assert said in perf_comment.comment("x", **{**EVENT, "outcome": outcome})


def test_no_report_is_said(tmp_path):
    """A missing file, a folder, and a link to something of the machine's own."""
    (tmp_path / "link").symlink_to("/etc/passwd")

    for path in (tmp_path / "missing", tmp_path, tmp_path / "link"):
        assert perf_comment.read(path) is None
    assert "left no report" in perf_comment.comment(None, **EVENT)


def test_a_huge_file_is_read_from_its_end(tmp_path):
    path = tmp_path / "report.txt"
    path.write_bytes(b"x" * perf_comment.MOST_BYTES + b"\xff the end")

    assert perf_comment.read(path).endswith("\ufffd the end")
    assert len(perf_comment.read(path)) <= perf_comment.MOST_BYTES
