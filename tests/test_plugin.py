"""The plugin as its users meet it: whole pytest runs, on an engine in virtual time."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy import special
from servers import CompletionsServer

import pytest_llmperf

# A test directory of a user: one engine that answers as scripted, no process, no waiting.
CONFTEST = """
import jsonschema
import numpy as np
import pytest
from scipy import special
from fakes import in_virtual_time, noisy_engine
from pytest_llmperf.clock import VirtualClock

CLOCK = VirtualClock()

def pytest_configure(config):
    in_virtual_time(config, CLOCK)

@pytest.fixture
def engine(request):
    return noisy_engine(CLOCK, {slow}, {slow_decode})
"""

TEST = """
from pytest_llmperf import multi_round, round_robin

def test_rounds(engine, llm_perf):
    conversations = multi_round(users=4, rounds=2, context_tokens=256, input_tokens=16, output_tokens=8, seed=7)
    result = llm_perf(engine, conversations, load=round_robin())
    assert result.ttft.p50 > 0
"""


@pytest.fixture
def suite(pytester):
    """A directory with one performance test; `suite(slow=1.2)` makes the engine slower."""

    def write(test=TEST, slow=1.0, slow_decode=1.0):
        pytester.makeconftest(CONFTEST.format(slow=slow, slow_decode=slow_decode))
        pytester.makepyfile(test_it=test)
        return pytester

    return write


def run(pytester, *arguments):
    """One pytest run. The nights of the virtual engine do not differ, which an option of the test's own can deny."""
    alike = ("--llmperf-night-spread", "0")
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "default", *alike, *arguments)


def test_without_a_baseline_the_test_passes_with_a_warning_that_says_how_to_store_one(suite):
    """A first run is green with a warning, not a failure and not plain green."""
    result = run(suite())

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*NoBaselineWarning: NO_BASELINE*", "*--llmperf-save-baseline NAME"])


@pytest.mark.slow
def test_a_stored_level_is_met_again(suite):
    """The same engine against its own baseline: PASS, no warning, exit 0."""
    run(suite(), "--llmperf-save-baseline", "main").assert_outcomes(passed=1, warnings=1)

    result = run(suite())

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["PASS test_it.py::test_rounds, against 0001_main.json (5 + 5 runs)"])


@pytest.mark.slow
def test_a_session_tells_how_much_nights_are_taken_to_differ(suite):
    """After one stored night nothing is known of others: the verdict is cautious and says so."""
    run(suite(), "--llmperf-save-baseline", "main")

    result = run(suite(), "--llmperf-night-spread", "0.05")

    result.stdout.fnmatch_lines(
        [
            "INCONCLUSIVE test_it.py::test_rounds, against 0001_main.json (5 + 5 runs)",
            "*: nights are taken to differ by 5.0 % (--llmperf-night-spread)*from 1 stored night, 5 more*",
        ]
    )


@pytest.mark.slow
def test_a_slower_engine_fails_its_test(suite):
    """A regression is the test's failure: exit 1, with metric, change, interval and what could be seen."""
    run(suite(), "--llmperf-save-baseline", "main")

    result = run(suite(slow=1.2), "--junitxml", "junit.xml")

    result.assert_outcomes(failed=1)
    assert 1 == result.ret
    result.stdout.fnmatch_lines(
        [
            "REGRESSED test_it.py::test_rounds, against 0001_main.json*",
            "  ttft_p50*+2?.? %*+* % .. +* %*REGRESSED",
            "*what to do:*",
        ]
    )
    case = ET.parse(suite().path / "junit.xml").find(".//testcase")
    assert case.find("failure") is not None
    assert "REGRESSED" in case.find("failure").get("message")


@pytest.mark.slow
def test_a_regressed_run_is_not_stored(suite):
    """A baseline does not move with a regression, until someone accepts the new level."""
    run(suite(), "--llmperf-save-baseline", "main")

    refused = run(suite(slow=1.2), "--llmperf-save-baseline", "slow")
    accepted = run(suite(slow=1.2), "--llmperf-save-baseline", "slow", "--llmperf-gate", "off")
    after = run(suite(slow=1.2))

    refused.stdout.fnmatch_lines(["not stored: REGRESSED*"])
    accepted.stdout.fnmatch_lines(["stored as baseline: *0002_slow.json"])
    after.assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_faster_engine_is_green(suite):
    """IMPROVED passes and says so."""
    run(suite(), "--llmperf-save-baseline", "main")

    result = run(suite(slow=0.7))

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["IMPROVED test_it.py::test_rounds*"])


