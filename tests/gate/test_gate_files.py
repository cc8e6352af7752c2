"""Two stored results against each other: what may be compared, and what is said of what may not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from result_files import KEY, TEST, benchmark, document, plain, plain_benchmark, runs, written

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.gate.files import Terms, compared
from pytest_llmperf.result_file import read
from pytest_llmperf.verdicts import Verdict

OTHER = "perf_tests/test_it.py::test_other"
SAME_NIGHT = Terms(night_spread=None)


@pytest.fixture
def files(tmp_path):
    """Reads documents; `files(new)` or `files(newest, older, ...)`."""

    def go(*documents):
        return [read(written(tmp_path / f"{number:04d}_n.json", d)) for number, d in enumerate(documents, 1)]

    return go


@pytest.fixture
def compare(files):
    """`compare(base, new)`: what came of two documents; `base` may be a list of nights, newest first."""

    def go(base, new, terms=SAME_NIGHT):
        nights = base if isinstance(base, list) else [base]
        *stored, now = files(*nights, new)
        return compared(stored, now, terms)

    return go


def at_clock(file, clock_mhz):
    """The same file, of GPUs that worked at this clock where TEST was measured."""
    entries = (replace(e, clock_mhz=clock_mhz) if e.measurement == TEST else e for e in file.entries)
    return replace(file, entries=tuple(entries))


def verdicts(comparison):
    return {(name, f.metric.name): f.verdict for name, j in comparison.judgements.items() for f in j.findings}


class TestVerdicts:
    """What two results that may be compared say of each other."""

    @pytest.mark.parametrize(
        ("factor", "expected"), [(1.0, Verdict.PASS), (1.05, Verdict.REGRESSED), (0.95, Verdict.IMPROVED)]
    )
    def test_slower_is_worse(self, compare, factor, expected):
        """In values as they are stored, lower is better for every metric."""
        new = document(benchmark(runs(0.1 * factor)), benchmark(runs(0.01 * factor), "output_throughput"))
        base = document(benchmark(runs(0.1)), benchmark(runs(0.01), "output_throughput"))

        comparison = compare(base, new)

        assert {(TEST, "ttft_p50"): expected, (TEST, "output_throughput"): expected} == verdicts(comparison)
        assert ((), (), ()) == (comparison.refusals, comparison.vanished, comparison.appeared)

    def test_numbers_are_in_the_metric_s_own_unit(self, compare):
        """Throughput in tokens per second, and its loss with a minus."""
        base, new = (document(benchmark(runs(level), "output_throughput")) for level in (0.01, 0.0125))

        (finding,) = compare(base, new).judgements[TEST].findings

        assert (100.0, 80.0, -0.2) == pytest.approx((finding.baseline, finding.now, finding.change))

    def test_nights_that_differ_hide_what_one_night_shows(self, compare):
        """5 % is what two nights may differ by; measured in turn it is a regression."""
        base, new = document(benchmark()), document(benchmark(runs(0.105)))

        by_night = {spread: compare(base, new, Terms(night_spread=spread)) for spread in (0.02, 0.0, None)}

        found = {spread: verdicts(comparison)[TEST, "ttft_p50"] for spread, comparison in by_night.items()}
        assert {0.02: Verdict.PASS, 0.0: Verdict.REGRESSED, None: Verdict.REGRESSED} == found

    def test_what_a_test_asked_counts_unless_something_else_is_asked(self, compare):
        """`detect` and `min_effect` stand in the file."""
        base = document(benchmark())
        careful = document(benchmark(runs(0.1), criterion={"detect": 0.005}))
        lenient = document(benchmark(runs(0.105), criterion={"min_effect": 0.06}))

        assert Verdict.INCONCLUSIVE is verdicts(compare(base, careful))[TEST, "ttft_p50"]
        assert Verdict.PASS is verdicts(compare(base, careful, replace(SAME_NIGHT, detect=0.1)))[TEST, "ttft_p50"]
        assert Verdict.PASS is verdicts(compare(base, lenient))[TEST, "ttft_p50"]
        strict = replace(SAME_NIGHT, min_effect=0.0)
        assert Verdict.REGRESSED is verdicts(compare(base, lenient, strict))[TEST, "ttft_p50"]

    def test_all_comparisons_share_the_error_rate(self, compare):
        """What one test alone would be called red for is not red among a hundred."""
        slower = runs(0.1 * 1.0105)
        alone = compare(document(benchmark()), document(benchmark(slower)))
        names = [f"t.py::test_{number}" for number in range(100)]
        base = document(*(benchmark(test=name) for name in names))
        new = document(*(benchmark(slower if name == names[0] else runs(), test=name) for name in names))

        among = compare(base, new)

        assert Verdict.REGRESSED is alone.judgements[TEST].verdict
        assert {Verdict.PASS} == {judgement.verdict for judgement in among.judgements.values()}

    def test_a_measurement_is_as_bad_as_its_worst_metric(self, compare):
        base = document(benchmark(), benchmark(runs(0.01), "tpot_p50"))
        new = document(benchmark(), benchmark(runs(0.012), "tpot_p50"))

        assert Verdict.REGRESSED is compare(base, new).judgements[TEST].verdict

    def test_one_run_each_is_not_judged(self, compare):
        """Both levels are told; a difference of a factor of 2 is neither passed nor failed."""
        (finding,) = compare(document(benchmark([0.1])), document(benchmark([0.2]))).judgements[TEST].findings

        assert (Verdict.INCONCLUSIVE, None, None) == (finding.verdict, finding.p, finding.change)
        assert (0.1, 0.2) == pytest.approx((finding.baseline, finding.now))

    @pytest.mark.parametrize(
        ("base", "new", "expected"),
        [
            ([0.1] * 5, [0.1] * 5, Verdict.PASS),
            ([0.1] * 5, [0.1] * 3, Verdict.PASS),
            ([0.1] * 5, [0.100001] * 5, Verdict.REGRESSED),
            ([0.1] * 5, [0.099999] * 5, Verdict.IMPROVED),
        ],
    )
    def test_values_without_any_spread(self, compare, base, new, expected):
        """Equal is equal, whatever the numbers of runs; what differs where nothing ever varied differs."""
        assert expected is compare(document(benchmark(base)), document(benchmark(new))).judgements[TEST].verdict

    @pytest.mark.parametrize(("level", "expected"), [(0.10009, Verdict.PASS), (0.1002, Verdict.REGRESSED)])
    def test_the_last_digit_of_a_simulation_means_nothing(self, compare, level, expected):
        """No model is good to a thousandth."""
        base, new = (document(benchmark([one] * 5, simulated=True)) for one in (0.1, level))

        assert expected is compare(base, new).judgements[TEST].verdict

    def test_extreme_values_are_numbers_all_the_same(self, compare):
        """The longest and the shortest that a file may hold."""
        values = [1e-300, 1e300]

        judgement = compare(document(benchmark(values)), document(benchmark(values[::-1]))).judgements[TEST]

        assert (Verdict.INCONCLUSIVE, math.inf) == (judgement.verdict, judgement.findings[0].detectable)

    def test_how_the_engine_differs_is_told(self, compare):
        """It forbids nothing: a prefix cache switched off by mistake is what one looks for."""
        judgement = compare(document(benchmark(words={"prefix_caching": True})), document(benchmark())).judgements[TEST]

        assert ("the engine differs: prefix_caching True -> None",) == judgement.doubts

    @pytest.mark.parametrize(
        ("before", "now", "expected"),
        [
            (1980, 1700, Verdict.INVALID_RUN),
            (1980, 1950, Verdict.REGRESSED),
            (None, 1700, Verdict.REGRESSED),
            (1980, None, Verdict.REGRESSED),
        ],
    )
    def test_a_gpu_at_another_clock_is_no_regression(self, files, before, now, expected):
        """That measurement says what its clocks were; the other one is judged all the same."""
        base, new = files(
            document(benchmark(), benchmark(test=OTHER)),
            document(benchmark(runs(0.2)), benchmark(runs(0.2), test=OTHER)),
        )

        judgements = compared([at_clock(base, before)], at_clock(new, now), SAME_NIGHT).judgements

        assert (expected, Verdict.REGRESSED) == (judgements[TEST].verdict, judgements[OTHER].verdict)
        told = ["worked at 1700 MHz and at 1980 MHz" in doubt for doubt in judgements[TEST].doubts]
        assert ([True] if expected is Verdict.INVALID_RUN else []) == told

    def test_what_its_clocks_spoiled_is_no_evidence_in_the_family(self, files):
        """A change that is shown beside one other comparison is not shown more easily beside a spoiled huge one."""
        slower = runs(0.1 * 1.00995)
        base, new = files(
            document(benchmark(), benchmark(test=OTHER)),
            document(benchmark(runs(0.2)), benchmark(slower, test=OTHER)),
        )

        spoiled = compared([at_clock(base, 1980)], at_clock(new, 1000), SAME_NIGHT)
        beside = compared([base], new, SAME_NIGHT)

        assert Verdict.REGRESSED is beside.judgements[OTHER].verdict
        assert Verdict.PASS is spoiled.judgements[OTHER].verdict

    def test_the_error_rate_is_the_one_that_was_asked_for(self, compare):
        base, new = document(benchmark()), document(benchmark(runs(0.1 * 1.0105)))

        found = {alpha: verdicts(compare(base, new, replace(SAME_NIGHT, alpha=alpha))) for alpha in (0.01, 1e-4)}

        assert {0.01: Verdict.REGRESSED, 1e-4: Verdict.PASS} == {a: v[TEST, "ttft_p50"] for a, v in found.items()}

    def test_what_it_was_compared_with_and_of_what_is_told(self, compare):
        """By the file's name and the metric's."""
        base, new = document(benchmark()), document(benchmark())

        comparison = compare(base, new)

        assert "0001_n.json" == comparison.judgements[TEST].against
        (change,) = comparison.changes[TEST]
        assert "ttft_p50" == change.quantity.name
        assert (0.1, 0.1) == pytest.approx((change.base, change.new))

    def test_plain_benchmarks_are_judged_by_their_time(self, compare):
        """Files that pytest-benchmark wrote of other tests."""
        base, new = plain(plain_benchmark()), plain(plain_benchmark(runs(0.12)))

        assert {("tests/test_sort.py::test_sort", "time"): Verdict.REGRESSED} == verdicts(compare(base, new))

    def test_two_comparisons_of_the_same_are_equal(self, compare):
        """Nothing hangs on a draw, the day or the order of a set."""
        base, new = (document(benchmark(), benchmark(runs(one), "tpot_p50")) for one in (0.01, 0.011))

        first, second = compare(base, new), compare(base, new)

        assert repr(first) == repr(second)


class TestNights:
    """A result against all that a folder holds."""

    def night(self, level, *, load="round_robin()", spread=0.002):
        return document(benchmark(runs(level, spread), load=load))

    def test_runs_of_all_nights_are_the_base(self, compare):
        """Their number and the newest's name are told."""
        judgement = compare([self.night(0.1), self.night(0.1)], self.night(0.1), Terms(night_spread=0.0)).judgements

        assert "2 nights up to 0001_n.json" == judgement[TEST].against
        assert (10, 5) == (judgement[TEST].findings[0].base_runs, judgement[TEST].findings[0].new_runs)

    def test_how_much_nights_differ_is_learned_from_six(self, compare):
        """Then what is assumed no longer counts."""
        quiet = [self.night(0.1 * factor) for factor in (1.0, 1.001, 0.999, 1.0005, 0.9995, 1.0)]
        new = self.night(0.102)

        assert Verdict.REGRESSED is compare(quiet, new, Terms(night_spread=0.5)).judgements[TEST].verdict
        assert Verdict.INCONCLUSIVE is compare(quiet[:5], new, Terms(night_spread=0.5)).judgements[TEST].verdict

    def test_older_nights_of_another_load_are_left_out(self, compare):
        """They measured something else under the same name."""
        nights = [self.night(0.1), self.night(9.9, load="poisson(1)"), self.night(0.1)]

        judgement = compare(nights, self.night(0.1), Terms(night_spread=0.0)).judgements[TEST]

        assert (10, 0.1) == (judgement.findings[0].base_runs, pytest.approx(judgement.findings[0].baseline))

    def test_the_newest_decides_whether_there_is_anything_to_compare(self, compare):
        """An older night that happens to fit would hide that the test has changed since."""
        comparison = compare([self.night(0.1, load="poisson(1)"), self.night(0.1)], self.night(0.1))

        assert {} == comparison.judgements
        assert (f"load was 'poisson(1)', is 'round_robin()' ({TEST})",) == comparison.refusals


