"""What the server counts."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

_LATE_SAMPLES = 1 << 16  # enough for a p99, and sorted in some 10 ms


class Tally:
    """What `/stats` tells and `/reset` begins anew."""

    def __init__(self) -> None:
        self.active = 0
        self.late_us: deque[float] = deque(maxlen=_LATE_SAMPLES)
        self.reset()

    def reset(self) -> dict[str, Any]:
        """Begin anew; says nothing."""
        self.requests = self.tokens = self.aborted = 0
        self.peak = self.active
        self.late_us.clear()
        return {}

    def stats(self) -> dict[str, Any]:
        """All that was counted, with the CPU seconds of this process."""
        late_us, count = sorted(self.late_us), len(self.late_us)
        late: dict[str, float | None] = dict.fromkeys(("mean", "p50", "p99", "max"))
        if late_us:
            mean, p50, p99 = sum(late_us) / count, late_us[count // 2], late_us[count * 99 // 100]
            late = {"mean": mean, "p50": p50, "p99": p99, "max": late_us[-1]}
        counts = {name: getattr(self, name) for name in ("requests", "tokens", "aborted", "active", "peak")}
        return {**counts, "late_us": late, "cpu_s": time.process_time()}
