"""Reports that a session writes: whole pytest runs on the simulated engine."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pytest_llmperf.clock import VirtualClock

TESTS = """
import pytest
from pytest_llmperf import lifecycle, single_turn

@pytest.mark.llm_engine("sim", model="llama-3.1-8b", part="gh200")
class TestIt:
    def test_it(self, llm_engine, llm_perf):
        llm_perf(llm_engine, single_turn(requests=2, input_tokens=100, output_tokens=8, seed=7))

    @pytest.mark.parametrize("users", [1, 2, 3])
    def test_users(self, users, llm_engine, llm_perf):
        llm_perf(llm_engine, single_turn(requests=users, input_tokens=100, output_tokens=8, seed=7), name="<b>")
"""
SPOILED = """
from fakes import Script, VirtualEngine
from pytest_llmperf import lifecycle, single_turn
from pytest_llmperf.records import Failure

def test_it(llm_perf):
    script = Script(fail=lambda number: Failure("timeout", "no answer"))
    engine = VirtualEngine(script=script, clock=lifecycle.RealClock())
    llm_perf(engine, single_turn(requests=2, input_tokens=100, output_tokens=8, seed=7))
"""
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin")


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def go(*arguments, tests=TESTS):
        pytester.makepyfile(test_it=tests)
        return pytester.runpytest_inprocess(
            *PLUGINS, "--assert", "plain", "-p", "no:cacheprovider", "-W", "default", "--llmperf-runs", "2", *arguments
        )

    return go


@pytest.mark.slow
def test_page_and_comment_are_written(run, pytester):
    result = run("--llmperf-report", "report.html", "--llmperf-markdown", "report.md")

    assert result.ret == 0
    page = (pytester.path / "report.html").read_text(encoding="utf-8")
    comment = (pytester.path / "report.md").read_text(encoding="utf-8")
    assert "4 NO_BASELINE" in page
    assert "test_it.py::TestIt::test_users[3]::&lt;b&gt;" in page
    assert "Throughput over users" in page
    assert "The runs over time" in page
    assert comment.startswith("<!-- pytest-llmperf report: sim-gh200 -->\n### 4 NO_BASELINE\n")
    result.stdout.fnmatch_lines(["report: *report.html", "report: *report.md"])


@pytest.mark.slow
def test_a_session_is_set_beside_what_was_stored_before_it_and_not_beside_itself(run, pytester):
    run("-k", "test_it", "--llmperf-save-baseline", "main", "--llmperf-report", "first.html")
    run("-k", "test_it", "--llmperf-report", "second.html")

    assert "there is no baseline to set it beside" in (pytester.path / "first.html").read_text(encoding="utf-8")
    assert "Against 0001_main.json" in (pytester.path / "second.html").read_text(encoding="utf-8")


def test_a_measurement_of_failures_alone_is_reported(run, pytester, monkeypatch):
    clock = VirtualClock()
    monkeypatch.setattr("pytest_llmperf.lifecycle.RealClock", lambda: clock)

    result = run("--llmperf-report", "report.html", tests=SPOILED)

    assert result.ret != 0
    page = (pytester.path / "report.html").read_text(encoding="utf-8")
    assert "1 INVALID_RUN" in page
    assert "Invalid: " in page
    result.stdout.fnmatch_lines(["unfinished: test_it.py::test_it: 0 of 2 runs on record"])
    assert "--llmperf-resume" not in result.stdout.str()  # nothing is there to go on from


def test_what_cannot_be_written_is_said_before_the_run(run, pytester):
    result = run("--llmperf-report", "none/report.html", "--llmperf-markdown", ".")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llmperf-report: *none/report.html cannot be written: there is no folder*"])
    result.stderr.fnmatch_lines(["*--llmperf-markdown: * is a folder; name a file in it*"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--llmperf-report", "--llmperf-markdown"),
        ("--llmperf-markdown", "--benchmark-json"),
        ("--llmperf-report", "--junit-xml"),
    ],
)
def test_one_file_for_two_is_said_before_the_run(run, pytester, one, other):
    """Only the last that is written would be there."""
    result = run(one, "out", other, "./out")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{one} and {other} name one file, {pytester.path}/out; give each a file of its own"])


def test_without_a_performance_test_there_is_no_report_and_that_is_said(run, pytester):
    result = run("--llmperf-markdown", "report.md", tests="def test_it(): pass")

    assert not (pytester.path / "report.md").exists()
    result.stdout.fnmatch_lines(["llmperf: no report was written, as no performance test was run here"])


def test_where_nothing_is_recorded_there_is_no_report_and_that_is_said(run, pytester):
    result = run("-k", "test_it", "--llmperf-markdown", "report.md", "--benchmark-disable")

    assert not (pytester.path / "report.md").exists()
    result.stdout.fnmatch_lines(["no report: benchmarks are disabled *"])


@pytest.mark.slow
def test_the_ini_twin_counts_from_the_root_directory(run, pytester):
    pytester.makeini("[pytest]\nllmperf_markdown = report.md")

    run("-k", "test_it")

    assert (pytester.path / "report.md").is_file()


def test_a_library_that_is_missing_is_said_before_the_run(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    result = run("--llmperf-report", "report.html")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--llmperf-report needs jinja2 and matplotlib: pip install 'pytest-llmperf?report?'*"]
    )


def test_a_report_that_can_no_longer_be_written_is_no_success(run, pytester):
    gone = "\nimport shutil\ndef test_last():\n    shutil.rmtree('there')\n"
    pytester.mkdir("there")

    result = run("-k", "test_it or test_last", "--llmperf-markdown", "there/report.md", tests=TESTS + gone)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["the report: *there/report.md cannot be written: No such file or directory; make the folder, *"]
    )


def test_github_gets_annotations_and_a_summary(run, pytester, monkeypatch):
    summary = pytester.path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))

    result = run("-k", "test_it and not users")

    assert summary.read_text().startswith("before\n<!-- pytest-llmperf report: sim-gh200 -->")
    at = f"file={pytester.path.name}/test_it.py,line=6"
    result.stdout.fnmatch_lines([f"::notice {at},title=NO_BASELINE test_it.py%3A%3ATestIt%3A%3Atest_it::*"])


def test_nothing_of_the_kind_elsewhere(run, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    assert "::notice" not in run("-k", "test_it").stdout.str()


def test_junit_files_hold_verdicts_and_metrics(run, pytester):
    run("-k", "test_it and not users", "--llmperf-save-baseline", "main")
    run("-k", "test_it and not users", "--junitxml", "junit.xml")

    found = ElementTree.parse(pytester.path / "junit.xml").iter("property")
    properties = {one.get("name"): one.get("value") for one in found}
    assert properties["llmperf_verdict"] == "PASS"
    assert properties["llmperf_measurement"] == "test_it.py::TestIt::test_it"
    assert float(properties["llmperf_ttft_p50"]) > 0
    assert float(properties["llmperf_ttft_p50_baseline"]) > 0
    assert abs(float(properties["llmperf_ttft_p50_change"])) < 0.01


@pytest.mark.slow
def test_junit_files_hold_whatever_a_measurement_is_called(run, pytester):
    tests = TESTS.replace('"<b>"', r'"<b>]]>&"')
    run("-k", "test_users", "--llmperf-save-baseline", "main", tests=tests)
    run("-k", "test_users", "--junitxml", "junit.xml", tests=tests)

    names = {one.get("name") for one in ElementTree.parse(pytester.path / "junit.xml").iter("property")}
    assert "llmperf_<b>]]>&_ttft_p50" in names
