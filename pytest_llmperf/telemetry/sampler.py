"""One thread that samples while a run lasts, and sleeps between runs.

The run asks for a sample just before and just after it, and waits for them, so that counters can be
taken at its two ends; between these nothing of it waits for the sampling. A driver that does not
answer costs the run a few seconds, once, and the sampling; it is said as a problem.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pytest_llmperf.clock import NS_PER_S, Clock, thread_cpu_ns
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.hardware.nvml import DRIVER, WHEN_IT_HANGS
from pytest_llmperf.overdue import standing
from pytest_llmperf.readings import GpuSample, GpuSummary, HostSample, TelemetrySummary, Xid
from pytest_llmperf.telemetry.beat import RARELY_NS, Beat
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.series import SeriesFile
from pytest_llmperf.telemetry.summary import summaries

_OPENING_S = 10.0
"""How long NVML may take to begin with: a driver without persistence loads its firmware first."""
_ANSWERING_S = 2.0
"""How long one sample may take before the run goes on without it."""
_ADVICE = f"{DRIVER} does not answer; {WHEN_IT_HANGS}"


class Gpu(Protocol):
    """One GPU that can be read; `GpuSensor` is one."""

    address: GpuAddress
    lost: str | None

    @property
    def lag_s(self) -> float:
        """How long it may take until all that its links have carried is in a sample."""
        ...

    def read(self, at_ns: int, *, everything: bool, links: bool = True) -> GpuSample | None:
        """A sample; None from when the GPU is lost."""
        ...


class Host(Protocol):
    """The machine around them; `HostSensor` is one."""

    def read(self, at_ns: int) -> HostSample:
        """A sample."""
        ...


class Xids(Protocol):
    """The errors that GPUs report; `XidWatch` is one."""

    @property
    def gpus(self) -> frozenset[int]:
        """Those that report any."""
        ...

    def take(self, at_ns: int) -> Iterable[Xid]:
        """What has been reported since it was last asked."""
        ...


@dataclass(frozen=True, slots=True)
class Sensors:
    """What is sampled, opened by the thread that reads it."""

    gpus: Sequence[Gpu] = ()
    host: Host | None = None
    xids: Xids | None = None
    problems: tuple[str, ...] = ()
    """Why some are not there."""


Opening = Callable[[], AbstractContextManager[Sensors]]


@dataclass(slots=True)
class _Request:
    """What the thread is asked to do, between two samples."""

    action: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)


class Sampler:
    """Samples beside the runs of one measurement."""

    def __init__(
        self,
        opening: Opening,
        *,
        gpus: Sequence[GpuAddress],
        rate_hz: float,
        clock: Clock,
        path: Path,
        header: Mapping[str, Any],
    ) -> None:
        """Start the thread, which opens the sensors.

        `path`: the series file; where the thread stands is written beside it should the driver hang. Raises `OSError`
        if it cannot be written.
        """
        self._opening = opening
        self._gpus = tuple(gpus)
        self._rate_hz = rate_hz
        self._period_ns = round(NS_PER_S / rate_hz) if gpus else max(RARELY_NS, round(NS_PER_S / rate_hz))
        self._clock = clock
        self._file = SeriesFile(path, header, gpus)
        self._stack = path.with_suffix(".stack.txt")
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._sensors = Sensors()
        self._problems: dict[str, None] = {}
        self._run = _Run()
        self._beat: Beat | None = None
        """None between runs."""
        self._is_given_up = False
        self._has_ended = False
        self._ending = threading.Lock()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._work, name="llmperf-telemetry", daemon=True)
        self._thread.start()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why something is missing: one sentence each."""
        return tuple(self._problems)

    def look(self) -> Sequence[GpuSample]:
        """One sample of each GPU that is there, between runs; it is not kept. A run may begin right after it."""
        seen: list[GpuSample] = []
        if self._opened.is_set() or self._wait(self._opened, _OPENING_S):
            self._ask(lambda: seen.extend(self._read_gpus(everything=True, links=False)))
        return tuple(seen)

    def begin(self, index: int) -> None:
        """Take the sample before a run, and sample from now on."""
        self._run = _Run()
        if not self._opened.is_set() and not self._wait(self._opened, _OPENING_S):
            return
        self._ask(lambda: self._begin(index))

    def end(self) -> None:
        """Take the sample after the run, and sample no more."""
        self._ask(self._end)

    def summary(self, span: tuple[int, int] | None) -> TelemetrySummary:
        """What the run came to; `span`: the part of it that counts, None where nothing was sent."""
        run = self._run
        gpus: tuple[GpuSummary, ...] = ()
        host = None
        if run.is_ended and span is not None and not self._is_given_up:
            lost = {gpu.address.gpu: gpu.lost for gpu in self._sensors.gpus if gpu.lost is not None}
            addresses = [gpu.address for gpu in self._sensors.gpus]
            watched = frozenset() if self._sensors.xids is None else self._sensors.xids.gpus
            samples = self._file.since(run.offset)
            gpus, host = summaries(samples, addresses, span, lost, self._period_ns, watched)
        return TelemetrySummary(
            gpus=gpus,
            host=host,
            rate_hz=self._rate_hz,
            cost_share=run.cost_share,
            problems=self.problems,
            advice=_ADVICE if self._is_given_up else None,
        )

    def close(self) -> None:
        """End the thread, the session of NVML and the file. A thread that hangs in the driver is left behind."""
        self._requests.put(None)
        self._thread.join(0.0 if self._is_given_up else _ANSWERING_S)
        if self._thread.is_alive():
            self._give_up(_ANSWERING_S)

    def _ask(self, action: Callable[[], None]) -> None:
        request = _Request(action)
        with self._ending:
            if self._is_given_up or self._has_ended:
                return
            self._requests.put(request)
        self._wait(request.done, _ANSWERING_S)

    def _wait(self, event: threading.Event, longest_s: float) -> bool:
        """Whether it came; if not, nothing is waited for any more."""
        if self._is_given_up:
            return False
        if not event.wait(longest_s):
            self._give_up(longest_s)
        return not self._is_given_up

    def _give_up(self, after_s: float) -> None:
        if not self._is_given_up:
            self._note(f"{DRIVER} did not answer for {after_s:g} s, so what the GPUs did is not known; {WHEN_IT_HANGS}")
            with suppress(OSError):  # it is for who mends the driver, and no part of what was measured
                self._stack.write_text(f"{standing(self._thread)}\n", encoding="utf-8")
        self._is_given_up = True
        self._requests.put(None)  # should it answer after all, nobody wants to know

    def _note(self, problem: str) -> None:
        self._problems.setdefault(problem)

    # What follows is done by the thread.

    def _work(self) -> None:
        try:
            with ExitStack() as opened:
                opened.callback(self._file.close)
                self._sensors = opened.enter_context(self._opening())
                for problem in self._sensors.problems:
                    self._note(problem)
                self._opened.set()
                for request in self._asked():
                    try:
                        request.action()
                    finally:
                        request.done.set()
        except (OSError, LLMPerfError) as error:
            self._note(f"telemetry stopped: {error}")
        finally:
            self._refuse_all()
            self._opened.set()

    def _refuse_all(self) -> None:
        """Whoever waits for an answer waits no more."""
        with self._ending:
            self._has_ended = True
        while not self._requests.empty():
            request = self._requests.get()
            if request is not None:
                request.done.set()

    def _asked(self) -> Iterator[_Request]:
        """Requests as they come; samples are taken while none does."""
        while True:
            beat = self._beat
            try:
                request = self._requests.get(timeout=None if beat is None else beat.left_s(self._clock.now_ns()))
            except queue.Empty:
                assert beat is not None, "nothing is due between runs"
                self._tick(beat)
                continue
            if request is None:
                return
            yield request

    def _begin(self, index: int) -> None:
        self._run = _Run(offset=self._file.run(index))
        self._sample(everything=True)
        now_ns = self._clock.now_ns()
        self._run.began(now_ns)
        self._beat = Beat(now_ns, self._period_ns)

    def _end(self) -> None:
        self._beat = None
        self._sample(everything=True)
        lag_s = max((gpu.lag_s for gpu in self._sensors.gpus), default=0.0)
        if lag_s > 0:
            self._clock.sleep(lag_s)
            self._sample(everything=True)
        self._file.flush()
        self._run.ended(self._clock.now_ns())

    def _tick(self, beat: Beat) -> None:
        self._sample(everything=beat.is_rare)
        beat.taken(self._clock.now_ns())

    def _sample(self, *, everything: bool) -> None:
        for sample in self._read_gpus(everything=everything):
            self._file.add(sample)
        if everything:
            self._sample_around()

    def _read_gpus(self, *, everything: bool, links: bool = True) -> Iterator[GpuSample]:
        for gpu in self._sensors.gpus:
            sample = gpu.read(self._clock.now_ns(), everything=everything, links=links)
            if sample is not None:
                yield sample

    def _sample_around(self) -> None:
        """The machine around the GPUs, and what these have reported."""
        host, xids = self._sensors.host, self._sensors.xids
        if host is not None:
            self._file.add(host.read(self._clock.now_ns()))
        for xid in () if xids is None else xids.take(self._clock.now_ns()):
            self._file.add(xid)


@dataclass(slots=True)
class _Run:
    """Of the sampling of one run: where its samples are and what it cost."""

    offset: int = 0
    is_ended: bool = False
    cost_share: float | None = None
    _at_ns: int = 0
    _cpu_ns: int = 0

    def began(self, at_ns: int) -> None:
        self._at_ns, self._cpu_ns = at_ns, thread_cpu_ns()

    def ended(self, at_ns: int) -> None:
        """Called by the thread that sampled."""
        self.is_ended = True
        self.cost_share = (thread_cpu_ns() - self._cpu_ns) / max(1, at_ns - self._at_ns)
