"""Two builds as a user of the plugin compares them: whole pytest runs on the simulated engine, in virtual time."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf.cli import main

TEST = """
import pytest
from pytest_llmperf import multi_round, round_robin

@pytest.mark.llm_engine("vllm", model="llama-3.1-8b", prefix_caching=True)
def test_rounds(llm_engine, llm_perf):
    users = multi_round(users=2, rounds=2, context_tokens=1000, input_tokens=16, output_tokens=32, seed=7)
    llm_perf(llm_engine, users, load=round_robin())
"""

# The base build, which has another `executable`, does not answer its request of this number.
SPOILED = """
import pytest
from fakes import Script, VirtualEngine, in_virtual_time
from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.records import Failure

def make(spec, surroundings):
    is_base = spec.executable is not None
    fail = lambda number: Failure("timeout", "too late") if is_base and number == {number} else None
    return VirtualEngine(Script(fail=fail), clock=CLOCK, spec=spec)

CLOCK = VirtualClock()

def pytest_configure(config):
    in_virtual_time(config, CLOCK).setattr("pytest_llmperf.engines.pool.make_engine", make)
"""

# Engines that a test does not share, of which only the base build is one, do not start.
BROKEN = """
import pytest
from pytest_llmperf.errors import EngineStartError

def broken(pool, spec):
    raise EngineStartError("the base build is gone")

def pytest_configure(config):
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    patch.setattr("pytest_llmperf.engines.pool.EnginePool.make", broken)
"""

PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin")
SIMULATED = ("--llmperf-hardware", "sim:gh200", "--llmperf-set", "run_noise=0.01")
SLOWER = ("--llmperf-set", "slow=decode:+10%")
NAME = "test_it.py::test_rounds"


@pytest.fixture
def run(pytester, monkeypatch):
    """One pytest run on a simulated GH200."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_it=TEST)

    def go(*arguments, hardware=SIMULATED, json_file="out.json"):
        into = ("--benchmark-json", json_file) if json_file else ()
        return pytester.runpytest_inprocess(
            *PLUGINS, "--assert", "plain", "-p", "no:cacheprovider", "-W", "default", "-rA",
            *into, *hardware, *arguments,
        )  # fmt: skip

    return go


@pytest.fixture
def judgement(pytester):
    """What the JSON of the session says of its one measurement."""

    def read():
        rows = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
        found = [row["extra_info"]["llmperf"]["judgement"] for row in rows]
        assert [found[0]] * len(found) == found
        return found[0]

    return read


def verdicts(judged):
    return {finding["metric"]: finding["verdict"] for finding in judged["findings"]}


