"""Ratios that are judged like metrics, and as many runs as a verdict takes: whole pytest runs, simulated."""

from __future__ import annotations

import json

import pytest

GAIN = """
import pytest
from pytest_llmperf import multi_round, round_robin

@pytest.mark.llm_engine("vllm", model="llama-3.1-8b", prefix_caching=True)
def test_gain(llm_engine, llm_perf):
    users = multi_round(users=2, rounds=2, context_tokens=4000, input_tokens=64, output_tokens=16, seed=7)
    cold = llm_perf(llm_engine, users, load=round_robin(), cache="cold", name="cold")
    warm = llm_perf(llm_engine, users, load=round_robin(), prefill_context=True, name="warm")
    gain = llm_perf.ratio("gain", cold.by_round[0].ttft.p50, warm.by_round[0].ttft.p50)
    print("gain", round(gain, 1))
    {more}
"""

ONE = """
import pytest
from pytest_llmperf import multi_round, round_robin

@pytest.mark.llm_engine("vllm", model="llama-3.1-8b", prefix_caching=True)
def test_it(llm_engine, llm_perf):
    users = multi_round(users=2, rounds=2, context_tokens=1000, input_tokens=64, output_tokens=32, seed=7)
    llm_perf(llm_engine, users, load=round_robin())
"""


@pytest.fixture
def run(pytester):
    """One pytest run on a simulated GH200 with noise; nights differ by their seed."""

    def start(test, *arguments, seed=1, noise=0.01):
        pytester.makepyfile(test_it=test)
        noisy = ("--llmperf-set", f"run_noise={noise}", "--llmperf-set", f"noise_seed={seed}")
        common = (
            "-p",
            "no:cacheprovider",
            "-W",
            "default",
            "--llmperf-hardware",
            "sim:gh200",
            "--benchmark-json",
            "out.json",
        )
        return pytester.runpytest_inprocess(*common, *noisy, *arguments)

    return start


def row(pytester, name):
    """A benchmark of the session's file, by the end of its name."""
    rows = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    (found,) = [one for one in rows if one["fullname"].endswith(name)]
    return found


@pytest.mark.slow
def test_a_ratio_is_recorded_with_one_value_for_each_run(run, pytester):
    """In pytest-benchmark's own form, turned so that lower is better."""
    run(GAIN.format(more="")).assert_outcomes(passed=1, warnings=3)

    found = row(pytester, "::test_gain::ratio:gain")

    about = found["extra_info"]["llmperf"]
    assert ("ratio:gain", "ratio", "1/value") == (about["metric"], about["unit"], about["stored_as"])
    assert 5 == len(found["stats"]["data"])
    assert all(0.05 < value < 0.5 for value in found["stats"]["data"])


@pytest.mark.slow
def test_a_gain_that_is_gone_is_a_regression_of_the_ratio(run):
    """Judged against stored nights, in its own direction."""
    run(GAIN.format(more=""), "--llmperf-save-baseline", "main", "--llmperf-gate", "off")

    same = run(GAIN.format(more=""), seed=2)
    gone = run(GAIN.format(more=""), "--llmperf-set", "slow=prefix_cache:off", seed=2)

    same.assert_outcomes(passed=1)
    same.stdout.fnmatch_lines(["PASS *::test_gain::ratio:gain, against 0001_main.json (5 + 5 runs)"])
    gone.assert_outcomes(failed=1)
    gone.stdout.fnmatch_lines(["REGRESSED *::test_gain::ratio:gain, against *", "*ratio:gain * -8?.? % * REGRESSED"])


@pytest.mark.slow
def test_a_mark_of_a_ratio_that_is_not_recorded_is_an_error(run):
    """A misspelt name would else gate nothing."""
    misspelt = GAIN.format(more="").replace(
        "def test_gain", "@pytest.mark.llm_gate(metric='ratio:gian', detect=0.05)\ndef test_gain"
    )

    result = run(misspelt, "--llmperf-gate", "off")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["llm_gate names ratio:gian, which the test did not record; it recorded ratio:gain*"])


