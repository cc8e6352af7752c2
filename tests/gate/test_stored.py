"""The gate: every verdict, and the error rate that all verdicts of a session share."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.baselines import Baselines
from pytest_llmperf.gate import ALPHA, SCREEN, Criterion, Gate, confirmed
from pytest_llmperf.gate.advice import inconclusive
from pytest_llmperf.judged import Provenance, Validity
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.records import CacheCounters, Phase, RequestRecord, RunRecord
from pytest_llmperf.result_file import SCHEMA_VERSION, comparable
from pytest_llmperf.results import PerfResult
from pytest_llmperf.verdicts import Finding, Remedy, Verdict

KEY = "NVIDIA-TEST"
PROVENANCE = Provenance(
    test="test_it",
    name=None,
    hardware_key=KEY,
    workload="multi_round",
    workload_digest="0123456789abcdef",
    load="round_robin()",
    open_load=False,
    cache="as_is",
    engine_kind="vllm",
    engine_identity={"model": "m"},
    engine_words={"kind": "vllm", "prefix_caching": True},
    engine={},
)
TTFT = Criterion("ttft_p50")
THROUGHPUT = Criterion("output_throughput")
# Five runs whose logarithms have a standard deviation of exactly 1.
SHAPE = tuple(v / math.sqrt(2.5) for v in (-2, -1, 0, 1, 2))


def runs_of(typical, spread, shape=SHAPE):
    """Values around `typical` whose logarithms have the standard deviation `spread`."""
    return [typical * math.exp(spread * one) for one in shape]


def at_p(p, typical=0.1, spread=0.01):
    """Five values that are slower than `runs_of(typical, spread)` with exactly this one-sided p."""
    return runs_of(typical * math.exp(scipy_stats.t.isf(p, 8) * spread * math.sqrt(2 / 5)), spread)


def run(ttft_s, duration_s=1.0, tokens=100):
    """A run of one request; without a TTFT of one that was answered all the same."""
    arrivals = () if ttft_s is None else (Arrival(round(ttft_s * 1e9), 1), Arrival(round(duration_s * 1e9), 1))
    request = RequestRecord(
        run=0,
        phase=Phase.MEASURED,
        session=0,
        turn=0,
        released_ns=0,
        sent_ns=0,
        end_ns=round(duration_s * 1e9),
        arrivals=arrivals,
        new_tokens=4,
        input_tokens=100,
        output_tokens_asked=tokens,
        output_tokens=tokens,
    )
    return RunRecord(index=0, phase=Phase.MEASURED, start_ns=0, end_ns=0, requests=(request,), cache=CacheCounters())


def result(*runs, test="test_it", reasons=(), doubts=(), looks=(), **provenance):
    return PerfResult(
        runs,
        looks=looks,
        provenance=replace(PROVENANCE, test=test, **provenance),
        validity=Validity(reasons),
        doubts=doubts,
    )


def ttft(values, **words):
    """A result whose runs have these TTFTs."""
    return result(*(run(value) for value in values), **words)


def throughput(values):
    """A result whose runs have these throughputs, tokens per second."""
    return result(*(run(0.01, duration_s=100 / value) for value in values))


class Store:
    """A folder of baselines, filled before the gate looks."""

    def __init__(self, folder):
        self.baselines = Baselines(folder)

    def add(self, values, metric="ttft_p50", name="main", **provenance):
        """Store values, given in the metric's own unit."""
        of = replace(PROVENANCE, **provenance)
        row = {
            "stats": {"data": [METRICS[metric].stored(value) for value in values]},
            "extra_info": {
                "llmperf": {
                    "measurement": of.measurement,
                    "metric": metric,
                    "comparable": comparable(of),
                    "engine_words": of.engine_words,
                }
            },
        }
        about = {"llmperf": {"schema_version": SCHEMA_VERSION, "hardware_key": KEY}}
        document = {"machine_info": about, "benchmarks": [row]}
        return self.baselines.save(name, KEY, json.loads(json.dumps(document)))

    def gate(self, family_size=1, alpha=ALPHA, night_spread=0.0, **words):
        return Gate(self.baselines, family_size, alpha, night_spread, **words)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_an_equal_measurement_passes(store):
    """PASS comes with the change, its interval, and what would have been seen."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate().judge(ttft(runs_of(0.1, 0.01)), [TTFT])

    (finding,) = judgement.findings
    assert (Verdict.PASS, Verdict.PASS) == (judgement.verdict, finding.verdict)
    assert ("0001_main.json", (), None) == (judgement.against, judgement.doubts, judgement.advice)
    assert (0.1, 0.1) == pytest.approx((finding.baseline, finding.now))
    assert 0.0 == pytest.approx(finding.change, abs=1e-6)
    assert 0.5 == pytest.approx(finding.p, abs=1e-4)
    assert (5, 5, None) == (finding.base_runs, finding.new_runs, finding.note)
    assert finding.interval[0] < 0 < finding.interval[1]
    assert 0.01 < finding.detectable < 0.04


def test_a_slower_measurement_has_regressed(store):
    """REGRESSED says by how much, and what to do."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate().judge(ttft(runs_of(0.12, 0.01)), [TTFT])

    (finding,) = judgement.findings
    assert Verdict.REGRESSED is judgement.verdict
    assert (0.1, 0.12) == pytest.approx((finding.baseline, finding.now))
    assert 0.2 == pytest.approx(finding.change)
    assert finding.p < 1e-6
    assert finding.interval[0] < 0.2 < finding.interval[1]
    assert finding.interval[0] > 0.1
    assert (
        "look for the change that caused it; if it is accepted, say so until a day with pytest-llmperf baseline "
        "acknowledge" == judgement.advice
    )


