"""How far the client's own delays may have reached into a figure, on requests made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.metrics import LATENCIES, METRICS, STATISTICS
from pytest_llmperf.records import Failure, Phase, RequestRecord, RunRecord, Window
from pytest_llmperf.selfcheck import TOLERATED, error_bounds, excesses, tolerated

MS = 1_000_000
FIGURES = ["ttft", "scheduled_ttft", "tpot", "itl", "e2e"]


def request(
    *arrivals_ms, late_ms=0, released_ms=0, sent_ms=None, flushed_ms=None, tokens=1, session=0, turn=0, **words
):
    """A request with tokens at those milliseconds; `late_ms` is that of each of them, or of all."""
    lates = late_ms if isinstance(late_ms, list) else [late_ms] * len(arrivals_ms)
    arrivals = tuple(
        Arrival(round(at * MS), tokens, round(late * MS)) for at, late in zip(arrivals_ms, lates, strict=True)
    )
    sent_ms = released_ms if sent_ms is None else sent_ms
    given = {
        "run": 0,
        "phase": Phase.MEASURED,
        "session": session,
        "turn": turn,
        "released_ns": round(released_ms * MS),
        "sent_ns": round(sent_ms * MS),
        "flushed_ns": None if flushed_ms is None else round(flushed_ms * MS),
        "end_ns": arrivals[-1].at_ns if arrivals else round(sent_ms * MS),
        "arrivals": arrivals,
        "new_tokens": 4,
        "input_tokens": 100,
        "output_tokens_asked": 5,
        "output_tokens": sum(arrival.tokens or 0 for arrival in arrivals) or None,
    }
    return RequestRecord(**{**given, **words})


def run(*requests, index=0, window=None):
    return RunRecord(index=index, phase=Phase.MEASURED, start_ns=0, end_ns=0, requests=requests, window=window)


def bound(name, *requests, **words):
    """The bound of one metric in milliseconds, or its unit if that is not seconds; None where there is none."""
    metric = METRICS[name]
    found = error_bounds([metric], run(*requests, **words)).get(name)
    return found if found is None or metric.unit != "s" else found * 1000


class TestLatencies:
    """What each delay may have done to each figure."""

    @pytest.mark.parametrize("name", FIGURES)
    @pytest.mark.parametrize("statistic", STATISTICS)
    def test_of_a_perfect_client_nothing_is_doubtful(self, name, statistic):
        """Tokens stamped as they came, a request handed over at the moment it was due."""
        assert bound(f"{name}_{statistic}", request(40, 50, 65), request(30, 50, 65)) == 0

    @pytest.mark.parametrize(
        ("name", "expected"), [("ttft", 3), ("scheduled_ttft", 3), ("e2e", 0), ("tpot", 1.5), ("itl", 1.5)]
    )
    def test_a_first_token_that_may_have_come_earlier(self, name, expected):
        """TTFT may be that much too long, and the time between tokens that much too short."""
        assert expected == pytest.approx(bound(f"{name}_mean", request(40, 50, 60, late_ms=[3, 0, 0])))

    @pytest.mark.parametrize(
        ("name", "expected"), [("ttft", 0), ("scheduled_ttft", 0), ("e2e", 3), ("tpot", 1.5), ("itl", 1.5)]
    )
    def test_a_last_token_that_may_have_come_earlier(self, name, expected):
        """The time between tokens, and to the last, may be too long."""
        assert expected == pytest.approx(bound(f"{name}_mean", request(40, 50, 60, late_ms=[0, 0, 3])))

    @pytest.mark.parametrize(
        ("name", "expected"), [("ttft", 0), ("scheduled_ttft", 0), ("e2e", 0), ("tpot", 0), ("itl", 1.5)]
    )
    def test_a_token_between_that_may_have_come_earlier(self, name, expected):
        """Only the gaps on both sides of it are doubtful."""
        assert expected == pytest.approx(bound(f"{name}_mean", request(40, 50, 60, late_ms=[0, 3, 0])))

    @pytest.mark.parametrize(
        ("name", "expected"), [("ttft", 7), ("scheduled_ttft", 7), ("e2e", 7), ("tpot", 0), ("itl", 0)]
    )
    def test_a_request_that_took_time_to_hand_over(self, name, expected):
        """It may have left at any moment between its first and its last byte."""
        assert expected == pytest.approx(bound(f"{name}_mean", request(40, 50, flushed_ms=7)))

    @pytest.mark.parametrize(
        ("name", "expected"), [("ttft", 0), ("scheduled_ttft", 6), ("e2e", 0), ("tpot", 0), ("itl", 0)]
    )
    def test_a_request_that_was_sent_late(self, name, expected):
        """It counts where the schedule counts."""
        assert expected == pytest.approx(bound(f"{name}_mean", request(40, 50, released_ms=2, sent_ms=8)))

    def test_all_delays_of_one_request_add_up(self):
        """Late by 6 ms, handed over in 2 ms, read up to 3 ms late."""
        record = request(40, 50, released_ms=2, sent_ms=8, flushed_ms=10, late_ms=3)

        assert (5, 11) == (pytest.approx(bound("ttft_p50", record)), pytest.approx(bound("scheduled_ttft_p50", record)))

    def test_nothing_can_have_come_before_its_request(self):
        """A TTFT of 40 ms cannot be wrong by more than 40 ms."""
        assert 40 == pytest.approx(bound("ttft_p50", request(40, 50, late_ms=300, flushed_ms=500)))

    def test_a_recorded_turn_that_had_to_wait_for_its_answer_is_the_server_s_doing(self):
        """The client could send it only when the answer before it had come; what passed from then on is its own."""
        first = request(40, 900, session=1)
        second = request(1000, 1010, session=1, turn=1, released_ms=100, sent_ms=903)

        assert 3 == pytest.approx(bound("scheduled_ttft_p99", first, second, window=Window(50 * MS)))

    def test_a_median_is_as_doubtful_as_what_can_move_it(self):
        """One late request of five cannot move it far; three can."""
        good = [request(40 + n, 60 + n) for n in range(5)]
        one = [replace(good[4], arrivals=(Arrival(44 * MS, 1, 20 * MS), Arrival(64 * MS, 1))), *good[:4]]
        three = [replace(r, arrivals=(replace(r.arrivals[0], late_ns=20 * MS), r.arrivals[1])) for r in good[2:]]

        assert (1, 20) == (
            pytest.approx(bound("ttft_p50", *one)),
            pytest.approx(bound("ttft_p50", *good[:2], *three) + 2),
        )
        assert 4 == pytest.approx(bound("ttft_mean", *one))

    def test_only_what_counts_is_doubted(self):
        """Neither requests outside the window nor failed ones."""
        good, late = request(140, 150, released_ms=100), request(40, 50, late_ms=9)
        failed = request(140, 150, released_ms=100, late_ms=9, failure=Failure("timeout", ""))

        assert 0 == bound("ttft_mean", good, late, failed, window=Window(90 * MS))

    def test_tokens_of_one_chunk_may_have_come_apart(self):
        """Their gaps are reported as 0, and may be as long as the chunk was unread."""
        assert 4 == pytest.approx(bound("itl_p50", request(40, 50, tokens=8, late_ms=4)))

    def test_tokens_that_were_all_read_at_once_may_have_come_one_by_one(self):
        """A request that shows no time between its tokens is not in the median, and would have moved it."""
        apart, at_once = request(40, 50, 60), request(70, 70, 70, late_ms=60)

        assert 30 - 10 == pytest.approx(bound("tpot_p99", apart, at_once), rel=0.02)
        assert 0 == bound("tpot_p99", apart, request(70, 70, 70))

    @pytest.mark.parametrize("name", METRICS)
    @pytest.mark.parametrize(
        "requests", [(), (request(),), (request(40, 50, late_ms=3, failure=Failure("timeout", "")),)]
    )
    def test_where_nothing_was_measured_there_is_no_bound(self, name, requests):
        """Neither a number nor 0; what does not depend on answers may have one."""
        known = METRICS[name].formula(run(*requests)) is not None

        assert known == (bound(name, *requests) is not None)
        assert not known or name in ("duration", "request_throughput")

    @pytest.mark.parametrize("name", ["tpot_p50", "itl_p50"])
    def test_what_a_server_does_not_count_has_no_bound(self, name):
        """Neither does the metric."""
        assert bound(name, request(40, 50, tokens=None, late_ms=3)) is None

    def test_what_the_engine_counts_has_no_bound(self):
        """The client cannot falsify it."""
        assert bound("cache_hit_rate", request(40, 50, late_ms=3)) is None


class TestPace:
    """Throughput of a load that waits is lost between an answer and the next send."""

    def test_of_a_client_that_sends_at_once_nothing_is_lost(self):
        """Every request was sent when it was due."""
        assert 0 == bound("output_throughput", request(40, 50), request(100, 150, released_ms=50))

    def test_the_loss_is_the_share_of_the_time_that_requests_waited_for_the_client(self):
        """A fifth of the time lost is a fifth of the throughput, and of the duration."""
        requests = [
            request(at + 30, at + 50, released_ms=at, sent_ms=at + 10, session=0, turn=turn)
            for turn, at in enumerate((0, 50, 100, 150))
        ]

        for name in ("output_throughput", "request_throughput", "total_throughput", "duration"):
            value = METRICS[name].formula(run(*requests))
            assert pytest.approx(value / 5) == error_bounds([METRICS[name]], run(*requests))[name]

    def test_a_recorded_turn_that_had_to_wait_for_its_answer_loses_nothing(self):
        """The server was slow, not the client."""
        first = request(40, 900, session=1)
        second = request(1000, 1010, session=1, turn=1, released_ms=100, sent_ms=900)

        assert 0 == bound("output_throughput", first, second)


@st.composite
def shown_and_true(draw):
    """Two runs: as the client shows it, and as it may have been."""
    shown, true = [], []
    at_ns = st.integers(0, 60 * MS)
    short = st.sampled_from([0, 0, 1, 1000]) | st.integers(0, 30 * MS)
    for session in range(draw(st.integers(1, 6))):
        released_ns = draw(at_ns)
        sent_ns = released_ns + draw(short)
        flushed_ns = sent_ns + draw(short)
        moment_ns = flushed_ns + 1
        arrivals, moved, before_ns = [], [], flushed_ns
        for _ in range(draw(st.integers(1, 5))):
            moment_ns += draw(at_ns)
            late_ns = min(draw(short), moment_ns - flushed_ns)
            tokens = draw(st.sampled_from([1, 1, 1, 3]))
            # A token never came before the one in front of it.
            before_ns = max(before_ns, moment_ns - draw(st.integers(0, late_ns)))
            arrivals.append(Arrival(moment_ns, tokens, late_ns))
            moved.append(Arrival(before_ns, tokens))
        left_ns = draw(st.integers(sent_ns, flushed_ns))
        record = replace(
            request(session=session),
            released_ns=released_ns,
            sent_ns=sent_ns,
            flushed_ns=flushed_ns,
            arrivals=tuple(arrivals),
            output_tokens=sum(arrival.tokens for arrival in arrivals),
        )
        shown.append(record)
        true.append(replace(record, sent_ns=left_ns, flushed_ns=left_ns, arrivals=tuple(moved)))
    return run(*shown), run(*true)


@pytest.mark.slow
@given(runs=shown_and_true(), name=st.sampled_from(FIGURES), statistic=st.sampled_from(["mean", "p50", "p99"]))
@settings(deadline=None, max_examples=400)
def test_the_bound_really_bounds(runs, name, statistic):
    """However tokens and sends lay within what the client could not see, the metric is off by no more."""
    shown, true = runs
    metric = METRICS[f"{name}_{statistic}"]
    reported, truth = metric.formula(shown), metric.formula(true)
    if None in (reported, truth) or not _same_population(name, shown, true):
        return

    assert abs(truth - reported) <= error_bounds([metric], shown)[metric.name] + 1e-12


@pytest.mark.slow
@given(runs=shown_and_true(), statistic=st.sampled_from(["mean", "p50", "p99"]), data=st.data())
@settings(deadline=None, max_examples=200)
def test_it_bounds_what_sending_late_has_cost(runs, statistic, data):
    """A client that had sent each request at any moment since it was due would have seen no less."""
    shown, true = runs
    metric = METRICS[f"scheduled_ttft_{statistic}"]
    earlier = []
    for record in true.requests:
        gain_ns = data.draw(st.integers(0, record.sent_ns - record.released_ns))
        earlier.append(replace(record, arrivals=tuple(replace(a, at_ns=a.at_ns - gain_ns) for a in record.arrivals)))

    difference = abs(metric.formula(run(*earlier)) - metric.formula(shown))

    assert difference <= error_bounds([metric], shown)[metric.name] + 1e-12


def _same_population(name, shown, true):
    """Whether each request that contributes to one contributes to the other; an exact tie of tokens does not."""
    return all(
        len(tuple(LATENCIES[name](mine))) == len(tuple(LATENCIES[name](theirs)))
        for mine, theirs in zip(shown.requests, true.requests, strict=True)
    )


class TestExcesses:
    """Which metrics a client may have falsified by more than is tolerated."""

    GATED = (METRICS["ttft_p50"], METRICS["tpot_p50"], METRICS["output_throughput"])

    @pytest.mark.parametrize(("late_ms", "count"), [(0, 0), (4.99, 0), (5.01, 1), (50, 1)])
    def test_the_limit_is_a_share_of_the_metric(self, late_ms, count):
        """5 ms of a TTFT of 100 ms is 5 %."""
        assert TOLERATED == 0.05
        assert count == len(list(excesses([METRICS["ttft_p50"]], [run(request(100, 200, late_ms=[late_ms, 0]))])))

    def test_the_worst_run_of_each_metric_is_named(self):
        """Once per metric, in their order."""
        runs = [
            run(request(100, 200, late_ms=[late, 0], sent_ms=sent), index=index)
            for index, (late, sent) in enumerate([(6, 0), (9, 0), (7, 50), (0, 0)])
        ]

        found = list(excesses(self.GATED, runs))

        assert [("ttft_p50", 2), ("tpot_p50", 1), ("output_throughput", 2)] == [(e.metric.name, e.run) for e in found]
        assert (0.05, pytest.approx(0.007)) == (found[0].value, found[0].bound)

    def test_it_says_how_much_and_what_to_do(self):
        """The reason that stands beside INVALID_RUN, in which the first run is 1."""
        (excess,) = excesses([METRICS["ttft_p50"]], [run(request(100, 200, late_ms=20), index=3)])

        assert (
            "in run 4 the client itself may account for 20.0 ms of ttft_p50 100 ms (20.0 %, more than 5%); give it "
            "more workers (--llmperf-workers), processors of its own, or another machine"
        ) == str(excess)

    @pytest.mark.parametrize(("detect", "limit"), [(0.01, 0.05), (0.1, 0.05), (0.2, 0.05), (1.0, 0.25), (3.0, 0.75)])
    def test_a_test_that_looks_for_a_factor_tolerates_more(self, detect, limit):
        """A quarter of the change that is to be seen, and never less than 5 %."""
        assert limit == pytest.approx(tolerated(detect))
        runs = [run(request(100, 200, late_ms=20))]

        found = list(excesses([METRICS["ttft_p50"]], runs, {"ttft_p50": tolerated(detect)}))

        assert (limit < 0.2) == bool(found)

    def test_what_was_not_measured_is_not_an_excess(self):
        """Neither a metric without a value nor one without a bound, nor one that is 0."""
        runs = [run(), run(request()), run(request(0, 0, 0, late_ms=3))]

        assert [] == list(excesses([METRICS["cache_hit_rate"], *self.GATED[:2]], runs))
