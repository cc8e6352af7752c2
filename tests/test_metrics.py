"""Every metric's definition, on requests made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf import metrics
from pytest_llmperf.arrivals import Arrival, Arrivals
from pytest_llmperf.metrics import LATENCIES, METRICS, STATISTICS, gated_by_default, latency
from pytest_llmperf.readings import GpuSummary, TelemetrySummary
from pytest_llmperf.records import CacheCounters, Failure, Phase, RequestRecord, RunRecord, Window
from pytest_llmperf.units import FORMATS

MS = 1_000_000
FAILURE = Failure("timeout", "")


def request(*arrivals_ms, sent_ms=0, end_ms=None, tokens=1, **words):
    """A request whose arrivals of `tokens` each came at those milliseconds; it is answered in full."""
    arrivals = tuple(Arrival(round(at * MS), tokens) for at in arrivals_ms)
    given = {
        "run": 0,
        "phase": Phase.MEASURED,
        "session": 0,
        "turn": 0,
        "released_ns": 0,
        "sent_ns": None if sent_ms is None else round(sent_ms * MS),
        "end_ns": round((end_ms if end_ms is not None else max(arrivals_ms, default=0)) * MS),
        "arrivals": arrivals,
        "new_tokens": 4,
        "input_tokens": 100,
        "output_tokens_asked": 5,
        "output_tokens": len(arrivals) * (tokens or 1),
    }
    return RequestRecord(**{**given, **words})


def run(*requests, cache=None, window=None, joules=None):
    """A run that began at 0; `window` in milliseconds."""
    if window is not None:
        window = Window(*(None if edge is None else edge * MS for edge in window))
    return RunRecord(
        index=0,
        phase=Phase.MEASURED,
        start_ns=0,
        end_ns=0,
        requests=requests,
        cache=cache or CacheCounters(),
        window=window,
        telemetry=None if joules is None else sampled(*joules),
    )


def sampled(*joules):
    """The telemetry of so many GPUs with this energy each."""
    gpus = [GpuSummary(gpu=number, samples=2, duration_s=1.0, energy_j=one) for number, one in enumerate(joules)]
    return TelemetrySummary(gpus=tuple(gpus), rate_hz=10.0)


def itl(record):
    return list(metrics.itl_s(record))


def test_ttft_is_from_the_send_to_the_first_token():
    """Waiting before the send is not part of it."""
    assert 0.03 == metrics.ttft_s(request(40, 50, sent_ms=10))


def test_scheduled_ttft_is_from_when_the_load_meant_to_send():
    """Waiting before the send is part of it: a queue in the client cannot hide."""
    assert 0.035 == metrics.scheduled_ttft_s(request(40, 50, sent_ms=10, released_ns=5 * MS))


def test_e2e_is_from_the_send_to_the_last_token():
    """What follows the last token, usage and the connection's end, is not part of it."""
    assert 0.05 == metrics.e2e_s(request(40, 60, sent_ms=10, end_ms=99))


def test_tpot_leaves_the_first_token_out():
    """The time from first to last token, by the tokens that came after the first."""
    assert 0.01 == metrics.tpot_s(request(40, 45, 60, sent_ms=10, end_ms=99))


def test_tpot_counts_tokens_and_not_chunks():
    """Two chunks of three tokens are six tokens."""
    assert 0.02 / 5 == metrics.tpot_s(request(40, 60, tokens=3))


def test_tpot_counts_by_the_server_where_chunks_do_not_say():
    """The server's total is enough for TPOT."""
    assert 0.02 / 5 == metrics.tpot_s(request(40, 60, tokens=None, output_tokens=6))


def test_tpot_of_one_chunk_was_not_seen():
    """Tokens that all came at once show no time between them: absent, not 0."""
    assert metrics.tpot_s(request(40, tokens=8)) is None
    assert metrics.tpot_s(request(40, 40, 40)) is None


def test_itl_is_each_gap_between_two_arrivals():
    """N arrivals of a token have N - 1 gaps."""
    assert [0.01, 0.015] == itl(request(40, 50, 65))


def test_tokens_of_one_chunk_arrive_together():
    """Within a chunk the gaps are 0, so that N tokens always have N - 1 gaps."""
    record = replace(request(0), arrivals=(Arrival(40 * MS, 2), Arrival(50 * MS, 1), Arrival(70 * MS, 3)))

    assert [0.0, 0.0, 0.0, 0.01, 0.02] == sorted(itl(record))


def test_gaps_are_the_same_whatever_form_the_arrivals_have():
    """Rows or columns."""
    record = replace(request(0), arrivals=(Arrival(40 * MS, 2), Arrival(50 * MS, 1), Arrival(70 * MS, 3)))

    assert itl(record) == itl(replace(record, arrivals=Arrivals.of(record.arrivals)))