def test_a_faster_measurement_has_improved(store):
    """IMPROVED is found with the same care as a regression."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate().judge(ttft(runs_of(0.08, 0.01)), [TTFT])

    assert Verdict.IMPROVED is judgement.verdict
    assert -0.2 == pytest.approx(judgement.findings[0].change)
    assert 1.0 == pytest.approx(judgement.findings[0].p)


def test_without_a_baseline_the_level_is_told_and_nothing_judged(store):
    """NO_BASELINE gives the number that would be stored, and says how."""
    judgement = store.gate(0).judge(ttft(runs_of(0.1, 0.01)), [TTFT])

    (finding,) = judgement.findings
    assert (Verdict.NO_BASELINE, None) == (judgement.verdict, judgement.against)
    assert 0.1 == pytest.approx(finding.now)
    assert (None, None, None) == (finding.baseline, finding.change, finding.p)
    assert f"nothing is stored for {KEY} in {store.baselines.directory}" == finding.note
    assert "store this level with --llmperf-save-baseline NAME" == judgement.advice


def test_another_workload_is_no_baseline(store):
    """What may not be compared is not, and the reason is told."""
    store.add(runs_of(0.1, 0.01), workload_digest="f" * 16)

    judgement = store.gate().judge(ttft(runs_of(0.1, 0.01)), [TTFT])

    assert Verdict.NO_BASELINE is judgement.verdict
    assert "workload was 'ffffffffffffffff', is '0123456789abcdef'" in judgement.findings[0].note


def test_a_comparison_that_is_too_noisy_is_inconclusive(store):
    """INCONCLUSIVE says what could not have been seen and how many runs would see it."""
    store.add(runs_of(0.1, 0.05))

    judgement = store.gate().judge(ttft(runs_of(0.1, 0.05)), [TTFT])

    (finding,) = judgement.findings
    assert Verdict.INCONCLUSIVE is judgement.verdict
    assert "could not have seen 10%; at this noise that takes 8 runs, here and in the baseline" == finding.note
    assert finding.detectable > 0.1
    assert (
        "measure 8 runs (--llmperf-runs 8, or runs=8 in the test), and store a night of as many with "
        "--llmperf-save-baseline NAME; or say with llm_gate(detect=...) how large a change has to show"
    ) == judgement.advice


def test_noise_that_no_number_of_runs_overcomes_is_said_to_be_so(store):
    """The advice is not a thousand runs."""
    store.add(runs_of(0.1, 1.0))

    judgement = store.gate().judge(ttft(runs_of(0.1, 1.0)), [TTFT])

    assert "could not have seen 10%; at this noise no sensible number of runs can" == judgement.findings[0].note
    assert judgement.advice.startswith("lower the noise: pytest-llmperf doctor says")
    assert "--llmperf-runs" not in judgement.advice


def test_where_nights_differ_too_much_the_advice_is_one_night(store):
    """And not more runs, of which the note says that they would not do."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate(night_spread=0.1).judge(ttft(runs_of(0.1, 0.01)), [TTFT])

    assert "so only a comparison on the same night would: pytest-llmperf ab" in judgement.findings[0].note
    assert judgement.advice.startswith(
        "compare the two builds on one night with pytest-llmperf ab; or say with llm_gate"
    )
    assert "--llmperf-runs" not in judgement.advice


def test_the_advice_of_several_metrics_is_for_the_one_that_takes_most():
    """More runs are advised where they would do for all."""

    def of(*remedies):
        metric, verdict = METRICS["ttft_p50"], Verdict.INCONCLUSIVE
        return inconclusive([Finding(metric=metric, verdict=verdict, remedy=remedy) for remedy in remedies])

    few, many, another = Remedy(runs=7), Remedy(runs=28), Remedy(otherwise="compare in turn")
    assert of(few, many).startswith(
        "measure 28 runs (--llmperf-runs 28, or runs=28 in the test); or say with llm_gate(detect=...)"
    )
    assert of(few, another).startswith("compare in turn; or say with llm_gate(detect=...)")


def test_what_a_session_stores_is_not_advised_to_be_stored(store):
    """And of what is stored otherwise the difference may be undone."""
    saving = Gate(store.baselines, 0, is_saving=True)

    assert saving.judge(ttft(runs_of(0.1, 0.01)), [TTFT]).advice == (
        "nothing; this session stores this level, and the next one is judged by it"
    )


def test_a_difference_may_be_undone(store):
    store.add(runs_of(0.1, 0.01), workload_digest="f" * 16)

    advice = store.gate().judge(ttft(runs_of(0.1, 0.01)), [TTFT]).advice

    assert "undo what differs, or store this level with --llmperf-save-baseline NAME" == advice


def test_noise_beyond_all_numbers_is_still_inconclusive(store):
    """A change too large to be a number is infinite, not an error."""
    store.add([1e-9, 1e9])

    (finding,) = store.gate(20).judge(ttft([1e-9, 1e9]), [TTFT]).findings

    assert (Verdict.INCONCLUSIVE, math.inf) == (finding.verdict, finding.detectable)


def test_a_regression_is_found_however_noisy_the_comparison_is(store):
    """What is significant is REGRESSED although smaller changes could not have been seen."""
    store.add(runs_of(0.1, 0.05))

    judgement = store.gate().judge(ttft(runs_of(0.2, 0.05)), [TTFT])

    assert Verdict.REGRESSED is judgement.verdict
    assert judgement.findings[0].detectable > 0.1


def test_an_invalid_measurement_is_not_compared(store):
    """INVALID_RUN has the reasons and no numbers."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate().judge(ttft(runs_of(0.2, 0.01), reasons=("3 of 9 requests failed",)), [TTFT])

    assert (Verdict.INVALID_RUN, (), None) == (judgement.verdict, judgement.findings, judgement.against)
    assert ("3 of 9 requests failed",) == judgement.doubts
    assert "nothing was compared; mend what made it invalid and measure again" == judgement.advice


def test_one_run_each_is_inconclusive(store):
    """One run has no spread: both levels are told, nothing is tested, and the remedy is named."""
    store.add([0.1])

    judgement = store.gate().judge(ttft([0.2]), [TTFT])

    (finding,) = judgement.findings
    assert (Verdict.INCONCLUSIVE, "ttft_p50") == (judgement.verdict, finding.metric.name)
    assert "one run each has no spread to compare with; use --llmperf-runs 2 or more, better 5" == finding.note
    assert "measure 5 runs (--llmperf-runs 5, or runs=5 in the test)" == judgement.advice
    assert 2.0 == pytest.approx(finding.now / finding.baseline, rel=0.05)
    assert (None, None, None) == (finding.p, finding.change, finding.detectable)


@pytest.mark.parametrize(("stored", "measured"), [(1, 5), (5, 1)])
def test_one_run_is_judged_by_the_spread_of_the_other_side(store, stored, measured):
    """What five runs say of the noise holds for a single one, too."""
    store.add(runs_of(0.1, 0.01)[:stored])

    judgement = store.gate().judge(ttft(runs_of(0.2, 0.01)[:measured]), [TTFT])

    assert Verdict.REGRESSED is judgement.verdict


@pytest.mark.parametrize("values", [(0.1, None, 0.1), (None, None, None)])
def test_a_metric_that_some_runs_did_not_measure_is_not_judged(store, values):
    """A number from the other runs alone would be of another sample."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate().judge(ttft(values), [TTFT])

    (finding,) = judgement.findings
    measured = sum(value is not None for value in values)
    assert (Verdict.INVALID_RUN, Verdict.INVALID_RUN) == (judgement.verdict, finding.verdict)
    assert f"measured in {measured} of 3 runs, so it cannot be judged" == finding.note


