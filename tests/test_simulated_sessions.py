"""The simulated engine as a user of the plugin meets it: whole pytest runs, in virtual time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pytest_llmperf.clock import VirtualClock

TESTS = """
import pytest
from pytest_llmperf import multi_round, round_robin, single_turn

@pytest.mark.gh200
@pytest.mark.llm_engine("vllm", model="llama-3.1-8b", prefix_caching=True)
class TestOnGH200:
    def test_rounds(self, llm_engine, llm_perf):
        users = multi_round(users=2, rounds=3, context_tokens=2000, input_tokens=16, output_tokens=32, seed=7)
        llm_perf(llm_engine, users, load=round_robin(), cache="primed")

    def test_single(self, llm_engine, llm_perf):
        llm_perf(llm_engine, single_turn(requests=4, input_tokens=10, output_tokens=8, seed=7))
"""

ONE = """
import pytest
from pytest_llmperf import single_turn

{marks}
def test_it(llm_engine, llm_perf):
    llm_perf(llm_engine, single_turn(requests=2, input_tokens=100, output_tokens=8, seed=7))
"""

# An engine that is none of the simulated kind, without a process all the same.
MEASURED = """
import pytest
from fakes import VirtualEngine
from pytest_llmperf import lifecycle, single_turn

def test_it(llm_perf):
    engine = VirtualEngine(clock=lifecycle.RealClock())
    llm_perf(engine, single_turn(requests=2, input_tokens=100, output_tokens=8, seed=7))
"""

OFFLOAD = """
import pytest
from pytest_llmperf import multi_round, round_robin

# Room for some 57,000 tokens on the device, as many of which flood it, and for 500,000 on the host.
@pytest.mark.llm_engine(
    "sim", model="llama-3.1-8b", part="gh200", prefix_caching=True, kv_offload_gib=64, max_model_len=8192,
    constants={{"memory_utilization": 0.25}}, slow={slow!r},
)
def test_offload(llm_engine, llm_perf):
    users = multi_round(users=2, rounds=1, context_tokens=8000, input_tokens=16, output_tokens=16, seed=7)
    result = llm_perf(llm_engine, users, load=round_robin(), cache="evicted", runs=2, warmup_runs=0)
    print("tiers:", sorted(result.cache.tiers.items()))
"""


# Of the plugins that are installed here, these runs need two; loading the rest takes longer than a run.
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin")


@pytest.fixture
def run(pytester, monkeypatch):
    """One pytest run of `tests`, by default on a simulated GH200."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def go(*arguments, tests=TESTS, hardware="sim:gh200"):
        pytester.makepyfile(test_it=tests)
        on = ("--llmperf-hardware", hardware) if hardware else ()
        return pytester.runpytest_inprocess(
            *PLUGINS, "--assert", "plain", "-p", "no:cacheprovider", "-W", "default", "-rA", *on, *arguments
        )

    return go


@pytest.fixture
def stored(pytester, run):
    """What a session stores as a baseline, as bytes."""

    def save(name, *arguments, key="sim-gh200", **words):
        run("--llmperf-save-baseline", name, "--llmperf-gate", "off", *arguments, **words)
        (path,) = pytester.path.glob(f"baselines/{key}/*_{name}.json")
        return path.read_bytes()

    return save


def values(document):
    """Metric to its values per run, by test."""
    found = {}
    for row in json.loads(document)["benchmarks"]:
        about = row["extra_info"]["llmperf"]
        found[about["measurement"].rpartition("::")[2], about["metric"]] = row["stats"]["data"]
    return found


def one(*marks):
    return ONE.format(marks="\n".join(f"@pytest.mark.{mark}" for mark in marks))


def own(**words):
    """An `llm_engine` mark that asks for a simulated engine itself."""
    words = {"model": "llama-3.1-8b"} | words
    return f"llm_engine('sim', {', '.join(f'{word}={value!r}' for word, value in words.items())})"