class TestInTurn:
    """Every test measures both builds."""

    @pytest.mark.slow
    def test_a_slower_build_fails_by_the_metric_that_is_slower(self, run, judgement):
        """Nothing is stored, and nothing has to be."""
        result = run("--llmperf-base", "slow=decode:-10%")

        result.assert_outcomes(failed=1)
        assert pytest.ExitCode.TESTS_FAILED == result.ret
        result.stdout.fnmatch_lines(
            [
                f"REGRESSED {NAME}, against the base build in turn (slow 'decode:-10%' -> None) (5 + 5 runs)",
                "*ttft_p50 * PASS",
                "*tpot_p50 * +1?.? % * REGRESSED",
                "*what to do: look for the change between the two builds that caused it",
            ]
        )
        judged = judgement()
        assert "REGRESSED" == judged["verdict"]
        assert {"ttft_p50": "PASS", "tpot_p50": "REGRESSED", "output_throughput": "REGRESSED"} == verdicts(judged)
        assert "the base build in turn (slow 'decode:-10%' -> None)" == judged["against"]

    @pytest.mark.slow
    def test_a_faster_build_is_said_to_be(self, run, judgement):
        run("--llmperf-base", "slow=decode:+10%").assert_outcomes(passed=1)

        assert "IMPROVED" == judgement()["verdict"]

    @pytest.mark.slow
    def test_what_only_the_head_has_is_not_the_base_s(self, run):
        """Else a slowdown would be put into both builds, and none be found."""
        run("--llmperf-base", "gpu_memory_fraction=0.9", "--llmperf-head", "slow=decode:+20%").assert_outcomes(failed=1)
        run("--llmperf-head", "slow=decode:+20%").assert_outcomes(failed=1)

    @pytest.mark.slow
    def test_a_build_that_is_compared_with_itself_is_doubted(self, run):
        """That passes whatever is wrong with it."""
        result = run("--llmperf-base", "slow=decode:+20%", "--llmperf-set", "slow=decode:+20%")

        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*doubt: both builds have the same words; *"])

    @pytest.mark.slow
    def test_a_healthy_build_passes(self, run, judgement):
        """The base has the same words and its own luck."""
        run("--llmperf-base", "slow=decode:+0%").assert_outcomes(passed=1)

        judged = judgement()
        assert {"PASS"} == {judged["verdict"], *verdicts(judged).values()}
        assert "the base build in turn (slow 'decode:+0%' -> None)" == judged["against"]
        assert all(finding["baseline"] != finding["now"] for finding in judged["findings"])

    @pytest.mark.slow
    def test_a_stored_night_does_not_count(self, run, judgement):
        """What is measured in turn owes nothing to other nights."""
        run("--llmperf-save-baseline", "n1", "--llmperf-gate", "off", *SLOWER)

        run("--llmperf-base", "slow=decode:+0%").assert_outcomes(passed=1)

        assert "PASS" == judgement()["verdict"]

    @pytest.mark.slow
    def test_where_nothing_is_judged_the_base_is_not_measured(self, run, pytester):
        """It would cost as much again, for nothing."""
        run("--llmperf-base", "slow=decode:-10%", "--llmperf-gate", "off").assert_outcomes(passed=1)

        assert 1 == len(list(pytester.path.glob(".llmperf/*/records/*.jsonl")))

    def test_a_ratio_is_recorded_and_not_judged(self, run, pytester):
        """It has no base build to be held against, which ends nothing."""
        measured = "llm_perf(llm_engine, users, load=round_robin())"
        ratio = "llm_perf.ratio('r', result.e2e.p50, result.ttft.p50)"
        pytester.makepyfile(test_it=TEST.replace(measured, f"result = {measured}\n    {ratio}"))

        result = run("--llmperf-base", "slow=decode:+0%")

        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines([f"PASS {NAME}, against the base build in turn *"])

    # With three runs the base comes first, with five the head.
    @pytest.mark.parametrize(
        ("number", "runs", "servers"), [(0, 3, "both"), (0, 3, "fresh"), (0, 5, "fresh"), (8, 5, "both")]
    )
    def test_a_spoiled_run_of_the_base_is_an_error_and_no_verdict(self, run, pytester, number, runs, servers):
        """Also where the head's turn had not come yet. The code under test was not found wanting."""
        pytester.makeconftest(SPOILED.format(number=number))
        pytester.makepyfile(test_it=TEST.replace("def test", '@pytest.mark.llm_gate(metric="ttft_p50")\ndef test'))

        base = ("--llmperf-base", "executable=/main", "--llmperf-base-servers", servers)
        result = run(*base, "--llmperf-runs", str(runs), hardware=(), json_file=None)

        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines([f"INVALID_RUN {NAME}*", "*the base build: * of 4 requests failed: 1 timeout*"])


