"""What a test gets to see."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.ceiling import Ceiling
from pytest_llmperf.errors import NoSamplesError
from pytest_llmperf.judged import Provenance, Validity
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.records import (
    CacheCounters,
    ClientStats,
    EngineTimings,
    Failure,
    Phase,
    Remark,
    RequestRecord,
    RunRecord,
    Window,
    added,
)
from pytest_llmperf.reports.figures import figures_json, result_json
from pytest_llmperf.results import (
    CacheResult,
    ClientResult,
    Figures,
    LoadResult,
    PerfResult,
    Tokens,
)
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


def run(*requests, cache=None, client=None, window_ms=None, shed=0):
    """A run that began at 0; a window makes figures those of its part."""
    return RunRecord(
        index=0,
        phase=Phase.MEASURED,
        start_ns=0,
        end_ns=0,
        requests=requests,
        cache=cache or CacheCounters(),
        client=client or ClientStats(),
        window=None if window_ms is None else Window(*(edge * MS for edge in window_ms)),
        shed=shed,
    )


def result(*runs, **words):
    return PerfResult(runs, provenance=PROVENANCE, validity=Validity(), **words)


def test_latencies_are_over_the_requests_of_all_runs():
    """The result's distributions have every answered request once."""
    figures = result(run(request(10), request(20)), run(request(30), failed()))

    assert (0.01, 0.02, 0.03) == figures.ttft.values
    assert (0.01, 0.02, 0.03) == figures.scheduled_ttft.values
    assert pytest.approx((0.002,) * 3) == figures.tpot.values
    assert pytest.approx((0.002,) * 6) == figures.itl.values
    assert (0.014, 0.024, 0.034) == figures.e2e.values


def test_each_run_has_figures_of_its_own():
    """`runs` are in their order, with the limits of the whole."""
    figures = result(run(request(10)), run(request(30), request(50)), slo={"ttft": 0.04})

    assert [0.01, 0.04] == [one.ttft.mean for one in figures.runs]
    assert [1, 2] == [one.requests for one in figures.runs]
    assert [1 / 0.014, 1 / 0.054] == pytest.approx([one.goodput for one in figures.runs])


def test_lengths_as_asked_and_as_served():
    """Over the answered requests; what the server does not say of each of them is absent."""
    told = [request(prompt_tokens=101), request(prompt_tokens=99, tokens=5, output_tokens_asked=8), failed()]
    untold = request(prompt_tokens=None, output_tokens=None)

    figures, partly, nothing = result(run(*told[:2]), run(told[2])), result(run(*told, untold)), result(run(failed()))

    assert (Tokens(200, 200), Tokens(11, 8)) == (figures.input_tokens, figures.output_tokens)
    assert (Tokens(300, None), Tokens(14, None)) == (partly.input_tokens, partly.output_tokens)
    assert (Tokens(0, None), Tokens(0, None)) == (nothing.input_tokens, nothing.output_tokens)


def test_rounds_are_kept_apart():
    """`by_round[k]` has the k-th turns of all sessions and runs."""
    figures = result(run(request(10, turn=0), request(2, turn=1)), run(request(20, turn=0), request(4, turn=1)))

    first, second = figures.by_round

    assert ((0.01, 0.02), (0.002, 0.004)) == (first.ttft.values, second.ttft.values)


def test_rounds_after_the_first_are_taken_together():
    """Of all runs, and of each by itself."""
    figures = result(run(request(10), request(2, turn=1)), run(request(20, run=1), request(4, turn=2, run=1)))

    assert (0.002, 0.004) == figures.later_rounds.ttft.values == figures.later_rounds.ttft.mean.runs
    assert () == result(run(request(10))).later_rounds.requests


def test_replicas_are_kept_apart():
    """By who answered; a request of which that is not told is nobody's, and a replica may have had none."""
    figures = result(run(request(10, replica=2), request(2, replica=0), request(5)), run(request(20, replica=2)))

    assert [(0.002,), (), (0.01, 0.02)] == [replica.ttft.values for replica in figures.by_replica]
    assert () == result(run(request(10))).by_replica


def test_what_replicas_found_is_in_the_json():
    """Each by itself, what it does not say left out; and the file's form has a place for it."""
    counters = [CacheCounters(queried_tokens=10, hit_tokens=4, preemptions=0), CacheCounters()]
    figures = result(run(request(), cache=added(counters)))

    assert (0.4, None) == tuple(replica.hit_rate for replica in figures.cache.replicas)
    told = figures_json(figures)["cache"]
    assert {"replicas": [{"hit_rate": 0.4, "preemptions": 0}, {}]} == told
    schema = json.loads(resources.files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())
    jsonschema.validate(told, {"$ref": "#/$defs/cache", "$defs": schema["$defs"]})