def test_energy_that_is_absent_says_why(store):
    """Whoever gates it has switched telemetry off, or has no GPU: a count of runs does not tell that."""
    judgement = store.gate().judge(ttft([0.1, 0.1]), [Criterion("joules_per_token")])

    (finding,) = judgement.findings
    assert Verdict.INVALID_RUN is finding.verdict
    assert finding.note.startswith(
        "measured in 0 of 2 runs, so it cannot be judged: nothing was sampled, as --llmperf-telemetry is off, or "
    )


def test_what_the_machine_needs_is_said_with_each_verdict(store):
    """A driver that hangs spoils no latency, and still somebody has to look after it."""
    store.add(runs_of(0.1, 0.01))
    measured, new = ttft(runs_of(0.1, 0.01)), ttft(runs_of(0.1, 0.01), test="test_new")
    measured.advice = new.advice = "mend the GPU driver"

    first, second = (store.gate().judge(one, [TTFT]) for one in (new, measured))

    assert (Verdict.NO_BASELINE, Verdict.PASS) == (first.verdict, second.verdict)
    assert "store this level with --llmperf-save-baseline NAME; mend the GPU driver" == first.advice
    assert "mend the GPU driver" == second.advice


def test_a_value_of_zero_has_no_logarithm_and_is_never_passed(store):
    """A hit rate that has fallen to 0 in one run cannot be compared, and that is not green."""
    store.add([0.5, 0.5], "cache_hit_rate")
    hit, missed = (replace(run(0.1), cache=CacheCounters(queried_tokens=10, hit_tokens=tokens)) for tokens in (5, 0))

    judgement = store.gate().judge(result(hit, missed), [Criterion("cache_hit_rate")])

    assert Verdict.INVALID_RUN is judgement.verdict
    assert "is 0 in some runs, which cannot be compared by its ratio" == judgement.findings[0].note


def test_a_rate_that_fell_to_zero_altogether_is_a_regression(store):
    """The prefix cache lost for good is what such a gate is for, although zero has no logarithm."""
    store.add([0.5, 0.5], "cache_hit_rate")
    missed = replace(run(0.1), cache=CacheCounters(queried_tokens=10, hit_tokens=0))

    judgement = store.gate().judge(result(missed, missed), [Criterion("cache_hit_rate")])

    (finding,) = judgement.findings
    assert (Verdict.REGRESSED, "cache_hit_rate") == (judgement.verdict, finding.metric.name)
    assert (0.5, 0.0, -1.0) == (pytest.approx(finding.baseline), finding.now, finding.change)
    assert "has fallen to 0 in every run" == finding.note


def test_a_rate_of_zero_without_a_baseline_fell_from_nothing(store):
    """Nobody knows whether it was ever more."""
    missed = replace(run(0.1), cache=CacheCounters(queried_tokens=10, hit_tokens=0))

    judgement = store.gate().judge(result(missed, missed), [Criterion("cache_hit_rate")])

    assert Verdict.INVALID_RUN is judgement.verdict


def test_nothing_to_compare_is_no_pass(store):
    """Without a gated metric there is nothing that could have passed."""
    assert Verdict.NO_BASELINE is store.gate().judge(result(run(0.1)), []).verdict


def test_the_other_metrics_are_judged_all_the_same(store):
    """A metric that is missing does not take the findings of another away."""
    store.add(runs_of(0.1, 0.01))
    store.add(runs_of(100.0, 0.01), "output_throughput", name="second")

    judgement = store.gate(2).judge(ttft([None, 0.1, 0.1]), [TTFT, THROUGHPUT])

    assert {"output_throughput": Verdict.PASS, "ttft_p50": Verdict.INVALID_RUN} == {
        finding.metric.name: finding.verdict for finding in judgement.findings
    }


@pytest.mark.parametrize(
    ("now", "expected", "change"),
    [(100.0, Verdict.PASS, 0.0), (80.0, Verdict.REGRESSED, -0.2), (125.0, Verdict.IMPROVED, 0.25)],
)
def test_less_throughput_is_worse(store, now, expected, change):
    """Where higher is better the sides are turned, and numbers stay in the metric's own unit."""
    store.add(runs_of(100.0, 0.01), "output_throughput")

    judgement = store.gate().judge(throughput(runs_of(now, 0.01)), [THROUGHPUT])

    (finding,) = judgement.findings
    assert expected is judgement.verdict
    assert (100.0, now) == pytest.approx((finding.baseline, finding.now))
    assert change == pytest.approx(finding.change, abs=1e-6)
    assert finding.interval[0] < finding.change < finding.interval[1]
    assert -0.04 < finding.detectable < -0.01


def test_levels_are_geometric_means(store):
    """What is shown is what the test on logarithms compares."""
    store.add([0.1, 0.4])

    (finding,) = store.gate().judge(ttft([0.2, 0.8]), [TTFT]).findings

    assert (0.2, 0.4, 1.0) == pytest.approx((finding.baseline, finding.now, finding.change))


def test_a_metric_without_any_spread_is_compared_exactly(store):
    """Equal is PASS, whatever the numbers of runs; any rise is REGRESSED."""
    store.add([0.1] * 10)

    verdicts = [store.gate().judge(ttft([value] * 7), [TTFT]).verdict for value in (0.1, 0.1001, 0.0999)]

    assert [Verdict.PASS, Verdict.REGRESSED, Verdict.IMPROVED] == verdicts