class TestHardware:
    """Which marks a simulated part satisfies."""

    @pytest.mark.slow
    def test_the_option_satisfies_the_parts_mark_and_takes_every_engine_s_place(self, run):
        """A test of a real vLLM runs on the simulation of its part, in no time and without a process."""
        result = run()

        result.assert_outcomes(passed=2, warnings=2)
        result.stdout.fnmatch_lines(["*llmperf on sim-gh200*", "NO_BASELINE test_it.py::TestOnGH200::test_rounds*"])

    def test_another_part_skips(self, run):
        """And the reason says that what was found is simulated."""
        result = run(hardware="sim:h100")

        result.assert_outcomes(skipped=2)
        result.stdout.fnmatch_lines(["*needs 1 x GH200, found simulated 1 x NVIDIA H100 80GB HBM3 (79.6 GiB)"])

    def test_a_mark_of_the_test_s_own_brings_its_part_along(self, run):
        """On a machine of any kind, without an option."""
        tests = one("gh200", own(part="gh200"))

        result = run(tests=tests, hardware=None)

        result.assert_outcomes(passed=1, warnings=1)
        result.stdout.fnmatch_lines(["*nothing is stored for sim-gh200*"])

    def test_a_mark_of_the_test_s_own_for_another_part_skips(self, run):
        """A GH200 is asked for and an H100 simulated."""
        run(tests=one("gh200", own(part="h100")), hardware=None).assert_outcomes(skipped=1)

    def test_an_unknown_part_is_a_mistake(self, run):
        """Told with what is known, and nothing runs."""
        option = run(hardware="sim:gh20")
        mark = run(tests=one(own(part="h1000")), hardware=None)

        assert (pytest.ExitCode.USAGE_ERROR,) * 2 == (option.ret, mark.ret)
        option.stderr.fnmatch_lines(["*--llmperf-hardware: unknown part 'gh20'; did you mean 'gh200'? accepted: *"])
        mark.stderr.fnmatch_lines(["*test_it.py::test_it: unknown part 'h1000'; did you mean 'h100'? accepted: *"])

    @pytest.mark.parametrize(
        ("arguments", "other"),
        [
            (("--llmperf-url", "http://localhost:8000"), "--llmperf-url"),
            (("--llmperf-engine", "vllm"), "--llmperf-engine vllm"),
        ],
    )
    def test_a_simulated_part_goes_with_no_other_engine(self, run, arguments, other):
        """A server elsewhere is not simulated."""
        result = run(*arguments)

        assert pytest.ExitCode.USAGE_ERROR == result.ret
        result.stderr.fnmatch_lines([f"*--llmperf-hardware sim:gh200 goes with the simulated engine, not with {other}"])

    @pytest.mark.slow
    def test_more_gpus_than_there_are_is_a_mistake_that_says_how_many(self, run):
        """One sentence with the option that would do."""
        tests = one("llm_engine('vllm', model='llama-3.1-70b', tensor_parallel=4)")

        few, enough = run(tests=tests, hardware="sim:h100"), run(tests=tests, hardware="sim:4x-h100")

        assert pytest.ExitCode.USAGE_ERROR == few.ret
        few.stderr.fnmatch_lines(["*takes 4 GPUs and sim-h100 has 1; give --llmperf-hardware sim:4x-h100"])
        enough.assert_outcomes(passed=1, warnings=1)
        enough.stdout.fnmatch_lines(["*nothing is stored for sim-4x-h100*"])


def test_everything_that_cannot_be_is_told_before_anything_runs(run):
    """One sentence for each, with the bytes that it takes."""
    marks = {
        "weights": own(model="llama-3.1-70b", part="h100"),
        "context": own(part="rtx4090", max_model_len=131_072),
        "dtype": own(part="h100", dtype="fp9"),
        "fp8": own(part="a100", dtype="fp8", slow="decod:+5%"),
    }
    tests = "".join(one(mark).replace("def test_it", f"def test_{name}") for name, mark in marks.items())

    result = run(tests=tests, hardware=None)

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(
        [
            "*test_weights: llama-3.1-70b does not fit on 1 x *its bfloat16 weights need 131.* GiB of each GPU*",
            "*test_context: max_model_len=131072: one such sequence needs 16.00 GiB of KV cache on each GPU, and *",
            "*test_dtype: unknown dtype 'fp9'; *accepted: auto, *",
            "*test_fp8: slow: unknown part of the engine 'decod'; did you mean 'decode'?*",
            "*test_fp8: dtype 'fp8': * has no FP8 arithmetic; in bfloat16 the weights need 15.0 GiB of each GPU's *",
        ]
    )
    assert 5 == len([line for line in result.errlines if "test_it.py::" in line])


class TestRepetition:
    """The same simulation gives the same file, on every machine and every day."""

    @pytest.mark.slow
    def test_two_sessions_write_equal_files(self, stored):
        """Byte for byte, noise included."""
        noise = ("--llmperf-set", "run_noise=0.02", "--llmperf-set", "request_noise=0.1")

        assert stored("main", *noise) == stored("again", *noise)

    @pytest.mark.slow
    def test_without_noise_all_runs_are_equal(self, stored):
        """There is nothing that could differ."""
        assert {1} == {len(set(data)) for data in values(stored("main")).values()}

    @pytest.mark.slow
    def test_noise_hangs_on_its_seed(self, stored):
        """Runs differ, another seed gives other runs, and the same seed the same."""
        first, again, other = (
            values(stored(name, "--llmperf-set", "run_noise=0.02", "--llmperf-set", f"noise_seed={seed}"))
            for name, seed in (("first", 1), ("again", 1), ("other", 2))
        )

        assert first == again
        for key, data in first.items():
            assert (5, 5) == (len(set(data)), len(set(other[key])))
            assert not set(data) & set(other[key])

    @pytest.mark.slow
    @pytest.mark.parametrize("test", ["test_rounds", "test_single"])
    def test_a_test_has_the_same_noise_alone_and_within_its_suite(self, stored, test):
        """What ran before is not in it; also where a prompt has no full block."""
        noise = ("--llmperf-set", "run_noise=0.02", "--llmperf-set", "request_noise=0.05")
        whole = values(stored("whole", *noise))

        alone = values(stored("alone", *noise, "-k", test))

        assert {key: data for key, data in whole.items() if key[0] == test} == alone

    @pytest.mark.slow
    def test_run_noise_is_as_large_as_asked(self, stored):
        """The step times of runs have this standard deviation, within what 30 runs can tell."""
        data = values(stored("main", "--llmperf-set", "run_noise=0.05", "--llmperf-runs", "30", "-k", "test_rounds"))[
            "test_rounds", "tpot_p50"
        ]

        assert 0.03 < np.std(np.log(data)) < 0.08