@pytest.mark.slow
def test_gate_warn_does_not_fail(suite):
    """With `--llmperf-gate warn` a regression is a warning."""
    run(suite(), "--llmperf-save-baseline", "main")

    result = run(suite(slow=1.2), "--llmperf-gate", "warn")

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*RegressionWarning: REGRESSED*"])


@pytest.mark.slow
def test_gate_off_judges_nothing(suite):
    """With `--llmperf-gate off` there is no verdict and no warning."""
    run(suite(), "--llmperf-save-baseline", "main")

    result = run(suite(slow=1.2), "--llmperf-gate", "off")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["not judged test_it.py::test_rounds (5 runs)"])


def test_gate_strict_fails_what_could_not_be_judged(suite):
    """With `--llmperf-gate strict` a missing baseline fails the test."""
    result = run(suite(), "--llmperf-gate", "strict")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*NO_BASELINE test_it.py::test_rounds*"])


def test_one_run_is_inconclusive(suite):
    """A single run has no spread: INCONCLUSIVE with a warning, and what to do."""
    run(suite(), "--llmperf-runs", "1", "--llmperf-save-baseline", "main")

    result = run(suite(), "--llmperf-runs", "1")

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*InconclusiveWarning: INCONCLUSIVE*--llmperf-runs 2 or more*"])


def test_failed_requests_make_an_error_of_the_test(suite):
    """INVALID_RUN is an error, not a failure, and never a number; the assertion behind it comes second."""
    test = TEST.replace(
        "    conv", "    engine.script.fail = lambda n: Failure('http_500', 'boom') if n > 20 else None\n    conv"
    )
    result = run(suite("from pytest_llmperf.records import Failure\n" + test), "--junitxml", "junit.xml")

    result.assert_outcomes(errors=1)
    assert 1 == result.ret
    result.stdout.fnmatch_lines(
        ["*_ ERROR at measurement of test_rounds _*", "*INVALID_RUN*of 8 requests failed:*http_500 (boom)*"]
    )
    assert ET.parse(suite().path / "junit.xml").find(".//testcase/error") is not None


def test_an_engine_that_dies_is_an_error_with_its_log(suite):
    """A dead engine errors its test with the log's tail; the tests before it are in the JSON."""
    death = "engine.dies_after = 20; engine.script.fail = lambda n: Failure('reset', 'gone') if n > 20 else None"
    dying = TEST + TEST.replace("test_rounds", "test_dying").replace("    conv", f"    {death}\n    conv")
    result = run(suite("from pytest_llmperf.records import Failure\n" + dying), "--benchmark-json", "out.json")

    result.assert_outcomes(passed=1, errors=1, warnings=1)
    result.stdout.fnmatch_lines(["*EngineDiedError: the server has ended: killed by SIGKILL", "*| boom"])
    names = [row["fullname"] for row in json.loads((suite().path / "out.json").read_text())["benchmarks"]]
    assert {"test_it.py::test_rounds"} == {name.rpartition("::")[0] for name in names}


@pytest.mark.slow
def test_a_metric_missing_in_some_runs_is_an_error(suite):
    """A gated metric that not every run has cannot be judged: INVALID_RUN, not a pass by absence."""
    marked = TEST.replace("def test", "@pytest.mark.llm_gate(metric='tpot_p50')\ndef test")
    run(suite("import pytest\n" + marked), "--llmperf-save-baseline", "main")

    result = run(suite("import pytest\n" + marked.replace("output_tokens=8", "output_tokens=1")))

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*tpot_p50: measured in 0 of 5 runs, so it cannot be judged"])