@pytest.mark.parametrize(
    ("family", "p", "expected"),
    [
        (1, 0.009, Verdict.REGRESSED),
        (1, 0.011, Verdict.PASS),
        (10, 0.009, Verdict.PASS),
        (10, 0.0011, Verdict.PASS),
        (10, 0.0009, Verdict.REGRESSED),
    ],
)
def test_all_comparisons_of_a_session_share_the_error_rate(store, family, p, expected):
    """The more comparisons were planned, the smaller a p-value has to be."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate(family).judge(ttft(at_p(p)), [TTFT])

    assert expected is judgement.verdict
    assert p == pytest.approx(judgement.findings[0].p, rel=1e-3)


@pytest.mark.parametrize("family", [1, 10, 50])
def test_what_would_have_been_seen_is_told_for_the_whole_family(store, family):
    """With more comparisons the detectable change and the interval grow."""
    store.add(runs_of(0.1, 0.01))

    (finding,) = store.gate(family).judge(ttft(runs_of(0.1, 0.01)), [TTFT]).findings

    reach = scipy_stats.t.isf(ALPHA / family / 2, 8) * 0.01 * math.sqrt(2 / 5)
    assert (math.expm1(-reach), math.expm1(reach)) == pytest.approx(finding.interval, rel=1e-4)
    noncentrality = math.log1p(finding.detectable) / (0.01 * math.sqrt(2 / 5))
    critical = scipy_stats.t.isf(ALPHA / family, 8)
    assert 0.8 == pytest.approx(scipy_stats.nct.sf(critical, 8, noncentrality), abs=1e-4)


def test_a_family_that_was_planned_too_small_grows(store):
    """What is compared after all counts."""
    gate = store.gate(1)
    for test in ("a", "b", "c"):
        store.add(runs_of(0.1, 0.01), name=test, test=test)

    for test in ("a", "b", "c"):
        gate.judge(ttft(runs_of(0.1, 0.01), test=test), [TTFT])

    assert 3 == gate.family_size


def test_what_has_no_baseline_is_not_of_the_family(store):
    """A measurement that cannot turn red takes no share of the error rate."""
    gate = store.gate(0)

    gate.judge(ttft(runs_of(0.1, 0.01)), [TTFT])

    assert 0 == gate.family_size


@pytest.mark.parametrize(
    ("detect", "expected"), [(0.02, Verdict.INCONCLUSIVE), (0.024, Verdict.INCONCLUSIVE), (0.025, Verdict.PASS)]
)
def test_a_pass_must_have_been_able_to_see_what_was_asked(store, detect, expected):
    """The same numbers pass or are inconclusive by the change that has to show."""
    store.add(runs_of(0.1, 0.01))

    judgement = store.gate().judge(ttft(runs_of(0.1, 0.01)), [Criterion("ttft_p50", detect=detect)])

    assert expected is judgement.verdict
    assert (expected is Verdict.PASS) == (judgement.findings[0].detectable <= detect)


def test_a_change_smaller_than_what_matters_is_no_regression(store):
    """With `min_effect` a change has to be shown to exceed it, in both directions."""
    store.add(runs_of(0.1, 0.001))
    criterion = Criterion("ttft_p50", min_effect=0.05)

    verdicts = [
        store.gate().judge(ttft(runs_of(value, 0.001)), [criterion]).verdict for value in (0.104, 0.11, 0.096, 0.09)
    ]

    assert [Verdict.PASS, Verdict.REGRESSED, Verdict.PASS, Verdict.IMPROVED] == verdicts


def test_what_matters_adds_to_what_would_have_been_seen(store):
    """A change has to exceed the least effect by what the noise hides."""
    store.add(runs_of(0.1, 0.01))
    measured = ttft(runs_of(0.1, 0.01))

    (plain,) = store.gate().judge(measured, [TTFT]).findings
    (with_margin,) = store.gate().judge(measured, [Criterion("ttft_p50", min_effect=0.05)]).findings

    assert 1.05 * (1 + plain.detectable) == pytest.approx(1 + with_margin.detectable)


def test_the_runs_that_are_proposed_are_for_the_change_beyond_what_matters(store):
    """To show 10 % where 5 % do not matter, the 5 % between them have to be found."""
    store.add(runs_of(0.1, 0.05))
    criteria = [
        Criterion("ttft_p50", detect=detect, min_effect=m) for detect, m in ((1.1 / 1.05 - 1, 0.0), (0.1, 0.05))
    ]

    notes = [store.gate().judge(ttft(runs_of(0.1, 0.05)), [criterion]).findings[0].note for criterion in criteria]

    assert "could not have seen 4.8%; at this noise that takes 25 runs, here and in the baseline" == notes[0]
    assert notes[0].replace("4.8%", "10%") == notes[1]


def judged(store, p_values, family, alpha=0.05):
    """The gate after measurements of these p-values, and which were red when each was judged."""
    gate = store.gate(family, alpha)
    red = {}
    for test, p in p_values.items():
        verdict = gate.judge(ttft(at_p(p), test=test), [TTFT]).verdict
        red[test] = verdict is Verdict.REGRESSED
    return gate, {test for test, is_red in red.items() if is_red}


def reviewed(gate):
    return {test for test, judgement in gate.review().items() if judgement.verdict is Verdict.REGRESSED}


@pytest.mark.parametrize(
    ("p_values", "at_once", "in_the_end"),
    [
        ({"a": 0.01, "b": 0.03}, {"a", "b"}, {"a", "b"}),
        ({"a": 0.03, "b": 0.01}, {"b"}, {"a", "b"}),
        ({"a": 0.03, "b": 0.04}, set(), set()),
        ({"a": 0.01, "b": 0.06}, {"a"}, {"a"}),
    ],
)
def test_the_review_grants_what_a_later_measurement_makes_possible(store, p_values, at_once, in_the_end):
    """By Holm's rule a borderline p-value may be red once a smaller one has been."""
    for test in p_values:
        store.add(runs_of(0.1, 0.01), name=test, test=test)

    gate, red = judged(store, p_values, family=2)

    assert (at_once, in_the_end) == (red, reviewed(gate))


