"""The SM clock while the GPU worked."""

from __future__ import annotations

import pytest

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.readings import BusyClock, GpuSample
from pytest_llmperf.telemetry.clocks import BusyFold

IDLE, CAPPED = 0x1, 0x4


def samples(*clocks, reasons=0, utilisation=None):
    return [
        GpuSample(at_ns=number * NS_PER_S, gpu=0, sm_clock_mhz=mhz, clock_reasons=reasons, utilisation=utilisation)
        for number, mhz in enumerate(clocks)
    ]


def found(rows):
    fold = BusyFold((0, max((row.at_ns for row in rows), default=0)))
    for row in rows:
        fold.add(row)
    return fold.found()


def test_halves():
    assert found(samples(*[1980] * 10, *[990] * 10, reasons=CAPPED)) == BusyClock(1485, 1980, 990)


def test_idle_samples_do_not_count():
    working, idle = samples(*[1980] * 12), samples(*[345] * 50, reasons=IDLE)
    assert found(working + idle).mean == 1980


def test_utilisation_where_no_reason_is_given():
    working = samples(*[1980] * 12, reasons=None, utilisation=0.5)
    idle = samples(*[345] * 12, reasons=None, utilisation=0.0)
    assert found(working + idle).mean == 1980


def test_a_half_without_work_is_like_the_other():
    working, idle = samples(*[1980] * 12), samples(*[345] * 100, reasons=IDLE)
    assert found(working + idle) == BusyClock(1980, 1980, 1980)


@pytest.mark.parametrize("clocks", [(), (1980,) * 9, (None,) * 20])
def test_too_few_say_nothing(clocks):
    assert found(samples(*clocks)) is None