@pytest.mark.slow
def test_a_verdict_that_only_the_whole_session_settles(suite, pytester):
    """A borderline regression fails its test when a clear one, later, has left it a larger share of the error.

    Two comparisons share 1 %, so the first test's p of 0.0075 is not enough while the second's is unknown.
    """
    spread = float(np.std([math.log1p(noise) for noise in (0.0, 0.001, -0.001, 0.002, -0.002)], ddof=1))
    borderline = math.exp(-special.stdtrit(8, 0.0075) * spread * math.sqrt(2 / 5))
    tests = "import pytest\n" + "".join(
        TEST.replace("def test_rounds", f"@pytest.mark.llm_gate(metric='ttft_p50')\ndef test_{name}") for name in "ab"
    )
    run(suite(tests), "--llmperf-save-baseline", "main")

    alone = run(suite(tests, slow=borderline), "-k", "test_b")
    together = run(
        suite(tests, slow=f"{{'test_a': {borderline}, 'test_b': 1.2}}[request.node.name]"), "--junitxml", "junit.xml"
    )

    alone.assert_outcomes(failed=1, deselected=1)
    together.assert_outcomes(failed=2)
    together.stdout.fnmatch_lines(["REGRESSED test_it.py::test_b*", "REGRESSED test_it.py::test_a*"])
    failures = ET.parse(pytester.path / "junit.xml").findall(".//testcase/failure")
    assert 2 == len(failures)


def test_a_failing_assertion_stays_a_failure_and_is_not_stored(suite):
    """The test's own assertion fails as always; what it measured does not become a baseline."""
    result = run(suite(TEST.replace("> 0", "< 0")), "--llmperf-save-baseline", "main")

    result.assert_outcomes(failed=1, warnings=1)
    result.stdout.fnmatch_lines(["*assert 0.0* < 0", "not stored, because its test failed: *"])
    assert [] == list(suite().path.glob("baselines/*/*.json"))


def test_the_json_is_pytest_benchmarks_own(suite):
    """One benchmark per gated metric with one value per run; throughput as seconds per token."""
    run(suite(), "--benchmark-json", "out.json")

    document = json.loads((suite().path / "out.json").read_text())
    rows = {row["extra_info"]["llmperf"]["metric"]: row for row in document["benchmarks"]}
    assert ["output_throughput", "tpot_p50", "ttft_p50"] == sorted(rows)
    assert 5 == len(rows["ttft_p50"]["stats"]["data"])
    assert rows["tpot_p50"]["stats"]["median"] == pytest.approx(0.002)
    about = rows["output_throughput"]["extra_info"]["llmperf"]
    assert 1 / about["result"]["runs"][0]["output_throughput"] == pytest.approx(
        rows["output_throughput"]["stats"]["data"][0]
    )
    assert 2 == len(about["result"]["by_round"])
    assert "NO_BASELINE" == about["judgement"]["verdict"]
    assert document["machine_info"]["llmperf"]["hardware_key"] == about["provenance"]["hardware_key"]


# The client of these tests sees each token up to so late, and takes so long to read an answer.
GATED = """
import pytest
from pytest_llmperf import multi_round, round_robin

@pytest.mark.llm_gate(metric='{metric}')
def test_rounds(engine, llm_perf):
    engine.script.late_s = {late_s}
    engine.script.read_s = {read_s}
    llm_perf(engine, multi_round(users=4, rounds=2, context_tokens=256, input_tokens=16, output_tokens=8, seed=7))
"""


@pytest.mark.parametrize(
    ("metric", "delay", "invalid"),
    [
        ("tpot_p50", {"late_s": 0.00069}, False),  # seven gaps of 2 ms: 5 % of TPOT is a seventh of 0.7 ms
        ("tpot_p50", {"late_s": 0.00071}, True),
        ("ttft_p50", {"late_s": 0.0005}, False),
        ("ttft_p50", {"late_s": 0.0007}, True),
        ("output_throughput", {"late_s": 0.005}, False),
        ("output_throughput", {"read_s": 0.001}, False),
        ("output_throughput", {"read_s": 0.005}, True),
        ("ttft_p50", {"read_s": 0.005}, False),
    ],
)
def test_a_client_that_may_have_falsified_a_gated_metric_makes_an_error_of_the_test(suite, metric, delay, invalid):
    """Beyond 5 % of it the run is invalid, with the reason and what would help; below, and elsewhere, it is not."""
    test = GATED.format(metric=metric, **{"late_s": 0.0, "read_s": 0.0, **delay})

    result = run(suite(test), "--llmperf-runs", "2", "-W", "ignore")

    result.assert_outcomes(**{"errors" if invalid else "passed": 1})
    if invalid:
        result.stdout.fnmatch_lines(
            [f"*INVALID_RUN*in run [12] the client itself may account for *of {metric} *--llmperf-workers*"]
        )