@settings(deadline=None, max_examples=25)
@given(
    p_values=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from((0.002, 0.008, 0.012, 0.02, 0.04, 0.3))),
    spare=st.integers(0, 2),
)
def test_the_review_only_adds(tmp_path_factory, p_values, spare):
    """No measurement that was red when it was judged is cleared by what came later."""
    store = Store(tmp_path_factory.mktemp("baselines"))
    for test in p_values:
        store.add(runs_of(0.1, 0.01), name=test, test=test)

    gate, red = judged(store, p_values, family=len(p_values) + spare)

    assert red <= reviewed(gate)
    assert len(p_values) + spare == gate.family_size


def test_metrics_of_one_measurement_are_tested_together(store):
    """Two metrics are two comparisons of the family, and the worst finding is the verdict."""
    store.add(runs_of(0.1, 0.01))
    store.add(runs_of(100.0, 0.01), "output_throughput", name="second")
    measured = result(*(run(one, duration_s=100 / 80 * one / 0.12) for one in runs_of(0.12, 0.01)))

    gate = store.gate(0)
    judgement = gate.judge(measured, [TTFT, THROUGHPUT])

    assert (Verdict.REGRESSED, 2) == (judgement.verdict, gate.family_size)
    assert [Verdict.REGRESSED, Verdict.REGRESSED] == [finding.verdict for finding in judgement.findings]
    assert "0002_second.json" in judgement.against
    assert "0001_main.json" in judgement.against


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.12, None, Verdict.REGRESSED),
        (0.1, None, Verdict.NO_BASELINE),
        (0.08, None, Verdict.NO_BASELINE),
        (0.12, 100.0, Verdict.REGRESSED),
        (0.08, 100.0, Verdict.IMPROVED),
        (0.12, 125.0, Verdict.REGRESSED),
    ],
)
def test_the_verdict_is_the_worst_of_the_findings(store, first, second, expected):
    """What is red stays red beside what is better or unknown."""
    store.add(runs_of(0.1, 0.01))
    if second is not None:
        store.add(runs_of(100.0, 0.01), "output_throughput", name="second")
    measured = result(*(run(one, duration_s=100 / (second or 1.0)) for one in runs_of(first, 0.01)))

    judgement = store.gate(2).judge(measured, [TTFT, THROUGHPUT])

    assert expected is judgement.verdict


def test_doubts_name_what_differs_in_the_engine(store):
    """A comparison across different engine words is made and said; the result's own doubts come first."""
    store.add(runs_of(0.1, 0.01))
    words = {"kind": "vllm", "prefix_caching": False}

    judgement = store.gate().judge(ttft(runs_of(0.1, 0.01), engine_words=words, doubts=("unverified",)), [TTFT])

    assert Verdict.PASS is judgement.verdict
    assert ("unverified", "the engine differs: prefix_caching True -> False") == judgement.doubts


def test_measuring_again_replaces_what_was_measured(store):
    """One measurement has one judgement, the last one."""
    store.add(runs_of(0.1, 0.01))
    gate = store.gate()

    gate.judge(ttft(runs_of(0.12, 0.01)), [TTFT])
    gate.judge(ttft(runs_of(0.1, 0.01)), [TTFT])

    assert {"test_it": Verdict.PASS} == {key: judgement.verdict for key, judgement in gate.review().items()}
    assert 1 == gate.family_size


def test_an_invalid_measurement_stays_invalid_in_the_review(store):
    """Nothing that is measured later makes it valid."""
    store.add(runs_of(0.1, 0.01))
    gate = store.gate()

    gate.judge(ttft(runs_of(0.2, 0.01), reasons=("spoiled",)), [TTFT])

    assert Verdict.INVALID_RUN is gate.review()["test_it"].verdict


def test_nothing_measured_is_nothing_to_review(store):
    """A session without measurements has no judgements."""
    assert {} == store.gate(5).review()


def test_a_verdict_is_shown_by_its_name():
    """In reports it is the word that stands in the documentation."""
    assert ["PASS", "IMPROVED", "NO_BASELINE", "INCONCLUSIVE", "REGRESSED", "INVALID_RUN"] == [str(v) for v in Verdict]


def nights(store, deviation, count, random, run=0.01):
    """Store nights that differ by `deviation`, and return tonight's values of such a night."""
    for _ in range(count):
        store.add(np.exp(random.normal(random.normal(math.log(0.1), deviation), run, 5)).tolist())
    return np.exp(random.normal(random.normal(math.log(0.1), deviation), run, 5)).tolist()


def test_a_single_stored_night_is_not_taken_for_all_nights(store):
    """6 % more than one stored night is nothing as long as nights may differ by 2 %; from the same night it is."""
    store.add(runs_of(0.1, 0.005))
    slower = ttft(runs_of(0.106, 0.005))

    cautious = store.gate(20, night_spread=0.02).judge(slower, [TTFT])
    certain = store.gate(20, night_spread=0.0).judge(slower, [TTFT])

    assert (Verdict.INCONCLUSIVE, Verdict.REGRESSED) == (cautious.verdict, certain.verdict)
    assert "nights may differ by 2.0 %, so only a comparison on the same night would" in cautious.findings[0].note


def test_many_nights_tell_by_how_much_nights_differ(store):
    """What was assumed does not count any more: nights that were alike let a small change show, others hide it."""
    random = np.random.default_rng(5)
    nights(store, 0.0, 12, random)
    slower = ttft(runs_of(0.106, 0.01))

    assert Verdict.REGRESSED is store.gate(night_spread=0.5).judge(slower, [TTFT]).verdict


def test_nights_that_differed_hide_what_one_night_would_show(store):
    """The same change, where the stored nights went up and down by 5 %."""
    nights(store, 0.05, 12, np.random.default_rng(5))

    judgement = store.gate(night_spread=0.0).judge(ttft(runs_of(0.106, 0.01)), [TTFT])

    assert Verdict.INCONCLUSIVE is judgement.verdict
    assert "nights differ by" in judgement.findings[0].note
    assert "12 nights up to 0012_main.json" == judgement.against