def test_a_single_token_has_neither_tpot_nor_itl():
    """With one token there is nothing between tokens: absent, not 0."""
    record = request(40)

    assert (None, []) == (metrics.tpot_s(record), itl(record))
    assert (0.04, 0.04) == (metrics.ttft_s(record), metrics.e2e_s(record))


def test_chunks_of_unknown_size_have_no_itl():
    """One chunk that does not say how many tokens it holds is enough for none."""
    record = request(40, 50, 60)
    arrivals = (*record.arrivals[:2], replace(record.arrivals[2], tokens=None))

    assert [] == itl(replace(record, arrivals=arrivals))


def test_without_a_token_count_there_is_no_tpot():
    """The server did not count: absent, not guessed from the chunks."""
    assert metrics.tpot_s(request(40, 50, 60, output_tokens=None)) is None


@pytest.mark.parametrize("record", [request(), request(40, 50, sent_ms=None)])
def test_without_a_send_or_a_token_there_is_no_latency(record):
    """What did not happen has no duration."""
    assert (None, None, None) == (metrics.ttft_s(record), metrics.scheduled_ttft_s(record), metrics.e2e_s(record))


@pytest.mark.parametrize("name", LATENCIES)
def test_a_distribution_has_only_answered_requests(name):
    """A failed request contributes nothing, though some of its tokens had come."""
    answered, failed = request(40, 50, 60), request(80, 99, failure=FAILURE)

    assert latency(name, [answered]).values == latency(name, [answered, failed]).values


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ttft", (0.03, 0.02)),
        ("scheduled_ttft", (0.04, 0.02)),
        ("tpot", (0.01, 0.003)),
        ("itl", (0.01, 0.003)),
        ("e2e", (0.04, 0.023)),
    ],
)
def test_a_distribution_is_over_all_requests(name, expected):
    """Each request adds its value, or all of its gaps."""
    assert expected == latency(name, [request(40, 50, sent_ms=10), request(20, 23)]).values


def test_the_duration_is_from_the_first_send_to_the_last_end():
    """The order of the requests does not matter, and failed ones count."""
    record = run(
        request(40, sent_ms=30, end_ms=45),
        request(20, sent_ms=10, end_ms=25),
        request(sent_ms=35, end_ms=110, failure=FAILURE),
    )

    assert 0.1 == metrics.duration_s(record)


@pytest.mark.parametrize("record", [run(), run(request(sent_ms=None, failure=FAILURE))])
def test_a_run_in_which_nothing_was_sent_has_no_duration(record):
    """No send, no duration: absent, not 0."""
    assert metrics.duration_s(record) is None


def test_tokens_are_those_of_answered_requests():
    """A failed request's tokens are not output."""
    record = run(request(40, 50), request(20, 30, 40), request(40, failure=FAILURE))

    assert (5, 200) == (metrics.output_tokens(record), metrics.input_tokens(record))


def test_throughputs_are_amounts_over_the_duration():
    """Requests, generated tokens, and all tokens per second of the run."""
    record = run(request(40, 50), request(20, 30, 40, end_ms=100), request(end_ms=90, failure=FAILURE))

    assert 2 / 0.1 == metrics.request_throughput(record)
    assert 5 / 0.1 == metrics.output_throughput(record)
    assert 205 / 0.1 == metrics.total_throughput(record)


def test_energy_is_of_all_gpus_over_the_tokens_that_came_out():
    """Two GPUs, five tokens; it is better when there is less of it."""
    record = run(request(40, 50), request(20, 30, 40), joules=(10.0, 25.0))

    assert metrics.energy_j(record) == 35.0
    assert metrics.joules_per_token(record) == 7.0
    assert METRICS["joules_per_token"].formula(record) == 7.0
    assert (METRICS["joules_per_token"].unit, METRICS["joules_per_token"].higher_is_better) == ("J/token", False)


@pytest.mark.parametrize("joules", [None, (), (None,), (10.0, None)], ids=str)
def test_energy_that_is_not_known_of_every_gpu_is_absent(joules):
    """No telemetry, no GPU, or one that does not tell."""
    record = run(request(40, 50), joules=joules)

    assert (metrics.energy_j(record), metrics.joules_per_token(record)) == (None, None)


@pytest.mark.parametrize(
    ("joules", "why"),
    [
        (None, "nothing was sampled, as --llmperf-telemetry is off, or "),
        ((), "the engine uses no GPU of this machine; see pytest-llmperf doctor"),
        ((10.0, None, None), "GPU 1, 2 told neither energy nor power over the whole run, as a MIG slice or "),
        ((10.0,), "no output token was counted"),
    ],
    ids=str,
)
def test_why_there_is_no_energy_is_said(joules, why):
    """With what to do: a count of runs without it would tell nobody."""
    assert METRICS["joules_per_token"].why_absent(run(joules=joules)).startswith(why)