def test_an_invalid_run_is_not_stored(suite):
    """What the client may have made of it does not become a baseline."""
    result = run(suite(GATED.format(metric="tpot_p50", late_s=0.002, read_s=0.0)), "--llmperf-save-baseline", "main")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["not stored: INVALID_RUN*the client itself may account for*"])
    assert [] == list(suite().path.glob("baselines/*/*.json"))


OPEN = """
from pytest_llmperf import constant, single_turn

def test_open(engine, llm_perf):
    engine.concurrent = True
    requests = single_turn(requests=40, input_tokens=64, output_tokens=8)
    result = llm_perf(engine, requests, load=constant(20, warmup_s=0.5{limit}), slo={{"scheduled_ttft": 0.5}})
    assert result.is_open
    assert abs(result.load.offered - 20) < 0.01
"""


@pytest.mark.slow
def test_an_open_load_is_judged_by_ttft_from_the_schedule(suite):
    """It is gated, stored and met again; the files follow the schema."""
    schema = json.loads(resources.files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())
    first = run(suite(OPEN.format(limit="")), "--llmperf-save-baseline", "main", "--benchmark-json", "out.json")

    again = run(suite(OPEN.format(limit="")))

    first.assert_outcomes(passed=1, warnings=1)
    again.assert_outcomes(passed=1)
    document = json.loads((suite().path / "out.json").read_text())
    jsonschema.validate(document, schema)
    assert ["output_throughput", "scheduled_ttft_p50", "tpot_p50"] == sorted(
        row["extra_info"]["llmperf"]["metric"] for row in document["benchmarks"]
    )


@pytest.mark.parametrize(("slow", "outcome"), [(1.0, "passed"), (9.0, "errors")])
def test_shed_load_makes_an_error_of_the_test(suite, slow, outcome):
    """What the server could not take in time was not measured; a limit that is not met changes nothing."""
    test = OPEN.format(limit=", max_in_flight=1").replace("0.01", "99")

    result = run(suite(test, slow=slow), "-W", "ignore", "--llmperf-runs", "1")

    result.assert_outcomes(**{outcome: 1})
    if outcome == "errors":
        result.stdout.fnmatch_lines(["*INVALID_RUN*turns of the load could not be sent within max_in_flight and were*"])


@pytest.mark.slow
def test_the_options_reach_the_requests_and_those_who_send_them(pytester):
    """Limits go to the engine's client, and a load that can be split is sent by as many processes as asked for."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_llmperf import closed_loop, round_robin, single_turn
        from pytest_llmperf.client import Limits

        # A server this fast is beyond what a client can measure; what is gated here does not depend on it.
        @pytest.mark.llm_gate(metric="cache_hit_rate")
        @pytest.mark.llm_engine("openai")
        def test_it(llm_engine, llm_perf):
            assert Limits(silence_s=7.0, exchange_s=70.0) == llm_engine.connector().limits
            requests = single_turn(requests=9, input_tokens=8, output_tokens=4)
            both = llm_perf(llm_engine, requests, load=closed_loop(2), name="both")
            alone = llm_perf(llm_engine, requests, load=round_robin(), name="alone")
            assert [2, 1] == [both.client.workers, alone.client.workers]
            assert [{}, {}] == [both.errors, alone.errors]
            assert [9, 9] == [len(both.records[0].requests), len(alone.records[0].requests)]
        """
    )
    with CompletionsServer() as server:
        result = pytester.runpytest_subprocess(
            *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-W", "ignore", "--llmperf-gate", "off"),
            *(
                "--llmperf-url",
                server.url,
                "--llmperf-workers",
                "2",
                "--llmperf-runs",
                "1",
                "--llmperf-warmup-runs",
                "0",
            ),
            *("--llmperf-timeout", "7", "--llmperf-request-timeout", "70"),
        )

    result.assert_outcomes(passed=1)


