"""Every metric's definition, on requests made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf import metrics
from pytest_llmperf.metrics import GATED_BY_DEFAULT, LATENCIES, METRICS, STATISTICS, latency
from pytest_llmperf.records import Arrival, CacheCounters, Failure, Phase, RequestRecord, RunRecord
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


def run(*requests, cache=None):
    return RunRecord(
        index=0, phase=Phase.MEASURED, start_ns=0, end_ns=0, requests=requests, cache=cache or CacheCounters()
    )


def itl(record):
    return list(metrics.itl_s(record))


def test_ttft_is_from_the_send_to_the_first_token():
    """Waiting before the send is not part of it."""
    assert 0.03 == metrics.ttft_s(request(40, 50, sent_ms=10))


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
    assert (None, None) == (metrics.ttft_s(record), metrics.e2e_s(record))


@pytest.mark.parametrize("name", LATENCIES)
def test_a_distribution_has_only_answered_requests(name):
    """A failed request contributes nothing, though some of its tokens had come."""
    answered, failed = request(40, 50, 60), request(80, 99, failure=FAILURE)

    assert latency(name, [answered]).values == latency(name, [answered, failed]).values


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ttft", (0.04, 0.02)), ("tpot", (0.01, 0.003)), ("itl", (0.01, 0.003)), ("e2e", (0.05, 0.023))],
)
def test_a_distribution_is_over_all_requests(name, expected):
    """Each request adds its value, or all of its gaps."""
    assert expected == latency(name, [request(40, 50), request(20, 23)]).values


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


def test_what_is_gated_by_default_exists():
    """The default gate names metrics that there are."""
    assert set(GATED_BY_DEFAULT) <= set(METRICS)
