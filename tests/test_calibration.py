"""How much load this machine can measure: what is made of the runs, and one real run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf import calibration
from pytest_llmperf.calibration import ATTEMPTS, BUDGET_S, STREAMS, Step, calibrate, climb, verdict
from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.engines.completions import CompletionsConnector, Dialect

GOOD = Step(
    streams=64,
    failures=None,
    peak=64,
    reported_s=0.1001,
    true_s=0.1,
    rate=4900.0,
    possible=5000.0,
    excess=None,
    client_cpu=0.1,
    server_cpu=0.08,
)
DOUBTFUL = replace(GOOD, rate=4000.0)
BAD = replace(GOOD, reported_s=0.2)


class TestStep:
    def test_a_good_one(self):
        """Its figures are those of the server, and the server was on time."""
        assert (None, None, True) == (GOOD.complaint, GOOD.doubt, GOOD.is_good)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"failures": "3 of 9 requests failed, as in timeout (x)"}, "3 of 9 requests failed, as in timeout (x)"),
            ({"peak": 63}, "only 63 streams were open at a time"),
            ({"reported_s": 0.1011}, "mean TTFT was reported as 101.1 ms and was 100.0 ms"),
            ({"reported_s": 0.0989}, "mean TTFT was reported as 98.9 ms and was 100.0 ms"),
            ({"reported_s": float("nan")}, "mean TTFT was reported as nan ms and was 100.0 ms"),
            ({"excess": "the client may account for it"}, "the client may account for it"),
        ],
    )
    def test_one_that_cannot_be_trusted(self, change, complaint):
        """The first reason is told."""
        step = replace(GOOD, **change)
        assert (complaint, False) == (step.complaint, step.is_good)

    @pytest.mark.parametrize("reported_s", [0.1009, 0.0991])
    def test_an_error_below_a_percent_is_none(self, reported_s):
        """The known answer is not known better than that."""
        assert replace(GOOD, reported_s=reported_s).is_good

    @pytest.mark.parametrize(
        ("server_cpu", "reason"),
        [(0.97, "it has no more to give (97% of a processor)"), (0.5, "it was not given the processor time")],
    )
    def test_one_whose_server_was_late(self, server_cpu, reason):
        """The client may be right; nobody knows."""
        step = replace(GOOD, rate=4499.0, server_cpu=server_cpu)
        assert step.complaint is None
        assert f"the server sent 4,499 of 5,000 tokens/s: {reason}" in step.doubt
        assert not step.is_good


def climbed(measure, took_s=1.0):
    """The steps, and which numbers of streams were measured; each run takes so long."""
    clock, measured, told = VirtualClock(), [], []

    def run(streams):
        clock.sleep(took_s)
        measured.append(streams)
        return replace(measure(streams, len(measured)), streams=streams, peak=streams)

    steps = list(climb(run, told.append, clock))
    assert [step.streams for step in steps] == told
    return steps, measured


class TestClimb:
    def test_it_goes_to_the_end_of_the_ladder(self):
        """Where all is well there is one run for each number."""
        steps, measured = climbed(lambda streams, number: GOOD)
        assert list(STREAMS) == measured == [step.streams for step in steps]

    @pytest.mark.parametrize("bad", [BAD, DOUBTFUL])
    def test_it_ends_where_no_attempt_is_good(self, bad):
        """And shows the last one."""
        steps, measured = climbed(lambda streams, number: GOOD if streams < 512 else bad)
        assert [16, 64, 256, 512] == [step.streams for step in steps]
        assert [True, True, True, False] == [step.is_good for step in steps]
        assert [512] * ATTEMPTS == measured[3:]

    def test_a_run_that_was_disturbed_is_repeated(self):
        """Another process may have had the processor."""
        steps, measured = climbed(lambda streams, number: BAD if number == 2 else GOOD)
        assert all(step.is_good for step in steps)
        assert [16, 64, 64, 256] == measured[:4]

    def test_it_takes_no_longer_than_it_may(self):
        """On a slow machine the ladder is cut short, and what was reached stands."""
        steps, measured = climbed(lambda streams, number: GOOD, took_s=BUDGET_S / 2.5)
        assert [16, 64, 256] == measured
        assert all(step.is_good for step in steps)

    def test_nothing_is_repeated_when_time_is_up(self):
        """A bad machine is left alone."""
        _, measured = climbed(lambda streams, number: BAD, took_s=BUDGET_S)
        assert [16] == measured


class TestVerdict:
    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([BAD], "measures no load truthfully at the moment; do other processes use the processors?"),
            ([], "measures no load truthfully at the moment; do other processes use the processors?"),
            ([GOOD, BAD], "truthful up to 64 streams and 4,900 tokens/s with one worker, beside the server"),
            (
                [replace(GOOD, streams=16), GOOD],
                "truthful up to 64 streams and 4,900 tokens/s with one worker, beside the server; more was not tried",
            ),
            (
                [GOOD, DOUBTFUL],
                "truthful up to 64 streams and 4,900 tokens/s with one worker, beside the server; what it can do "
                "beyond that cannot be told here",
            ),
        ],
    )
    def test_it_claims_no_more_than_was_seen(self, steps, expected):
        """The highest good step counts, and why there is no higher one."""
        assert expected == verdict(steps)


class TestRuns:
    @pytest.mark.slow
    def test_against_the_server(self, monkeypatch):
        """A real run: so many streams, and the mean that the server itself has counted."""
        monkeypatch.setattr(calibration, "STREAMS", (4,))
        monkeypatch.setattr(calibration, "ATTEMPTS", 1)
        monkeypatch.setattr(calibration, "_ROUNDS", 1)
        told = []
        (step,) = calibrate(told.append)
        assert [4] == told
        assert (4, 4, None) == (step.streams, step.peak, step.failures)
        assert 0.1 <= step.true_s < 1
        assert step.reported_s == pytest.approx(step.true_s, rel=0.5)
        assert step.possible == pytest.approx(4 * 32 / (step.true_s + 0.31))
        assert 0 < step.rate <= 1.05 * step.possible
        assert 0 < step.client_cpu < 1
        assert 0 < step.server_cpu < 1

    def test_failures_are_counted_with_an_example(self):
        """The most frequent kind is shown."""
        connector = CompletionsConnector(
            address=Address.parse("http://127.0.0.1:1"),
            model="x",
            dialect=Dialect(extended=False),
            limits=Limits(silence_s=1),
        )
        requests = []
        job = replace(calibration._job("http://127.0.0.1:1", 2), connector=connector)
        driven = calibration.LocalTeam(calibration.RealClock()).run(job, requests.append, lambda: None)
        found = calibration._failures(driven.run(requests, index=0, phase=calibration.Phase.MEASURED))
        assert found == (
            f"{len(requests)} of {len(requests)} requests failed, as in connection_refused "
            "(nothing listens at http://127.0.0.1:1)"
        )
