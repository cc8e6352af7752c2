"""The commands that accept a regression."""

import shlex
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from night_files import KEY, TEST, put, row
from report_contents import finding

from pytest_llmperf.acknowledged import read_acknowledged
from pytest_llmperf.cli import main
from pytest_llmperf.clock import timestamp
from pytest_llmperf.reports.accepting import commands
from pytest_llmperf.verdicts import IN_TURN, Judgement, Verdict

REGRESSED = Verdict.REGRESSED


def judgement(*findings, against="0001_main.json"):
    return Judgement(verdict=REGRESSED, findings=findings, against=against)


def words(lines):
    """What a shell makes of the lines."""
    return shlex.split("\n".join(lines).replace("\\\n", " "))


def test_what_is_printed_is_accepted_once_it_has_a_reason(tmp_path, monkeypatch):
    """Pasted as it is it asks for one; with one it is kept as the table has it, signs and all."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my nights"
    put(folder, 1, row([0.1, 0.1]), row([2000, 2000], metric="output_throughput"))
    found = judgement(
        finding(verdict=REGRESSED, change=0.08456),
        finding("output_throughput", REGRESSED, change=-0.0741),
        finding("tpot_p50", change=0.2),
    )

    lines = commands(TEST, KEY, found, folder)

    assert all(len(line) <= 76 for line in lines)
    given = words(lines)
    starts = [place for place, word in enumerate(given) if word == "pytest-llmperf"]
    for command in (given[starts[0] + 1 : starts[1]], given[starts[1] + 1 :]):
        assert 3 == main(command)
        assert 0 == main([word.replace("WHY", "safer sampling") for word in command])
    accepted = read_acknowledged(folder / KEY)
    assert {("ttft_p50", 0.0846), ("output_throughput", -0.0741)} == {(one.metric, one.change) for one in accepted}
    assert {TEST} == {one.test for one in accepted}
    assert all(timedelta(28) < one.expires - timestamp().date() < timedelta(32) for one in accepted)


def test_the_folder_is_named_where_it_is_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = judgement(finding(verdict=REGRESSED))

    assert "--baselines" not in words(commands(TEST, KEY, found, tmp_path / "baselines"))
    assert "nights" in words(commands(TEST, KEY, found, tmp_path / "nights"))


@pytest.mark.parametrize(
    "found",
    [
        None,
        judgement(finding()),
        judgement(finding(verdict=REGRESSED), against=f"{IN_TURN} (dtype None -> 'fp8')"),
        judgement(finding(verdict=REGRESSED, change=-1.0)),
        judgement(finding(verdict=REGRESSED, change=float("inf"))),
        judgement(finding(verdict=REGRESSED, change=None)),
    ],
)
def test_there_is_none_where_nothing_could_be_accepted(found):
    """Nothing regressed, not against nights, or by no change that could be expected from now on."""
    assert () == commands(TEST, KEY, found, Path("baselines"))


@given(st.text(min_size=1, max_size=200))
def test_no_name_becomes_more_than_a_word(name):
    """Of a name that no terminal shows as it is there is no command."""
    lines = commands(name, KEY, judgement(finding(verdict=REGRESSED)), Path("baselines"))

    assert bool(lines) == name.isprintable()
    assert not lines or [KEY, name, "--metric"] == words(lines)[3:6]