class TestOtherPeoplesFigures:
    """What others published or measured, often of metrics that a test of one's own does not gate."""

    @pytest.fixture
    def against(self, files):
        """Compares a night whose runs have an E2E of 0.2 s, ungated, with one that gates it at 0.1 s."""

        def go(ours=0.2, **comparable):
            base, new = files(
                document(benchmark(metric="e2e_p50", **comparable)),
                document(benchmark(metric="ttft_p50", **comparable)),
            )
            figures = {TEST: [{} if ours is None else {"e2e_p50": one} for one in runs(0.2)]}
            return compared([base], replace(new, figures=figures), SAME_NIGHT)

        return go

    @pytest.mark.parametrize("kind", ["published", "imported"])
    def test_they_are_held_against_what_was_measured_beside_the_gated_metrics(self, against, kind):
        comparison = against(**{kind: "a source"})

        assert {(TEST, "e2e_p50"): Verdict.REGRESSED} == verdicts(comparison)
        assert () == comparison.vanished

    def test_of_a_night_of_one_s_own_the_gated_metrics_count(self, against):
        """A metric that is gated no more has vanished, although it was measured."""
        comparison = against()

        assert {} == comparison.judgements
        assert (f"e2e_p50 of {TEST}: only in the base (0001_n.json)",) == comparison.vanished

    def test_what_was_not_measured_is_missing(self, against):
        comparison = against(ours=None, published="a source")

        assert ({}, 1) == (comparison.judgements, len(comparison.vanished))

    def test_the_gated_metric_is_not_replaced(self, files):
        """The row's own values count, whatever else the file says of it."""
        base, new = (document(benchmark(published="a source")) for _ in range(2))
        stored, now = files(base, new)

        comparison = compared([stored], replace(now, figures={TEST: [{"ttft_p50": 9.0}]}), SAME_NIGHT)

        assert {(TEST, "ttft_p50"): Verdict.PASS} == verdicts(comparison)