def test_where_nothing_is_recorded_a_ratio_is_still_a_number(run):
    """With benchmarks disabled each workload runs once."""
    run(GAIN.format(more=""), "--benchmark-disable").assert_outcomes(passed=1, warnings=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("llm_perf.ratio('gain', 2.0, 1.0)", "*measures ratio:gain twice*"),
        ("llm_perf.ratio('a::b', 2.0, 1.0)", "*expected a name without '::', got 'a::b'*"),
        ("llm_perf.ratio('other', 0.0, 1.0)", "*expected a positive figure such as result.ttft.p50, got 0.0*"),
        ("llm_perf.ratio('other', 1.0, None)", "*expected a positive figure such as result.ttft.p50, got None*"),
    ],
)
def test_what_is_no_ratio_is_refused(run, more, complaint):
    """And what was measured before it stands."""
    result = run(GAIN.format(more=more), "--llmperf-gate", "off")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([complaint])


@pytest.mark.slow
def test_a_clear_verdict_ends_a_measurement(run, pytester):
    """Three runs show that all is well where noise is low; with more noise it takes more, up to the budget."""
    run(ONE, "--llmperf-save-baseline", "main", "--llmperf-gate", "off", noise=0.005)

    few = run(ONE, "--llmperf-runs", "auto", seed=2, noise=0.005)
    assert 3 == len(row(pytester, "ttft_p50")["stats"]["data"])
    more = run(ONE, "--llmperf-runs", "auto:8", seed=2, noise=0.08)
    assert 8 == len(row(pytester, "ttft_p50")["stats"]["data"])

    few.stdout.fnmatch_lines(["PASS *::test_it, against 0001_main.json (5 + 3 runs)"])
    more.stdout.fnmatch_lines(["* *::test_it, against 0001_main.json (5 + 8 runs)"])


@pytest.mark.slow
def test_a_large_slowdown_ends_a_measurement(run, pytester):
    """It is shown before the budget is spent."""
    run(ONE, "--llmperf-save-baseline", "main", "--llmperf-gate", "off", noise=0.02)

    result = run(ONE, "--llmperf-runs", "auto", "--llmperf-set", "slow=decode:+40%", seed=2, noise=0.02)

    result.assert_outcomes(failed=1)
    assert len(row(pytester, "tpot_p50")["stats"]["data"]) < 20


@pytest.mark.slow
def test_a_stored_test_that_is_gone_is_missed(run, pytester):
    """A renamed test would else lose its baseline silently; a part of the tests that is chosen misses nothing."""
    run(ONE + ONE.replace("test_it", "test_other"), "--llmperf-save-baseline", "main", "--llmperf-gate", "off")

    whole = run(ONE, seed=2)
    chosen = run(ONE, "-k", "test_it", seed=2)

    missing = "MISSING: test_it.py::test_other is stored for sim-gh200 and is not there any more; was it renamed?"
    whole.stdout.fnmatch_lines([missing])
    chosen.stdout.no_fnmatch_line("MISSING*")


@pytest.mark.slow
def test_without_a_baseline_there_is_nothing_to_be_clear_about(run, pytester):
    """As many runs as are measured by default make a first baseline."""
    run(ONE, "--llmperf-runs", "auto").assert_outcomes(passed=1, warnings=1)

    assert 5 == len(row(pytester, "ttft_p50")["stats"]["data"])


@pytest.mark.slow
def test_a_budget_of_minutes_is_kept(run, pytester):
    """The time is that of the engine: virtual minutes of a simulated one."""
    run(ONE, "--llmperf-save-baseline", "main", "--llmperf-gate", "off", noise=0.08)

    slow = ONE.replace("output_tokens=32", "output_tokens=8000")
    run(slow, "--llmperf-save-baseline", "main", "--llmperf-gate", "off", "--llmperf-runs", "3", noise=0.08)
    run(slow, "--llmperf-runs", "auto:1min", seed=2, noise=0.08)

    assert 3 == len(row(pytester, "ttft_p50")["stats"]["data"])
