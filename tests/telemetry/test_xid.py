"""Errors that the driver reports as events."""

from __future__ import annotations

import pytest
from nvml import GPUS, LOST, NO_PERMISSION, NOT_SUPPORTED, error

from pytest_llmperf.hardware.nvml import session
from pytest_llmperf.readings import Xid
from pytest_llmperf.telemetry.gpu import GpuAddress, GpuSensor
from pytest_llmperf.telemetry.xid import xid_watch


@pytest.fixture
def watch(nvml_here):
    """`watch(gpu, ...)`: a watch over these, and the stub."""
    from contextlib import ExitStack

    with ExitStack() as opened:

        def make(*gpus):
            stub = nvml_here(*gpus)
            nvml = opened.enter_context(session())
            sensors = [GpuSensor(nvml, GpuAddress(number, uuid=f"GPU-{number}")) for number in range(len(gpus))]
            return opened.enter_context(xid_watch(nvml, sensors)), stub

        yield make


def test_each_is_told_once_and_of_its_gpu(watch):
    """In the order in which they came; those of both GPUs."""
    watching, stub = watch(GPUS["h200"] | {"xid": [[1, 63], [2, 94]]}, GPUS["h200"] | {"xid": [[1, 13]]})
    assert list(watching.take(0)) == []

    stub.advance(1.5)
    first = set(watching.take(1))
    stub.advance(1)

    assert watching.gpus == {0, 1}
    assert first == {Xid(at_ns=1, gpu=0, code=63), Xid(at_ns=1, gpu=1, code=13)}
    assert list(watching.take(2)) == [Xid(at_ns=2, gpu=0, code=94)]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, LOST])
def test_a_gpu_that_reports_none_is_not_watched(watch, code):
    """So that its silence is not taken for health."""
    watching, _ = watch(GPUS["h200"] | {"xid": error(code)}, "h200")

    assert watching.gpus == {1}


def test_without_a_gpu_to_watch_there_is_no_watch(watch):
    """None of them reports anything."""
    assert watch(GPUS["h200"] | {"xid": error(NOT_SUPPORTED)}, "lost")[0] is None


def test_a_flood_of_them_is_taken_in_parts(watch):
    """A GPU that fails without end does not keep the sampling from its time."""
    watching, _ = watch(GPUS["h200"] | {"xid": [[0, 31]] * 150})

    assert [len(list(watching.take(0))) for _ in range(3)] == [100, 50, 0]


def test_an_event_set_that_fails_ends_the_watching(watch):
    """As when one of its GPUs is gone; what was seen before stands."""
    import pynvml

    watching, stub = watch(GPUS["h200"] | {"xid": [[1, 79]]})
    stub.advance(2)

    def gone(*_):
        raise pynvml.NVMLError(LOST)

    with pytest.MonkeyPatch.context() as failing:
        failing.setattr(pynvml, "nvmlEventSetWait_v2", gone)
        assert list(watching.take(0)) == []

    assert list(watching.take(1)) == []
