"""How far a run has come, for those who wait for it."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmperf.load.base import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a run consists of at most: it ends with its last request or when its time is over."""

    requests: int
    duration_s: float | None

    @classmethod
    def of(cls, load: Load, turns: int) -> Extent:
        """Of a load that is given so many turns."""
        return cls(
            requests=turns if load.max_requests is None else min(turns, load.max_requests),
            duration_s=load.duration_s,
        )

    def share(self, requests: int, passed_s: float) -> float:
        """The part of the run that is over, from 0 to 1, after so many answers and so much time."""
        by_requests = requests / self.requests if self.requests else 1.0
        by_time = 0.0 if self.duration_s is None else passed_s / self.duration_s
        return min(1.0, max(by_requests, by_time))