def test_a_driver_s_problem_is_why_there_is_no_energy():
    """Its own sentence."""
    record = replace(run(), telemetry=TelemetrySummary(rate_hz=10.0, problems=("no telemetry of the GPUs: NVML: x",)))

    assert METRICS["joules_per_token"].why_absent(record) == "no telemetry of the GPUs: NVML: x"


def test_energy_over_tokens_that_nobody_counted_is_absent():
    """As is energy over none."""
    assert metrics.joules_per_token(run(request(40, 50, output_tokens=None), joules=(5.0,))) is None
    assert metrics.joules_per_token(run(joules=(5.0,))) is None


def test_one_answer_without_a_count_leaves_the_throughput_unknown():
    """A sum with an unknown part is unknown; requests can still be counted."""
    record = run(request(40, 50), request(20, 100, output_tokens=None))

    assert (None, None, 20.0) == (
        metrics.output_throughput(record),
        metrics.total_throughput(record),
        metrics.request_throughput(record),
    )


def test_a_run_without_an_answer_has_no_token_throughput():
    """Nothing was generated that could be counted; that no request was answered is a true 0."""
    record = run(request(end_ms=100, failure=FAILURE))

    assert (None, None, 0.0) == (
        metrics.output_throughput(record),
        metrics.total_throughput(record),
        metrics.request_throughput(record),
    )


def test_a_run_of_no_duration_has_no_throughput():
    """Nothing is divided by 0."""
    assert metrics.request_throughput(run(request(0, sent_ms=0, end_ms=0))) is None


@pytest.mark.parametrize(
    ("cache", "expected"),
    [(CacheCounters(queried_tokens=200, hit_tokens=150), 0.75), (CacheCounters(), None)],
)
def test_the_hit_rate_is_the_engine_s(cache, expected):
    """It comes from the counters, or is absent."""
    assert expected == METRICS["cache_hit_rate"].formula(run(request(40), cache=cache))


@pytest.mark.parametrize("name", LATENCIES)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_each_latency_has_each_statistic(name, statistic):
    """The metric of a run is that statistic over its requests, in seconds, lower being better."""
    record = run(request(40, 50, 65), request(20, 30, 37))
    metric = METRICS[f"{name}_{statistic}"]

    assert getattr(latency(name, record.requests), statistic) == metric.formula(record)
    assert ("s", False) == (metric.unit, metric.higher_is_better)


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"request_throughput"}))
def test_a_metric_that_was_not_measured_is_none(name):
    """A run whose only request failed has no number for it, least of all 0."""
    record = run(request(sent_ms=None, failure=FAILURE))

    assert METRICS[name].formula(record) is None


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_goes_by_its_name_and_has_a_unit_that_can_be_shown(metric):
    """The table's keys are the names, and each unit has a form."""
    assert metric is METRICS[metric.name]
    assert metric.unit in FORMATS


@pytest.mark.parametrize(
    ("name", "stored"), [("ttft_p50", 4.0), ("duration", 4.0), ("output_throughput", 0.25), ("cache_hit_rate", 0.25)]
)
def test_lower_is_better_in_what_is_stored(name, stored):
    """Throughput is kept as seconds per token, durations as they are."""
    assert stored == METRICS[name].stored(4.0)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("value", [0.125, 1.0, 4096.0])
def test_storing_is_its_own_inverse(metric, value):
    """What was stored can be read with the same function."""
    assert value == metric.stored(metric.stored(value))


@pytest.mark.parametrize(
    ("open_load", "expected"),
    [
        (False, ("ttft_p50", "tpot_p50", "output_throughput")),
        (True, ("scheduled_ttft_p50", "tpot_p50", "output_throughput")),
    ],
)
def test_what_is_gated_by_default_depends_on_the_load(open_load, expected):
    """Where the load does not wait, TTFT counts from the schedule; all of the names exist."""
    assert expected == gated_by_default(open_load=open_load)
    assert set(expected) <= set(METRICS)


# Four requests, released at 0, 100, 200 and 300 ms, each answered with tokens 50 and 150 ms later.
PACED = tuple(
    request(at + 50, at + 150, sent_ms=at, released_ns=at * MS, input_tokens=100 + at, turn=at)
    for at in range(0, 400, 100)
)


