"""One comparison of one metric: which verdict it has, and which numbers stand beside it."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_llmperf.gate import Base, Criterion, Trial, tried
from pytest_llmperf.gate.trial import own_change, typical
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.stats import History, NightSpread, assumed
from pytest_llmperf.verdicts import Finding, Verdict

TTFT, THROUGHPUT = METRICS["ttft_p50"], METRICS["output_throughput"]
SHARE = 0.01
NUMBERS = ("change", "interval", "p", "detectable", "base_runs", "new_runs")
"""What a finding of a comparison has, and one without has not."""

logarithms = st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=5)
shares = st.floats(0.001, 0.9)


def base(*nights, spread=None, resolution=0.0):
    """Nights of stored values; without a spread they were measured in turn with the new ones."""
    history = History(tuple(tuple(map(math.log, night)) for night in nights))
    return Base(history=history, spread=spread, resolution=resolution)


def trial(stored, new, quantity=TTFT, detect=0.1, min_effect=0.0, **words):
    found = tried(quantity, Criterion(quantity.name, detect, min_effect), base(stored, **words), new)
    assert isinstance(found, Trial)
    return found


def finding(one, share=SHARE, **flags):
    return one.finding(share, **{"worse": False, "better": False, **flags})


class TestVerdict:
    """What a comparison is called."""

    @pytest.mark.slow
    @settings(deadline=None, max_examples=100)
    @given(
        stored=logarithms, new=logarithms, detect=shares, min_effect=st.sampled_from((0.0, 0.05)),
        spread=st.sampled_from((None, 0.0, 0.02)), worse=st.booleans(), better=st.booleans(),
    )  # fmt: skip
    def test_it_is_inconclusive_if_and_only_if_nothing_was_shown_and_the_change_could_not_have_been(
        self, stored, new, detect, min_effect, spread, worse, better
    ):
        """A pass is what could have failed."""
        assumption = None if spread is None else assumed(spread)
        where = base(list(map(math.exp, stored)), spread=assumption)
        one = tried(TTFT, Criterion("ttft_p50", detect, min_effect), where, list(map(math.exp, new)))
        assume(isinstance(one, Trial))

        found = one.finding(SHARE, worse=worse, better=better)

        blind = one.could_see(SHARE, 0.8) > math.log1p(detect)
        expected = Verdict.INCONCLUSIVE if blind else Verdict.PASS
        expected = Verdict.IMPROVED if better else expected
        assert (Verdict.REGRESSED if worse else expected) is found.verdict
        assert (Verdict.INCONCLUSIVE is found.verdict) == (found.note is not None)

    @settings(deadline=None, max_examples=50)
    @given(spread=st.floats(0.001, 0.3), detect=shares)
    def test_what_could_be_seen_is_what_decides(self, spread, detect):
        """The number that is printed and the verdict beside it agree."""
        values = [0.1 * math.exp(spread * one) for one in (-1, 0, 1)]

        found = finding(trial(values, values, detect=detect))

        assume(not math.isclose(found.detectable, detect))
        assert (found.detectable > detect) == (found.verdict is Verdict.INCONCLUSIVE)

    def test_a_stricter_share_sees_less(self):
        """More comparisons beside it, a wider interval."""
        one = trial([0.1, 0.101, 0.102], [0.1, 0.101, 0.102])

        narrow, wide = finding(one, 0.01), finding(one, 0.001)

        assert narrow.detectable < wide.detectable
        assert wide.interval[0] < narrow.interval[0] < 0 < narrow.interval[1] < wide.interval[1]

    def test_a_stricter_power_sees_less(self):
        """What has to be found twice."""
        one = trial([0.1, 0.101, 0.102], [0.1, 0.101, 0.102])

        assert one.could_see(SHARE, 0.8) < one.could_see(SHARE, 0.9)

    @pytest.mark.parametrize(("min_effect", "resolution", "margin"), [(0.05, 0.001, 0.05), (0.0, 0.001, 0.001)])
    def test_what_matters_is_the_larger_of_what_is_asked_and_what_means_anything(self, min_effect, resolution, margin):
        one = trial([0.1] * 3, [0.1] * 3, min_effect=min_effect, resolution=resolution)

        assert math.log1p(margin) == pytest.approx(one.margin)

    @pytest.mark.parametrize(("factor", "p"), [(1.0499, 1.0), (1.0501, 0.0), (0.5, 1.0)])
    def test_a_change_has_to_exceed_what_matters(self, factor, p):
        """Without any spread it does or it does not."""
        assert p == trial([0.1] * 3, [0.1 * factor] * 3, min_effect=0.05).p_worse

    @settings(deadline=None, max_examples=50)
    @given(stored=st.lists(st.floats(0.5, 2.0), min_size=2, max_size=5), new=st.lists(st.floats(0.5, 2.0), min_size=2))
    def test_it_is_either_worse_or_better(self, stored, new):
        """Without a margin one p-value is what the other leaves."""
        one = trial(stored, new)

        if one.comparison.standard_error:
            assert 1.0 == pytest.approx(one.p_worse + one.p_better)
        else:
            assert 1.0 <= one.p_worse + one.p_better


class TestNumbers:
    """They are there together, in the metric's own unit, or not at all."""

    @settings(deadline=None, max_examples=100)
    @given(
        stored=logarithms, new=logarithms, spread=st.sampled_from((None, 0.0, 0.02)),
        worse=st.booleans(), better=st.booleans(),
    )  # fmt: skip
    def test_all_or_none(self, stored, new, spread, worse, better):
        """Both levels always are."""
        where = base(list(map(math.exp, stored)), spread=None if spread is None else assumed(spread))
        outcome = tried(TTFT, Criterion("ttft_p50"), where, list(map(math.exp, new)))

        found = outcome if isinstance(outcome, Finding) else outcome.finding(SHARE, worse=worse, better=better)

        present = {getattr(found, name) is not None for name in NUMBERS}
        assert {isinstance(outcome, Trial)} == present
        assert math.exp(sum(stored) / len(stored)) == pytest.approx(found.baseline)
        assert math.exp(sum(new) / len(new)) == pytest.approx(found.now)
        for name in NUMBERS[:4]:
            value = getattr(found, name)
            assert not any(map(math.isnan, value if isinstance(value, tuple) else () if value is None else (value,)))

    @pytest.mark.parametrize(
        ("stored", "new", "spread", "judged"),
        [
            (1, 1, None, False),
            (5, 1, None, False),
            (1, 5, None, False),
            (2, 2, None, True),
            (1, 1, 0.02, False),
            (5, 1, 0.02, True),
            (1, 5, 0.02, True),
            (1, 1, 0.0, False),
            (2, 1, 0.0, True),
        ],
    )
    def test_how_many_runs_it_takes(self, stored, new, spread, judged):
        """Against nights the noise of either side will do; in turn each has to show its own."""
        where = base([0.1 + 0.001 * n for n in range(stored)], spread=None if spread is None else assumed(spread))

        outcome = tried(TTFT, Criterion("ttft_p50"), where, [0.1 + 0.001 * n for n in range(new)])

        assert judged == isinstance(outcome, Trial)
        if not judged:
            assert Verdict.INCONCLUSIVE is outcome.verdict
            assert outcome.note.endswith("; use --llmperf-runs 2 or more, better 5")
            assert (stored == new == 1) == outcome.note.startswith("one run each")

    def test_what_is_better_high_is_turned(self):
        """Seconds per token stored, tokens per second told: its loss has a minus, and so has what could be seen."""
        found = finding(trial([0.01, 0.0101], [0.0125, 0.0126], THROUGHPUT))

        assert -0.21 < found.change < -0.19
        assert found.interval[0] < found.change < found.interval[1] < 0
        assert -1 < found.detectable < 0
        assert found.now < found.baseline

    @given(st.floats(-10, 10))
    def test_a_change_and_its_inverse(self, effect):
        """A latency that doubles is a throughput that halves."""
        slower, fewer = own_change(TTFT, effect), own_change(THROUGHPUT, effect)

        assert 1.0 == pytest.approx((1 + slower) * (1 + fewer))

    def test_a_change_beyond_all_numbers(self):
        assert (math.inf, -1.0) == (own_change(TTFT, 1e6), own_change(THROUGHPUT, 1e6))

    def test_levels_are_geometric_means(self):
        assert (0.2, 5.0) == pytest.approx(
            (typical([math.log(0.1), math.log(0.4)], TTFT), typical([math.log(0.1), math.log(0.4)], THROUGHPUT))
        )


class TestAdvice:
    """How what is asked could be seen."""

    def note(self, spread, nights=None, stored=1):
        values = [0.1 * math.exp(spread * one) for one in (-1, 0, 1)]
        where = base(values * stored, spread=nights)
        return tried(TTFT, Criterion("ttft_p50"), where, values).finding(SHARE, worse=False, better=False).note

    def test_more_runs_of_both_builds(self):
        """As many as would have found it."""
        assert "could not have seen 10%; at this noise that takes 24 runs, of each build" == self.note(0.1)

    def test_more_runs_of_tonight(self):
        """Nights that are over cannot be run again."""
        assert "at this noise that takes 4 runs tonight" in self.note(0.06, assumed(0.005), stored=10)

    def test_the_same_night(self):
        """Where nights differ by more, no number of runs helps."""
        assert "nights may differ by 10.0 %, so only a comparison on the same night would" in self.note(
            0.01, assumed(0.1)
        )
        assert "nights differ by 10.0 %" in self.note(0.01, NightSpread(0.01, degrees=9.0, nights=8))

    def test_no_number_of_runs(self):
        assert self.note(2.0).endswith("at this noise no sensible number of runs can")
