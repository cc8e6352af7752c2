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
        """When it was last let go."""

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
        self._evictable = 0
        """Blocks on the GPU that nobody has locked."""
        self._tick = 0
        self._order = 0
        self.clear()

    def clear(self) -> None:
        """Forget what is cached. Only while nothing is locked."""
        self.root = Span(np.empty(0, np.uint64), None)
        self._gpu_leaves: list[tuple[int, int, Span]] = []
        self._host_leaves: list[tuple[int, int, Span]] = []
        self.gpu_used = self.host_used = self._evictable = 0

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
        span: Span | None = node
        while span is not None:
            self._lock(span)
            span = span.parent

    def release(self, node: Span) -> None:
        """Let it go; it was used until now."""
        self._tick += 1
        span: Span | None = node
        while span is not None:
            span.used = self._tick
            span = span.parent
        self.unlock(node)

    def unlock(self, node: Span) -> None:
        """Let it go as if it had not been locked."""
        span: Span | None = node
        while span is not None:
            span.locks -= 1
            if span.gpu and not span.locks:
                self._evictable += len(span.hashes)
            self._offer(span)
            span = span.parent

    def reserve(self, blocks: int) -> bool:
        """Take so many GPU blocks, evicting what is unlocked; nothing is taken if there are not enough."""
        missing = blocks - (self.gpu_blocks - self.gpu_used)
        if missing > self._evictable:
            return False
        if missing > 0:
            self._evict(missing)
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
                self._to_gpu(span)
                restored += len(span.hashes)
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
                return self._add(node, hashes[done:]), new + len(hashes) - done
            shared = _shared(child.hashes, hashes[done:])
            if shared < len(child.hashes):
                child = self._cut(child, shared)
            self._lock(child)
            if not child.gpu:
                self._to_gpu(child)
                new += shared
            node, done = child, done + shared
        return node, new

    def _lock(self, span: Span) -> None:
        if span.gpu and not span.locks:
            self._evictable -= len(span.hashes)
        span.locks += 1

    def _add(self, parent: Span, hashes: Hashes) -> Span:
        """New blocks behind a span, locked."""
        span = Span(hashes, parent)
        parent.children[span.first] = span
        self._lock(span)
        self._set_gpu(span)
        if self._write_through and (parent.host or parent is self.root):
            self._store(span)
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

    def _to_gpu(self, span: Span) -> None:
        """From the host. What was written back lies in one place only; what was written through, in both."""
        self._set_gpu(span)
        if not self._write_through:
            self._drop_host(span)

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

    def _evict(self, blocks: int) -> None:
        """Free so many GPU blocks; so many are unlocked."""
        while blocks > 0:
            used, _, span = heapq.heappop(self._gpu_leaves)
            if span.locks or not span.gpu or span.gpu_children or span.used != used:
                continue
            if len(span.hashes) > blocks:
                self._cut(span, len(span.hashes) - blocks)
            blocks -= len(span.hashes)
            self._offer(self._take_from_gpu(span))

    def _take_from_gpu(self, span: Span) -> Span:
        """Leave it to the host, as far as there is room, and forget the rest; returns the span before it."""
        self.gpu_used -= len(span.hashes)
        self._evictable -= len(span.hashes)
        before = span.parent
        if not span.host and not self._write_through:
            self._store(span)
        while span is not before:  # storing may have cut it
            parent = span.parent
            assert parent is not None
            span.gpu = False
            parent.gpu_children -= 1
            if span.host:
                self._offer(span)
            else:
                self._forget(span)
            span = parent
        return span

    def _store(self, span: Span) -> None:
        """Copy a span to the host; where there is no room for all of it, its beginning."""
        blocks = len(span.hashes)
        self._make_room_on_host(min(blocks, self.host_blocks))
        room = self.host_blocks - self.host_used
        if room <= 0:
            return
        if room < blocks:
            span, blocks = self._cut(span, room), room
        assert span.parent is not None
        span.host = True
        span.parent.host_children += 1
        self.host_used += blocks
        self.stored += blocks

    def _make_room_on_host(self, blocks: int) -> None:
        """Have room for so many blocks, or for as many as can be had."""
        while self._host_leaves and self.host_used + blocks > self.host_blocks:
            used, _, span = heapq.heappop(self._host_leaves)
            if span.locks or not span.host or span.host_children or span.used != used:
                continue
            missing = self.host_used + blocks - self.host_blocks
            if len(span.hashes) > missing:
                self._cut(span, len(span.hashes) - missing)
            assert span.parent is not None
            self._drop_host(span)
            if not span.gpu:
                self._forget(span)
            self._offer(span.parent)

    def _drop_host(self, span: Span) -> None:
        if span.host:
            span.host = False
            self.host_used -= len(span.hashes)
            if span.parent is not None:
                span.parent.host_children -= 1

    def _forget(self, span: Span) -> None:
        """Take a span that lies nowhere out of the tree. Nothing is behind it, as ends go first."""
        assert span.parent is not None
        del span.parent.children[span.first]


def _shared(mine: Hashes, theirs: Hashes) -> int:
    """How many leading blocks are the same."""
    length = min(len(mine), len(theirs))
    # Names are of whole prefixes: if the last ones are equal, all are.
    if mine[length - 1] == theirs[length - 1]:
        return length
    return int(np.argmin(mine[:length] == theirs[:length]))
