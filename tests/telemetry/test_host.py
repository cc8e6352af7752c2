"""The machine around the GPUs, read from a folder in the form of /proc."""

from __future__ import annotations

import os
import sys

import pytest

from pytest_llmperf.readings import HostSample
from pytest_llmperf.telemetry.host import host_sensor

MEMINFO = "MemTotal: 1000 kB\nMemAvailable:     400 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\nHugePages_Total: 0\n"
PRESSURE = "some avg10={} avg60=1.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.fixture
def proc(tmp_path):
    """A folder like /proc; files that are given as None are not there."""

    def make(**files):
        given = {
            "stat": "cpu 100 0 50 800 50 0 0 0 7 7\ncpu0 1 1 1 1\n",
            "meminfo": MEMINFO,
            "cpu": PRESSURE.format("1.50"),
            "memory": PRESSURE.format("0.00"),
            "io": PRESSURE.format("20.25"),
        } | files
        tmp_path.joinpath("pressure").mkdir(exist_ok=True)
        for name, text in given.items():
            path = tmp_path / (name if name in ("stat", "meminfo") else f"pressure/{name}")
            if text is not None:
                path.write_text(text)
        return tmp_path

    return make


def test_every_field_in_our_units(proc):
    """Bytes and shares; the processors' share is of the time since the sample before, guests not counted twice."""
    folder = proc()

    with host_sensor(folder) as sensor:
        (folder / "stat").write_text("cpu 160 0 70 810 60 0 0 0 90 90\n")
        sample = sensor.read(7)

    assert sample == HostSample(
        at_ns=7,
        cpu_share=pytest.approx(0.8),
        memory_available_bytes=400 * 1024,
        swap_used_bytes=30 * 1024,
        cpu_pressure=pytest.approx(0.015),
        memory_pressure=0.0,
        io_pressure=pytest.approx(0.2025),
    )


@pytest.mark.parametrize(
    ("missing", "fields"),
    [
        ({"stat": None}, {"cpu_share"}),
        ({"meminfo": None}, {"memory_available_bytes", "swap_used_bytes"}),
        ({"meminfo": "MemAvailable: 400 kB\nSwapTotal: 50 kB\n"}, {"swap_used_bytes"}),
        ({"cpu": None, "memory": None, "io": None}, {"cpu_pressure", "memory_pressure", "io_pressure"}),
        ({"io": ""}, {"io_pressure"}),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_tell_is_absent(proc, missing, fields):
    """A kernel without pressure, a container without some files."""
    folder = proc(**missing)

    with host_sensor(folder) as sensor:
        if "stat" not in missing:
            (folder / "stat").write_text("cpu 160 0 70 810 60 0 0 0\n")
        sample = sensor.read(0)

    assert {name for name in HostSample.__slots__ if getattr(sample, name) is None} == fields


def test_no_time_between_two_samples_has_no_share(proc):
    """Nor has time that goes backwards."""
    with host_sensor(proc()) as sensor:
        assert sensor.read(0).cpu_share is None


def test_a_machine_without_any_of_it_has_no_sensor(tmp_path):
    """Another system than Linux."""
    with host_sensor(tmp_path) as sensor:
        assert sensor is None


def test_no_descriptor_is_left_open(proc):
    """Those that were opened are closed with the sensor."""
    folder = proc()
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()

    with host_sensor(folder):
        pass

    assert sys.platform != "linux" or set(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_very_machine_can_be_read():
    """The kernel's own files are in the form that is expected."""
    with host_sensor() as sensor:
        sample = sensor.read(0)

    assert sample.memory_available_bytes > 1 << 20
    assert sample.swap_used_bytes is not None