def test_the_session_tells_what_it_knows_of_nights(store):
    """Assumed with the number of nights that are missing, or measured; nothing of simulated ones."""
    random = np.random.default_rng(1)
    tonight = nights(store, 0.02, 2, random)
    gate = store.gate(night_spread=0.02)
    gate.judge(ttft(tonight), [TTFT])
    (early,) = gate.spreads()
    nights(store, 0.02, 4, random)
    store.baselines = Baselines(store.baselines.directory)
    later = store.gate(night_spread=0.02)
    later.judge(ttft(tonight), [TTFT])
    (known,) = later.spreads()

    assert early == (
        "ttft_p50: nights are taken to differ by 2.0 % (--llmperf-night-spread); that is not known from 2 stored "
        "nights, 4 more of at least 2 runs are needed"
    )
    assert known.startswith("ttft_p50: nights differ by ")
    assert known.endswith(" % (6 stored nights)")


@pytest.mark.parametrize("order", [("test_it", "test_other"), ("test_other", "test_it")])
def test_the_test_with_the_most_nights_tells_how_many_are_missing(store, order):
    """In whatever order they have run."""
    random = np.random.default_rng(1)
    nights(store, 0.02, 5, random)
    store.add(runs_of(0.1, 0.01), test="test_other")
    gate = store.gate(night_spread=0.02)
    for test in order:
        gate.judge(ttft(runs_of(0.1, 0.01), test=test), [TTFT])

    (said,) = gate.spreads()

    assert said.endswith("that is not known from 5 stored nights, 1 more of at least 2 runs are needed")


def test_nights_of_one_run_say_nothing_of_how_nights_differ(store):
    """Enough of them are there, but none tells a run's noise from a night's."""
    for _ in range(6):
        store.add([0.1])
        store.add([100.0], "output_throughput", name="other")
    gate = store.gate(night_spread=0.02)
    gate.judge(result(run(0.1), run(0.101)), [TTFT, THROUGHPUT])

    assert [
        "ttft_p50, output_throughput: nights are taken to differ by 2.0 % (--llmperf-night-spread); that is not known "
        "from 6 stored nights, with at least 2 runs each it would be"
    ] == list(gate.spreads())


def test_simulated_nights_do_not_differ(store):
    """Each is computed anew from the same numbers."""
    store.add([0.1] * 3, simulated=True)

    gate = store.gate(night_spread=0.5)
    judgement = gate.judge(ttft([0.105] * 3, simulated=True), [TTFT])

    assert Verdict.REGRESSED is judgement.verdict
    assert [] == list(gate.spreads())


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize(("now", "expected"), [(0.10005, Verdict.PASS), (0.1003, Verdict.REGRESSED)])
def test_simulated_figures_mean_nothing_beyond_their_resolution(store, now, expected, in_turn):
    """They have no noise, so that the last digit would be significant: a thousandth is not looked at."""
    store.add([0.1] * 3, simulated=True)
    base = ttft([0.1] * 3, simulated=True) if in_turn else None

    assert expected is store.gate().judge(ttft([now] * 3, simulated=True), [TTFT], base).verdict


class TestInTurn:
    """A measurement against the same of another build, measured in turn with it."""

    def judged(self, store, head, base, **words):
        return store.gate(1).judge(head, [TTFT], base, **words)

    @pytest.mark.parametrize(
        ("now", "expected"), [(0.1, Verdict.PASS), (0.105, Verdict.REGRESSED), (0.095, Verdict.IMPROVED)]
    )
    def test_it_is_judged_by_the_other_build_alone(self, store, now, expected):
        """What is stored is neither looked for nor missed."""
        store.add(runs_of(0.2, 0.01))

        judgement = self.judged(store, ttft(runs_of(now, 0.005)), ttft(runs_of(0.1, 0.005)))

        assert expected is judgement.verdict
        assert "the base build in turn (the same words)" == judgement.against

    def test_what_differs_is_told_with_it(self, store):
        """From the base to what is measured, as its change is told; also where only the place differs."""
        base, head = (
            ttft(
                runs_of(level, 0.005),
                engine_words={"kind": "vllm", "executable": path, "dtype": path, "noise_seed": path},
            )
            for path, level in (("/main", 0.1), ("/mine", 0.2))
        )

        judgement = self.judged(store, head, base)

        differs = "dtype '/main' -> '/mine'; executable '/main' -> '/mine'"
        assert f"the base build in turn ({differs})" == judgement.against
        assert "look for the change between the two builds that caused it" == judgement.advice

    def test_an_invalid_base_is_an_invalid_measurement(self, store):
        """Whose fault it was is told."""
        base = ttft([0.1], reasons=("1 of 4 requests failed",))

        judgement = self.judged(store, ttft([0.1]), base)

        assert (Verdict.INVALID_RUN, ()) == (judgement.verdict, judgement.findings)
        assert ("the base build: 1 of 4 requests failed",) == judgement.doubts

    def test_a_head_whose_turn_never_came_is_no_error(self, store):
        """The base was spoiled before: there is no value whose mean could be taken."""
        judgement = self.judged(store, result(), ttft([0.1], reasons=("spoiled",)))

        assert Verdict.INVALID_RUN is judgement.verdict

    def test_a_metric_that_the_base_did_not_measure(self, store):
        """It says which build has none."""
        judgement = self.judged(store, ttft([0.1, 0.1]), ttft([0.1, None]))

        assert Verdict.NO_BASELINE is judgement.verdict
        assert "the base build has no ttft_p50 in some run" == judgement.findings[0].note

    def test_measured_again_without_it_the_stored_nights_count(self, store):
        """A second attempt owes nothing to the first."""
        store.add(runs_of(0.1, 0.01))
        gate = store.gate()
        gate.judge(ttft(runs_of(0.2, 0.01)), [TTFT], ttft(runs_of(0.2, 0.01)))

        assert Verdict.REGRESSED is gate.judge(ttft(runs_of(0.2, 0.01)), [TTFT]).verdict


