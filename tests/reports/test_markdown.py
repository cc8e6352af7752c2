"""The comment on a pull request."""

import html
import re
from pathlib import Path

import pytest
from report_contents import HOSTILE, KEY, TEST, before, finding, report, section

from pytest_llmperf.reports.content import Section
from pytest_llmperf.reports.markdown import code, markdown, marker
from pytest_llmperf.verdicts import Judgement, Verdict

GOLDEN = Path(__file__).parent / "comment.md"


def seen_at_once(comment):
    """The lines that a reader sees before unfolding anything; blank ones do not show."""
    return [line for line in re.sub(r"<details>.*?</details>", "folded", comment, flags=re.DOTALL).splitlines() if line]


def test_the_comment_as_a_whole():
    regressed = section(
        Verdict.REGRESSED,
        "perf_tests/test_it.py::test_slow",
        before=before(),
        differences=("version '0.31' -> '0.32'",),
        doubts=("eviction is unverified",),
        accepting=("pytest-llmperf baseline acknowledge KEY \\", "  test_slow --metric ttft_p50"),
    )
    comment = markdown(report(section(), regressed, commit="0123456789abcdef"))

    assert re.sub(r"pytest-llmperf \d\S*", "pytest-llmperf VERSION", comment) == GOLDEN.read_text(encoding="utf-8")


def test_the_marker_is_the_same_for_the_same_hardware():
    assert marker(report(section())) == marker(report(section(Verdict.REGRESSED, "other")))
    assert markdown(report(section())).splitlines()[0] == marker(report(section()))


@pytest.mark.parametrize("key", ["--><b>", "a--b", "", "x\ny", "ü"])
def test_no_hardware_key_ends_the_marker(key):
    line = marker(report(section(hardware_key=key)))

    assert re.fullmatch(r"<!-- pytest-llmperf report: [A-Za-z0-9._+-]+ -->", line)
    assert "--" not in line[4:-3]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 50])
def test_at_most_20_lines_are_seen_at_once(count):
    many = [section(Verdict.REGRESSED, f"t.py::test_{k}", doubts=("d",) * 5) for k in range(count)]

    assert len(seen_at_once(markdown(report(*many, notes=("one", "two"))))) <= 20


def test_green_measurements_are_folded():
    assert all("test_rounds" not in line for line in seen_at_once(markdown(report(section()))))
    assert "test_rounds" in markdown(report(section()))


def test_what_to_do_and_why_a_run_is_invalid_are_seen_at_once():
    judgement = Judgement(verdict=Verdict.INVALID_RUN, advice="mend it @me")
    invalid = section(judgement=judgement, invalid=("3 of 3 requests failed", "and more"), findings=())

    seen = seen_at_once(markdown(report(invalid)))

    assert any("What to do: <code>mend it &#64;me</code>" in line for line in seen)
    assert any("<code>3 of 3 requests failed</code>" in line for line in seen)


def test_what_does_not_fit_is_said():
    many = [section(name=f"t.py::test_{k}") for k in range(500)]

    comment = markdown(report(*many))

    assert len(comment) <= 60_000
    shown = comment.count("<pre>")
    assert f"and {500 - shown} more measurements" in comment
    assert comment.rstrip().endswith("</details>")


def test_text_from_elsewhere_is_shown_and_steers_nothing():
    hostile = section(Verdict.REGRESSED, HOSTILE, hardware_key=HOSTILE, doubts=(HOSTILE,), about={"model": HOSTILE})
    invalid = Section(name="t", test="t", hardware_key="k", invalid=(HOSTILE,))

    comment = markdown(report(hostile, invalid, source=HOSTILE, notes=(HOSTILE,)))

    assert "<script>" not in comment
    assert "\x1b" not in comment
    assert "\u202e" not in comment
    assert comment.count("</pre>") == comment.count("<pre>") == 2
    assert "<script>alert(1)</script> \\x1b[31m" in html.unescape(comment)
    _, _, below = comment.partition("\n")
    outside = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", below, flags=re.DOTALL)
    assert "@" not in outside
    assert "alert" not in outside


def test_code_leaves_markdown_nothing_to_read():
    written = code("a|b `c` *d* _e_ [f](g) <h> @i #2 https://j")

    assert not re.search(r"[|`*_\[\]()@:/]", written.removeprefix("<code>").removesuffix("</code>"))
    assert html.unescape(written) == "<code>a|b `c` *d* _e_ [f](g) <h> @i #2 https://j</code>"


def test_a_report_of_nothing_says_so():
    assert "nothing was measured" in markdown(report())


def test_tests_that_failed_without_a_verdict_keep_the_comment_from_being_green():
    """An assertion, or an engine that did not start: one line of the tally, and what to do."""
    alone = markdown(report(failed=(TEST,), keys=(KEY,)))
    beside = markdown(report(section(), failed=(TEST,), keys=(KEY,)))

    assert "### 1 failed, nothing was measured" in alone
    assert f"<!-- pytest-llmperf report: {KEY} -->" in alone
    assert "### 1 failed, 1 PASS" in beside
    for one in (alone, beside):
        assert "What to do: see the output of pytest for why tests failed<br>" in one
        assert "nothing to do" not in one


def test_an_invalid_measurement_says_why():
    comment = markdown(report(Section(name="t", test="t", hardware_key="k", invalid=("3 of 3 requests failed",))))

    assert "1 INVALID_RUN" in comment
    assert "invalid: 3 of 3 requests failed" in comment


def test_a_judgement_without_figures_is_shown():
    unknown = dict.fromkeys(("baseline", "change", "interval", "p", "detectable"))
    judgement = Judgement(verdict=Verdict.NO_BASELINE, findings=(finding(verdict=Verdict.NO_BASELINE, **unknown),))

    assert "**NO_BASELINE**" in markdown(report(section(Verdict.NO_BASELINE, judgement=judgement)))
