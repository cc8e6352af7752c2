"""What a test sees of the GPUs."""

from __future__ import annotations

import pytest
from test_results import request, result, run

from pytest_llmperf.readings import Course, GpuSummary, HostSummary, Spread, TelemetrySummary
from pytest_llmperf.records import RunRecord
from pytest_llmperf.reports.text import figures


def gpu(number=0, **values):
    return GpuSummary(gpu=number, samples=9, duration_s=1.0, **values)


def sampled(*gpus, tokens=10):
    """A run with an answer of so many tokens and the telemetry of these GPUs."""
    telemetry = TelemetrySummary(gpus=gpus, host=HostSummary(samples=1), rate_hz=10.0)
    made = run(request(tokens=tokens))
    return RunRecord(
        index=0, phase=made.phase, start_ns=0, end_ns=0, requests=made.requests, client=made.client, telemetry=telemetry
    )


def test_gpus_and_runs_are_taken_together():
    """Energy and power add up over GPUs, energy over runs; extremes are the worst of any."""
    first = sampled(
        gpu(0, energy_j=10.0, power_w=Spread(100, 50, 150), sm_clock_mhz=Spread(1500, 900, 1900), utilisation=0.5),
        gpu(1, energy_j=20.0, power_w=Spread(200, 50, 250), temperature_c=Course(40, 60, 61), memory_max_bytes=5),
    )
    second = sampled(
        gpu(0, energy_j=30.0, power_w=Spread(200, 1, 2), sm_clock_mhz=Spread(1700, 1000, 1900), utilisation=0.9,
            reasons={"sw_power_cap": 0.5, "gpu_idle": 0.0}),
        gpu(1, energy_j=40.0, power_w=Spread(300, 1, 2), temperature_c=Course(50, 58, 58), memory_max_bytes=9,
            reasons={"sw_power_cap": 0.2}, lost="GPU is lost"),
        tokens=40,
    )  # fmt: skip

    found = result(first, second)

    assert found.gpu.energy_j == 100.0
    assert found.gpu.joules_per_token == 2.0
    assert found.values("joules_per_token") == [3.0, 1.75]
    assert [one.gpu.joules_per_token for one in found.runs] == [3.0, 1.75]
    assert found.gpu.mean_power_w == 400
    assert (found.gpu.mean_sm_clock_mhz, found.gpu.min_sm_clock_mhz) == (1600, 900)
    assert (found.gpu.max_temperature_c, found.gpu.max_memory_bytes) == (61, 9)
    assert found.gpu.utilisation == pytest.approx(0.7)
    assert found.gpu.reasons == {"sw_power_cap": 0.5, "gpu_idle": 0.0}
    assert found.gpu.lost == ("GPU 1: GPU is lost",)


@pytest.mark.parametrize(
    "runs",
    [
        [sampled(gpu(0, energy_j=1.0), gpu(1))],
        [sampled(gpu(0, energy_j=1.0)), sampled(gpu(0))],
        [sampled(gpu(0, energy_j=1.0)), run(request())],
    ],
    ids=["one GPU lacks it", "one run lacks it", "one run was not sampled"],
)
def test_energy_is_known_of_all_or_it_is_absent(runs):
    """A part of it over all tokens would be too little."""
    assert (result(*runs).gpu.energy_j, result(*runs).gpu.joules_per_token) == (None, None)


def test_without_gpus_there_is_nothing_to_see():
    """A machine without one, or no telemetry at all."""
    assert result(sampled()).gpu is None
    assert result(run(request())).gpu is None
    assert result().gpu is None


def test_the_summary_says_what_they_took_and_what_held_their_clocks():
    """Idling is left out, as is what took no time; nothing is said where nothing was sampled."""
    reasons = {"sw_power_cap": 0.125, "gpu_idle": 0.5, "hw_thermal": 0.0}
    throttled = sampled(gpu(0, energy_j=5.0, power_w=Spread(655.4, 1, 2), reasons=reasons, lost="GPU is lost"))

    assert list(figures(result(throttled)))[-1] == (
        "gpu: 0.500 J/token, 655 W, sw_power_cap 12.5 %, lost GPU 0: GPU is lost"
    )
    for silent in (sampled(gpu(0)), sampled(), run(request())):
        assert not [line for line in figures(result(silent)) if line.startswith("gpu")]
