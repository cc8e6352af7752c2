"""The hardware beside the runs of one measurement: waited for, sampled, and held against the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pytest_llmperf.clock import Clock
from pytest_llmperf.hardware import Gpu
from pytest_llmperf.readings import Taken, TelemetrySummary
from pytest_llmperf.records import CacheCounters
from pytest_llmperf.telemetry.processes import own_processes
from pytest_llmperf.telemetry.sampler import Sampler
from pytest_llmperf.telemetry.settle import settle
from pytest_llmperf.telemetry.spoiled import Fault, faults, unmoved


class Watch:
    """Looks on while runs are made, one after another."""

    def __init__(
        self,
        clock: Clock,
        sampler: Sampler | None = None,
        gpus: Sequence[Gpu] = (),
        tolerated: frozenset[str] = frozenset(),
        taken: Callable[[], Mapping[int, Taken]] = dict,
        problem: str | None = None,
    ) -> None:
        """`sampler`: None where nothing is sampled, and so nothing is found. `gpus`: what detection found them to be.

        `tolerated`: rules whose breach is to be a doubt. `taken`: tells what others held of the GPUs' memory just
        before the engine was started, which may happen again and again. `problem`: why nothing is sampled although
        it was asked for.
        """
        self._clock = clock
        self._sampler = sampler
        self._gpus = gpus
        self._tolerated = tolerated
        self._taken = taken
        self._unsettled: Fault | None = None
        self._earlier: list[TelemetrySummary] = []
        self._doubts: dict[str, None] = {} if problem is None else {problem: None}

    @property
    def doubts(self) -> tuple[str, ...]:
        """What would have made a run invalid, were it not tolerated, and why nothing was sampled."""
        return tuple(self._doubts)

    @contextmanager
    def beside(self, index: int) -> Iterator[None]:
        """A run: it begins once the GPUs hold still, and is sampled until it has ended."""
        if self._sampler is None:
            yield
            return
        self._unsettled = settle(self._sampler.look, self._clock)
        self._sampler.begin(index)
        yield
        self._sampler.end()

    def remember(self, telemetry: TelemetrySummary | None) -> None:
        """A run of an earlier session that counts for this measurement: its clocks are those to be met again."""
        if telemetry is not None:
            self._earlier.append(telemetry)

    def summary(self, span: tuple[int, int] | None) -> TelemetrySummary | None:
        """What the last run came to; `span`: the part of it that counts. None where nothing is sampled."""
        if self._sampler is None:
            return None
        telemetry, taken = self._sampler.summary(span), self._taken()
        return replace(telemetry, gpus=tuple(replace(gpu, taken=taken.get(gpu.gpu)) for gpu in telemetry.gpus))

    def spoiled(self, telemetry: TelemetrySummary | None, cache: CacheCounters, *, is_ours: bool) -> Iterator[str]:
        """Why the hardware has made the last run invalid.

        `cache`: what the engine says of it; `is_ours`: whether its processes are this one's.
        """
        if telemetry is None:
            return
        own = own_processes() if is_ours and telemetry.gpus else None
        found = faults(telemetry, self._earlier, self._gpus, own)
        for fault in (*found, self._unsettled, unmoved(telemetry, cache, self._gpus)):
            if fault is None:
                continue
            if fault.rule in self._tolerated:
                self._doubts[f"tolerated: {fault}"] = None
            else:
                yield str(fault)
        self._earlier.append(telemetry)

    def close(self) -> None:
        """End the sampling."""
        if self._sampler is not None:
            self._sampler.close()
