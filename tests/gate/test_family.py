"""All comparisons that share one error rate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pytest_llmperf.gate import SCREEN, Base, Criterion, Family, tried
from pytest_llmperf.gate.family import worst
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.stats import History, holm
from pytest_llmperf.verdicts import Finding, Verdict

SHAPE = (-0.01, 0.0, 0.01)
ERROR = 0.01 * math.sqrt(2 / 3)
"""Standard error of a difference of two samples of that shape."""
METRIC_NAMES = ("ttft_p50", "tpot_p50", "e2e_p50")
p_values = st.sampled_from((1e-7, 0.0004, 0.003, 0.009, 0.011, 0.019, 0.021, 0.04, 0.3, 0.7, 0.995, 1 - 1e-7))
outcomes = st.dictionaries(st.sampled_from(METRIC_NAMES), p_values, min_size=1)
sessions = st.dictionaries(st.sampled_from("abcd"), outcomes)


def trial(p, metric="ttft_p50"):
    """A comparison whose one-sided p-value for the worse is this."""
    effect = scipy_stats.t.isf(p, 4) * ERROR
    stored = Base(history=History((SHAPE,)), spread=None)
    return tried(METRICS[metric], Criterion(metric), stored, [math.exp(effect + one) for one in SHAPE])


def trials(by_metric):
    return [trial(p, metric) for metric, p in by_metric.items()]


def fixed(verdict=Verdict.NO_BASELINE, metric="itl_p50"):
    return Finding(metric=METRICS[metric], verdict=verdict)


def filled(session, planned=0, **words):
    family = Family(planned, **words)
    for measurement, by_metric in session.items():
        family.put(measurement, trials(by_metric))
    return family


def state(family, measurements="abcdx"):
    """All that can be asked of it."""
    found = {name: (family.trials(name), family.findings(name)) for name in measurements}
    return family.size, family.share, found


def verdicts(family, measurements="abcd"):
    return {(name, f.metric.name): f.verdict for name in measurements for f in family.findings(name)}


def test_the_p_values_are_those_of_the_trials():
    """What these tests rest on."""
    assert (0.003, 0.3) == pytest.approx((trial(0.003).p_worse, trial(0.3).p_worse), rel=1e-6)


class TestSize:
    """How many share the error rate."""

    @pytest.mark.parametrize(("planned", "entered", "size"), [(0, 0, 0), (5, 2, 5), (1, 3, 3)])
    def test_it_is_planned_or_what_came(self, planned, entered, size):
        family = filled({"abcd"[n]: {"ttft_p50": 0.3} for n in range(entered)}, planned, alpha=0.02)

        assert (size, 0.02 / max(1, size)) == (family.size, family.share)

    def test_what_was_not_compared_does_not_count(self):
        """A metric without a baseline cannot fail by chance."""
        family = Family(0)
        family.put("a", [fixed(), trial(0.3)])

        assert (1, 1, 2) == (family.size, len(family.trials("a")), len(family.findings("a")))


class TestPutAndDrop:
    """What was entered is replaced, or forgotten, without a trace."""

    @settings(deadline=None, max_examples=40)
    @given(session=sessions, extra=outcomes, planned=st.integers(0, 8), is_screen=st.booleans())
    def test_what_is_dropped_was_never_there(self, session, extra, planned, is_screen):
        family = filled(session, planned, is_screen=is_screen)
        before = state(family)

        family.put("x", [*trials(extra), fixed()])
        family.drop("x")

        assert before == state(family)
        assert ((), ()) == (family.trials("x"), family.findings("x"))

    @settings(deadline=None, max_examples=40)
    @given(session=sessions, earlier=outcomes)
    def test_what_is_put_again_stands_as_if_it_alone_had_been(self, session, earlier):
        """Also where the new attempt has other metrics."""
        family = Family(0)
        for measurement in session:
            family.put(measurement, [*trials(earlier), fixed()])
        for measurement, by_metric in session.items():
            family.put(measurement, trials(by_metric))

        assert state(filled(session)) == state(family)

    def test_putting_nothing_forgets(self):
        """An attempt that turned out invalid has no comparisons."""
        family = filled({"a": {"ttft_p50": 1e-7}})

        family.put("a", [])

        assert ((), 0) == (family.findings("a"), family.size)

    def test_dropping_what_is_not_there(self):
        family = filled({"a": {"ttft_p50": 0.3}})

        family.drop("nobody")

        assert 1 == family.size

    @settings(deadline=None, max_examples=40)
    @given(session=sessions, data=st.data())
    def test_the_order_does_not_count(self, session, data):
        """Who was measured first has no advantage in the end."""
        turned = dict(data.draw(st.permutations(list(session.items()))))

        assert verdicts(filled(session)) == verdicts(filled(turned))


class TestFindings:
    """What Holm's rule calls worse, and better."""

    @settings(deadline=None, max_examples=60)
    @given(session=sessions, spare=st.integers(0, 5))
    def test_they_are_those_of_the_rule(self, session, spare):
        """For each direction by itself."""
        family = filled(session, spare)
        pairs = {(name, metric): trial(p) for name, found in session.items() for metric, p in found.items()}
        worse = holm({pair: one.p_worse for pair, one in pairs.items()}, family.size, family.alpha)
        better = holm({pair: one.p_better for pair, one in pairs.items()}, family.size, family.alpha)

        found = verdicts(family)

        assert worse == {pair for pair, verdict in found.items() if verdict is Verdict.REGRESSED}
        assert better == {pair for pair, verdict in found.items() if verdict is Verdict.IMPROVED}

    @settings(deadline=None, max_examples=40)
    @given(session=sessions, later=outcomes)
    def test_within_the_plan_what_comes_later_only_adds(self, session, later):
        """A verdict that was given stands."""
        planned = sum(map(len, session.values())) + len(later)
        family = filled(session, planned)
        before = verdicts(family)

        family.put("x", trials(later))

        changed = {pair for pair, verdict in verdicts(family).items() if verdict is not before[pair]}
        assert all(verdicts(family)[pair] in (Verdict.REGRESSED, Verdict.IMPROVED) for pair in changed)
        assert all(before[pair] not in (Verdict.REGRESSED, Verdict.IMPROVED) for pair in changed)

    def test_what_was_found_without_a_comparison_is_told_as_it_is(self):
        family = Family(1)
        family.put("a", [fixed(Verdict.INVALID_RUN), trial(0.3)])

        assert [Verdict.PASS, Verdict.INVALID_RUN] == [one.verdict for one in family.findings("a")]

    def test_nobody_has_none(self):
        assert () == Family(3).findings("nobody")


