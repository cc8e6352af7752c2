"""Runs begin on GPUs that hold still, in virtual time."""

from __future__ import annotations

import pytest

from pytest_llmperf.clock import NS_PER_S, VirtualClock
from pytest_llmperf.readings import GpuSample
from pytest_llmperf.telemetry.settle import LIMIT_S, LOOK_S, settle


@pytest.fixture
def clock():
    return VirtualClock()


def sensor(clock, temperature=lambda s: 40, mhz=lambda s: 345, gpus=1):
    """Reads GPUs whose temperature and clock are functions of the seconds since now."""
    began_ns = clock.now_ns()

    def read():
        seconds = (clock.now_ns() - began_ns) / NS_PER_S
        return [
            GpuSample(at_ns=clock.now_ns(), gpu=gpu, temperature_c=temperature(seconds), sm_clock_mhz=mhz(seconds))
            for gpu in range(gpus)
        ]

    return read


def waited(clock, read):
    began_ns = clock.now_ns()
    fault = settle(read, clock)
    return fault, (clock.now_ns() - began_ns) / NS_PER_S


def test_what_holds_still_is_seen_to(clock):
    assert waited(clock, sensor(clock)) == (None, LOOK_S)


def test_a_cooling_gpu_is_waited_for(clock):
    fault, seconds = waited(clock, sensor(clock, temperature=lambda s: max(40, round(60 - 2 * s))))
    assert fault is None
    assert 9 < seconds < 12


def test_clocks_that_go_down_are_waited_for(clock):
    fault, seconds = waited(clock, sensor(clock, mhz=lambda s: 1980 if s < 0.9 else 345))
    assert fault is None
    assert seconds == pytest.approx(0.9 + LOOK_S, abs=0.3)


def test_what_never_rests_is_said(clock):
    fault, seconds = waited(clock, sensor(clock, temperature=lambda s: 40 + round(8 * s) % 8))
    assert fault.rule == "temperature"
    assert "the temperature of GPU 0 still went from" in fault.sentence
    assert seconds == pytest.approx(LIMIT_S, abs=0.3)


def test_each_gpu_is_looked_at(clock):
    def read():
        hot = 40 + round(4 * clock.now_ns() / NS_PER_S) % 8
        return [
            GpuSample(at_ns=clock.now_ns(), gpu=0, temperature_c=30),
            GpuSample(at_ns=clock.now_ns(), gpu=1, temperature_c=hot),
        ]

    fault, _ = waited(clock, read)
    assert "GPU 1" in fault.sentence
    assert "GPU 0" not in fault.sentence


def test_without_sensors_nothing_is_waited_for(clock):
    assert waited(clock, list) == (None, 0)


def test_a_gpu_that_tells_nothing_holds_still(clock):
    assert waited(clock, sensor(clock, temperature=lambda s: None, mhz=lambda s: None)) == (None, LOOK_S)