class TestScreen:
    """Stored nights that flag what is to be measured again."""

    def screen(self, store):
        return Gate(store.baselines, 1, night_spread=0.0, is_screen=True)

    @pytest.mark.parametrize(("p", "flagged"), [(SCREEN * 0.9, (TTFT,)), (SCREEN * 1.1, ()), (0.999999, ())])
    def test_it_flags_at_its_level(self, store, p, flagged):
        """And calls nothing regressed, nor improved."""
        store.add(runs_of(0.1, 0.01))
        gate = self.screen(store)

        judgement = gate.judge(ttft(at_p(p)), [TTFT])

        assert flagged == gate.flagged("test_it")
        assert (Verdict.INCONCLUSIVE if flagged else Verdict.PASS) is judgement.verdict
        assert bool(flagged) == ("to be measured against the base build" in (judgement.findings[0].note or ""))

    def test_a_gate_that_is_no_screen_flags_nothing(self, store):
        store.add(runs_of(0.1, 0.01))
        gate = store.gate()
        gate.judge(ttft(runs_of(0.2, 0.01)), [TTFT])

        assert () == gate.flagged("test_it")

    @pytest.mark.parametrize(("base", "expected"), [(0.1, Verdict.REGRESSED), (0.12, Verdict.PASS)])
    def test_what_the_confirmation_finds_takes_its_place(self, store, base, expected):
        """The other metrics stay as they were."""
        store.add(runs_of(0.1, 0.01))
        store.add(runs_of(100.0, 0.01), "output_throughput", name="second")
        slow = ttft(runs_of(0.12, 0.01))
        screened = self.screen(store).judge(slow, [TTFT, THROUGHPUT])
        confirmation = Gate(store.baselines, 1).judge(slow, [TTFT], ttft(runs_of(base, 0.01)))

        judgement = confirmed(screened, confirmation)

        assert expected is judgement.verdict
        assert ["ttft_p50", "output_throughput"] == [finding.metric.name for finding in judgement.findings]
        assert base == pytest.approx(judgement.findings[0].baseline, rel=1e-3)
        assert judgement.findings[1] == screened.findings[1]
        assert (
            "flagged by the stored nights, settled in turn with the base build (5 + 5 runs)"
            == judgement.findings[0].note
        )
        assert (*screened.doubts, *confirmation.doubts) == judgement.doubts
        assert judgement.against.startswith(f"{screened.against}, then the base build in turn")

    def test_what_the_confirmation_doubts_is_told_once(self, store):
        """A doubt that both have is one doubt."""
        store.add(runs_of(0.1, 0.01))
        slow = ttft(runs_of(0.12, 0.01), doubts=("the link was slow",))
        screened = self.screen(store).judge(slow, [TTFT])
        confirmation = Gate(store.baselines, 1).judge(slow, [TTFT], ttft(runs_of(0.1, 0.01)))

        assert ("the link was slow",) == confirmed(screened, confirmation).doubts

    def test_a_confirmation_that_settles_nothing_keeps_its_own_note(self, store):
        """After what it is a note on: one run each can be compared with nothing."""
        store.add(runs_of(0.1, 0.01))
        screened = self.screen(store).judge(ttft(runs_of(0.12, 0.01)), [TTFT])
        confirmation = Gate(store.baselines, 1).judge(ttft([0.12, 0.12]), [TTFT], ttft([None, 0.1]))

        (finding,) = confirmed(screened, confirmation).findings

        assert finding.note == (
            "flagged by the stored nights, settled in turn with the base build: "
            "the base build has no ttft_p50 in some run"
        )

    def test_a_confirmation_with_an_invalid_metric_is_invalid(self, store):
        """It was measured and cannot be judged, which is not the same as not having been measured."""
        store.add(runs_of(0.1, 0.01))
        screened = self.screen(store).judge(ttft(runs_of(0.12, 0.01)), [TTFT])
        confirmation = Gate(store.baselines, 1).judge(ttft([0.12, None]), [TTFT], ttft(runs_of(0.1, 0.01)))

        judgement = confirmed(screened, confirmation)

        assert (Verdict.INVALID_RUN, 1) == (judgement.verdict, len(judgement.findings))
        assert "measured in 1 of 2 runs" in judgement.findings[0].note

    def test_a_spoiled_confirmation_confirms_nothing_and_is_told(self, store):
        """The flag stays, and why it does."""
        store.add(runs_of(0.1, 0.01))
        slow = ttft(runs_of(0.12, 0.01))
        screened = self.screen(store).judge(slow, [TTFT])
        confirmation = Gate(store.baselines, 1).judge(slow, [TTFT], ttft([0.1], reasons=("spoiled",)))

        judgement = confirmed(screened, confirmation)

        assert (Verdict.INCONCLUSIVE, screened.findings) == (judgement.verdict, judgement.findings)
        assert (("the base build: spoiled",), screened.against) == (judgement.doubts, judgement.against)


class TestClear:
    """Whether a measurement that could go on has its verdict."""

    LOOKS = (3, 5, 8, 12, 20)

    def clear(self, store, measured, **words):
        return store.gate().is_clear(ttft(measured, looks=self.LOOKS, **words), [TTFT])

    @pytest.mark.parametrize(
        ("now", "count", "is_clear"),
        [
            (0.2, 3, True),  # so much slower that more runs change nothing
            (0.1, 5, True),  # equal, and 10 % would have shown
            (0.104, 3, False),  # slower, not yet shown
        ],
    )
    def test_what_further_runs_cannot_change(self, store, now, count, is_clear):
        store.add(runs_of(0.1, 0.02))

        assert is_clear is self.clear(store, runs_of(now, 0.02)[:count])

    def test_a_noisy_one_goes_on(self, store):
        """A change of 10 % would not have shown yet."""
        store.add(runs_of(0.1, 0.2))

        assert not self.clear(store, runs_of(0.1, 0.2))

    def test_two_builds_are_held_against_each_other(self, store):
        """What is stored would be clear at once, and it does not count."""
        store.add(runs_of(0.1, 0.02))
        measured, base = (ttft(runs_of(0.2, 0.2), looks=self.LOOKS) for _ in range(2))

        assert not store.gate().is_clear(measured, [TTFT], base)

    def test_an_invalid_one_does_not(self, store):
        """More of it would be as invalid."""
        store.add(runs_of(0.1, 0.2))

        assert self.clear(store, runs_of(0.1, 0.2), reasons=("spoiled",))

    @pytest.mark.parametrize(("count", "is_clear"), [(4, False), (5, True)])
    def test_without_a_baseline_it_ends_after_as_many_as_are_usual(self, store, count, is_clear):
        """There is no verdict to wait for, and the level is worth storing."""
        assert is_clear is self.clear(store, runs_of(0.1, 0.01)[:count])

    def test_each_look_has_a_part_of_the_error_rate(self, store):
        """What would be significant in the end is not in an early look."""
        store.add(runs_of(0.1, 0.01))
        slower = at_p(ALPHA * 0.9)

        at_once = store.gate().judge(ttft(slower), [TTFT])
        as_a_look = store.gate().judge(ttft(slower, looks=self.LOOKS), [TTFT])
        as_the_only_one = store.gate().judge(ttft(slower, looks=(5,)), [TTFT])

        verdicts = [judgement.verdict for judgement in (at_once, as_a_look, as_the_only_one)]
        assert [Verdict.REGRESSED, Verdict.PASS, Verdict.REGRESSED] == verdicts

    def test_two_looks_are_more_than_one(self, store):
        store.add(runs_of(0.1, 0.01))

        assert Verdict.PASS is store.gate().judge(ttft(at_p(ALPHA * 0.9), looks=(5, 20)), [TTFT]).verdict