class TestConfirmation:
    """What the stored nights flag is measured against the base build before it fails."""

    @pytest.fixture
    def night(self, run):
        """One stored night of the healthy build."""
        run("--llmperf-save-baseline", "n1", "--llmperf-gate", "off")

    @pytest.mark.slow
    @pytest.mark.usefixtures("night")
    def test_what_is_confirmed_turns_red_at_the_end(self, run, judgement):
        """The flagged metrics only; the numbers are those of the two builds."""
        result = run(*SLOWER, "--llmperf-base", "slow=decode:+0%", "--llmperf-confirm", "4")

        result.assert_outcomes(failed=1)
        assert pytest.ExitCode.TESTS_FAILED == result.ret
        result.stdout.fnmatch_lines([f"REGRESSED {NAME}, against 0001_n1.json, then the base build in turn (slow *"])
        judged = judgement()
        assert {"ttft_p50": "PASS", "tpot_p50": "REGRESSED", "output_throughput": "REGRESSED"} == verdicts(judged)
        assert {"ttft_p50": 5, "tpot_p50": 4, "output_throughput": 4} == {
            finding["metric"]: finding["new_runs"] for finding in judged["findings"]
        }

    @pytest.mark.slow
    @pytest.mark.usefixtures("night")
    def test_what_is_not_confirmed_stays_green(self, run, judgement):
        """The night was slow, for both builds."""
        result = run(*SLOWER, "--llmperf-base", "gpu_memory_fraction=0.9", "--llmperf-confirm", "5")

        result.assert_outcomes(passed=1, warnings=1)
        assert pytest.ExitCode.OK == result.ret
        judged = judgement()
        assert {"PASS"} == {judged["verdict"], *verdicts(judged).values()}
        assert judged["against"].startswith("0001_n1.json, then the base build in turn")

    @pytest.mark.slow
    @pytest.mark.usefixtures("night")
    @pytest.mark.parametrize(
        ("base", "outcome"), [("slow=decode:+0%", {"failed": 1}), ("gpu_memory_fraction=0.9", {"passed": 1})]
    )
    def test_the_strict_gate_waits_for_the_confirmation(self, run, base, outcome):
        """Being flagged fails nothing by itself, and what is confirmed fails once."""
        arguments = ("--llmperf-base", base, "--llmperf-confirm", "5", "--llmperf-gate", "strict")

        run(*SLOWER, *arguments).assert_outcomes(**outcome)

    @pytest.mark.slow
    @pytest.mark.usefixtures("night")
    def test_the_strict_gate_fails_what_could_not_be_confirmed(self, run, pytester):
        """As it fails everything that is not known to be well."""
        pytester.makeconftest(BROKEN)
        arguments = ("--llmperf-base", "slow=decode:+0%", "--llmperf-confirm", "3", "--llmperf-gate", "strict")

        result = run(*SLOWER, *arguments)

        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"not confirmed: {NAME}: the base build is gone"])

    @pytest.mark.slow
    @pytest.mark.usefixtures("night")
    def test_what_is_not_flagged_is_not_measured_again(self, run, pytester, judgement):
        """Which is what makes it cheap."""
        run("--llmperf-base", "slow=decode:-10%", "--llmperf-confirm", "5").assert_outcomes(passed=1)

        assert ("PASS", "0001_n1.json") == (judgement()["verdict"], judgement()["against"])
        newest = max(pytester.path.glob(".llmperf/*"))
        assert 1 == len(list(newest.glob("records/*.jsonl")))

    @pytest.mark.slow
    @pytest.mark.usefixtures("night")
    def test_an_engine_that_fails_is_said_to_have_confirmed_nothing(self, run, pytester, judgement):
        """Neither red nor plainly green."""
        pytester.makeconftest(BROKEN)

        result = run(*SLOWER, "--llmperf-base", "slow=decode:+0%", "--llmperf-confirm", "3")

        result.assert_outcomes(passed=1, warnings=1)
        result.stdout.fnmatch_lines([f"not confirmed: {NAME}: the base build is gone"])
        assert "INCONCLUSIVE" == judgement()["verdict"]

    @pytest.mark.slow
    def test_without_a_stored_night_there_is_nothing_to_flag(self, run, judgement):
        run("--llmperf-base", "slow=decode:-10%", "--llmperf-confirm", "3").assert_outcomes(passed=1, warnings=1)

        assert "NO_BASELINE" == judgement()["verdict"]


class TestCompare:
    """The JSON of a session is a result file."""

    @pytest.mark.slow
    def test_a_session_against_the_nights_of_a_folder(self, run, pytester, capsys):
        """Also where the session has a test that only pytest-benchmark knows."""
        run("--llmperf-save-baseline", "n1", "--llmperf-gate", "off")
        pytester.makepyfile(test_sort="def test_sort(benchmark): benchmark.pedantic(sorted, ([2, 1],), rounds=2)")
        run("--llmperf-gate", "off", *SLOWER)
        capsys.readouterr()

        codes = [main(["compare", "baselines/sim-gh200", "out.json", *arguments]) for arguments in ((), ("--force",))]

        out, err = capsys.readouterr()
        assert ([1, 1], "") == (codes, err)
        assert f"REGRESSED {NAME}, against 0001_n1.json (5 + 5 runs)" in out
        assert "new: time of test_sort.py::test_sort: only in the new result" in out


class TestMistakes:
    """Told before anything is started."""

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (
                ("--llmperf-base", "executable=/main"),
                "*--llmperf-base: sim: unknown word 'executable'; *accepted: *",
            ),
            (("--llmperf-base", "slow=decod:-10%"), "*--llmperf-base: slow: unknown part of the engine 'decod'; *"),
            (("--llmperf-base", "slo=decode:-10%"), "*--llmperf-base: unknown word 'slo'; did you mean 'slow'? *"),
            (("--llmperf-base", "slow"), "*--llmperf-base 'slow': expected WORD=VALUE*"),
            (("--llmperf-confirm", "3"), "*--llmperf-confirm needs the build to compare with: --llmperf-base *"),
            (
                ("--llmperf-base", "slow=decode:-10%", "--llmperf-confirm", "1"),
                "*--llmperf-confirm: expected a whole number of at least 2, got '1'",
            ),
        ],
    )
    def test_a_usage_error(self, run, pytester, arguments, complaint):
        result = run(*arguments, json_file=None)

        assert pytest.ExitCode.USAGE_ERROR == result.ret
        result.stderr.fnmatch_lines([complaint])
        assert not (pytester.path / ".llmperf").exists()