class TestRefusals:
    """What may not be compared, and why."""

    @pytest.mark.parametrize(
        ("base", "new", "reason"),
        [
            ({"workload": "a"}, {"workload": "b"}, "workload was 'a', is 'b'"),
            ({"load": "poisson(1)"}, {"load": "poisson(2)"}, "load was 'poisson(1)', is 'poisson(2)'"),
            ({"cache": "cold"}, {"cache": "primed"}, "cache was 'cold', is 'primed'"),
            ({"engine": "vllm"}, {"engine": "openai"}, "engine was 'vllm', is 'openai'"),
            ({"engine model": "a"}, {"engine model": "b"}, "engine model was 'a', is 'b'"),
            ({"engine dtype": "fp8"}, {}, "engine dtype was 'fp8', is None"),
            ({}, {"simulated": True}, "simulated was None, is True"),
            ({"simulated": True}, {}, "simulated was True, is None"),
            ({"engine prompts": "chat"}, {}, "engine prompts was 'chat', is None"),
            ({}, {"engine prompts": "chat"}, "engine prompts was None, is 'chat'"),
        ],
    )
    def test_what_differs_is_named(self, compare, base, new, reason):
        """Both ways round, as either file may be the older one."""
        comparison = compare(document(benchmark(**base)), document(benchmark(**new)))

        assert ({}, (f"{reason} ({TEST})",)) == (comparison.judgements, comparison.refusals)

    def test_a_file_that_says_nothing_is_not_comparable_with_one_that_does(self, compare):
        """Silence is no agreement."""
        silent = document(benchmark())
        silent["benchmarks"][0]["extra_info"]["llmperf"]["comparable"] = {}

        for base, new in ((silent, document(benchmark())), (document(benchmark()), silent)):
            comparison = compare(base, new)
            assert {} == comparison.judgements
            assert 5 == len(comparison.refusals)

    def test_other_hardware(self, compare):
        comparison = compare(document(benchmark(), key="NVIDIA-H100"), document(benchmark()))

        assert ({}, (f"hardware was NVIDIA-H100, is {KEY}",)) == (comparison.judgements, comparison.refusals)

    def test_hardware_that_is_not_known_is_other_hardware(self, compare):
        comparison = compare(plain(plain_benchmark()), document(plain_benchmark()))

        assert (f"hardware was unknown, is {KEY}",) == comparison.refusals

    def test_a_metric_in_another_unit(self, compare):
        """A name that two tools share need not mean the same."""
        base, new = (document(benchmark(metric="goodput")) for _ in range(2))
        new["benchmarks"][0]["extra_info"]["llmperf"] |= {"unit": "requests/s", "stored_as": "1/value"}

        refusals = compare(base, new).refusals

        assert (f"goodput was in s, lower is better, is in requests/s, higher is better ({TEST})",) == refusals

    def test_each_reason_once_with_how_many_it_is_for(self, compare):
        """Thirty tests of another model are one line."""
        base, new = (
            document(*(benchmark(test=f"t.py::test_{number}", **{"engine model": model}) for number in range(3)))
            for model in "ab"
        )

        assert ("engine model was 'a', is 'b' (t.py::test_0 and 2 more)",) == compare(base, new).refusals

    def test_one_that_differs_withholds_every_verdict(self, compare):
        """What is left would pass for the whole."""
        base = document(benchmark(), benchmark(test=OTHER))
        new = document(benchmark(), benchmark(test=OTHER, load="poisson(1)"))

        assert {} == compare(base, new).judgements

    def test_the_changes_are_there_all_the_same(self, compare):
        """For a reader who knows better; higher is better where the metric says so."""
        base = document(benchmark(runs(0.01), "output_throughput"), key="other")
        new = document(benchmark(runs(0.0125), "output_throughput"))

        (change,) = compare(base, new).changes[TEST]

        assert (100.0, 80.0, -0.2) == pytest.approx((change.base, change.new, change.change))


