"""Annotations as GitHub Actions reads them from a log."""

from report_contents import TEST, finding, report, section

from pytest_llmperf.reports.content import Section
from pytest_llmperf.reports.github import Place, commands
from pytest_llmperf.verdicts import Judgement, Verdict


def test_a_regression_is_an_error_at_its_test():
    judgement = Judgement(
        verdict=Verdict.REGRESSED, findings=(finding(verdict=Verdict.REGRESSED),), advice="look at 100 % of it"
    )

    found = list(commands(report(section(judgement=judgement)), {TEST: Place("perf_tests/test_it.py", 12)}))

    assert found == [
        "::error file=perf_tests/test_it.py,line=12,title=REGRESSED perf_tests/test_it.py%3A%3Atest_rounds[4]"
        "::ttft_p50 100 ms -> 120 ms, +20.0 %25%0Alook at 100 %25 of it"
    ]


def test_each_verdict_has_its_level_and_green_has_none():
    sections = [
        section(Verdict.PASS),
        section(Verdict.IMPROVED),
        section(Verdict.INCONCLUSIVE),
        section(Verdict.NO_BASELINE),
        Section(name="t", test="t", hardware_key="k", invalid=("failed",)),
        Section(name="t", test="t", hardware_key="k"),
    ]

    levels = [one.split(" ")[0] for one in commands(report(*sections), {})]

    assert levels == ["::error", "::warning", "::notice"]


def test_a_regression_that_fails_nothing_is_a_warning():
    assert next(commands(report(section(Verdict.REGRESSED)), {}, is_lenient=True)).startswith("::warning ")


def test_no_text_begins_another_command_or_property():
    hostile = "a,line=1::b\n::error::c\r\x1b[0m"

    (found,) = commands(report(Section(name=hostile, test="t", hardware_key="k", invalid=(hostile,))), {})

    assert len(found.splitlines()) == 1
    properties, _, _ = found.removeprefix("::error ").partition("::")
    assert properties.count("=") == 2  # its own, and the one within the title, which ends at no comma
    assert "," not in properties


def test_no_more_than_github_shows():
    many = [section(Verdict.REGRESSED, f"t.py::test_{k}") for k in range(30)]

    assert len(list(commands(report(*many, section(Verdict.NO_BASELINE)), {}))) == 11
