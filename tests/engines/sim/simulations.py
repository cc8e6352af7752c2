"""Small simulated engines for tests, and what is looked up in them."""

from __future__ import annotations

import numpy as np

from pytest_llmperf.engines.sim.cache import PrefixCache
from pytest_llmperf.engines.sim.fleet import Fleet
from pytest_llmperf.engines.sim.settings import Settings
from pytest_llmperf.engines.sim.slowdown import Slowdown
from pytest_llmperf.engines.sim.timing import Step, Timing
from pytest_llmperf.hardware import part_named
from pytest_llmperf.roofline import SHAPES, deployed

DEPLOYMENT = deployed(SHAPES["llama-3.1-8b"], part_named("h100"))
NEVER_NS = 2**62


class Watched(Timing):
    """Keeps the steps that it was asked about."""

    def __init__(self, settings):
        super().__init__(DEPLOYMENT, settings, Slowdown())
        self.steps = []

    def step_s(self, step):
        self.steps.append(step)
        count = len(self.steps)
        duration_s = super().step_s(step)
        del self.steps[count:]  # it may ask itself for a part
        return duration_s

    def decode_s(self, decodes, context):
        self.steps.append(Step(decodes=decodes, context=context))
        return super().decode_s(decodes, context)


def fleet(gpu_blocks, host_blocks=0, *, replicas=1, policy="round_robin", prefix_caching=True, **constants):
    """A fleet with these caches, and its timing."""
    settings = Settings(**constants)
    timing = Watched(settings)
    write_through = settings.offload == "write_through"
    caches = [PrefixCache(gpu_blocks, host_blocks, write_through=write_through) for _ in range(replicas)]
    return Fleet(timing, settings, caches, policy, prefix_caching=prefix_caching), timing


def ids(*numbers):
    return np.array(numbers, np.int32)


def prompt(stem, length):
    """A prompt of that length; those of one stem begin alike."""
    return np.arange(length, dtype=np.int32) % 7 + 1000 + 100 * stem


def drain(made, until_ns=NEVER_NS):
    """Everything that ends until then, in order."""
    ended = []
    while made.next_ns is not None and made.next_ns <= until_ns:
        ended += made.advance(until_ns)
    return ended


def serve(made, *requests, at_ns=0):
    """Requests `(ids, output tokens)` that arrive together; returns them when all have ended."""
    sequences = [made.submit(tag, ids, out, at_ns) for tag, (ids, out) in enumerate(requests)]
    drain(made)
    return sequences


def tiers(cache):
    """The blocks in a cache's tree, by where they lie. Nothing lies nowhere or twice."""
    gpu, host, spans = [], [], list(cache.root.children.values())
    while spans:
        span = spans.pop()
        assert span.gpu or span.host
        gpu += span.hashes.tolist() if span.gpu else []
        host += span.hashes.tolist() if span.host else []
        spans += span.children.values()
    assert len(set(gpu)) == len(gpu)
    assert len(set(host)) == len(host)
    return set(gpu), set(host)


def is_locked(cache):
    """Whether anything in it is."""
    spans = [cache.root]
    for span in spans:
        spans += span.children.values()
    return any(span.locks for span in spans)
