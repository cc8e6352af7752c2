"""The paged cache over two tiers, held against a model that knows every single block."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulations import is_locked, tiers

from pytest_llmperf.engines.sim.cache import PrefixCache

Block = tuple[int, ...]
"""A block is its whole prefix, in symbols of one block each."""

_NAMES: dict[Block, int] = {}


def name_of(block):
    """One number for each prefix, as hashing gives it."""
    return _NAMES.setdefault(block, len(_NAMES) + 1)


def blocks_of(prompt):
    return [tuple(prompt[: end + 1]) for end in range(len(prompt))]


def hashes_of(prompt):
    return np.array([name_of(block) for block in blocks_of(prompt)], np.uint64)


class Reference:
    """Every block by itself: where it lies, how often it is locked, when it was last let go."""

    def __init__(self, gpu_blocks, host_blocks, *, write_through):
        self.gpu_blocks, self.host_blocks, self.write_through = gpu_blocks, host_blocks, write_through
        self.gpu, self.host = set(), set()
        self.locks, self.used = {}, {}
        self.tick = self.reserved = 0

    def lookup(self, prompt, most):
        found = []
        for block in blocks_of(prompt)[:most]:
            if block not in self.gpu and block not in self.host:
                break
            found.append(block)
        return len(found), len([block for block in found if block in self.gpu])

    def lock(self, path):
        for block in path:
            self.locks[block] = self.locks.get(block, 0) + 1

    def unlock(self, path):
        for block in path:
            self.locks[block] -= 1

    def release(self, path):
        self.tick += 1
        self.used.update(dict.fromkeys(path, self.tick))
        self.unlock(path)

    def unlocked(self, tier):
        return [block for block in tier if not self.locks.get(block)]

    def reserve(self, blocks):
        free = self.gpu_blocks - len(self.gpu) - self.reserved
        if blocks > free + len(self.unlocked(self.gpu)):
            return False
        for _ in range(blocks - free):
            block = self.least_recent(self.gpu)
            if not self.write_through:
                self.store(block)
            self.gpu.remove(block)
            if block not in self.host:
                self.forget_behind(block)
        self.reserved += blocks
        return True

    def least_recent(self, tier):
        """The unlocked block to go first: nothing behind it lies in this tier."""
        inner = {block[:-1] for block in tier}
        ends = [block for block in self.unlocked(tier) if block not in inner]
        first = min(ends, key=lambda block: self.used[block])
        assert [block for block in ends if self.used[block] == self.used[first]] == [first]
        return first

    def store(self, block):
        if block in self.host:
            return
        if len(self.host) >= self.host_blocks:
            if not self.host_blocks or not self.unlocked(self.host):
                return
            gone = self.least_recent(self.host)
            self.host.remove(gone)
            if gone not in self.gpu:
                self.forget_behind(gone)
        self.host.add(block)

    def forget_behind(self, block):
        """What cannot be reached any more."""
        self.host -= {other for other in self.host if other[: len(block)] == block}

    def restore(self, path):
        restored = [block for block in path if block not in self.gpu]
        self.gpu.update(restored)
        self.reserved -= len(restored)
        if not self.write_through:
            self.host.difference_update(restored)
        return len(restored)

    def extend(self, path, behind):
        new = 0
        for block in behind:
            known = block in self.gpu or block in self.host
            self.locks[block] = self.locks.get(block, 0) + 1
            new += block not in self.gpu
            self.gpu.add(block)
            if not self.write_through:
                self.host.discard(block)
            if not known and self.write_through and (len(block) == 1 or block[:-1] in self.host):
                self.store(block)
        self.reserved -= len(behind)
        return new

    def clear(self):
        self.gpu.clear()
        self.host.clear()


@dataclass
class Request:
    """What a replica keeps of one of its sequences."""

    prompt: list[int]
    node: object
    reserved: int
    path: list[Block] = field(default_factory=list)


class Pair:
    """The cache and its model, used as a replica uses a cache; they agree after every step."""

    def __init__(self, gpu_blocks, host_blocks, *, write_through):
        self.cache = PrefixCache(gpu_blocks, host_blocks, write_through=write_through)
        self.model = Reference(gpu_blocks, host_blocks, write_through=write_through)
        self.requests = []

    def admit(self, prompt, more):
        """A request with so many blocks for what it will generate."""
        hashes = hashes_of(prompt)
        most = max(0, len(prompt) - 1)
        found = self.cache.lookup(hashes, most)
        assert self.model.lookup(prompt, most) == (found.gpu + found.host, found.gpu)
        path = blocks_of(prompt)[: found.gpu + found.host]
        self.cache.lock(found.node)
        self.model.lock(path)
        wanted = len(prompt) + more - found.gpu
        taken = self.cache.reserve(wanted)
        assert self.model.reserve(wanted) == taken
        if not taken:
            self.cache.unlock(found.node)
            self.model.unlock(path)
            return
        restored = self.cache.restore(found.node) if found.host else 0
        assert self.model.restore(path) == restored == found.host
        self.requests.append(Request(prompt, found.node, wanted - found.host, path))

    def compute(self, request, blocks):
        """So many more blocks of it are there."""
        behind = blocks_of(request.prompt)[len(request.path) :][: min(blocks, request.reserved)]
        if not behind:
            return
        hashes = hashes_of(request.prompt)[len(request.path) : len(request.path) + len(behind)]
        request.node, new = self.cache.extend(request.node, hashes)
        self.cache.free(len(behind) - new)
        assert self.model.extend(request.path, behind) == new
        request.reserved -= len(behind)
        request.path = request.path + behind

    def serve(self, prompt, more):
        """A request from its beginning to its end, if there is room for it."""
        before = len(self.requests)
        self.admit(prompt, more)
        if len(self.requests) > before:
            request = self.requests[-1]
            self.check()
            self.compute(request, len(prompt))
            self.check()
            self.end(request)

    def grow(self, request, symbol):
        """One more block, for what it generates."""
        taken = self.cache.reserve(1)
        assert self.model.reserve(1) == taken
        if taken:
            request.reserved += 1
            request.prompt = [*request.prompt, symbol]

    def end(self, request):
        self.cache.free(request.reserved)
        self.model.reserved -= request.reserved
        self.cache.release(request.node)
        self.model.release(request.path)
        self.requests.remove(request)

    def look(self, prompt):
        """What a router asks: this changes nothing."""
        found = self.cache.lookup(hashes_of(prompt), len(prompt))
        assert self.model.lookup(prompt, len(prompt)) == (found.gpu + found.host, found.gpu)

    def clear(self):
        if not self.requests:
            self.cache.clear()
            self.model.clear()

    def check(self):
        cache, model = self.cache, self.model
        gpu, host = tiers(cache)
        assert gpu == {name_of(block) for block in model.gpu}
        assert host == {name_of(block) for block in model.host}
        assert len(gpu) + sum(request.reserved for request in self.requests) == cache.gpu_used <= cache.gpu_blocks
        assert len(host) == cache.host_used <= cache.host_blocks
        for request in self.requests:
            assert gpu.issuperset(map(name_of, request.path))


def play(pair, random):
    """One thing that a replica might do next, likelier what it does more often."""
    # Few symbols, so that prompts share beginnings and part ways in the midst of what is cached.
    prompt = [0, *(random.randint(0, 1) for _ in range(random.randint(0, 7)))]
    request = random.choice(pair.requests) if pair.requests else None
    kind = random.choice(("serve", "serve", "serve", "admit", "compute", "grow", "end", "look", "clear"))
    if kind == "serve":
        pair.serve(prompt, random.randint(0, 2))
    elif kind == "admit":
        pair.admit(prompt, random.randint(0, 2))
    elif kind == "look":
        pair.look(prompt)
    elif kind == "clear" and random.randint(0, 9) == 0:
        pair.clear()
    elif request is not None and kind == "compute":
        pair.compute(request, random.randint(1, 8))
    elif request is not None and kind == "grow":
        pair.grow(request, random.randint(0, 1))
    elif request is not None and kind == "end":
        pair.end(request)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    gpu_blocks=st.integers(1, 14),
    host_blocks=st.integers(0, 14),
    write_through=st.booleans(),
    random=st.randoms(use_true_random=True),
)
def test_it_does_what_single_blocks_would_do(gpu_blocks, host_blocks, write_through, random):
    """Every hit, every eviction, every restored and stored block is that of the model, and in the end all is free."""
    pair = Pair(gpu_blocks, host_blocks, write_through=write_through)
    for _ in range(60):
        play(pair, random)
        pair.check()

    while pair.requests:
        pair.end(pair.requests[-1])
        pair.check()
    assert not is_locked(pair.cache)
    assert pair.cache.reserve(gpu_blocks)
    pair.cache.free(gpu_blocks)
    assert pair.cache.gpu_used == 0


def filled(gpu_blocks, host_blocks, *prompts, write_through=True):
    """A cache that has computed these prompts one after another."""
    pair = Pair(gpu_blocks, host_blocks, write_through=write_through)
    for prompt in prompts:
        pair.admit(prompt, 0)
        pair.compute(pair.requests[0], len(prompt))
        pair.end(pair.requests[0])
    return pair.cache


def found(cache, prompt):
    match = cache.lookup(hashes_of(prompt), len(prompt))
    return match.gpu, match.host


def test_the_end_of_the_least_recently_used_prefix_goes_first():
    """A prompt that needs two blocks takes the last two of the oldest one, whatever it is that follows."""
    cache = filled(6, 0, [1, 1, 1], [2, 2, 2])

    assert cache.reserve(2)

    assert (1, 0) == found(cache, [1, 1, 1])
    assert (3, 0) == found(cache, [2, 2, 2])


def test_a_shared_beginning_stays_as_long_as_one_that_needs_it():
    """What is behind it goes first."""
    cache = filled(6, 0, [1, 1, 1], [1, 1, 2], [3, 3])

    assert cache.reserve(3)

    assert [(1, 0), (1, 0), (2, 0)] == [found(cache, prompt) for prompt in ([1, 1, 1], [1, 1, 2], [3, 3])]


@pytest.mark.parametrize("write_through", [True, False])
def test_what_leaves_the_gpu_is_found_on_the_host(write_through):
    """Written through when it was computed, or written back when it has to go."""
    cache = filled(4, 8, [1, 1, 1, 1], write_through=write_through)
    assert (4 if write_through else 0) == cache.stored

    assert cache.reserve(3)

    assert (1, 3) == found(cache, [1, 1, 1, 1])
    assert (4 if write_through else 3) == cache.stored


def test_a_reservation_that_cannot_be_met_costs_nothing():
    """A request that has to wait does not empty the cache for those that need not."""
    cache = filled(6, 0, [1, 1, 1], [2, 2, 2])
    cache.lock(cache.lookup(hashes_of([2, 2, 2]), 3).node)

    assert not cache.reserve(4)

    assert (3, 0) == found(cache, [1, 1, 1])
    assert 6 == cache.gpu_used


@pytest.mark.parametrize("write_through", [True, False])
def test_of_a_prefix_that_the_host_cannot_hold_it_keeps_the_beginning(write_through):
    """The end would be of no use without it."""
    cache = filled(5, 3, [1, 1, 1, 1, 1], write_through=write_through)

    assert cache.reserve(5)

    assert (0, 3) == found(cache, [1, 1, 1, 1, 1])
    assert 3 == cache.host_used


def test_a_cache_of_one_tier_stores_nothing():
    """Without host blocks what is evicted is gone."""
    cache = filled(2, 0, [1, 1], [2, 2], write_through=False)

    assert (0, 0, 0) == (*found(cache, [1, 1]), cache.stored)