class TestWindow:
    """What of a run counts where its load has a ramp or a tail."""

    @pytest.mark.parametrize("window", [None, (0, None)])
    def test_without_an_edge_the_whole_run_counts(self, window):
        """A window that begins with the run and does not end is none."""
        whole = run(*PACED, window=window)

        assert (0.45, 8, 1000) == (metrics.duration_s(whole), metrics.output_tokens(whole), metrics.input_tokens(whole))
        assert (4, 4) == (metrics.answered(whole), len(whole.counted))

    @pytest.mark.parametrize(
        ("window", "released"),
        [((100, 200), [100, 200]), ((101, None), [200, 300]), ((0, 299), [0, 100, 200]), ((50, 99), [])],
    )
    @pytest.mark.parametrize("name", LATENCIES)
    def test_latencies_are_those_of_requests_meant_to_be_sent_within(self, name, window, released):
        """Whenever their tokens came."""
        counted = [record for record in PACED if record.turn in released]
        metric = METRICS[f"{name}_mean"]

        value = metric.formula(run(*PACED, window=window))

        assert value == (latency(name, counted).mean if counted else None)

    def test_latencies_count_by_the_release_and_not_by_the_send(self):
        """A request that was sent late still belongs to the moment for which it was meant."""
        late = request(500, 600, sent_ms=450, released_ns=150 * MS)

        assert 0.35 == METRICS["scheduled_ttft_mean"].formula(run(late, window=(100, 200)))
        assert METRICS["ttft_mean"].formula(run(late, window=(400, 500))) is None

    @pytest.mark.parametrize(
        ("window", "tokens", "inputs", "answers", "seconds"),
        [
            ((100, 250), 4, 500, 2, 0.15),
            ((151, 249), 0, None, 0, 0.098),
            ((100, None), 7, 900, 4, 0.35),
            ((0, 250), 5, 600, 2, 0.25),
            ((0, 1000), 8, 1000, 4, 1.0),
        ],
    )
    def test_throughput_is_of_what_arrived_within_over_its_length(self, window, tokens, inputs, answers, seconds):
        """Tokens by their arrival, inputs by the first token, answers by their end."""
        cut = run(*PACED, window=window)

        assert (tokens, inputs, answers) == (
            metrics.output_tokens(cut),
            metrics.input_tokens(cut),
            metrics.answered(cut),
        )
        assert seconds == pytest.approx(metrics.duration_s(cut))
        assert tokens / seconds == pytest.approx(metrics.output_throughput(cut))
        assert answers / seconds == pytest.approx(metrics.request_throughput(cut))
        expected = None if inputs is None else pytest.approx((tokens + inputs) / seconds)
        assert expected == metrics.total_throughput(cut)

    def test_tokens_of_requests_from_before_the_window_count(self):
        """Throughput is what the server does in that time, for whomever."""
        cut = run(request(40, 60, 80, tokens=2), request(90, sent_ms=70, released_ns=70 * MS), window=(50, 100))

        assert (5, 0.05) == (metrics.output_tokens(cut), metrics.duration_s(cut))

    def test_a_chunk_of_unknown_size_within_leaves_the_throughput_unknown(self):
        """One outside does not matter."""
        unknown = request(40, 60, tokens=None, output_tokens=6)

        assert metrics.output_throughput(run(unknown, window=(50, 100))) is None
        assert 0.0 == metrics.output_throughput(run(unknown, window=(70, 100)))

    def test_failed_requests_are_not_in_it(self):
        """Neither their tokens nor their inputs."""
        cut = run(*PACED, request(120, 130, sent_ms=110, released_ns=110 * MS, failure=FAILURE), window=(100, 250))

        assert (4, 500, 2) == (metrics.output_tokens(cut), metrics.input_tokens(cut), metrics.answered(cut))

    @pytest.mark.parametrize("name", sorted(set(METRICS) - {"request_throughput", "duration"}))
    def test_a_metric_that_was_not_measured_in_it_is_none(self, name):
        """A window whose only request failed has no number for it, least of all 0."""
        cut = run(request(40, sent_ms=10, released_ns=10 * MS, failure=FAILURE), window=(5, 50))

        assert METRICS[name].formula(cut) is None

    def test_a_window_of_no_length_has_no_rate(self):
        """A load that fell before it was to be measured."""
        cut = run(*PACED, window=(150, 150))

        assert (0.0, None, None) == (
            metrics.duration_s(cut),
            metrics.output_throughput(cut),
            metrics.request_throughput(cut),
        )

    def test_what_was_computed_of_a_run_is_not_that_of_another_one(self):
        """A run made from another one with other requests or another window has figures of its own."""
        whole = run(*PACED)
        before = METRICS["ttft_mean"].formula(whole), metrics.output_tokens(whole)

        cut = replace(whole, window=Window(100 * MS, 250 * MS))
        less = replace(whole, requests=(request(7),))

        assert (pytest.approx(0.05), 8) == before
        assert (4, 0.007) == (metrics.output_tokens(cut), METRICS["ttft_mean"].formula(less))
