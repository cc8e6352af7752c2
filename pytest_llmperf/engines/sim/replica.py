"""One replica: a continuous-batching scheduler over a paged KV cache, step by step.

The order is vLLM's: every running sequence gets its next token, prompts that were begun go on, new
ones are admitted first come, first served, as far as the step's token budget and the memory
allow. A sequence that finds no block preempts the one that came into the batch last, which is computed again.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.engines.sim.blocks import Hashes, Ids, answer_ids, block_hashes
from pytest_llmperf.engines.sim.cache import PrefixCache
from pytest_llmperf.engines.sim.sequence import Sequence
from pytest_llmperf.engines.sim.settings import Settings
from pytest_llmperf.engines.sim.timing import Step, Timing


@dataclass(slots=True)
class Counters:
    """What a replica has counted so far, in tokens and blocks."""

    queried: int = 0
    from_gpu: int = 0
    from_host: int = 0
    prompt: int = 0
    restored_blocks: int = 0
    preemptions: int = 0
    generated: int = 0


@dataclass(slots=True)
class _Plan:
    """What the step that runs is going to bring about."""

    step: Step = field(default_factory=Step)
    starting: list[Sequence] = field(default_factory=list)
    """Prefills that end with it."""
    moved: int = 0
    """Blocks that it waits for."""


_DECODE_ONLY = _Plan()
_NOBODY: list[Sequence] = []


class Replica:
    """The engine of one replica; times are nanoseconds of whatever clock the caller has."""

    def __init__(self, timing: Timing, settings: Settings, cache: PrefixCache, *, prefix_caching: bool) -> None:
        self.cache = cache
        self.counters = Counters()
        self.pace = 1.0
        """A factor on every step's duration."""
        self.step_end_ns: int | None = None
        """When the step that runs will end; None: none does."""
        self._timing = timing
        self._size = int(settings.block_tokens)
        self._budget = int(settings.max_num_batched_tokens)
        self._most = int(settings.max_num_seqs)
        self._whole = settings.admission == "whole"
        self._blocking = settings.transfer == "blocking"
        self._prefix_caching = prefix_caching
        self._waiting: deque[Sequence] = deque()
        self._loading: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._decoding: dict[Sequence, None] = {}
        self._context = 0
        self._number = 0
        """Of the next step to end."""
        self._ends_ns = array("q")
        self._finishing: defaultdict[int, list[Sequence]] = defaultdict(list)
        self._growing: defaultdict[int, list[Sequence]] = defaultdict(list)
        self._plan = _Plan()
        self._in_free_ns = self._out_free_ns = 0

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self._waiting) + len(self._loading) + len(self._prefilling) + len(self._decoding)

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests that are not in the batch yet."""
        return len(self._waiting) + len(self._loading)

    def submit(self, sequence: Sequence) -> None:
        """Queue a request; the next step may take it."""
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a request that nobody waits for any more."""
        if sequence.done:
            return
        sequence.done = True
        for group in (self._waiting, self._loading, self._prefilling):
            if sequence in group:
                group.remove(sequence)
        if sequence in self._decoding:
            del self._decoding[sequence]
            self._context -= self._length(sequence)
        if sequence in self._plan.starting:
            self._plan.starting.remove(sequence)
        self._let_go(sequence)

    def tokens(self, sequence: Sequence) -> int:
        """How many tokens the request has got so far."""
        if sequence.done or sequence.first < 0:
            return len(sequence.times)
        return len(sequence.times) + self._number - sequence.first

    def times_ns(self, sequence: Sequence) -> array[int]:
        """When they came."""
        if sequence.first < 0 or sequence.done:
            return sequence.times
        return sequence.times + self._ends_ns[sequence.first : self._number]

    def match(self, hashes: Hashes) -> int:
        """How many blocks of a prompt are cached here."""
        found = self.cache.lookup(hashes, len(hashes))
        return found.gpu + found.host

    def answer(self, sequence: Sequence) -> Ids:
        """The ids that it generates."""
        if sequence.generated is None:
            prompt = sequence.ids[: sequence.prompt]
            hashes = sequence.hashes[: sequence.prompt // self._size]
            sequence.generated = answer_ids(prompt, hashes, self._size, sequence.out)
        return sequence.generated

    def wake_ns(self) -> int | None:
        """When there will be something to do although no step runs: a transfer will have ended."""
        return min((sequence.ready_ns for sequence in self._loading), default=None)

    def start_step(self, now_ns: int) -> bool:
        """Begin the next step if there is something to do."""
        if self._prefilling or self._waiting or self._loading or self._number in self._growing:
            return self._start_full_step(now_ns)
        # Most steps are like this, so it is short.
        decodes = len(self._decoding)
        if not decodes:
            return False
        self._plan = _DECODE_ONLY
        duration_s = self._timing.decode_s(decodes, self._context) * self.pace
        self.step_end_ns = now_ns + max(1, round(duration_s * NS_PER_S))
        return True

    def _start_full_step(self, now_ns: int) -> bool:
        """The same with prompts to compute, requests to admit, or blocks to find."""
        plan = self._plan = _Plan()
        step = plan.step
        if self._loading:
            self._take_loaded(now_ns)
        grown = self._grow()
        step.decodes, step.context = len(self._decoding), self._context
        budget = self._budget - step.decodes
        for sequence in self._prefilling:
            budget -= self._prefill(sequence, budget, plan)
        if self._waiting and grown:
            self._admit(now_ns, budget, plan)
        if not (step.decodes or step.prefills):
            return False
        duration_s = self._timing.step_s(step) * self.pace + plan.moved * self._timing.block_s
        self.step_end_ns = now_ns + max(1, round(duration_s * NS_PER_S))
        return True

    def finish_step(self) -> list[Sequence]:
        """End the step that runs; returns the requests that have their last token."""
        assert self.step_end_ns is not None
        plan, number = self._plan, self._number
        self._ends_ns.append(self.step_end_ns)
        self._number = number + 1
        self.step_end_ns = None
        self._context += len(self._decoding)
        self.counters.generated += len(self._decoding) + len(plan.starting)
        if plan is _DECODE_ONLY and number not in self._finishing:
            return _NOBODY
        if plan.starting:
            self._prefilling = [s for s in self._prefilling if s.computed < len(s.ids)]
        for sequence in plan.starting:
            self._start_decoding(sequence, number)
        finished = []
        for sequence in self._finishing.pop(number, ()):
            if sequence.finish == number:  # else it was preempted since
                self._finish(sequence)
                finished.append(sequence)
        return finished

    def _length(self, sequence: Sequence) -> int:
        """Tokens that a decoding sequence's next query attends to, itself included."""
        return len(sequence.ids) + self._number - sequence.first

    def _start_decoding(self, sequence: Sequence, number: int) -> None:
        sequence.first = number
        left = sequence.out - len(sequence.times)
        sequence.finish = number + left - 1
        self._finishing[sequence.finish].append(sequence)
        self._decoding[sequence] = None
        self._context += len(sequence.ids) + 1
        if not self._whole:
            self._will_grow(sequence, number + 1 + -len(sequence.ids) % self._size)

    def _will_grow(self, sequence: Sequence, number: int) -> None:
        sequence.grows = number
        self._growing[number].append(sequence)

    def _finish(self, sequence: Sequence) -> None:
        del self._decoding[sequence]
        self._context -= self._length(sequence)
        sequence.times += self._ends_ns[sequence.first : self._number]
        sequence.done = True
        if self._prefix_caching:
            self._keep(sequence, len(sequence.ids) + self._number - sequence.first - 1)
        self._let_go(sequence)

    def _keep(self, sequence: Sequence, tokens: int) -> None:
        """Leave the blocks of its first `tokens` tokens in the cache for others."""
        full = tokens // self._size
        if full > len(sequence.hashes):
            self._hash_generated(sequence, tokens)
        if full > sequence.blocks:
            assert sequence.node is not None
            behind = sequence.hashes[sequence.blocks : full]
            sequence.node, new = self.cache.extend(sequence.node, behind)
            sequence.reserved -= len(behind)
            self.cache.free(len(behind) - new)
            sequence.blocks = full

    def _hash_generated(self, sequence: Sequence, tokens: int) -> None:
        everything = np.concatenate([sequence.ids[: sequence.prompt], self.answer(sequence)])
        sequence.hashes = block_hashes(everything[:tokens], self._size)

    def _let_go(self, sequence: Sequence) -> None:
        self.cache.free(sequence.reserved)
        if sequence.node is not None:
            self.cache.release(sequence.node)
        sequence.reset()

    def _grow(self) -> bool:
        """Give a block to each sequence whose last one is full; False if that took a preemption."""
        kept = True
        for sequence in self._growing.pop(self._number, ()):
            if sequence.grows != self._number:  # left over from before a preemption
                continue
            while not self.cache.reserve(1):
                kept = False
                last = self._prefilling[-1] if self._prefilling else next(reversed(self._decoding))
                self._preempt(last)
                if last is sequence:
                    break
            else:
                sequence.reserved += 1
                self._will_grow(sequence, self._number + self._size)
        return kept

    def _preempt(self, sequence: Sequence) -> None:
        """Put it back to the head of the queue; what it had is computed again, as far as it is not still cached."""
        self.counters.preemptions += 1
        if sequence in self._decoding:
            del self._decoding[sequence]
            self._context -= self._length(sequence)
            sequence.times += self._ends_ns[sequence.first : self._number]
            if self._prefix_caching:
                self._keep(sequence, len(sequence.ids) + self._number - sequence.first - 1)
            generated = self.answer(sequence)[: len(sequence.times)]
            sequence.ids = np.concatenate([sequence.ids[: sequence.prompt], generated])
            sequence.hashes = block_hashes(sequence.ids, self._size)
        else:
            self._prefilling.remove(sequence)
        self._let_go(sequence)
        self._waiting.appendleft(sequence)

    def _take_loaded(self, now_ns: int) -> None:
        ready = [sequence for sequence in self._loading if sequence.ready_ns <= now_ns]
        if ready:
            self._loading = [sequence for sequence in self._loading if sequence.ready_ns > now_ns]
            self._prefilling += ready

    def _prefill(self, sequence: Sequence, budget: int, plan: _Plan) -> int:
        """Compute as much of a prompt as the budget allows; returns how many tokens that are."""
        new = min(len(sequence.ids) - sequence.computed, budget)
        if new <= 0:
            return 0
        step = plan.step
        step.prefills += 1
        step.new += new
        step.pairs += new * (sequence.computed + new / 2)
        step.read += sequence.computed + new
        sequence.computed += new
        if self._prefix_caching:
            self._keep(sequence, sequence.computed)
        if sequence.computed == len(sequence.ids):
            step.samples += 1
            plan.starting.append(sequence)
        return new

    def _admit(self, now_ns: int, budget: int, plan: _Plan) -> None:
        while self._waiting and budget > 0 and self.running + len(self._loading) < self._most:
            sequence = self._waiting[0]
            stored = -self.cache.stored
            restored = self._place(sequence)
            if restored is None:
                return
            self._waiting.popleft()
            stored += self.cache.stored
            if restored and not self._blocking:
                sequence.ready_ns = self._transfer(now_ns, restored, stored)
                self._loading.append(sequence)
                continue
            # Both directions at once; what is only written out, nobody waits for.
            plan.moved += max(restored, stored) if restored else 0
            self._prefilling.append(sequence)
            budget -= self._prefill(sequence, budget, plan)

    def _place(self, sequence: Sequence) -> int | None:
        """Find its prefix and room for the rest; returns how many blocks come from the host, None without room."""
        ids, cache = sequence.ids, self.cache
        length = len(ids) + (sequence.out - len(sequence.times) if self._whole else 0)
        wanted = -(-length // self._size)
        if not self._prefix_caching:
            if not cache.reserve(wanted):
                return None
            sequence.reserved = wanted
            self._count(sequence, 0, 0)
            return 0
        # The last token is always computed: its logits are what is sampled from.
        found = cache.lookup(sequence.hashes, (len(ids) - 1) // self._size)
        cache.lock(found.node)
        if not cache.reserve(wanted - found.gpu):
            cache.unlock(found.node)
            return None
        restored = cache.restore(found.node) if found.host else 0
        sequence.node, sequence.blocks = found.node, found.gpu + found.host
        sequence.reserved = wanted - sequence.blocks
        sequence.computed = sequence.blocks * self._size
        self._count(sequence, found.gpu, found.host)
        return restored

    def _count(self, sequence: Sequence, gpu: int, host: int) -> None:
        counters = self.counters
        counters.restored_blocks += host
        if sequence.reported:  # a preempted one has been counted
            return
        sequence.reported = True
        sequence.cached, sequence.restored = (gpu + host) * self._size, host * self._size
        counters.prompt += sequence.prompt
        counters.queried += sequence.prompt if self._prefix_caching else 0
        counters.from_gpu += gpu * self._size
        counters.from_host += host * self._size

    def _transfer(self, now_ns: int, restored: int, stored: int) -> int:
        """When so many blocks are there, and those that gave way to them are out; the directions do not hinder each
        other."""
        block_ns = self._timing.block_s * NS_PER_S
        self._in_free_ns = max(self._in_free_ns, now_ns) + round(restored * block_ns)
        self._out_free_ns = max(self._out_free_ns, now_ns) + round(stored * block_ns)
        return max(self._in_free_ns, self._out_free_ns)


def total(replicas: Many[Replica]) -> Counters:
    """The counters of several replicas added up."""
    added = Counters()
    for replica in replicas:
        for name in Counters.__slots__:
            setattr(added, name, getattr(added, name) + getattr(replica.counters, name))
    return added
