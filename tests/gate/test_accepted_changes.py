"""What the gate makes of an accepted change: the new level passes, what comes on top does not, nor does it for ever."""

from __future__ import annotations

import math
from datetime import date

import numpy as np
import pytest
from night_files import COMPARABLE, KEY, TEST, acknowledged, put, row

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.baselines import Baselines
from pytest_llmperf.gate import Criterion, Gate
from pytest_llmperf.gate.files import Terms, compared
from pytest_llmperf.judged import Provenance, Validity
from pytest_llmperf.records import CacheCounters, Phase, RequestRecord, RunRecord
from pytest_llmperf.result_file import read
from pytest_llmperf.results import PerfResult
from pytest_llmperf.verdicts import Verdict

TODAY, OVER = date(2026, 11, 21), date(2027, 1, 1)
OLD, STEP = 0.1, 0.08
PROVENANCE = Provenance(
    test=TEST,
    name=None,
    hardware_key=KEY,
    workload="multi_round",
    workload_digest=COMPARABLE["workload"],
    load=COMPARABLE["load"],
    open_load=False,
    cache=COMPARABLE["cache"],
    engine_kind=COMPARABLE["engine"],
    engine_identity={},
    engine_words={"kind": "vllm"},
    engine={},
)


def a_night(level, random):
    """Five runs of a night; nights differ by 0.5 % and runs by 0.5 %."""
    return np.exp(random.normal(random.normal(math.log(level), 0.005), 0.005, 5)).tolist()


def measured(values):
    """A result whose runs have these TTFTs, in seconds."""
    runs = []
    for ttft in values:
        arrivals = (Arrival(round(ttft * 1e9), 1), Arrival(10**9, 1))
        request = RequestRecord(
            run=0, phase=Phase.MEASURED, session=0, turn=0, released_ns=0, sent_ns=0, end_ns=10**9, arrivals=arrivals,
            new_tokens=4, input_tokens=100, output_tokens_asked=100, output_tokens=100,
        )  # fmt: skip
        words = {"index": 0, "phase": Phase.MEASURED, "start_ns": 0, "end_ns": 0, "cache": CacheCounters()}
        runs.append(RunRecord(requests=(request,), **words))
    return PerfResult(tuple(runs), provenance=PROVENANCE, validity=Validity(()), doubts=())


@pytest.fixture
def random():
    return np.random.default_rng(11)


@pytest.fixture(params=[8, 12], ids=["before", "after"])
def folder(tmp_path, random, request):
    """Eight nights at the old level and, in one case, four at the new one; it is accepted since the ninth."""
    for night in range(1, request.param + 1):
        put(tmp_path, night, row(a_night(OLD if night < 9 else OLD * (1 + STEP), random)))
    acknowledged(tmp_path, {"change": STEP, "since": 9})
    return tmp_path


def judged(folder, values, today):
    return Gate(Baselines(folder, today=today), 20).judge(measured(values), [Criterion("ttft_p50")])


def test_an_accepted_slowdown_passes_and_says_so(folder, random):
    """The expected level is the new one, whether nights of it are stored or not."""
    judgement = judged(folder, a_night(OLD * (1 + STEP), random), TODAY)

    assert Verdict.PASS is judgement.verdict
    assert judgement.findings[0].baseline == pytest.approx(OLD * (1 + STEP), rel=0.01)
    assert (
        "ttft_p50: an accepted change of +8.0 % is in the baseline until 2026-12-31: safer sampling",
    ) == judgement.doubts


def test_a_further_slowdown_has_regressed(folder, random):
    """5 % more than what is accepted is found: the step is no spread between nights."""
    judgement = judged(folder, a_night(OLD * (1 + STEP) * 1.05, random), TODAY)

    assert Verdict.REGRESSED is judgement.verdict
    assert judgement.findings[0].change == pytest.approx(0.05, abs=0.015)


