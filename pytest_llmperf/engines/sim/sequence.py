"""One request on its way through a replica."""

from __future__ import annotations

from array import array

from pytest_llmperf.engines.sim.blocks import Hashes, Ids
from pytest_llmperf.engines.sim.cache import Span


class Sequence:
    """One request on its way through a replica."""

    __slots__ = (
        "arrived_ns", "blocks", "cached", "computed", "done", "finish", "first", "generated", "grows", "hashes", "ids",
        "node", "out", "prompt", "ready_ns", "replica", "reported", "reserved", "restored", "tag", "times",
    )  # fmt: skip

    def __init__(self, tag: int, ids: Ids, hashes: Hashes, out: int, arrived_ns: int) -> None:
        self.tag = tag
        self.ids = ids
        """The prompt; after a preemption with what was generated until then."""
        self.hashes = hashes
        self.out = out
        self.arrived_ns = arrived_ns
        """When it reached the server."""
        self.prompt = len(ids)
        self.times = array("q")
        """When its tokens came, as far as an earlier admission brought some."""
        self.generated: Ids | None = None
        self.cached = 0
        """Prompt tokens that its first admission found in the cache."""
        self.restored = 0
        """Those of them that came from the host."""
        self.replica: int | None = None
        """Where it was routed to; None where there is nothing to choose from."""
        self.reported = self.done = False
        self.reset()

    def reset(self) -> None:
        """Nothing of it is in the cache, and no step has it."""
        self.computed = 0
        """Tokens whose KV cache is there."""
        self.node: Span | None = None
        self.blocks = 0
        """Blocks of its prefix that lie in the tree."""
        self.reserved = 0
        """Blocks that are its own."""
        self.ready_ns = 0
        self.first = self.finish = self.grows = -1
        """The steps of its first and last token since it was admitted, and the one that needs its next block."""
