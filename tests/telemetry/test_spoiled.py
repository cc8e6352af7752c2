"""Each rule once broken and once kept, and silent where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf.hardware import Gpu
from pytest_llmperf.readings import BusyClock, GpuSummary, ProcessSeen, Taken, TelemetrySummary
from pytest_llmperf.records import CacheCounters
from pytest_llmperf.telemetry.spoiled import RULES, TOLERABLE, faults, unmoved
from pytest_llmperf.units import GIB, MIB

H200 = Gpu(name="NVIDIA H200", index=0, uuid="GPU-0", pcie_generation_max=5, pcie_width_max=16, nvlink_c2c=False)
GH200 = Gpu(name="NVIDIA GH200 480GB", index=0, uuid="GPU-0", pcie_generation_max=5, pcie_width_max=16, nvlink_c2c=True)
OURS, THEIRS = 100, 200


def summary(**fields):
    return GpuSummary(**{"gpu": 0, "uuid": "GPU-0", "samples": 100, "duration_s": 10.0} | fields)


def telemetry(**fields):
    return TelemetrySummary(gpus=(summary(**fields),), rate_hz=10.0)


def clock(first, second=None):
    second = first if second is None else second
    return BusyClock(mean=(first + second) / 2, first_half=first, second_half=second)


def process(pid, gib=1):
    return ProcessSeen(pid=pid, memory_bytes=None if gib is None else int(gib * GIB))


def rules(now, earlier=(), gpu=H200, own=frozenset({OURS})):
    return [fault.rule for fault in faults(now, earlier, [gpu], own)]


def test_nothing_measured_breaks_no_rule():
    assert rules(telemetry()) == []
    assert list(faults(TelemetrySummary(rate_hz=10.0))) == []


def test_a_healthy_run():
    now = telemetry(
        busy_clock=clock(1980, 1950),
        reasons={"sw_power_cap": 0.9, "gpu_idle": 0.3, "hw_thermal": 0.0},
        pcie_generation=5,
        pcie_width=16,
        utilisation=0.8,
        memory_before_bytes=70 * GIB,
        processes=(process(OURS, 69.5),),
        ecc={"corrected": 3, "uncorrected": 0},
    )
    assert rules(now, [telemetry(busy_clock=clock(1970))]) == []


BROKEN = {
    "lost": ({"lost": "GPU is lost"}, {}),
    "throttling": ({"reasons": {"hw_thermal": 0.012}}, {"reasons": {"hw_thermal": 0.009}}),
    "throttling by the driver": ({"reasons": {"sw_thermal": 0.5}}, {"reasons": {"sw_power_cap": 1.0}}),
    "throttling by the power brake": ({"reasons": {"hw_power_brake": 0.02}}, {"reasons": {}}),
    "clocks": ({"busy_clock": clock(1980, 1700)}, {"busy_clock": clock(1980, 1800)}),
    "processes": ({"processes": (process(OURS), process(THEIRS))}, {"processes": (process(OURS),)}),
    "memory": (
        {"memory_before_bytes": 4 * GIB, "processes": (process(OURS, 2),)},
        {"memory_before_bytes": 4 * GIB, "processes": (process(OURS, 3),)},
    ),
    "memory before the engine": ({"taken": Taken(2 * GIB)}, {"taken": Taken(GIB)}),
    "link": ({"pcie_width": 8}, {"pcie_width": 16}),
    "link under load": (
        {"pcie_generation": 3, "utilisation": 0.5},
        {"pcie_generation": 3, "utilisation": 0.05},
    ),
    "ecc": ({"ecc": {"uncorrected": 1}}, {"ecc": {"corrected": 1}}),
    "xid": ({"xids": (79, 48)}, {"xids": ()}),
    "ecc rows": ({"ecc": {"row_remap_pending": 1}}, {"ecc": {"rows_remapped_corrected": 1}}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_broken_and_kept(case):
    broken, kept = BROKEN[case]
    assert rules(telemetry(**broken)) == [case.split()[0]]
    assert rules(telemetry(**kept)) == []


def test_each_rule_has_a_case():
    assert {case.split()[0] for case in BROKEN} == set(RULES)
    assert set(RULES) < set(TOLERABLE)


def test_clocks_against_the_runs_before():
    earlier = [telemetry(busy_clock=clock(mhz)) for mhz in (1980, 1400, 1970)]
    assert rules(telemetry(busy_clock=clock(1900)), earlier) == ["clocks"]
    assert rules(telemetry(busy_clock=clock(1930)), earlier) == []


def test_another_gpu_is_not_held_against_this_one():
    other = TelemetrySummary(gpus=(summary(gpu=1, busy_clock=clock(1000)),), rate_hz=10.0)
    assert rules(telemetry(busy_clock=clock(1980)), [other]) == []


def test_pids_of_another_namespace_accuse_nobody():
    assert rules(telemetry(processes=(process(THEIRS),))) == []
    assert rules(telemetry(processes=(process(OURS), process(THEIRS))), own=None) == []


def test_a_coherent_link_is_not_behind_pcie():
    assert rules(telemetry(pcie_width=1), gpu=GH200) == []


def test_memory_of_processes_that_the_driver_does_not_tell():
    assert rules(telemetry(memory_before_bytes=9 * GIB, processes=(process(OURS, None),))) == []


def test_memory_is_spoken_of_once():
    """What was taken before is still taken now."""
    now = telemetry(taken=Taken(3 * GIB), memory_before_bytes=9 * GIB, processes=(process(OURS, 6),))
    (fault,) = faults(now, own=frozenset({OURS}))
    assert "3.00 GiB of its memory taken by processes that are not shown here when the engine was started" in str(fault)


def test_sentences_say_what_was_seen_and_allowed():
    (fault,) = faults(telemetry(busy_clock=clock(1980, 990)))
    assert "GPU 0 worked at 1980 MHz in the first half of the run and at 990 MHz in the second" in str(fault)
    assert "off by 50.0 % where 10.0 % is allowed" in str(fault)
    assert str(fault).endswith("[clocks]")


class TestOffload:
    """A GiB each way is claimed, and held against the link over which this GPU reaches the host."""

    CLAIMED = CacheCounters(offloaded_bytes=GIB, restored_bytes=GIB)
    UNKNOWN = Gpu(name="NVIDIA X1", uuid="GPU-0")

    @pytest.mark.parametrize(
        ("gpu", "now"),
        [
            (GH200, {"c2c_tx_bytes": 0, "c2c_rx_bytes": 2 * GIB}),
            (H200, {"pcie_tx_bytes": GIB, "pcie_rx_bytes": GIB}),
        ],
    )
    def test_links_carried_it(self, gpu, now):
        assert unmoved(telemetry(**now), self.CLAIMED, [gpu]) is None

    def test_links_did_not(self):
        fault = unmoved(telemetry(pcie_tx_bytes=1, pcie_rx_bytes=GIB), self.CLAIMED, [H200])
        assert fault.rule == "offload"
        assert "moved 2.00 GiB" in fault.sentence
        assert "PCIe carried 1.00 GiB" in fault.sentence

    def test_the_other_link_does_not_count(self):
        """What a GH200 has on PCIe is its network, say."""
        now = telemetry(pcie_tx_bytes=GIB, pcie_rx_bytes=GIB, c2c_tx_bytes=MIB, c2c_rx_bytes=MIB)
        assert "NVLink-C2C carried 2.00 MiB" in unmoved(now, self.CLAIMED, [GH200]).sentence

    def test_a_known_part_s_link_is_known_where_the_driver_does_not_say(self):
        silent = replace(GH200, nvlink_c2c=None)
        assert unmoved(telemetry(c2c_tx_bytes=0, c2c_rx_bytes=0), self.CLAIMED, [silent]) is not None

    @pytest.mark.parametrize(
        ("gpu", "now", "cache"),
        [
            (H200, {}, CLAIMED),
            (H200, {"pcie_tx_bytes": 0}, CLAIMED),
            (H200, {"pcie_tx_bytes": 0, "pcie_rx_bytes": 0}, CacheCounters()),
            (GH200, {"pcie_tx_bytes": 0, "pcie_rx_bytes": 0}, CLAIMED),
            (UNKNOWN, {"pcie_tx_bytes": 0, "pcie_rx_bytes": 0}, CLAIMED),
        ],
        ids=["no counter", "one way", "no claim", "C2C not counted", "unknown part"],
    )
    def test_what_is_not_known_accuses_nobody(self, gpu, now, cache):
        assert unmoved(telemetry(**now), cache, [gpu]) is None
