"""What sensors said, in memory and as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.readings import (
    CLOCK_REASONS,
    Course,
    GpuSummary,
    HostSummary,
    ProcessSeen,
    Spread,
    TelemetrySummary,
    reasons_in,
    telemetry_from,
)

NUMBER = st.floats(0, 1e12)
COUNT = st.integers(0, 2**62)
SPREAD = st.none() | st.builds(Spread, NUMBER, NUMBER, NUMBER)
GPU = st.builds(
    GpuSummary,
    gpu=st.integers(0, 15),
    uuid=st.none() | st.text(max_size=5),
    samples=COUNT,
    duration_s=NUMBER,
    sm_clock_mhz=SPREAD,
    power_w=SPREAD,
    temperature_c=st.none() | st.builds(Course, NUMBER, NUMBER, NUMBER),
    energy_j=st.none() | NUMBER,
    energy_from=st.sampled_from([None, "counter", "power"]),
    clock_reasons=st.none() | COUNT,
    reasons=st.none() | st.dictionaries(st.sampled_from(sorted(CLOCK_REASONS.values())), st.floats(0, 1)),
    counted_reasons=st.lists(st.text(max_size=4), max_size=2).map(tuple),
    pcie_tx_bytes=st.none() | COUNT,
    ecc=st.none() | st.dictionaries(st.text(max_size=4), COUNT, max_size=2),
    xids=st.none() | st.lists(COUNT, max_size=2).map(tuple),
    processes=st.none() | st.lists(st.builds(ProcessSeen, COUNT, st.none() | COUNT), max_size=2).map(tuple),
    lost=st.none() | st.text(max_size=5),
)
HOST = st.builds(HostSummary, samples=COUNT, cpu_share=SPREAD, swap_used_max_bytes=st.none() | COUNT)
TELEMETRY = st.builds(
    TelemetrySummary,
    gpus=st.lists(GPU, max_size=3).map(tuple),
    host=st.none() | HOST,
    rate_hz=NUMBER,
    cost_share=st.none() | NUMBER,
    problems=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)


@pytest.mark.slow
@given(TELEMETRY)
def test_what_is_written_is_read_back(telemetry):
    """By way of JSON, with every absence."""
    assert telemetry_from(json.loads(json.dumps(telemetry.to_json()))) == telemetry


def test_what_was_not_measured_is_not_in_the_json():
    """Nor is there a 0 for it."""
    telemetry = TelemetrySummary(gpus=(GpuSummary(gpu=0, samples=0, duration_s=0.0),), rate_hz=10.0)

    assert telemetry.to_json() == {
        "gpus": [{"gpu": 0, "samples": 0, "duration_s": 0.0, "counted_reasons": []}],
        "rate_hz": 10.0,
        "problems": [],
    }


@pytest.mark.parametrize(
    "value",
    [None, {}, [], 3, "x", {"rate_hz": 1, "gpus": [{}]}, {"rate_hz": 1, "gpus": 4}, {"rate_hz": 1, "new": 2},
     {"rate_hz": 1, "gpus": [{"gpu": 0, "samples": 1, "duration_s": 1, "power_w": 4}]},
     {"rate_hz": 1, "host": {"x": 1}}],
    ids=str,
)  # fmt: skip
def test_another_form_is_no_telemetry(value):
    """A file without it, or of another release, can be read all the same."""
    assert telemetry_from(value) is None


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0, []),
        (0x1, ["gpu_idle"]),
        (0x24, ["sw_power_cap", "sw_thermal"]),
        (0x1840, ["hw_thermal", "bit_11", "bit_12"]),
    ],
)
def test_bits_have_names(bits, names):
    """Those that are too new for us are called by their numbers."""
    assert list(reasons_in(bits)) == names
