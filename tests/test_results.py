"""What a test gets to see."""

from __future__ import annotations

import pytest

from pytest_llmperf.errors import NoSamplesError
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.records import CacheCounters, ClientStats, Failure, Phase, RequestRecord, RunRecord
from pytest_llmperf.results import CacheResult, ClientResult, Figures, PerfResult, Provenance, Validity
from pytest_llmperf.verdicts import Judgement, Verdict

MS = 1_000_000
PROVENANCE = Provenance(
    test="test_it.py::test_it",
    name=None,
    hardware_key="NVIDIA-TEST",
    workload="multi_round",
    workload_digest="0123456789abcdef",
    load="round_robin()",
    open_load=False,
    cache="as_is",
    engine_kind="vllm",
    engine_identity={"model": "m"},
    engine_words={},
    engine={},
)


def request(ttft_ms=10, tpot_ms=2, *, turn=0, at_ms=0, tokens=3, **words):
    """An answered request sent at `at_ms`; its tokens come evenly."""
    arrivals = tuple(Arrival(round((at_ms + ttft_ms + n * tpot_ms) * MS), 1) for n in range(tokens))
    given = {
        "run": 0,
        "phase": Phase.MEASURED,
        "session": 0,
        "turn": turn,
        "released_ns": at_ms * MS,
        "sent_ns": at_ms * MS,
        "end_ns": arrivals[-1].at_ns if arrivals else at_ms * MS,
        "arrivals": arrivals,
        "new_tokens": 4,
        "input_tokens": 100,
        "output_tokens_asked": tokens,
        "output_tokens": tokens,
    }
    return RequestRecord(**{**given, **words})


def failed(kind="timeout", **words):
    return request(failure=Failure(kind, "detail"), arrivals=(), output_tokens=None, **words)


def run(*requests, cache=None, busy_ns=()):
    return RunRecord(
        index=0,
        phase=Phase.MEASURED,
        start_ns=0,
        end_ns=0,
        requests=requests,
        cache=cache or CacheCounters(),
        client=ClientStats(busy_ns=busy_ns),
    )


def result(*runs, **words):
    return PerfResult(runs, provenance=PROVENANCE, validity=Validity(), **words)


def test_latencies_are_over_the_requests_of_all_runs():
    """The result's distributions have every answered request once."""
    figures = result(run(request(10), request(20)), run(request(30), failed()))

    assert (0.01, 0.02, 0.03) == figures.ttft.values
    assert pytest.approx((0.002,) * 3) == figures.tpot.values
    assert pytest.approx((0.002,) * 6) == figures.itl.values
    assert (0.014, 0.024, 0.034) == figures.e2e.values


def test_each_run_has_figures_of_its_own():
    """`runs` are in their order, with the limits of the whole."""
    figures = result(run(request(10)), run(request(30), request(50)), slo={"ttft": 0.04})

    assert [0.01, 0.04] == [one.ttft.mean for one in figures.runs]
    assert [1, 2] == [one.requests for one in figures.runs]
    assert [1 / 0.014, 1 / 0.054] == pytest.approx([one.goodput for one in figures.runs])


def test_rounds_are_kept_apart():
    """`by_round[k]` has the k-th turns of all sessions and runs."""
    figures = result(run(request(10, turn=0), request(2, turn=1)), run(request(20, turn=0), request(4, turn=1)))

    first, second = figures.by_round

    assert ((0.01, 0.02), (0.002, 0.004)) == (first.ttft.values, second.ttft.values)


def test_a_round_in_which_nothing_was_answered_is_there_and_empty():
    """Its statistics raise; the rounds after it keep their numbers."""
    figures = result(run(request(10, turn=0), failed(turn=1), request(3, turn=2)))

    assert 3 == len(figures.by_round)
    assert 0.003 == figures.by_round[2].ttft.p50
    with pytest.raises(NoSamplesError, match="no TTFT was measured"):
        _ = figures.by_round[1].ttft.p50