@pytest.mark.slow
def test_results_and_baselines_follow_the_schema(suite):
    """Both files validate against the JSON Schema that the package ships."""
    schema = json.loads(resources.files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())
    run(suite(), "--llmperf-save-baseline", "main", "--benchmark-json", "first.json")
    run(suite(slow=1.2), "--benchmark-json", "second.json")

    paths = [*suite().path.glob("*.json"), *suite().path.glob("baselines/*/*.json")]
    assert 3 == len(paths)
    for path in paths:
        jsonschema.validate(json.loads(path.read_text()), schema)


@pytest.mark.slow
def test_pytest_benchmark_reads_the_baselines(suite, pytester):
    """`pytest-benchmark list` and `compare` work on the folder as it is."""
    run(suite(), "--llmperf-save-baseline", "main")
    run(suite(), "--llmperf-save-baseline", "again")

    (suite().path / "conftest.py").unlink()  # pytest-benchmark imports it, and knows nothing of pythonpath
    command = (sys.executable, "-m", "pytest_benchmark", "--storage", "baselines")
    listed = pytester.run(*command, "list")
    compared = pytester.run(*command, "compare", "--columns", "median")

    assert 2 == sum("0001_main.json" in line or "0002_again.json" in line for line in listed.outlines)
    assert 0 == compared.ret
    compared.stdout.fnmatch_lines(["*test_rounds::ttft_p50 (*0001_main)*", "*test_rounds::ttft_p50 (*0002_again)*"])


@pytest.mark.slow
def test_benchmark_save_and_compare_work(suite):
    """pytest-benchmark's own storage and its own gate see the rows, too."""
    run(suite(), "--benchmark-save", "before")

    result = run(
        suite(slow=1.5), "--benchmark-compare", "0001", "--benchmark-compare-fail", "median:20%", "-W", "ignore"
    )

    assert result.ret != 0
    assert "Performance has regressed" in result.stdout.str() + result.stderr.str()


def test_benchmark_disable_runs_once_unrecorded(suite):
    """`--benchmark-disable`: the workload runs once, nothing is recorded or judged, and that is said."""
    result = run(suite(), "--benchmark-disable", "--benchmark-json", "out.json")

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*NotMeasuredWarning: *ran once, unrecorded and unjudged*"])
    assert not (suite().path / "out.json").exists()


@pytest.mark.slow
def test_xdist_measures_as_ever(suite, monkeypatch):
    """What a worker has measured is stored and told by the process that has started it; see `test_xdist`."""
    paths = [str(Path(pytest_llmperf.__file__).parents[1]), str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    result = suite().runpytest_subprocess("-n", "1", "-p", "no:cacheprovider", "--llmperf-save-baseline", "main")

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["NO_BASELINE test_it.py::test_rounds (5 runs)", "stored as baseline: *0001_main.json"])


@pytest.mark.slow
def test_without_pytest_benchmark_the_gate_still_works(suite):
    """`-p no:benchmark`: measured, stored and judged as ever, without the table and the JSON."""
    run(suite(), "-p", "no:benchmark", "--llmperf-save-baseline", "main")

    result = run(suite(slow=1.2), "-p", "no:benchmark")

    result.assert_outcomes(failed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("option", "outcome"), [("--benchmark-only", "passed"), ("--benchmark-skip", "skipped")])
def test_benchmark_only_and_skip_know_our_tests(suite, option, outcome):
    """A test that measures is a benchmark to `--benchmark-only` and `--benchmark-skip`."""
    result = run(suite(TEST + "\ndef test_other():\n    pass\n"), option, "-W", "ignore")

    other = "skipped" if outcome == "passed" else "passed"
    result.assert_outcomes(**{outcome: 1, other: 1})


@pytest.mark.slow
def test_an_expected_regression_is_an_expected_failure(suite):
    """A test that is marked xfail and regresses is xfailed, in the terminal and in JUnit."""
    marked = "import pytest\n" + TEST.replace("def test", "@pytest.mark.xfail\ndef test")
    run(suite(marked), "--llmperf-save-baseline", "main")

    result = run(suite(marked, slow=1.2), "--junitxml", "junit.xml")

    result.assert_outcomes(xfailed=1)
    assert ET.parse(suite().path / "junit.xml").find(".//testcase/failure") is None


