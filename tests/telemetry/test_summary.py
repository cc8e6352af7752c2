"""What samples come to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.readings import Course, GpuSample, HostSample, HostSummary, ProcessSeen, Spread
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.summary import summaries

TENTH = NS_PER_S // 10


def at(seconds, gpu=0, **values):
    """A sample of a GPU at that second."""
    return GpuSample(at_ns=round(seconds * NS_PER_S), gpu=gpu, **values)


def summed(*samples, span=(1.0, 3.0), lost=None, period_ns=TENTH):
    """The summary of GPU 0."""
    edges = tuple(round(edge * NS_PER_S) for edge in span)
    (gpu,), _ = summaries(samples, [GpuAddress(0, uuid="GPU-0", name="H200")], edges, lost or {}, period_ns)
    return gpu


def test_values_are_those_within_the_part_that_counts():
    """Idle clocks before and after are not in mean, least and most."""
    gpu = summed(
        at(0.9, sm_clock_mhz=345, power_w=70, utilisation=0.0, clock_reasons=1),
        at(1.0, sm_clock_mhz=1500, power_w=500, utilisation=0.5, clock_reasons=4),
        at(2.0, sm_clock_mhz=1800, power_w=700, utilisation=1.0, clock_reasons=0x24),
        at(3.0, sm_clock_mhz=1200, power_w=600, utilisation=0.9, clock_reasons=0),
        at(3.1, sm_clock_mhz=345, power_w=70, utilisation=0.0, clock_reasons=1),
    )

    assert gpu.sm_clock_mhz == Spread(1500, 1200, 1800)
    assert gpu.power_w == Spread(600, 500, 700)
    assert gpu.utilisation == pytest.approx(0.8)
    assert (gpu.samples, gpu.duration_s, gpu.uuid, gpu.name) == (3, 2.0, "GPU-0", "H200")
    assert gpu.clock_reasons == 0x24
    assert gpu.reasons == {"sw_power_cap": pytest.approx(2 / 3), "sw_thermal": pytest.approx(1 / 3)}
    assert gpu.counted_reasons == ()


def test_memory_before_is_that_of_the_sample_before_the_run():
    """And the most is of all samples."""
    gpu = summed(at(0.5, memory_used_bytes=10), at(2, memory_used_bytes=90), at(3.5, memory_used_bytes=40))

    assert (gpu.memory_before_bytes, gpu.memory_max_bytes) == (10, 90)


def test_temperature_is_also_that_of_the_samples_just_before_and_after():
    """It is read once a second: in a run of less than that there would be none."""
    assert summed(at(0.9, temperature_c=50), at(3.1, temperature_c=61)).temperature_c == Course(50, 61, 61)
    assert summed(
        at(0.9, temperature_c=50), at(2, temperature_c=70), at(3.1, temperature_c=61)
    ).temperature_c == Course(50, 61, 70)


def test_the_memory_clock_is_only_that_of_the_part_that_counts():
    """Idle parts lower it: what it was before and after the run says nothing of the run."""
    gpu = summed(at(0.9, memory_clock_mhz=405), at(2, memory_clock_mhz=6251), at(3.1, memory_clock_mhz=405))

    assert gpu.memory_clock_mhz == Spread(6251, 6251, 6251)
    assert summed(at(0.9, memory_clock_mhz=405), at(3.1, memory_clock_mhz=405)).memory_clock_mhz is None


def test_nothing_sampled_is_absent_throughout():
    """Neither a zero nor an error."""
    gpu = summed()

    assert (gpu.samples, gpu.duration_s) == (0, 0.0)
    absent = {name for name in gpu.__slots__ if getattr(gpu, name) is None}
    assert set(gpu.__slots__) - absent == {"gpu", "uuid", "name", "samples", "duration_s", "counted_reasons"}


def test_energy_is_the_counter_s_gain_at_the_two_ends():
    """Between the samples on either side of each, so that idling around the run is not in it."""
    gpu = summed(at(0, energy_j=1000), at(2, energy_j=1200), at(4, energy_j=2200))

    assert (gpu.energy_j, gpu.energy_from) == (pytest.approx(100 + 500), "counter")


def test_energy_is_integrated_power_where_there_is_no_counter():
    """Trapezoids between samples, cut off at the ends."""
    gpu = summed(at(0.5, power_w=100), at(1.5, power_w=300), at(2.5, power_w=300), at(3.5, power_w=100))

    assert (gpu.energy_j, gpu.energy_from) == (pytest.approx(2 * 0.5 * (200 + 300) / 2 + 300), "power")


@pytest.mark.slow
@given(watts=st.floats(1, 1000), edges=st.lists(st.floats(0, 10), min_size=2, max_size=2, unique=True))
def test_of_constant_power_both_ways_agree(watts, edges):
    """Whatever part counts, energy is power times time."""
    start, end = sorted(edges)
    seconds = [number / 10 for number in range(101)]

    counted = summed(*(at(s, energy_j=5 + watts * s) for s in seconds), span=(start, end))
    integrated = summed(*(at(s, power_w=watts) for s in seconds), span=(start, end))

    assert counted.energy_j == pytest.approx(watts * (end - start), abs=1e-4)
    assert integrated.energy_j == pytest.approx(watts * (end - start), abs=1e-4)


@pytest.mark.parametrize(
    "samples",
    [
        [at(1.5, energy_j=1, power_w=1), at(3.5, energy_j=2, power_w=1)],
        [at(0.5, energy_j=1, power_w=1), at(2.5, energy_j=2, power_w=1)],
        [at(0.5, power_w=1), at(1.2, power_w=1), at(3.5, power_w=1)],
    ],
    ids=["begins late", "ends early", "has a gap"],
)
def test_energy_that_is_not_known_of_the_whole_is_absent(samples):
    """A GPU that was lost, or a driver that did not answer for a while."""
    gpu = summed(*samples)

    assert (gpu.energy_j, gpu.energy_from) == (None, None)


def test_a_slow_rate_is_no_gap():
    """Where samples were meant to be far apart, they are."""
    assert summed(at(0, power_w=5), at(4, power_w=5), period_ns=4 * NS_PER_S).energy_j == pytest.approx(10)


def test_a_counter_that_begins_anew_is_not_believed():
    """A driver that was loaded again; power is then what is left."""
    gpu = summed(at(0, energy_j=1000, power_w=10), at(1.5, energy_j=1100, power_w=10), at(3.2, energy_j=5, power_w=10))

    assert (gpu.energy_j, gpu.energy_from) == (pytest.approx(20), "power")


def test_time_under_a_reason_is_counted_where_the_driver_counts():
    """By the counters, with no gap between samples; the rest is the share of samples."""
    gpu = summed(
        at(0.9, throttled_ns={"sw_power_cap": 0, "hw_thermal": 5}, clock_reasons=0),
        at(2.0, throttled_ns={"sw_power_cap": 0, "hw_thermal": 5}, clock_reasons=0x11),
        at(3.0, throttled_ns={"sw_power_cap": NS_PER_S, "hw_thermal": 5}, clock_reasons=0x1),
    )

    assert gpu.reasons == {
        "gpu_idle": 1.0,
        "sync_boost": 0.5,
        "sw_power_cap": pytest.approx(0.5),
        "hw_thermal": 0.0,
    }
    assert gpu.counted_reasons == ("hw_thermal", "sw_power_cap")


@pytest.mark.parametrize("per_s", [1e6, 5 * NS_PER_S], ids=["microseconds", "more than there is"])
def test_a_counter_of_another_unit_is_not_believed(per_s):
    """One that contradicts what the samples show, or counts more time than has passed."""
    samples = [at(s / 10, throttled_ns={"sw_thermal": round(per_s * s / 10)}, clock_reasons=0x20) for s in range(40)]

    gpu = summed(*samples)

    assert (gpu.reasons, gpu.counted_reasons) == ({"sw_thermal": 1.0}, ())


def test_a_reason_without_a_name_is_called_by_its_bit():
    """Of a driver that is newer than we are."""
    assert summed(at(2, clock_reasons=1 << 11)).reasons == {"bit_11": 1.0}


def test_links_and_errors_are_what_was_gained():
    """Over the whole run, from the sample before it to the last one after it."""
    gpu = summed(
        at(0, pcie_tx_bytes=100, nvlink_rx_bytes=7, ecc={"corrected": 4, "uncorrected": 1}, pcie_generation=1),
        at(2, pcie_tx_bytes=201, nvlink_rx_bytes=7, ecc={"corrected": 5, "uncorrected": 1}, pcie_generation=5),
        at(4, nvlink_rx_bytes=7, ecc={"corrected": 6, "uncorrected": 1}, pcie_generation=4),
        at(4.1, pcie_tx_bytes=301, nvlink_rx_bytes=7, ecc={"corrected": 6, "uncorrected": 1}, pcie_generation=4),
    )

    assert (gpu.pcie_tx_bytes, gpu.nvlink_rx_bytes, gpu.pcie_rx_bytes) == (201, 0, None)
    assert gpu.ecc == {"corrected": 2, "uncorrected": 0}
    assert gpu.pcie_generation == 5


@pytest.mark.parametrize(
    "samples",
    [[(1.5, 1), (3.5, 2)], [(0.5, 1), (2.5, 2)], [(0.5, 5), (2, 1), (3.5, 9)], [(0.5, 5)]],
    ids=["begins late", "ends early", "begins anew", "has one sample"],
)
def test_what_a_link_carried_is_absent_where_it_is_not_known_of_the_whole(samples):
    """Part of the traffic is no traffic of the run."""
    assert summed(*(at(seconds, c2c_tx_bytes=count) for seconds, count in samples)).c2c_tx_bytes is None


def test_processes_are_all_that_were_seen_with_the_most_they_held():
    """None where the driver did not say what one holds."""
    gpu = summed(at(1, processes={7: 10, 8: None}), at(2, processes={7: 30}), at(2.5, processes={7: 20, 9: 1}))

    assert gpu.processes == (ProcessSeen(7, 30), ProcessSeen(8, None), ProcessSeen(9, 1))
    assert summed(at(1, processes={})).processes == ()


def test_gpus_are_kept_apart_and_in_order():
    """Each with its own samples; a loss is said of the one that was lost."""
    gpus, host = summaries(
        [at(1, gpu=1, power_w=10), at(1, gpu=0, power_w=20)],
        [GpuAddress(0), GpuAddress(1)],
        (0, 2 * NS_PER_S),
        {1: "GPU is lost"},
        TENTH,
    )

    assert [(gpu.gpu, gpu.power_w.mean, gpu.lost) for gpu in gpus] == [(0, 20, None), (1, 10, "GPU is lost")]
    assert host is None


def test_the_machine_is_told_by_samples_whose_time_was_within_the_run():
    """Also by the one just after it, which tells of its last part; not by the one before it."""
    samples = [
        HostSample(at_ns=0, cpu_share=0.1, memory_available_bytes=1, swap_used_bytes=9, io_pressure=0.9),
        HostSample(at_ns=2 * NS_PER_S, cpu_share=0.4, memory_available_bytes=70, swap_used_bytes=1, io_pressure=0.2),
        HostSample(at_ns=4 * NS_PER_S, cpu_share=0.6, memory_available_bytes=50, swap_used_bytes=2, io_pressure=0.1),
        HostSample(at_ns=5 * NS_PER_S, cpu_share=1.0, memory_available_bytes=1, swap_used_bytes=9, io_pressure=0.9),
    ]

    _, host = summaries(samples, [], (NS_PER_S, 3 * NS_PER_S), {}, TENTH)

    assert host == HostSummary(
        samples=2,
        cpu_share=Spread(0.5, 0.4, 0.6),
        memory_available_min_bytes=50,
        swap_used_max_bytes=2,
        io_pressure_max=0.2,
    )