def test_a_measurement_that_is_taken_again_is_forgotten(store):
    """Neither the review nor the family knows of it, and its clocks are not held against the next."""
    store.add(runs_of(0.1, 0.01))
    gate = store.gate()
    gate.judge(ttft(runs_of(0.2, 0.01)), [TTFT], ttft(runs_of(0.1, 0.01)))
    gate.judge(ttft(runs_of(0.1, 0.01), test="test_other"), [TTFT])

    gate.forget("test_it")

    assert ["test_other"] == list(gate.review())
    gate.judge(ttft(runs_of(0.1, 0.01)), [TTFT])
    assert "0001_main.json" == gate.review()["test_it"].against


def test_what_a_forgotten_measurement_has_flagged_is_forgotten(store):
    """It is measured again because something went wrong, so nothing of it may be held against it."""
    store.add(runs_of(0.1, 0.01))
    gate = Gate(store.baselines, 1, is_screen=True)
    gate.judge(ttft(runs_of(0.2, 0.01)), [TTFT])
    assert (TTFT,) == gate.flagged("test_it")

    gate.forget("test_it")

    assert () == gate.flagged("test_it")


def test_a_forgotten_improvement_makes_room_for_no_other(store):
    """In Holm's order the second has a larger share, but only behind a first that stands."""
    store.add(at_p(ALPHA * 0.9))
    store.add(runs_of(0.2, 0.01), test="test_other")
    gate = store.gate(2)
    for test in ("test_other", "test_it"):
        gate.judge(ttft(runs_of(0.1, 0.01), test=test), [TTFT])
    assert Verdict.IMPROVED is gate.review()["test_it"].verdict

    gate.forget("test_other")

    assert Verdict.PASS is gate.review()["test_it"].verdict


def test_several_files_are_named_one_after_the_other(store):
    """Each metric has its newest."""
    store.add(runs_of(0.1, 0.01))
    store.add(runs_of(100.0, 0.01), "output_throughput", name="other")

    judgement = store.gate().judge(ttft(runs_of(0.1, 0.01)), [TTFT, THROUGHPUT])

    assert "0001_main.json, 0002_other.json" == judgement.against


class Clocked(Baselines):
    """Stored results whose GPUs worked at 1980 MHz."""

    def find(self, provenance, metric):
        match = super().find(provenance, metric)
        entries = tuple(replace(entry, clock_mhz=1980.0) for entry in match.entries)
        return replace(match, entries=entries)


class TestClocks:
    """A GPU at another clock is other hardware, though its key is the same."""

    @pytest.fixture
    def judged(self, store, monkeypatch):
        """`judged(mhz, gate)`: the verdict on an equal measurement at a clock; by a gate that may know earlier ones."""
        store.add(runs_of(0.1, 0.01))
        store.baselines = Clocked(store.baselines.directory)

        def judge(mhz, gate=None, **words):
            monkeypatch.setattr(PerfResult, "clock_mhz", mhz)
            return (gate or store.gate(**words)).judge(ttft(runs_of(0.1, 0.01)), [TTFT])

        return judge

    def test_at_another_one_nothing_is_compared(self, judged):
        """It is invalid, and says at which clocks."""
        judgement = judged(1500.0)

        assert (Verdict.INVALID_RUN, ()) == (judgement.verdict, judgement.findings)
        (reason,) = judgement.doubts
        assert reason.startswith("the GPUs worked at 1500 MHz and at 1980 MHz when the baseline was stored")

    @pytest.mark.parametrize("mhz", [1980.0, 1900.0, None])
    def test_at_the_same_one_or_an_unknown_one_it_is_compared(self, judged, mhz):
        judgement = judged(mhz)

        assert (Verdict.PASS, ()) == (judgement.verdict, judgement.doubts)

    def test_what_is_tolerated_is_compared_and_told(self, judged):
        judgement = judged(1500.0, tolerated=frozenset({"clocks"}))

        assert Verdict.PASS is judgement.verdict
        (doubt,) = judgement.doubts
        assert doubt.startswith("tolerated: the GPUs worked at 1500 MHz")

    def test_another_rule_that_is_tolerated_changes_nothing(self, judged):
        assert Verdict.INVALID_RUN is judged(1500.0, tolerated=frozenset({"links"})).verdict

    @pytest.mark.parametrize("tolerated", [frozenset(), frozenset({"clocks"})])
    def test_measured_again_at_the_right_one_nothing_is_held_against_it(self, judged, store, tolerated):
        gate = store.gate(tolerated=tolerated)
        judged(1500.0, gate)

        judgement = judged(1980.0, gate)

        assert (Verdict.PASS, ()) == (judgement.verdict, judgement.doubts)

    def test_it_is_not_of_the_family(self, judged, store):
        """A comparison that is not made takes no part of the error rate."""
        gate = store.gate()
        judged(1500.0, gate)

        assert gate.is_clear(ttft(runs_of(0.1, 0.01)), [TTFT])
        assert () == gate._family.trials("test_it")
