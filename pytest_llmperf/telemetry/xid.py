"""Xids: errors of a GPU that the driver reports by number, as events."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pytest_llmperf.readings import Xid
from pytest_llmperf.telemetry.gpu import GpuSensor

_MOST = 100
"""Taken at a time: a GPU that fails may fail without end."""


class XidWatch:
    """The Xids of some GPUs, from when it was made."""

    def __init__(self, nvml: ModuleType, events: Any, watched: dict[int | None, int]) -> None:
        """`events`: NVML's set of events; `watched`: GPUs by the addresses of their handles."""
        self._nvml = nvml
        self._events = events
        self._watched = watched
        self._is_over = False

    @property
    def gpus(self) -> frozenset[int]:
        """Those that report Xids: of these, none is none."""
        return frozenset(self._watched.values())

    def take(self, at_ns: int) -> Iterator[Xid]:
        """What has been reported since it was last asked; waits for nothing."""
        for _ in range(_MOST):
            if self._is_over:
                return
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError_Timeout:
                return
            except self._nvml.NVMLError:  # with one of the GPUs gone there are no more events
                self._is_over = True
                return
            gpu = self._watched.get(_address(event.device))
            if gpu is not None:
                yield Xid(at_ns=at_ns, gpu=gpu, code=event.eventData)


@contextmanager
def xid_watch(nvml: ModuleType, sensors: Sequence[GpuSensor]) -> Iterator[XidWatch | None]:
    """A watch over those that report Xids, within a session of NVML; None where none does."""
    try:
        events = nvml.nvmlEventSetCreate()
    except nvml.NVMLError:
        yield None
        return
    try:
        watched = {
            _address(s.handle): s.address.gpu for s in sensors if s.lost is None and _registered(nvml, s, events)
        }
        yield XidWatch(nvml, events, watched) if watched else None
    finally:
        nvml.nvmlEventSetFree(events)


def _registered(nvml: ModuleType, sensor: GpuSensor, events: Any) -> bool:
    wanted = nvml.nvmlEventTypeXidCriticalError
    try:
        if not nvml.nvmlDeviceGetSupportedEventTypes(sensor.handle) & wanted:
            return False
        nvml.nvmlDeviceRegisterEvents(sensor.handle, wanted, events)
    except nvml.NVMLError:
        return False
    return True


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