def test_a_round_in_which_nothing_was_answered_is_there_and_empty():
    """Its statistics raise; the rounds after it keep their numbers."""
    figures = result(run(request(10, turn=0), failed(turn=1), request(3, turn=2)))

    assert 3 == len(figures.by_round)
    assert 0.003 == figures.by_round[2].ttft.p50
    with pytest.raises(NoSamplesError, match="no TTFT was measured"):
        _ = figures.by_round[1].ttft.p50


@pytest.mark.parametrize("name", ["ttft", "scheduled_ttft", "tpot", "itl", "e2e"])
@pytest.mark.parametrize("figures", [result(), result(run()), result(run(failed()))])
def test_a_statistic_of_nothing_is_an_error(name, figures):
    """No answered request, no number: an assertion on it must not hold by accident."""
    word = name.upper().replace("SCHEDULED_", "scheduled ")
    with pytest.raises(NoSamplesError, match=f"no {word} was measured"):
        _ = getattr(figures, name).p99


def test_without_any_request_there_are_no_figures():
    """A result of nothing has None everywhere, and no rounds."""
    figures = result()

    assert (0, {}, (), ()) == (figures.requests, figures.errors, figures.by_round, figures.runs)
    assert ({}, LoadResult(offered=None, achieved=None, shed=0)) == (figures.remarks, figures.load)
    assert (None,) * 4 == (
        figures.duration_s,
        figures.request_throughput,
        figures.output_throughput,
        figures.total_throughput,
    )
    assert CacheResult(None, None, None, None, None) == figures.cache
    assert ClientResult() == figures.client


def test_errors_are_counted_by_kind():
    """Failed requests are among the requests, and each kind has its number."""
    figures = result(run(request(), failed("timeout"), failed("abandoned")), run(failed("timeout")))

    assert (4, {"timeout": 2, "abandoned": 1}) == (figures.requests, figures.errors)


def test_no_errors_are_an_empty_count():
    """A clean result has no kinds."""
    assert {} == result(run(request())).errors


def test_errors_outside_the_window_are_counted_too():
    """They spoil the run, although they are not among the requests that count."""
    figures = result(run(request(at_ms=50), failed(at_ms=10), window_ms=(40, 90)))

    assert (1, {"timeout": 1}) == (figures.requests, figures.errors)


def test_remarks_are_counted_by_kind():
    """What was odd about answers that stand, wherever in the run."""
    odd, odder = Remark("no_usage", "it did not count"), Remark("wrong_usage", "it counted wrong")
    figures = result(
        run(request(remarks=(odd,)), request(at_ms=50, remarks=(odd, odder)), window_ms=(40, 90)), run(request())
    )

    assert {"no_usage": 2, "wrong_usage": 1} == figures.remarks


