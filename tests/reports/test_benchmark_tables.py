"""pytest-benchmark's tables in a session of ours."""

import json

import pytest

OURS = """
import pytest
from pytest_llmperf import single_turn

@pytest.mark.llm_engine("sim", model="llama-3.1-8b", part="gh200")
def test_ours(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=2, input_tokens=100, output_tokens=8, seed=7))
"""
THEIRS = """
def test_theirs(benchmark):
    benchmark.pedantic(int, rounds=3)
"""
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin", "-p", "no:cacheprovider")


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def go(*arguments, tests=OURS):
        pytester.makepyfile(test_it=tests)
        words = (*PLUGINS, "--assert", "plain", "-W", "ignore", "--llmperf-runs", "2", *arguments)
        return pytester.runpytest_inprocess(*words)

    return go


def test_what_has_a_table_of_ours_is_in_none_of_theirs(run, pytester):
    """And is stored as ever."""
    result = run("--benchmark-json", "out.json")

    assert result.ret == 0
    assert "Name (time" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*= llmperf on sim-gh200 =*", "  ttft_p50 *"])
    assert 3 == len(json.loads((pytester.path / "out.json").read_text())["benchmarks"])


def test_the_user_s_own_benchmarks_are_shown(run):
    result = run(tests=OURS + THEIRS)

    result.stdout.fnmatch_lines(["*benchmark: 1 tests*", "Name (time *", "test_theirs *"])
    assert "test_ours::" not in result.stdout.str()


@pytest.mark.parametrize(
    "option",
    ["--benchmark-columns=min,median", "--benchmark-sort=name", "--benchmark-verbose", "--benchmark-name=long"],
)
def test_whoever_asks_for_tables_gets_them(run, option):
    run(option).stdout.fnmatch_lines(["*benchmark 'ttft_p50': 1 tests*", "Name (time *", "*test_ours::ttft_p50 *"])


def test_what_pytest_benchmark_compares_it_shows(run):
    """It checks what it shows, and nothing else."""
    run("--benchmark-autosave")

    run("--benchmark-compare").stdout.fnmatch_lines(["*benchmark 'ttft_p50': 2 tests*", "*test_ours::ttft_p50 (0001*"])
