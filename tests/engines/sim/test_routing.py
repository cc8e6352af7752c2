"""Who gets a request: what each policy promises, on replicas with made-up loads and caches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulations import fleet, ids, prompt, serve

from pytest_llmperf.engines.sim.blocks import block_hashes
from pytest_llmperf.engines.sim.routing import POLICIES
from pytest_llmperf.engines.sim.settings import Settings


@dataclass
class Loaded:
    """What a policy sees of a replica."""

    load: int = 0
    cached: int = 0

    def match(self, hashes):
        return min(self.cached, len(hashes))


def router(policy, *loads, cached=(), **constants):
    """The policy as a function of a prompt, and its replicas."""
    replicas = [Loaded(load) for load in loads]
    for replica, blocks in zip(replicas, cached, strict=False):
        replica.cached = blocks
    route = POLICIES[policy](replicas, Settings(**constants))
    return (lambda tokens: route(tokens, block_hashes(tokens, 16))), replicas


def conversations(count):
    """Beginnings of `count` conversations."""
    return [ids(*np.random.RandomState(number).randint(1000, 2048, 200)) for number in range(count)]


def test_round_robin_takes_one_after_another_whatever_their_loads():
    """And begins anew after the last."""
    route, _ = router("round_robin", 9, 0, 0)

    assert [0, 1, 2, 0, 1, 2, 0] == [route(prompt(0, 9)) for _ in range(7)]


def test_the_least_loaded_one_is_taken_and_equals_take_turns():
    """Of equals the next after the last one chosen, so that an idle fleet is used evenly."""
    route, replicas = router("least_loaded", 2, 1, 3, 1)

    assert [1, 3, 1] == [route(prompt(0, 9)) for _ in range(3)]
    replicas[1].load = 5
    assert 3 == route(prompt(0, 9))


class TestPrefixHash:
    """KubeAI's consistent hashing with bounded loads."""

    def test_a_conversation_stays_where_its_beginning_hashes_to(self):
        """Its later turns begin alike, and only the first 25 tokens count."""
        route, _ = router("prefix_hash", 3, 3, 3, 3)

        for first in conversations(20):
            later = np.concatenate([first[:25], prompt(4, 500)])
            assert route(first) == route(later)

    def test_other_beginnings_go_elsewhere(self):
        """Conversations spread over the replicas, none of which gets none or most."""
        route, _ = router("prefix_hash", 3, 3, 3, 3)

        counts = Counter(route(first) for first in conversations(400))

        assert {0, 1, 2, 3} == set(counts)
        assert max(counts.values()) < 200

    def test_a_change_within_the_prefix_may_change_the_replica(self):
        """25 tokens count, no more and no fewer."""
        route, _ = router("prefix_hash", *[3] * 8)
        moved = {24: 0, 25: 0}
        for first in conversations(40):
            for place in moved:
                other = first.copy()
                other[place] += 1
                moved[place] += route(first) != route(other)

        assert moved[25] == 0
        assert moved[24] > 20

    @pytest.mark.slow
    @settings(deadline=None)
    @given(
        loads=st.lists(st.integers(0, 30), min_size=1, max_size=8), number=st.integers(0, 50), factor=st.floats(1.0, 3)
    )
    def test_the_first_on_the_ring_within_the_bound_is_taken(self, loads, number, factor):
        """A load of at most the factor times the mean, which counts this request; else the first of all."""
        route, replicas = router("prefix_hash", *loads, load_factor=factor)
        tokens = conversations(51)[number]
        fits = {n for n, load in enumerate(loads) if load <= factor * (sum(loads) + 1) / len(loads)}
        for replica in replicas:
            replica.load = 0
        home = route(tokens)
        for replica, load in zip(replicas, loads, strict=True):
            replica.load = load

        chosen = route(tokens)

        if home in fits or not fits or not any(loads):
            assert home == chosen
        else:
            assert chosen in fits

    def test_an_overloaded_home_sends_its_conversations_to_one_neighbour_each(self):
        """Consistent: the same one each time, and back home when the load has gone."""
        route, replicas = router("prefix_hash", 0, 0, 0, 0)
        starts = conversations(60)
        homes = [route(first) for first in starts]
        replicas[0].load = 9
        for replica in replicas[1:]:
            replica.load = 1

        away = [route(first) for first in starts]

        assert away == [route(first) for first in starts]
        assert all(now == home for now, home in zip(away, homes, strict=True) if home != 0)
        assert {1, 2, 3} == {now for now, home in zip(away, homes, strict=True) if home == 0}

    def test_the_bound_is_that_of_the_mean_with_the_request_that_comes(self):
        """Two replicas with 8 requests: the mean is 4.5 with the next, 1.25 of it 5.625; 5 is within, 6 is not."""
        starts = conversations(40)
        route, replicas = router("prefix_hash", 5, 3)
        homes = [route(first) for first in starts]
        assert {0, 1} == set(homes)

        replicas[0].load, replicas[1].load = 6, 2

        assert {1} == {route(first) for first in starts}

    def test_where_nobody_is_within_the_bound_it_goes_home(self):
        """With a factor below 1 nobody may be."""
        idle, _ = router("prefix_hash", *[0] * 4, load_factor=0.5)
        busy, _ = router("prefix_hash", *[9] * 4, load_factor=0.5)

        assert [idle(first) for first in conversations(30)] == [busy(first) for first in conversations(30)]


class TestCacheAware:
    """SGLang's rule: where the prompt is cached, unless the loads say otherwise."""

    def test_the_longest_match_wins(self):
        """Whatever the order of the loads, as long as they are in balance."""
        route, _ = router("cache_aware", 1, 2, 1, cached=(3, 8, 5))

        assert 1 == route(prompt(0, 160))

    def test_of_equal_matches_the_less_loaded_one_is_taken(self):
        """A prompt that two have goes to who has less to do."""
        route, _ = router("cache_aware", 2, 1, 2, cached=(8, 8, 8))

        assert 1 == route(prompt(0, 160))

    @pytest.mark.parametrize(("blocks", "chosen"), [(5, 1), (4, 0)])
    def test_a_match_of_less_than_half_the_prompt_is_none(self, blocks, chosen):
        """Then the least loaded one is taken."""
        route, _ = router("cache_aware", 0, 1, cached=(0, blocks))

        assert chosen == route(prompt(0, 160))

    @pytest.mark.parametrize(("load", "chosen"), [(3, 1), (4, 0)])
    def test_beyond_the_imbalance_load_decides(self, load, chosen):
        """1.5 of the least load and one more."""
        route, _ = router("cache_aware", 1, load, cached=(0, 10))

        assert chosen == route(prompt(0, 160))

    def test_a_prompt_without_a_full_block_goes_to_the_least_loaded(self):
        """There is nothing that could match."""
        route, _ = router("cache_aware", 2, 1)

        assert 1 == route(prompt(0, 3))


@pytest.mark.parametrize(("policy", "hits"), [("cache_aware", 3), ("prefix_hash", 3), ("round_robin", 0)])
def test_conversations_meet_their_cache_where_the_router_knows_them(policy, hits):
    """Two replicas, three users in turn: with round robin each comes to the other replica every time."""
    made, _ = fleet(200, replicas=2, policy=policy)
    turns = [(user, 64 + 16 * turn) for turn in range(2) for user in range(3)]

    answered = [
        serve(made, (prompt(user, length), 1), at_ns=number * 10**9)[0] for number, (user, length) in enumerate(turns)
    ]

    assert hits == sum(one.cached > 0 for one in answered)
