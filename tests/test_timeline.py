"""Requests over time, in bins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.arrivals import Arrival
from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.histogram import Histogram
from pytest_llmperf.records import Failure, Phase, RequestRecord, Window
from pytest_llmperf.timeline import timeline

MS = NS_PER_S // 1000


def request(sent_ms, ttft_ms=50, gaps_ms=(10, 10, 10), *, run=0, turn=0, tokens=1, **words):
    at_ms = sent_ms + ttft_ms + np.cumsum([0, *gaps_ms])
    known = {
        "run": run,
        "phase": Phase.MEASURED,
        "session": 0,
        "turn": turn,
        "released_ns": sent_ms * MS,
        "sent_ns": sent_ms * MS,
        "end_ns": int(at_ms[-1]) * MS,
        "arrivals": [Arrival(int(at) * MS, tokens) for at in at_ms],
        "new_tokens": 10,
        "input_tokens": 100,
        "output_tokens_asked": 4,
        "prompt_tokens": 100,
        "output_tokens": 4,
        "cached_tokens": 25,
    }
    return RequestRecord(**{**known, **words})


def failed(sent_ms, **words):
    return request(sent_ms, arrivals=(), failure=Failure("timeout", ""), **words)


def test_every_request_and_token_is_counted_once_in_each_run():
    requests = [request(1000 * i, run=i // 10) for i in range(20)]

    seen = timeline(requests)

    assert [course.run for course in seen.courses] == [0, 1]
    assert [sum(course.answered) for course in seen.courses] == [10, 10]
    assert [sum(course.tokens) for course in seen.courses] == [40, 40]
    assert seen.requests == 20


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**5)), min_size=1, max_size=40))
def test_whatever_the_span_nothing_is_lost_and_bins_are_bounded(spans):
    seen = timeline([request(sent, ttft, run=k % 3) for k, (sent, ttft) in enumerate(spans)])

    assert sum(sum(course.answered) for course in seen.courses) == len(spans)
    assert sum(sum(course.tokens) for course in seen.courses) == 4 * len(spans)
    assert all(course.in_flight[-1] == 0 for course in seen.courses)
    assert all(min(course.in_flight) >= 0 for course in seen.courses)
    assert sum(course.bins for course in seen.courses) <= 480


def test_requests_under_way_are_counted_at_the_end_of_each_bin():
    course = timeline([request(0, 1000), request(0, 3000)]).courses[0]

    def under_way(at_ms):
        return course.in_flight[(at_ms * MS - course.start_ns) // course.bin_ns]

    assert [under_way(at) for at in (500, 2000)] == [2, 1]
    assert course.in_flight[-1] == 0


def test_the_first_tokens_time_stands_where_it_arrived():
    course = timeline([request(0, 100), request(5000, 700)]).courses[0]

    known = [value for value in course.ttft_p50_s if value is not None]

    assert known == pytest.approx([0.1, 0.7], rel=0.04)
    assert course.ttft_p50_s[(5700 * MS - course.start_ns) // course.bin_ns] == known[-1]


def test_failures_are_counted_and_have_no_latency():
    seen = timeline([failed(0), request(100)])

    assert sum(seen.courses[0].failed) == 1
    assert seen.distributions["ttft"].count == 1


def test_what_was_never_sent_is_not_under_way():
    seen = timeline([failed(0, sent_ns=None), request(100)])

    assert max(seen.courses[0].in_flight) == 1
    assert sum(seen.courses[0].failed) == 1


def test_only_failures_have_a_course_and_no_distribution():
    seen = timeline([failed(0), failed(10)])

    assert dict(seen.distributions) == {}
    assert sum(seen.courses[0].failed) == 2


def test_nothing_has_no_course():
    assert timeline([]).courses == ()


def test_warm_up_is_left_out():
    assert timeline([request(0, phase=Phase.WARMUP)]).requests == 0


def test_chunks_of_unknown_size_have_no_rate_and_no_gaps():
    seen = timeline([request(0), request(10, tokens=None)])

    assert seen.courses[0].tokens is None
    assert seen.distributions["itl"].count == 3


def test_distributions_take_what_the_window_holds_courses_all():
    seen = timeline([request(0), request(1000), request(2000)], {0: Window(500 * MS, 1500 * MS)})

    assert seen.distributions["ttft"].count == 1
    assert sum(seen.courses[0].answered) == 3


def test_a_median_is_known_to_a_tenth_of_a_percent():
    ttft = timeline([request(0, 123), request(500, 123)]).distributions["ttft"]

    assert ttft.percentile(0.5) == pytest.approx(123 * MS, rel=0.001)


def test_rounds_say_where_their_prompts_came_from():
    rounds = timeline([request(0, turn=0, cached_tokens=0), request(100, turn=1), request(200, turn=1)]).rounds

    assert [(one.turn, one.prompt_tokens, one.cached_tokens) for one in rounds] == [(0, 100, 0), (1, 200, 50)]


def test_a_round_of_which_one_answer_does_not_say_is_not_known():
    rounds = timeline([request(0), request(100, cached_tokens=None)]).rounds

    assert [(one.prompt_tokens, one.cached_tokens) for one in rounds] == [(200, None)]


@pytest.mark.slow
@given(st.lists(st.integers(-5, 2**50)), st.sampled_from([5, 10]))
def test_counting_many_at_once_is_counting_each(values, sub_bits):
    one_by_one, at_once = Histogram(sub_bits=sub_bits), Histogram(sub_bits=sub_bits)
    for value in values:
        one_by_one.add(value)

    at_once.add_all(np.array(values, np.int64))

    assert at_once.bins == one_by_one.bins