@pytest.mark.parametrize("name", ["ttft", "tpot", "itl", "e2e"])
@pytest.mark.parametrize("figures", [result(), result(run()), result(run(failed()))])
def test_a_statistic_of_nothing_is_an_error(name, figures):
    """No answered request, no number: an assertion on it must not hold by accident."""
    with pytest.raises(NoSamplesError, match=f"no {name.upper()} was measured"):
        _ = getattr(figures, name).p99


def test_without_any_request_there_are_no_figures():
    """A result of nothing has None everywhere, and no rounds."""
    figures = result()

    assert (0, {}, (), ()) == (figures.requests, figures.errors, figures.by_round, figures.runs)
    assert (None,) * 4 == (
        figures.duration_s,
        figures.request_throughput,
        figures.output_throughput,
        figures.total_throughput,
    )
    assert CacheResult(None, None, None, None, None) == figures.cache
    assert ClientResult(None, None) == figures.client


def test_errors_are_counted_by_kind():
    """Failed requests are among the requests, and each kind has its number."""
    figures = result(run(request(), failed("timeout"), failed("abandoned")), run(failed("timeout")))

    assert (4, {"timeout": 2, "abandoned": 1}) == (figures.requests, figures.errors)


def test_no_errors_are_an_empty_count():
    """A clean result has no kinds."""
    assert {} == result(run(request())).errors


def test_throughput_is_over_the_time_of_all_runs():
    """The runs' durations add up; the pauses between them do not count."""
    figures = result(
        run(request(94, 3), request(94, 3)),
        run(request(94, 3, at_ms=5_000)),
    )

    assert 0.2 == figures.duration_s
    assert 3 / 0.2 == pytest.approx(figures.request_throughput)
    assert 9 / 0.2 == pytest.approx(figures.output_throughput)
    assert 309 / 0.2 == pytest.approx(figures.total_throughput)


def test_one_run_that_does_not_count_tokens_leaves_the_throughput_unknown():
    """A part that is not known makes the sum unknown."""
    figures = result(run(request()), run(request(output_tokens=None)))

    assert (None, None) == (figures.output_throughput, figures.total_throughput)
    assert figures.request_throughput is not None


def test_a_run_that_sent_nothing_leaves_the_duration_unknown():
    """Its time is not 0 but unknown, and so is every rate."""
    figures = result(run(request()), run(failed(sent_ns=None)))

    assert (None, None) == (figures.duration_s, figures.request_throughput)


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        ({"ttft": 0.015}, 1),
        ({"ttft": 0.02}, 2),
        ({"ttft": 1.0, "tpot": 0.003}, 1),
        ({"itl": 0.003}, 1),
        ({"e2e": 0.014}, 1),
        ({"ttft": 1e-9}, 0),
        ({}, 2),
    ],
)
def test_goodput_counts_requests_that_met_every_limit(slo, met):
    """Equal to the limit meets it; a failed request meets none."""
    figures = result(run(request(10, 2), request(20, 4), failed(end_ns=100 * MS)), slo=slo)

    assert met / 0.1 == pytest.approx(figures.goodput)


def test_without_limits_there_is_no_goodput():
    """None, not the throughput."""
    assert result(run(request())).goodput is None


def test_a_limit_that_does_not_apply_is_met():
    """A single token has no time between tokens."""
    figures = result(run(request(10, tokens=1)), slo={"ttft": 0.02, "tpot": 1e-9, "itl": 1e-9})

    assert 1 / 0.01 == pytest.approx(figures.goodput)


@pytest.mark.parametrize(
    ("words", "slo"),
    [
        ({"output_tokens": None}, {"tpot": 1.0}),
        ({"arrivals": (Arrival(10 * MS, None), Arrival(14 * MS, None))}, {"itl": 1.0}),
        ({"output_tokens": None, "arrivals": (Arrival(10 * MS, None), Arrival(14 * MS, None))}, {"tpot": 1.0}),
    ],
)
def test_a_limit_on_what_was_not_measured_leaves_the_goodput_unknown(words, slo):
    """A latency that the server keeps to itself neither meets its limit nor misses it."""
    figures = result(run(request(), request(**words)), slo=slo)

    assert figures.goodput is None


