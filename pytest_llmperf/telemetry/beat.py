"""When samples are due: at a steady rate, whatever a sample takes, and everything from time to time."""

from __future__ import annotations

from pytest_llmperf.clock import NS_PER_S

RARELY_NS = NS_PER_S
"""How often is read what changes slowly, and the machine around the GPUs."""


class Beat:
    """The moments of one run."""

    def __init__(self, begun_ns: int, period_ns: int) -> None:
        """`begun_ns`: when everything was read for the first time."""
        self._period_ns = period_ns
        self._due_ns = begun_ns + period_ns
        self._rarely_ns = begun_ns + RARELY_NS

    def left_s(self, now_ns: int) -> float:
        """Seconds until the next one."""
        return max(0.0, (self._due_ns - now_ns) / NS_PER_S)

    @property
    def is_rare(self) -> bool:
        """Whether everything is to be read at the next one."""
        return self._due_ns >= self._rarely_ns

    def taken(self, now_ns: int) -> None:
        """The sample that was due is there. What was missed meanwhile is left out; the others keep their times."""
        if self.is_rare:
            self._rarely_ns = self._due_ns + RARELY_NS
        late_ns = max(0, now_ns - self._due_ns)
        self._due_ns += self._period_ns * (1 + late_ns // self._period_ns)
