"""Paged KV cache with prefix reuse: which blocks lie on the GPU and which in host memory.

Cached blocks form a tree by prefix. A node is a span of blocks that were always used together;
it is cut in two where a request shares only its beginning, or where only its end has to go. So
finding, keeping and evicting cost a few operations per request and not per block, and the
order is that of single blocks: least recently used first, within a prefix the end first.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from pytest_llmperf.engines.sim.blocks import Hashes


class Span:
    """Blocks that follow each other, and where they lie."""

    __slots__ = ("children", "gpu", "gpu_children", "hashes", "host", "host_children", "locks", "parent", "used")

    def __init__(self, hashes: Hashes, parent: Span | None) -> None:
        self.hashes = hashes
        self.parent = parent
        self.children: dict[int, Span] = {}
        self.gpu = self.host = False
        self.gpu_children = self.host_children = 0
        self.locks = 0
        self.used = 0

    @property
    def first(self) -> int:
        """By which the parent finds it."""
        return int(self.hashes[0])


@dataclass(frozen=True, slots=True)
class Match:
    """What of a prompt is cached: the deepest span of it, and how many blocks lie where."""

    node: Span
    gpu: int
    host: int


class PrefixCache:
    """The blocks of one replica: cached ones in the tree, the rest only counted."""

    def __init__(self, gpu_blocks: int, host_blocks: int, *, write_through: bool) -> None:
        """`write_through`: blocks are copied to the host as soon as they are there, else when they are evicted."""
        self.gpu_blocks = gpu_blocks
        self.host_blocks = host_blocks
        self._write_through = write_through
        self.gpu_used = 0
        self.host_used = 0
        self.stored = 0
        """Blocks copied to the host so far."""
        self._tick = 0
        self._order = 0
        self.clear()

    def clear(self) -> None:
        """Forget what is cached. Only while nothing is locked."""
        self.root = Span(np.empty(0, np.uint64), None)
        self._gpu_leaves: list[tuple[int, int, Span]] = []
        self._host_leaves: list[tuple[int, int, Span]] = []
        self.gpu_used = self.host_used = 0

    def lookup(self, hashes: Hashes, most: int) -> Match:
        """The longest cached prefix of at most `most` blocks."""
        node, done, gpu = self.root, 0, 0
        while done < most:
            child = node.children.get(int(hashes[done]))
            if child is None:
                break
            shared = _shared(child.hashes, hashes[done:most])
            if shared < len(child.hashes):
                child = self._cut(child, shared)
            node, done = child, done + shared
            gpu += shared if child.gpu else 0
        return Match(node, gpu, done - gpu)

    def lock(self, node: Span) -> None:
        """Keep this prefix where it is."""
        self._tick += 1
        span: Span | None = node
        while span is not None:
            span.locks += 1
            span.used = self._tick
            span = span.parent

    def release(self, node: Span) -> None:
        """Let it go; it was just used."""
        self._tick += 1
        span: Span | None = node
        while span is not None:
            span.locks -= 1
            span.used = self._tick
            self._offer(span)
            span = span.parent

    def reserve(self, blocks: int) -> bool:
        """Take so many GPU blocks, evicting what is unlocked; nothing is taken if there are not enough."""
        if blocks > self.gpu_blocks - self.gpu_used and not self._evict(blocks - (self.gpu_blocks - self.gpu_used)):
            return False
        self.gpu_used += blocks
        return True

    def free(self, blocks: int) -> None:
        """Give back blocks that were reserved."""
        self.gpu_used -= blocks

    def restore(self, node: Span) -> int:
        """Bring a locked prefix wholly to the GPU, into blocks reserved for it; returns how many came from the host."""
        restored = 0
        span: Span | None = node
        while span is not None and span is not self.root:
            if not span.gpu:
                self._set_gpu(span)
                restored += len(span.hashes)
                if not self._write_through:
                    self._drop_host(span)
            span = span.parent
        return restored

    def extend(self, node: Span, hashes: Hashes) -> tuple[Span, int]:
        """Put blocks behind a locked prefix and lock them: the new deepest span, and how many blocks are new there.

        Blocks for all of them were reserved; those of the ones that another request had put there
        already are given back by the caller.
        """
        done, new = 0, 0
        while done < len(hashes):
            child = node.children.get(int(hashes[done]))
            if child is None:
                child = self._add(node, hashes[done:])
                new += len(child.hashes)
            else:
                shared = _shared(child.hashes, hashes[done:])
                if shared < len(child.hashes):
                    child = self._cut(child, shared)
                if not child.gpu:
                    self._set_gpu(child)
                    new += shared
            child.locks += 1
            child.used = self._tick
            node, done = child, done + len(child.hashes)
        return node, new

    def _add(self, parent: Span, hashes: Hashes) -> Span:
        span = Span(hashes, parent)
        parent.children[span.first] = span
        self._set_gpu(span)
        if self._write_through and (parent.host or parent is self.root):
            span.locks += 1  # making room shall not take it
            self._store(span)
            span.locks -= 1
        return span

    def _cut(self, span: Span, at: int) -> Span:
        """Cut a span in two; returns the front, which is new. Who holds the span holds its end, and so both."""
        front = Span(span.hashes[:at], span.parent)
        assert span.parent is not None
        span.parent.children[front.first] = front
        span.hashes, span.parent = span.hashes[at:], front
        front.children[span.first] = span
        front.gpu, front.host, front.locks, front.used = span.gpu, span.host, span.locks, span.used
        front.gpu_children, front.host_children = int(span.gpu), int(span.host)
        return front

    def _set_gpu(self, span: Span) -> None:
        span.gpu = True
        if span.parent is not None:
            span.parent.gpu_children += 1

    def _offer(self, span: Span) -> None:
        """Make it a candidate for eviction if it is one; a stale entry is seen as such when its turn comes."""
        if span.locks or span is self.root:
            return
        self._order += 1
        if span.gpu and not span.gpu_children:
            heapq.heappush(self._gpu_leaves, (span.used, self._order, span))
        if span.host and not span.host_children:
            heapq.heappush(self._host_leaves, (span.used, self._order, span))

    def _evict(self, blocks: int) -> bool:
        """Free so many GPU blocks, or as many as are unlocked."""
        while blocks > 0 and self._gpu_leaves:
            used, _, span = heapq.heappop(self._gpu_leaves)
            if span.locks or not span.gpu or span.gpu_children or span.used != used:
                continue
            if len(span.hashes) > blocks:
                self._cut(span, len(span.hashes) - blocks)
            front = span.parent
            blocks -= len(span.hashes)
            self._take_from_gpu(span)
            if front is not None:
                self._offer(front)
        return blocks <= 0

    def _take_from_gpu(self, span: Span) -> None:
        self.gpu_used -= len(span.hashes)
        if not span.host and not self._write_through:
            self._store(span)
        span.gpu = False
        if span.parent is not None:
            span.parent.gpu_children -= 1
        if span.host:
            self._offer(span)
        else:
            self._forget(span)

    def _store(self, span: Span) -> None:
        """Copy a span to the host, as far as there is room."""
        blocks = len(span.hashes)
        if blocks > self.host_blocks:
            return
        while self.host_used + blocks > self.host_blocks:
            if not self._evict_from_host():
                return
        span.host = True
        if span.parent is not None:
            span.parent.host_children += 1
        self.host_used += blocks
        self.stored += blocks

    def _evict_from_host(self) -> bool:
        while self._host_leaves:
            used, _, span = heapq.heappop(self._host_leaves)
            if span.locks or not span.host or span.host_children or span.used != used:
                continue
            parent = span.parent
            self._drop_host(span)
            if not span.gpu:
                self._forget(span)
            if parent is not None:
                self._offer(parent)
            return True
        return False

    def _drop_host(self, span: Span) -> None:
        if span.host:
            span.host = False
            self.host_used -= len(span.hashes)
            if span.parent is not None:
                span.parent.host_children -= 1

    def _forget(self, span: Span) -> None:
        """Take a span that lies nowhere out of the tree, and with it what cannot be reached without it."""
        assert span.parent is not None
        del span.parent.children[span.first]
        below = list(span.children.values())
        while below:
            lost = below.pop()
            below += lost.children.values()
            self._drop_host(lost)


def _shared(mine: Hashes, theirs: Hashes) -> int:
    """How many leading blocks are the same."""
    length = min(len(mine), len(theirs))
    # Names are of whole prefixes: if the last ones are equal, all are.
    if mine[length - 1] == theirs[length - 1]:
        return length
    return int(np.argmin(mine[:length] == theirs[:length]))