def test_figures_are_those_of_the_windows():
    """Latencies of requests meant to be sent within, what arrived within over its length."""
    requests = [request(10, 2, at_ms=at, turn=at // 50) for at in (0, 50, 100, 150)]
    figures = result(run(*requests, window_ms=(40, 140)), run(*requests, window_ms=(50, 150)))

    assert (5, 0.2) == (figures.requests, pytest.approx(figures.duration_s))
    assert (4 / 0.2, 12 / 0.2) == (
        pytest.approx(figures.request_throughput),
        pytest.approx(figures.output_throughput),
    )
    assert [0, 2, 2, 1] == [one.ttft.count for one in figures.by_round]
    assert [2, 3] == [one.ttft.count for one in figures.runs]


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


def stats(away_ms=(), unread_ms=(), connects_ms=(), **words):
    """What a client saw of itself."""
    made = ClientStats(**words)
    for histogram, values in ((made.away, away_ms), (made.unread, unread_ms), (made.connects, connects_ms)):
        for value in values:
            histogram.add(round(value * MS))
    return made


def within_a_bin(expected):
    """Histograms tell durations to 3 %, rounded up."""
    return pytest.approx(expected * 1.016, rel=0.017)


class TestClient:
    """The client's own delays."""

    def test_each_is_taken_over_all_runs(self):
        """Of the wake-ups, of the connections, and of the sends."""
        figures = result(
            run(
                request(at_ms=5, released_ns=4 * MS),
                client=stats([1] * 99, [0.1], [3, 4], resent=2, cpu_shares=[0.4], unstamped=0),
            ),
            run(
                request(at_ms=9, released_ns=9 * MS),
                failed(sent_ns=None),
                client=stats([7, 7], [0.3], [5], resent=1, cpu_shares=[0.6]),
            ),
        )

        client = figures.client

        assert within_a_bin(0.007) == client.lag_p99_s
        assert within_a_bin(0.0003) == client.unread_p99_s
        assert within_a_bin(0.001) == client.sent_late_p99_s
        assert within_a_bin(0.004) == client.connect_p50_s
        assert (0.6, 1, 3, "kernel") == (client.cpu_share, client.workers, client.resent, client.stamps)

    def test_the_busiest_worker_counts(self):
        """Several workers of one run are counted, and the one that used most of a processor is shown."""
        client = result(run(client=stats(cpu_shares=[0.2, 0.9, 0.5])), run(client=stats(cpu_shares=[0.3, 0.4]))).client

        assert (0.9, 3) == (client.cpu_share, client.workers)

    @pytest.mark.parametrize(("unstamped", "stamps"), [(0, "kernel"), (1, "read")])
    def test_one_read_without_a_stamp_of_the_kernel_is_told(self, unstamped, stamps):
        """Its time is that at which the read returned."""
        runs = [run(client=stats([1])), run(client=stats([1], unstamped=unstamped))]

        assert stamps == result(*runs).client.stamps

    def test_clocks_of_other_machines_are_told_in_seconds(self):
        """How far ahead, and how well that is known."""
        client = result(run(client=stats(clock_offsets_ns={"10.0.0.7/ab": (-3_000_000, 20_000)}))).client

        assert {"10.0.0.7/ab": (-0.003, 0.00002)} == client.clock_offsets_s

    def test_sends_outside_the_windows_are_not_asked(self):
        """A ramp may be late."""
        late, on_time = request(at_ms=30, released_ns=0), request(at_ms=50)

        assert 0.0 == result(run(late, on_time, window_ms=(40, 90))).client.sent_late_p99_s

    def test_a_turn_that_had_to_wait_for_its_answer_was_not_sent_late_by_the_client(self):
        """What counts is from the moment at which it could be sent."""
        first = request(900, at_ms=0)
        second = request(10, at_ms=905, turn=1, released_ns=100 * MS)

        assert within_a_bin(0.001) == result(run(first, second)).client.sent_late_p99_s

    def test_an_error_bound_is_that_of_the_worst_run(self):
        """Of each metric that has one, in its unit."""
        late = request(arrivals=(Arrival(10 * MS, 1, 3 * MS), Arrival(14 * MS, 2)))

        bounds = result(run(request()), run(late), run(request()), run(failed())).client.error_bounds

        assert pytest.approx(0.003) == bounds["ttft_p50"]
        assert pytest.approx(0.0015) == bounds["tpot_p99"]
        assert (0.0, 0.0) == (bounds["e2e_mean"], bounds["output_throughput"])
        assert "cache_hit_rate" not in bounds


class TestLoad:
    """What the load meant to send, and what was sent."""

    def test_rates_are_of_the_gaps_between_requests(self):
        """Eleven requests over ten seconds are 1.1 - 0.1 a second; each run has its own first and last."""
        runs = [
            run(*(request(at_ms=start + 1500 * n, released_ns=(start + 1000 * n) * MS) for n in range(11)))
            for start in (0, 90_000)
        ]

        load = result(*runs).load

        assert (1.0, pytest.approx(1 / 1.5), 0) == (load.offered, load.achieved, load.shed)

    def test_requests_outside_the_windows_do_not_count(self):
        """Nor the gap to them."""
        requests = [request(at_ms=at) for at in (0, 1000, 1100, 1200, 9000)]

        load = result(run(*requests, window_ms=(900, 1300))).load

        assert (10.0, 10.0) == (load.offered, load.achieved)

    def test_what_was_never_sent_was_offered_and_not_achieved(self):
        """A turn that a failure made impossible."""
        load = result(run(request(at_ms=0), failed(at_ms=1000, sent_ns=None), request(at_ms=2000))).load

        assert (1.0, 0.5) == (load.offered, load.achieved)

    @pytest.mark.parametrize("requests", [(), (request(),), (request(), request())])
    def test_one_moment_is_no_rate(self, requests):
        """None, not 0 and not infinity."""
        assert (None, None) == (result(run(*requests)).load.offered, result(run(*requests)).load.achieved)

    def test_shed_turns_are_added_up(self):
        """Over the runs."""
        assert 5 == result(run(shed=2), run(shed=3)).load.shed

    @pytest.mark.parametrize("is_open", [True, False])
    def test_whether_the_load_waits_is_told(self, is_open):
        """It decides which TTFT counts."""
        provenance = replace(PROVENANCE, open_load=is_open)

        assert is_open is PerfResult([], provenance=provenance, validity=Validity()).is_open


class TestJson:
    """The figures as they are written."""

    @pytest.fixture
    def check(self):
        """Validates figures, as JSON holds them, against the schema that the package ships."""
        schema = json.loads(resources.files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())

        def checked(figures):
            written = json.loads(json.dumps(figures_json(figures)))
            jsonschema.validate(written, {"$ref": "#/$defs/figures", "$defs": schema["$defs"]})
            return written

        return checked

    def test_a_full_result_follows_the_schema(self, check):
        """With everything that a client, a load and a server can tell."""
        client = stats([1], [1], [1], cpu_shares=[0.5], clock_offsets_ns={"node": (1, 2)}, unstamped=1)
        cache = CacheCounters(queried_tokens=2, hit_tokens=1, tokens_by_tier={"gpu": 1}, offloaded_bytes=5)
        requests = [request(at_ms=at, remarks=(Remark("no_usage", ""),)) for at in (0, 50, 100)]

        written = check(
            result(
                run(*requests, failed(at_ms=60), client=client, cache=cache, window_ms=(40, 140), shed=3),
                slo={"ttft": 0.02},
                doubts=("a doubt",),
            )
        )

        assert {"offered", "achieved", "shed"} == set(written["load"])
        assert {"no_usage": 3} == written["remarks"]
        # Without the first one, which is outside the window.
        assert ({"asked": 200}, {"asked": 6, "served": 6}) == (written["input_tokens"], written["output_tokens"])
        assert 3 == written["scheduled_ttft"]["count"] + 1
        assert ("read", {"node": [1e-9, 2e-9]}) == (written["client"]["stamps"], written["client"]["clock_offsets_s"])
        assert {"ttft_p50", "tpot_p50"} <= set(written["client"]["error_bounds"])

    @pytest.mark.parametrize(
        ("link", "written"), [(0.1, {"prefill", "link", "assumptions"}), (None, {"prefill", "assumptions"})]
    )
    def test_shares_of_the_roofline_follow_the_schema(self, check, link, written):
        """Those that were not measured are absent."""
        figures = result(run(request()))
        figures.ceiling = Ceiling(prefill=0.5, decode=None, link=link, assumptions="a model on a part")

        assert written == set(check(figures)["ceiling"])

    @pytest.mark.parametrize("figures", [result(), result(run()), result(run(failed()))])
    def test_a_result_of_nothing_follows_the_schema(self, check, figures):
        """What was not measured is absent."""
        written = check(figures)

        assert {"shed": 0} == written["load"]
        assert {"asked": 0} == written["input_tokens"]
        assert not {"ttft", "scheduled_ttft", "goodput"} & set(written)

    def test_a_whole_result_says_what_it_is_of(self):
        """The provenance stands beside the figures."""
        written = result_json(result(run(request())))

        assert ("round_robin()", False) == (written["provenance"]["load"], written["provenance"]["open_load"])
        assert 1 == written["requests"]


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


def test_how_the_engine_timed_the_requests():
    """In seconds, of the answered requests of which it says so; in the JSON under the same names."""
    told = [EngineTimings(queue_ns=ms * MS, prefill_ns=10 * ms * MS) for ms in (1, 3)]
    figures = result(run(request(timings=told[0]), request()), run(request(timings=told[1]), failed(timings=told[0])))

    assert (0.001, 0.003) == figures.engine_times.queue.values
    assert 0.02 == pytest.approx(figures.engine_times.prefill.mean)
    assert (0.003,) == figures.runs[1].engine_times.queue.values
    with pytest.raises(NoSamplesError, match="the engine's ttft"):
        _ = figures.engine_times.ttft.p50
    told_json = figures_json(figures)["engine_times"]
    assert {"queue", "prefill"} == told_json.keys()
    assert (2, pytest.approx(0.002)) == (told_json["queue"]["count"], told_json["queue"]["p50"])


def test_an_engine_that_does_not_time():
    """Leaves nothing in the JSON, and no metric."""
    assert "engine_times" not in figures_json(result(run(request())))
    assert not any("queue" in name or "prefill" in name for name in METRICS)
