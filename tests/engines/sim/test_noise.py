"""Noise: seeded, by prompt, and of the size that was asked for."""

from __future__ import annotations

import math
import statistics

import pytest

from pytest_llmperf.engines.sim.noise import Noise


def paces(seed, share=0.05, prompts=range(1000)):
    return [Noise(seed, share, 0.0).pace(prompt * 7919) for prompt in prompts]


def test_without_noise_nothing_is_changed():
    """Not by a rounding error."""
    silent = Noise(5, 0.0, 0.0)

    assert (1.0, 1.0) == (silent.pace(3), silent.stretch(3))


def test_a_run_s_pace_is_drawn_once_by_its_first_prompt():
    """All of a run is faster or slower."""
    noise = Noise(1, 0.05, 0.0)

    first = noise.pace(10)

    assert first == noise.pace(11) == noise.pace(12) != Noise(1, 0.05, 0.0).pace(11)


def test_the_same_seed_draws_the_same_and_another_something_else():
    """For each prompt."""
    assert paces(1) == paces(1)
    assert not set(paces(1)) & set(paces(2))


def test_paces_are_lognormal_with_median_one_and_the_share_that_was_asked():
    """Over 1,000 runs; the tolerance is five standard errors."""
    logs = [math.log(pace) for pace in paces(3)]

    assert 0 == pytest.approx(statistics.mean(logs), abs=5 * 0.05 / math.sqrt(1000))
    assert 0.05 == pytest.approx(statistics.stdev(logs), rel=5 / math.sqrt(2000))


def test_requests_are_only_ever_delayed():
    """Half-normal: two thirds by less than the share, none by less than nothing."""
    noise = Noise(4, 0.0, 0.2)
    delays = [noise.stretch(prompt) - 1 for prompt in range(1000)]

    assert min(delays) >= 0
    assert 1000 == len(set(delays))
    assert 0.683 == pytest.approx(sum(delay < 0.2 for delay in delays) / 1000, abs=0.075)


def test_pace_and_delay_of_one_prompt_have_nothing_to_do_with_each_other():
    """A slow run does not have late answers for that."""
    pairs = [(math.log(n.pace(p)), n.stretch(p)) for p in range(1000) for n in [Noise(6, 0.05, 0.2)]]

    assert abs(statistics.correlation(*zip(*pairs, strict=True))) < 5 / math.sqrt(1000)
