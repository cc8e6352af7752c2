"""The SM clock while the GPU worked."""

from __future__ import annotations

import pytest

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.readings import BusyClock, GpuSample
from pytest_llmperf.telemetry.clocks import busy_clock

IDLE, CAPPED = 0x1, 0x4


def samples(*clocks, reasons=0, utilisation=None):
    return [
        GpuSample(at_ns=number * NS_PER_S, gpu=0, sm_clock_mhz=mhz, clock_reasons=reasons, utilisation=utilisation)
        for number, mhz in enumerate(clocks)
    ]


def test_halves():
    found = busy_clock(samples(*[1980] * 10, *[990] * 10, reasons=CAPPED))
    assert found == BusyClock(mean=1485, first_half=1980, second_half=990)


def test_idle_samples_do_not_count():
    working, idle = samples(*[1980] * 12), samples(*[345] * 50, reasons=IDLE)
    assert busy_clock(working + idle).mean == 1980


def test_utilisation_where_no_reason_is_given():
    working = samples(*[1980] * 12, reasons=None, utilisation=0.5)
    idle = samples(*[345] * 12, reasons=None, utilisation=0.0)
    assert busy_clock(working + idle).mean == 1980


@pytest.mark.parametrize("clocks", [(), (1980,) * 9, (None,) * 20])
def test_too_few_say_nothing(clocks):
    assert busy_clock(samples(*clocks)) is None