@pytest.mark.slow
def test_a_second_attempt_replaces_the_first(suite):
    """Where a plugin runs a failed test again, only the last attempt is recorded and judged."""
    again = (
        CONFTEST
        + """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    item.attempt = 1
    runtestprotocol(item, nextitem=nextitem, log=False)
    item.attempt = 2
    runtestprotocol(item, nextitem=nextitem)
    return True
"""
    )
    flaky = TEST.replace("> 0", "> 0\n    assert request.node.attempt == 2").replace(
        "llm_perf):", "llm_perf, request):"
    )
    pytester = suite(flaky)
    pytester.makeconftest(again.format(slow=1.0, slow_decode=1.0))

    result = run(pytester, "--benchmark-json", "out.json")

    result.assert_outcomes(passed=1, warnings=2)
    rows = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert 3 == len(rows)


def test_folders_that_cannot_be_written_are_found_first(suite):
    """A file where a folder should be is a usage error, before anything is measured."""
    (suite().path / "taken").write_text("")

    result = run(
        suite(), "--llmperf-output", "taken", "--llmperf-baselines", "taken", "--llmperf-save-baseline", "main"
    )

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(
        ["*--llmperf-output: *taken cannot be written to*", "*--llmperf-baselines: *taken cannot*"]
    )


@pytest.mark.slow
def test_declared_hardware_is_for_servers_elsewhere(pytester):
    """An engine that is started here is not filed under another machine's key."""
    pytester.makepyfile(
        "import pytest\n@pytest.mark.llm_engine('vllm', model='m')\ndef test_it(llm_engine, llm_perf): pass\n"
    )

    result = run(pytester, "--llmperf-hardware", "NVIDIA-GH200-96GB")

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*--llmperf-hardware says what the server behind a URL runs on, but vllm is started*"])


@pytest.mark.slow
def test_a_cancelled_job_keeps_what_it_has_measured(suite, monkeypatch):
    """SIGTERM ends the session like Ctrl-C: the JSON is written, the exit code says interrupted."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    waiting = TEST + "\n\ndef test_waits():\n    open('waiting', 'w').close()\n    import time; time.sleep(15)\n"
    folder = suite(waiting).path
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-json", "out.json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process:
        while not (folder / "waiting").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate()

    assert pytest.ExitCode.INTERRUPTED == process.returncode
    assert 3 == len(json.loads((folder / "out.json").read_text())["benchmarks"])


@pytest.mark.slow
def test_llm_gate_chooses_the_metrics(suite):
    """With `llm_gate` marks exactly the named metrics are gated and stored."""
    marked = TEST.replace("def test", "@pytest.mark.llm_gate(metric='e2e_p50', detect=0.05)\ndef test")
    run(suite("import pytest\n" + marked), "--benchmark-json", "out.json")

    rows = json.loads((suite().path / "out.json").read_text())["benchmarks"]
    assert ["e2e_p50"] == [row["extra_info"]["llmperf"]["metric"] for row in rows]


@pytest.mark.slow
def test_a_slower_decode_fails_on_tpot_and_not_on_ttft(suite):
    """The verdict names the metric that changed."""
    run(suite(), "--llmperf-save-baseline", "main")

    result = run(suite(slow_decode=1.3))

    result.assert_outcomes(failed=1)
    table = result.stdout.str()
    assert re.search(r"tpot_p50 .*\+30\.0 %.*REGRESSED", table)
    assert re.search(r"ttft_p50 .*PASS", table)


@pytest.mark.slow
def test_two_measurements_of_one_test_need_names(suite):
    """The second unnamed measurement is refused in one sentence, before it is taken."""
    twice = TEST.replace("    assert", "    llm_perf(engine, conversations)\n    assert")
    result = run(suite(twice), "-W", "ignore")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["test_it.py:6: ConfigurationError: *give each llm_perf call its own name=*"])


@pytest.mark.slow
def test_a_mistake_in_the_test_is_told_by_its_line(suite):
    """All arguments out of range in one go, without the plugin's own frames."""
    result = run(suite(TEST.replace("users=4, rounds=2", "users=0, rounds=0")))

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "test_it.py:4: ConfigurationError: multi_round: users must be a whole number of at least 1, got 0",
            "multi_round: rounds must be a whole number of at least 1, got 0",
        ]
    )