class TestNames:
    """Measurements that only one side has, and those that have another name now."""

    def test_what_vanished_and_what_appeared_is_told(self, compare):
        base, new = (
            document(benchmark(test="a"), benchmark(test="c")),
            document(benchmark(test="b"), benchmark(test="c")),
        )
        for row in new["benchmarks"]:
            row["extra_info"]["llmperf"]["comparable"]["workload"] = "w"

        comparison = compare(base, new)

        assert ("ttft_p50 of a: only in the base (0001_n.json)",) == comparison.vanished
        assert ("ttft_p50 of b: only in the new result",) == comparison.appeared

    def test_a_metric_that_vanished_is_told_with_its_measurement(self, compare):
        """Losing one metric must not look like all of them passing."""
        base = document(benchmark(), benchmark(metric="tpot_p50"), benchmark(metric="e2e_p50"))

        comparison = compare(base, document(benchmark()))

        assert (f"tpot_p50, e2e_p50 of {TEST}: only in the base (0001_n.json)",) == comparison.vanished
        assert Verdict.PASS is comparison.judgements[TEST].verdict

    @pytest.mark.parametrize(
        ("nights", "is_missed"),
        [("o....", True), (".oo..", False), (".oo.", True), (".o.", False), ("o", True), (".oooo", True)],
    )
    def test_it_is_missed_if_the_newest_night_or_half_of_them_had_it(self, compare, nights, is_missed):
        """Newest first; a test that was removed long ago is not told of for ever."""
        base = [document(benchmark(), *([benchmark(test=OTHER)] if night == "o" else [])) for night in nights]

        assert is_missed == bool(compare(base, document(benchmark())).vanished)

    def test_the_name_under_which_it_may_be_now(self, compare):
        """The same workload under the same load is probably the same test."""
        base, new = (document(benchmark(test=name)) for name in ("t.py::test_old", "t.py::test_new"))

        (vanished,) = compare(base, new).vanished

        assert vanished.endswith("; was it renamed to t.py::test_new? (--rename OLD=NEW)")

    def test_a_new_name_for_the_base(self, compare):
        """Text within the name is replaced, and the two are compared."""
        base, new = (document(benchmark(test=f"t.py::test_it[{part}]")) for part in ("h100", "gh200"))

        comparison = compare(base, new, replace(SAME_NIGHT, renamed=(("h100", "gh200"),)))

        assert {("t.py::test_it[gh200]", "ttft_p50"): Verdict.PASS} == verdicts(comparison)
        assert ((), ()) == (comparison.vanished, comparison.appeared)

    def test_two_measurements_cannot_become_one(self, compare):
        """Their runs would be taken for two nights of one test."""
        base = document(benchmark(test="test[a]"), benchmark(runs(5.0), test="test[b]"))

        with pytest.raises(
            BaselineError, match=r"--rename gives test\[a\] and test\[b\] of .*0001_n.json one name, test"
        ):
            compare(base, document(benchmark(test="test[b]")), replace(SAME_NIGHT, renamed=(("[a]", "[b]"),)))

    def test_only_the_metrics_that_are_asked_for(self, compare):
        """Neither judged nor missed nor refused are the others."""
        base = document(benchmark(), benchmark(metric="tpot_p50"), benchmark(metric="e2e_p50", load="poisson(1)"))
        new = document(benchmark(), benchmark(metric="itl_p50"), benchmark(metric="e2e_p50"))

        comparison = compare(base, new, replace(SAME_NIGHT, metrics=frozenset({"ttft_p50"})))

        assert {(TEST, "ttft_p50"): Verdict.PASS} == verdicts(comparison)
        assert ((), (), ()) == (comparison.refusals, comparison.vanished, comparison.appeared)

    @pytest.mark.parametrize(
        ("base", "new"),
        [
            (document(), document()),
            (document(benchmark()), document()),
            (document(), document(benchmark())),
            (document(benchmark(test="a")), document(benchmark(test="b"))),
        ],
    )
    def test_nothing_in_common_is_no_judgement(self, compare, base, new):
        """An empty result must not pass."""
        comparison = compare(base, new)

        assert ({}, {}, ()) == (comparison.judgements, comparison.changes, comparison.refusals)