def test_without_the_file_a_further_slowdown_is_hidden(folder, random):
    """What the file is for: the step makes nights differ, or the accepted slowdown itself fails."""
    further = a_night(OLD * (1 + STEP) * 1.05, random)
    assert Verdict.REGRESSED is judged(folder, further, TODAY).verdict
    (folder / KEY / "acknowledged.json").unlink()

    has_new_nights = len(Baselines(folder).paths(KEY)) > 8
    today = further if has_new_nights else a_night(OLD * (1 + STEP), random)
    expected = Verdict.INCONCLUSIVE if has_new_nights else Verdict.REGRESSED

    assert expected is judged(folder, today, TODAY).verdict


def test_it_has_regressed_again_once_it_is_over(folder, random):
    """The old level is expected after the last day, however many nights of the new one are stored."""
    judgement = judged(folder, a_night(OLD * (1 + STEP), random), OVER)

    assert Verdict.REGRESSED is judgement.verdict
    assert judgement.findings[0].change == pytest.approx(STEP, abs=0.015)
    assert (
        "ttft_p50: an accepted change of +8.0 % expired on 2026-12-31, so that the level before it is expected again: "
        "safer sampling",
    ) == judgement.doubts


def test_back_at_the_old_level_once_it_is_over(folder, random):
    """Who has mended it in time is not judged by the nights before that."""
    assert Verdict.PASS is judged(folder, a_night(OLD, random), OVER).verdict


@pytest.mark.parametrize(
    ("today", "level", "verdict"),
    [
        (TODAY, OLD * (1 + STEP), Verdict.PASS),
        (TODAY, OLD * (1 + STEP) * 1.05, Verdict.REGRESSED),
        (OVER, OLD * (1 + STEP), Verdict.REGRESSED),
    ],
)
def test_files_are_compared_with_a_folder_in_the_same_way(folder, random, tmp_path_factory, today, level, verdict):
    """`pytest-llmperf compare` judges by the level that is expected, and says what it rests on."""
    new = put(tmp_path_factory.mktemp("new"), 1, row(a_night(level, random)))

    comparison = compared(Baselines(folder, today=today).files(KEY), read(new), Terms())

    judgement = comparison.judgements[TEST]
    assert verdict is judgement.verdict
    assert ["an accepted change of +8.0 %"] == [doubt[10:38] for doubt in judgement.doubts]


def test_simulated_levels_are_accepted_as_well(tmp_path):
    """Their nights are taken not to differ, so that a hundredth beyond what is accepted is seen."""
    put(tmp_path, 1, row([OLD] * 3, simulated=True), key=KEY)
    acknowledged(tmp_path, {"change": STEP, "since": 2})
    base = Baselines(tmp_path, today=TODAY).files(KEY)

    verdicts = []
    for number, level in enumerate([OLD, OLD * (1 + STEP), OLD * (1 + STEP) * 1.01]):
        new = put(tmp_path / "new", number, row([level] * 3, simulated=True))
        verdicts.append(compared(base, read(new), Terms()).judgements[TEST].verdict)

    assert [Verdict.IMPROVED, Verdict.PASS, Verdict.REGRESSED] == verdicts


def test_less_throughput_can_be_accepted(tmp_path, random):
    """The change is in the metric's own direction."""
    metric = "output_throughput"
    for night in range(1, 9):
        put(tmp_path, night, row(a_night(1000, random), metric=metric))
    acknowledged(tmp_path, {"metric": metric, "change": -0.05, "since": 9})
    base = Baselines(tmp_path, today=TODAY).files(KEY)

    found = [
        compared(base, read(put(tmp_path / "new", 1, row(a_night(level, random), metric=metric))), Terms())
        for level in (950, 900)
    ]

    assert [Verdict.PASS, Verdict.REGRESSED] == [comparison.judgements[TEST].verdict for comparison in found]


def test_a_comparison_that_rests_on_nothing_accepted_says_nothing(tmp_path, random):
    """Other tests' acceptances are not this one's doubt."""
    put(tmp_path, 1, row(a_night(OLD, random)))
    acknowledged(tmp_path, {"test": "another*"}, {"metric": "e2e_p99"})

    assert () == judged(tmp_path, a_night(OLD, random), TODAY).doubts