@pytest.mark.slow
def test_a_changed_workload_is_not_compared(suite):
    """Another workload digest is NO_BASELINE, naming what differs."""
    run(suite(), "--llmperf-save-baseline", "main")

    result = run(suite(TEST.replace("seed=7", "seed=8")))

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*0001_main.json is not comparable: workload seed was 7, is 8*"])


BAD_BASELINES = {
    "not JSON": ("{", "*0001_main.json is not readable JSON*"),
    "not ours": ('{"machine_info": {}, "benchmarks": []}', "*0001_main.json is not a result of pytest-llmperf*"),
    "another schema": (
        '{"machine_info": {"llmperf": {"schema_version": 99, "hardware_key": "KEY"}}, "benchmarks": []}',
        "*has schema version 99, this release reads 1*",
    ),
    "another machine": (
        '{"machine_info": {"llmperf": {"schema_version": 1, "hardware_key": "NVIDIA-L4"}}, "benchmarks": []}',
        "*was measured on NVIDIA-L4, but lies in the folder of KEY*",
    ),
}


@pytest.mark.parametrize("case", BAD_BASELINES)
def test_a_bad_baseline_ends_the_session_before_anything_runs(suite, case):
    """A baseline that cannot be used is a usage error in one sentence, and nothing was measured."""
    content, message = BAD_BASELINES[case]
    from pytest_llmperf.hardware import detect

    key = detect().key
    folder = suite().path / "baselines" / key
    folder.mkdir(parents=True)
    (folder / "0001_main.json").write_text(content.replace("KEY", key))

    result = run(suite())

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([message.replace("KEY", key)])
    assert not (suite().path / ".llmperf").exists()


def test_a_plain_suite_is_left_alone(pytester):
    """Without performance tests the plugin prints nothing and makes nothing."""
    pytester.makepyfile("def test_plain():\n    pass\n")

    result = run(pytester)

    result.assert_outcomes(passed=1)
    assert "llmperf on" not in result.stdout.str()
    assert not (pytester.path / ".llmperf").exists()


def test_records_are_kept_whatever_the_outcome(suite):
    """Every request of every run, warm-up included, is in the record file."""
    from pytest_llmperf.record_file import read_requests
    from pytest_llmperf.records import Phase

    run(suite(), "--llmperf-runs", "2")

    (path,) = suite().path.glob(".llmperf/*/records/*.jsonl")
    requests = list(read_requests(path))
    assert 3 * 8 == len(requests)
    assert {Phase.WARMUP, Phase.MEASURED} == {request.phase for request in requests}


@pytest.mark.slow
def test_importing_the_plugin_imports_neither_numpy_nor_an_engine(pytester):
    """Collecting an empty suite pulls in nothing heavy."""
    pytester.makepyfile(
        test_nothing="",
        probe="""
        import sys
        def pytest_unconfigure():
            heavy = [name for name in ("numpy", "scipy", "httptools", "orjson", "pynvml", "prometheus_client", "ray",
                                       "vllm") if name in sys.modules]
            print("HEAVY", heavy)
        """,
    )
    result = pytester.runpytest_subprocess("-p", "probe", "--collect-only", "-p", "no:hypothesispytest")

    result.stdout.fnmatch_lines(["*HEAVY []*"])


def test_a_night_with_a_failed_test_is_not_called_green(suite):
    """Neither where it failed by itself after a PASS, nor where nothing was measured."""
    failing = """
        from pytest_llmperf import multi_round

        def test_failing(engine, llm_perf):
            users = multi_round(users=1, rounds=1, context_tokens=64, input_tokens=16, output_tokens=4)
            llm_perf(engine, users, name="a\\nb")
    """
    folder = suite(failing)

    result = run(folder, "--llmperf-markdown", "comment.md")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*name must not be empty, be of printable characters*"])
    result.stdout.fnmatch_lines(["llmperf: 1 failed, nothing was measured"])
    assert "### 1 failed, nothing was measured" in (folder.path / "comment.md").read_text()