class TestScreen:
    """Each comparison by itself, as another one is to follow."""

    @settings(deadline=None, max_examples=40)
    @given(session=sessions, planned=st.integers(0, 100))
    def test_it_flags_at_its_level_however_many_there_are(self, session, planned):
        """A p-value on either side of the level decides, and nothing else."""
        found = verdicts(filled(session, planned, alpha=SCREEN, is_screen=True))

        expected = {(name, metric) for name, by in session.items() for metric, p in by.items() if p <= SCREEN}
        assert expected == {pair for pair, verdict in found.items() if verdict is Verdict.REGRESSED}

    def test_its_share_does_not_shrink(self):
        assert SCREEN == Family(100, SCREEN, is_screen=True).share

    def test_what_could_be_seen_has_to_be_found_twice(self):
        """So it takes more than with one look of the same level."""
        once, screen = (filled({"a": {"ttft_p50": 0.3}}, alpha=SCREEN, is_screen=flag) for flag in (False, True))

        (one,), (twice,) = once.findings("a"), screen.findings("a")

        assert one.detectable < twice.detectable
        assert one.interval == twice.interval


class TestWorst:
    """The verdict on a measurement is that of its worst metric."""

    def test_nothing_is_no_pass(self):
        assert Verdict.NO_BASELINE is worst([])

    @given(st.lists(st.sampled_from(Verdict), min_size=1))
    def test_it_is_one_of_them_and_no_better_than_any(self, given_ones):
        order = ["PASS", "IMPROVED", "NO_BASELINE", "INCONCLUSIVE", "INVALID_RUN", "REGRESSED"]

        assert worst(map(fixed, given_ones)).value == max((v.value for v in given_ones), key=order.index)