class TestBaselines:
    """A simulated figure is held against simulated ones only."""

    def rewritten(self, pytester, change):
        """The stored file, changed."""
        (path,) = pytester.path.glob("baselines/*/*.json")
        document = json.loads(path.read_text())
        for row in document["benchmarks"]:
            change(row["extra_info"]["llmperf"]["comparable"])
        path.write_text(json.dumps(document))

    @pytest.mark.slow
    def test_a_stored_level_is_met_again(self, run):
        """The same simulation passes, without a warning."""
        run("--llmperf-save-baseline", "main")

        run().assert_outcomes(passed=2)

    @pytest.mark.slow
    def test_it_is_not_compared_with_a_measured_one(self, run, pytester):
        """Even if one lies where simulated ones do."""
        run("--llmperf-save-baseline", "main")
        self.rewritten(pytester, lambda comparable: comparable.pop("simulated"))

        result = run()

        result.stdout.fnmatch_lines(["*NO_BASELINE*", "*0001_main.json is not comparable: simulated was None, is True"])

    @pytest.mark.slow
    def test_a_measured_one_is_not_compared_with_it(self, run, pytester, monkeypatch):
        """The other way round, too."""
        clock = VirtualClock()
        monkeypatch.setattr("pytest_llmperf.lifecycle.RealClock", lambda: clock)
        run("--llmperf-save-baseline", "main", tests=MEASURED, hardware=None)
        self.rewritten(pytester, lambda comparable: comparable.update(simulated=True))

        result = run(tests=MEASURED, hardware=None)

        result.stdout.fnmatch_lines(["*NO_BASELINE*", "*0001_main.json is not comparable: simulated was True, is None"])

    @pytest.mark.slow
    def test_every_result_says_that_it_is_simulated(self, run, pytester):
        """In the JSON of the session, too."""
        run("--benchmark-json", "out.json")

        rows = json.loads(pytester.path.joinpath("out.json").read_text())["benchmarks"]
        assert rows
        assert all(row["extra_info"]["llmperf"]["comparable"]["simulated"] is True for row in rows)


class TestSlowdowns:
    """What `slow=` puts in is what the gate finds."""

    @pytest.mark.slow
    def test_a_slower_decode_is_a_regression_of_the_metric_that_it_is(self, run):
        """TPOT by exactly as much, TTFT not at all."""
        run("--llmperf-save-baseline", "main", "-k", "test_rounds")

        result = run("--llmperf-set", "slow=decode:+15%", "-k", "test_rounds")

        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["REGRESSED *", "*ttft_p50 * PASS", "*tpot_p50 * +15.0 % * REGRESSED"])

    @pytest.mark.slow
    def test_a_lost_prefix_cache_is_a_regression(self, run):
        """A hit rate of 0, and the prompts are computed."""
        run("--llmperf-save-baseline", "main", "-k", "test_rounds")

        result = run("--llmperf-set", "slow=prefix_cache:off", "-k", "test_rounds")

        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["REGRESSED *", "*ttft_p50 * REGRESSED", "*hit rate 0.0 %, recomputed 100.0 %*"])

    def test_a_lost_offload_makes_the_run_invalid(self, run):
        """Nothing was moved out or back, although that was asked for."""
        result = run(tests=OFFLOAD.format(slow="kv_offload:off"), hardware=None)

        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(
            ["INVALID_RUN *: kv_offload_gib=64 was asked for, but the engine moved no KV cache out or back"]
        )

    @pytest.mark.slow
    def test_a_slower_host_link_shows_in_what_comes_from_the_host(self, stored):
        """The context comes back over it: 8,000 tokens of 128 KiB at 70 % of the rate."""
        fast, slow = (
            values(stored(name, tests=OFFLOAD.format(slow=text), hardware=None))["test_offload", "ttft_p50"][0]
            for name, text in (("fast", "decode:+0%"), ("slow", "host_link:-30%"))
        )

        moved_s = 8000 * 131_072 / 450e9
        assert slow - fast > 0.4 * moved_s

    @pytest.mark.slow
    def test_an_offload_is_counted(self, run):
        """What came from where adds up to the prompts."""
        result = run("-s", tests=OFFLOAD.format(slow="decode:+0%"), hardware=None)

        result.stdout.fnmatch_lines(["*tiers: *('gpu', 0), ('host', 32000), ('recomputed', 64)*"])