def test_goodput_does_not_need_what_is_not_limited():
    """A limit on TTFT can be judged without a token count."""
    figures = result(run(request(10, output_tokens=None)), slo={"ttft": 0.02})

    assert 1 / 0.014 == pytest.approx(figures.goodput)


def test_a_limit_that_is_missed_decides_whatever_else_is_unknown():
    """A request that was too slow to its first token is not good, token count or none."""
    figures = result(run(request(10, output_tokens=None)), slo={"ttft": 0.005, "tpot": 1.0})

    assert 0.0 == figures.goodput


def test_the_cache_is_that_of_all_runs():
    """Counters add up over the runs; the rate is of their sum."""
    figures = result(
        run(
            cache=CacheCounters(
                queried_tokens=100,
                hit_tokens=90,
                tokens_by_tier={"gpu": 90, "recomputed": 10},
                offloaded_bytes=5,
                restored_bytes=1,
                preemptions=0,
            )
        ),
        run(
            cache=CacheCounters(
                queried_tokens=300,
                hit_tokens=110,
                tokens_by_tier={"gpu": 10, "host": 100, "recomputed": 190},
                offloaded_bytes=7,
                restored_bytes=2,
                preemptions=3,
            )
        ),
    )

    assert figures.cache == CacheResult(0.5, 12, 3, {"gpu": 100, "host": 100, "recomputed": 200}, 3)


def test_what_one_run_does_not_say_about_its_cache_is_unknown():
    """None, where a part is missing."""
    figures = result(run(cache=CacheCounters(queried_tokens=1, hit_tokens=1, offloaded_bytes=5)), run())

    assert CacheResult(None, None, None, None, None) == figures.cache


def test_the_client_s_own_delays_are_told():
    """The 99th percentile of how long it was away, and of how late it sent."""
    figures = result(
        run(request(at_ms=5, released_ns=4 * MS), busy_ns=(1 * MS, 2 * MS)),
        run(request(at_ms=9, released_ns=9 * MS), failed(sent_ns=None), busy_ns=(3 * MS,)),
    )

    assert pytest.approx(0.00298) == figures.client.lag_p99_s
    assert pytest.approx(0.00099) == figures.client.sent_late_p99_s


def test_a_metric_has_one_value_per_run():
    """In the order of the runs, None where a run did not measure it."""
    figures = result(run(request(10)), run(failed()), run(request(30)))

    assert [0.01, None, 0.03] == figures.value(METRICS["ttft_p50"])


@pytest.mark.parametrize(("name", "expected"), [(None, "test_it.py::test_it"), ("cold", "test_it.py::test_it::cold")])
def test_a_measurement_is_found_again_by_test_and_name(name, expected):
    """The key is the node id, and the name where there is one."""
    words = {field: getattr(PROVENANCE, field) for field in PROVENANCE.__dataclass_fields__}

    assert expected == Provenance(**{**words, "name": name}).measurement


def test_validity_is_true_without_a_reason():
    """It reads as a condition and as text."""
    spoiled = Validity(("2 of 9 requests failed", "throttled"))

    assert (True, False) == (bool(Validity()), bool(spoiled))
    assert ("valid", "2 of 9 requests failed; throttled") == (str(Validity()), str(spoiled))


def test_the_verdict_is_that_of_the_judgement():
    """None as long as nothing has judged."""
    figures = result(run(request()))
    unjudged = figures.verdict

    figures.judgement = Judgement(verdict=Verdict.PASS)

    assert (None, Verdict.PASS) == (unjudged, figures.verdict)


def test_a_result_says_which_workload_it_is_of():
    """The digest is that of the provenance."""
    assert "0123456789abcdef" == result().workload_digest


def test_no_gpu_telemetry_is_invented():
    """None is taken, and None is said."""
    assert result().gpu is None


def test_a_part_s_figures_have_no_verdict():
    """Only the whole measurement is judged."""
    assert not hasattr(Figures([run(request())]), "verdict")
