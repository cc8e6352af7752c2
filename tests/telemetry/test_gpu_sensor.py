"""One GPU through NVML's real binding, over the stub: what it offers, what it does not, and when it goes away."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from nvml import GPUS, LOST, NO_PERMISSION, NOT_SUPPORTED, UNKNOWN, error, over_time, ramp

from pytest_llmperf.clock import NS_PER_S
from pytest_llmperf.readings import GpuSample
from pytest_llmperf.telemetry.gpu import FieldBlock, GpuAddress, GpuSensor
from pytest_llmperf.units import MIB

BUSY = GPUS["h200"] | {
    "clock": {"sm": 1755, "memory": 3201},
    "temperature": 64,
    "utilisation": [93, 40],
    "memory_used_mib": 1000,
    "clock_reasons": 0x24,
    "processes": [{"pid": 4711, "memory_mib": 900}, {"pid": 4712, "memory_mib": None}],
    "fields": {
        "186": 655_500, "185": 600_000, "83": 5_000_250,
        "74": 7_000, "75": 1, "76": 2, "77": 3, "78": 4, "79": 5, "269": 6, "270": 8, "271": 9,
        "197": 1_000, "198": 2_000, "138/4294967295": 3, "139/4294967295": 4,
        "3": 10, "4": 11, "5": 12, "6": 13, "142": 14, "143": 15, "144": 1, "145": 0,
    },
}  # fmt: skip
OFTEN = {"sm_clock_mhz", "power_w", "energy_j", "utilisation", "clock_reasons", "throttled_ns"}
RARELY = {
    "memory_clock_mhz", "temperature_c", "memory_used_bytes", "pcie_tx_bytes", "pcie_rx_bytes", "nvlink_tx_bytes",
    "nvlink_rx_bytes", "pcie_generation", "pcie_width", "ecc", "processes",
}  # fmt: skip
CALLS = (
    "clock", "temperature", "utilisation", "memory_mib", "clock_reasons", "power", "energy", "pcie_generation",
    "pcie_width", "processes",
)  # fmt: skip


@pytest.fixture
def sensor(nvml_here):
    """`sensor(gpu)`: it and the stub, within a session of NVML."""
    import pynvml

    opened = []

    def make(gpu, **words):
        stub = nvml_here(gpu, **words)
        pynvml.nvmlInit()
        opened.append(stub)
        return GpuSensor(pynvml, GpuAddress(0, index=0, uuid="GPU-0")), stub

    yield make
    for _ in opened:
        pynvml.nvmlShutdown()


def known(sample):
    """The fields that a sample has."""
    return {name for name, value in asdict(sample).items() if value is not None} - {"at_ns", "gpu"}


def test_a_sample_has_every_field_in_our_units(sensor):
    """Watts, joules, bytes and shares, from NVML's milliwatts, millijoules, KiB and percent."""
    gpu, _ = sensor(BUSY)

    assert gpu.read(7, everything=True) == GpuSample(
        at_ns=7,
        gpu=0,
        sm_clock_mhz=1755,
        memory_clock_mhz=3201,
        power_w=pytest.approx(655.5),
        energy_j=pytest.approx(5000.25),
        temperature_c=64,
        utilisation=0.93,
        memory_used_bytes=1000 << 20,
        clock_reasons=0x24,
        throttled_ns={
            "sw_power_cap": 7000, "thermal": 1, "sync_boost": 2, "board_limit": 3, "low_utilisation": 4,
            "reliability": 5, "sw_thermal": 6, "hw_thermal": 8, "hw_power_brake": 9,
        },
        pcie_tx_bytes=1000,
        pcie_rx_bytes=2000,
        nvlink_tx_bytes=3 * 1024,
        nvlink_rx_bytes=4 * 1024,
        pcie_generation=5,
        pcie_width=16,
        ecc={
            "corrected": 10, "uncorrected": 11, "corrected_lifetime": 12, "uncorrected_lifetime": 13,
            "rows_remapped_corrected": 14, "rows_remapped_uncorrected": 15, "row_remap_pending": 1,
            "row_remap_failed": 0,
        },
        processes={4711: 900 << 20, 4712: None},
    )  # fmt: skip


def test_what_changes_slowly_is_read_only_when_everything_is(sensor):
    """Temperature, memory, links, ECC and processes are neither in the frequent samples nor asked for."""
    rare = ("temperature", "memory_mib", "pcie_width")
    gpu, stub = sensor(BUSY)
    before = [stub.asked(key) for key in rare]

    sample = gpu.read(0, everything=False)

    assert known(sample) == OFTEN
    assert [stub.asked(key) for key in rare] == before
    assert known(gpu.read(0, everything=True)) == OFTEN | RARELY
    assert [stub.asked(key) - asked for key, asked in zip(rare, before, strict=True)] == [1] * len(rare)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_what_is_not_offered_is_absent_and_never_asked_again(sensor, code):
    """Neither a zero nor an error; and no call that was refused once is made once more."""
    refused = {name: error(code) for name in (*CALLS, "fields")}
    gpu, stub = sensor({"name": "NVIDIA H200"} | refused)
    asked = {name: stub.asked(name) for name in refused}

    samples = [gpu.read(at_ns, everything=True) for at_ns in range(3)]

    assert samples == [GpuSample(at_ns=at_ns, gpu=0) for at_ns in range(3)]
    assert {name: stub.asked(name) for name in refused} == asked
    assert all(asked.values())
    assert gpu.lost is None


@pytest.mark.parametrize("missing", ["clock", "temperature", "utilisation", "memory_mib", "clock_reasons", "processes"])
def test_one_refused_call_costs_its_own_fields(sensor, missing):
    """The others are read as before."""
    fields = {
        "clock": {"sm_clock_mhz", "memory_clock_mhz"},
        "temperature": {"temperature_c"},
        "memory_mib": {"memory_used_bytes"},
    }.get(missing, {missing})
    gpu, _ = sensor(BUSY | {missing: error(NOT_SUPPORTED)})

    assert known(gpu.read(0, everything=True)) == (OFTEN | RARELY) - fields


def test_each_field_value_is_held_to_its_own_code(sensor):
    """One counter that is not permitted leaves the others of the same call in place."""
    gpu, _ = sensor(BUSY | {"fields": BUSY["fields"] | {"270": error(NO_PERMISSION), "4": error(NOT_SUPPORTED)}})

    sample = gpu.read(0, everything=True)

    assert "hw_thermal" not in sample.throttled_ns
    assert sample.throttled_ns["sw_thermal"] == 6
    assert "uncorrected" not in sample.ecc
    assert sample.ecc["corrected"] == 10


@pytest.mark.parametrize(
    ("fields", "watts"),
    [({"186": 500_000, "185": 400_000}, 500.0), ({"185": 400_000}, 400.0), ({}, 70.0)],
    ids=["at the moment", "the field's average", "the call's average"],
)
def test_power_is_that_of_the_moment_where_it_is_offered(sensor, fields, watts):
    """Else an average, of the field value or of the call."""
    gpu, _ = sensor(BUSY | {"fields": fields})

    assert gpu.read(0, everything=False).power_w == pytest.approx(watts)


def test_energy_comes_from_the_call_where_no_field_has_it(sensor):
    """The same counter under its older name."""
    gpu, _ = sensor(BUSY | {"fields": {"186": 500_000}, "energy": 12_500})

    assert gpu.read(0, everything=False).energy_j == pytest.approx(12.5)


@pytest.mark.parametrize(("kind", "raw"), [(0, 12.0), (1, 12), (3, 12), (4, 12), (5, 12), (6, 12)])
def test_a_field_value_is_read_by_its_type(sensor, kind, raw):
    """The driver says for each value which member of the union holds it."""
    gpu, _ = sensor(BUSY | {"fields": {"197": raw}, "field_types": {"197": kind}})

    assert gpu.read(0, everything=True).pcie_tx_bytes == 12


def test_a_value_of_an_unknown_type_is_absent(sensor):
    """Of a driver that is newer than we are: its bytes would mean anything."""
    gpu, _ = sensor(BUSY | {"fields": {"197": 12, "198": 13}, "field_types": {"197": 7}})

    sample = gpu.read(0, everything=True)

    assert (sample.pcie_tx_bytes, sample.pcie_rx_bytes) == (None, 13)


def test_a_field_that_spoils_the_whole_call_costs_no_other(sensor, monkeypatch):
    """An older driver may refuse a call for one number that it does not know."""
    ask = FieldBlock.ask

    def refusing(block, handle):
        return 2 if any(field.number == 271 for field in block.fields) else ask(block, handle)

    monkeypatch.setattr(FieldBlock, "ask", refusing)
    gpu, _ = sensor(BUSY)

    sample = gpu.read(0, everything=True)

    assert sample.throttled_ns.keys() == {
        "sw_power_cap", "thermal", "sync_boost", "board_limit", "low_utilisation", "reliability", "sw_thermal",
        "hw_thermal",
    }  # fmt: skip
    assert sample.energy_j == pytest.approx(5000.25)
    assert sample.pcie_tx_bytes == 1000


def test_an_old_driver_is_asked_in_its_own_words(sensor):
    """Temperature and clock reasons under their older names; what has no older name is absent."""
    gpu, _ = sensor(BUSY | {"fields": error(NOT_SUPPORTED)}, library="old")

    sample = gpu.read(0, everything=True)

    assert (sample.temperature_c, sample.clock_reasons, sample.power_w) == (64, 0x24, 70.0)
    assert (sample.energy_j, sample.processes, sample.throttled_ns) == (None, None, None)


def test_values_are_those_of_the_moment(sensor):
    """Nothing of an earlier sample is kept."""
    gpu, stub = sensor(
        BUSY | {"temperature": ramp((0, 40), (10, 80)), "clock_reasons": over_time((0, 1), (5, 0x40))},
    )

    seen = []
    for _ in range(3):
        sample = gpu.read(0, everything=True)
        seen.append((sample.temperature_c, sample.clock_reasons))
        stub.advance(5)

    assert seen == [(40, 1), (60, 0x40), (80, 0x40)]


def test_a_value_that_fails_once_is_absent_once(sensor):
    """An error that does not say that the GPU is gone ends nothing."""
    flaky = over_time((0, 50), (1, error(UNKNOWN)), (2, 52))
    gpu, stub = sensor(
        BUSY | {"temperature": flaky, "fields": BUSY["fields"] | {"74": over_time((0, 1), (1, error(999)), (2, 3))}}
    )

    seen = []
    for _ in range(3):
        sample = gpu.read(0, everything=True)
        seen.append((sample.temperature_c, sample.throttled_ns.get("sw_power_cap")))
        stub.advance(1)

    assert seen == [(50, 1), (None, None), (52, 3)]
    assert gpu.lost is None


def test_a_gpu_that_falls_off_the_bus_says_so_and_is_asked_no_more(sensor):
    """Its last sample stays the last."""
    gpu, stub = sensor(GPUS["lost in mid-run"])
    assert gpu.read(0, everything=True) is not None

    stub.advance(20)
    first = gpu.read(1, everything=False)
    asked = stub.asked("fields")
    second = gpu.read(2, everything=True)

    assert (first, second, gpu.lost) == (None, None, "GPU is lost")
    assert stub.asked("fields") == asked


@pytest.mark.parametrize("where", ["fields", "83"])
def test_a_loss_is_seen_wherever_it_is_said(sensor, where):
    """As the code of the call that reads many values, or of one of them."""
    gone = over_time((0, 1), (5, error(LOST)))
    script = (
        {"fields": over_time((0, BUSY["fields"]), (5, error(LOST)))}
        if where == "fields"
        else {"fields": BUSY["fields"] | {where: gone}}
    )
    gpu, stub = sensor(BUSY | script)
    stub.advance(6)

    assert (gpu.read(0, everything=False), gpu.lost) == (None, "GPU is lost")


@pytest.mark.parametrize(
    ("gpu", "said"),
    [(GPUS["lost"], "GPU is lost"), (GPUS["withheld"], "Insufficient Permissions")],
    ids=["lost", "withheld"],
)
def test_a_gpu_that_cannot_be_opened_is_lost_from_the_beginning(sensor, gpu, said):
    """With NVML's reason; making its sensor raises nothing."""
    made, _ = sensor(gpu)

    assert (made.read(0, everything=True), made.lost) == (None, said)


def test_a_gpu_without_a_uuid_is_opened_by_its_number(nvml_here):
    """NVML's own number, where that differs from its place among those that may be seen."""
    import pynvml

    nvml_here("l4", "h200")
    pynvml.nvmlInit()
    try:
        sample = GpuSensor(pynvml, GpuAddress(0, index=1)).read(0, everything=True)
        assert sample.pcie_generation == GPUS["h200"]["pcie_generation"]
    finally:
        pynvml.nvmlShutdown()


def test_an_older_binding_is_enough(sensor, monkeypatch):
    """Functions that a binding lacks are like those that a driver lacks."""
    import pynvml

    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV")
    monkeypatch.delattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons")
    gpu, _ = sensor(BUSY)

    sample = gpu.read(0, everything=True)

    assert (sample.temperature_c, sample.clock_reasons) == (64, 0x24)


class TestLinksByRates:
    """GPM has no counters of what links carried, but rates between two samples of its own."""

    COHERENT = GPUS["gh200"]

    @staticmethod
    def carried(gpu, stub, *seconds):
        """The C2C bytes of each of these moments, in everything that is read then."""
        found, now = [], 0.0
        for at_s in seconds:
            stub.advance(at_s - now)
            now = at_s
            sample = gpu.read(round(at_s * NS_PER_S), everything=True)
            found.append((sample.c2c_tx_bytes, sample.c2c_rx_bytes))
        return found

    def test_they_are_counted_from_the_first_reading_on(self, sensor):
        """Of a GH200: PCIe has counters of its own, and no NVLink to peers is up."""
        gpu, stub = sensor(self.COHERENT)

        assert self.carried(gpu, stub, 0, 1, 3.5) == [
            (None, None),
            (1000 * MIB, 3000 * MIB),
            (3500 * MIB, 10_500 * MIB),
        ]
        sample = gpu.read(0, everything=True)
        assert (sample.pcie_tx_bytes, sample.nvlink_tx_bytes) == (3500, None)

    def test_a_frequent_reading_begins_and_costs_nothing_more(self, sensor):
        """Before a run they are taken anyway, so that the run's first sample has the bytes."""
        gpu, stub = sensor(self.COHERENT)

        for at_s in range(3):
            gpu.read(at_s * NS_PER_S, everything=False)
            stub.advance(1)

        assert stub.asked("gpm sample") == 1
        assert gpu.read(3 * NS_PER_S, everything=True).c2c_tx_bytes == 3000 * MIB

    def test_a_look_before_a_run_leaves_its_first_sample_the_bytes(self, sensor):
        """It may be over a millisecond before the run begins."""
        gpu, stub = sensor(self.COHERENT)

        for _ in range(2):
            gpu.read(0, everything=True, links=False)
        stub.advance(1)
        assert gpu.read(NS_PER_S - 10, everything=True, links=False).c2c_tx_bytes is None
        assert gpu.read(NS_PER_S, everything=True).c2c_tx_bytes == 1000 * MIB

    def test_sooner_than_the_driver_renews_its_samples_nothing_is_asked(self, sensor):
        """The bytes are absent then, and in the next reading."""
        gpu, stub = sensor(self.COHERENT)

        assert self.carried(gpu, stub, 0, 1, 1.05, 2) == [
            (None, None),
            (1000 * MIB, 3000 * MIB),
            (None, None),
            (2000 * MIB, 6000 * MIB),
        ]
        assert stub.asked("gpm sample") == 3

    def test_what_passes_while_the_driver_does_not_answer_is_told_later(self, sensor):
        """A hole in the answers is none in the bytes."""
        script = self.COHERENT["gpm"]
        gpu, stub = sensor(self.COHERENT | {"gpm": over_time((0, script), (1.5, error(UNKNOWN)), (2.5, script))})

        assert self.carried(gpu, stub, 0, 1, 2, 3)[2:] == [(None, None), (3000 * MIB, 9000 * MIB)]

    def test_so_it_is_where_one_metric_fails(self, sensor):
        """The other waits for it, since both are of the same two samples."""
        flaky = over_time((0, 10), (1.5, error(UNKNOWN)), (2.5, 70))
        gpu, stub = sensor(self.COHERENT | {"gpm": self.COHERENT["gpm"] | {"101": flaky}})

        assert self.carried(gpu, stub, 0, 1, 2, 3)[1:] == [(1000 * MIB, 0), (None, None), (3000 * MIB, 60 * MIB)]

    @pytest.mark.parametrize(
        ("script", "lines"),
        [
            (GPUS["l4"] | {"c2c": 1}, {}),
            (GPUS["gh200"], {"library": "old"}),
            (GPUS["gh200"] | {"gpm": error(NO_PERMISSION)}, {}),
            (GPUS["gh200"] | {"gpm": {}}, {}),
            (GPUS["gh200"] | {"gpm": {"100": error(NOT_SUPPORTED), "101": error(NOT_SUPPORTED)}}, {}),
            (GPUS["gh200"], {"gpm_room": 1}),
            (GPUS["h200"], {}),
        ],
        ids=["older part", "old driver", "no permission", "no metric", "no such metric", "no memory", "no C2C"],
    )
    def test_where_it_is_not_offered_it_is_absent_and_not_asked_again(self, sensor, script, lines):
        """And nothing of the driver's is kept."""
        gpu, stub = sensor(script, **lines)

        assert self.carried(gpu, stub, 0, 1, 2, 3) == [(None, None)] * 4
        assert (gpu.lost, gpu.lag_s, stub.gpm_samples) == (None, 0.0, 0)
        assert stub.asked("gpm sample") <= 2

    def test_a_binding_without_it_is_enough(self, sensor, monkeypatch):
        """Older than the driver."""
        import pynvml

        monkeypatch.delattr(pynvml, "nvmlGpmQueryDeviceSupport")
        gpu, stub = sensor(self.COHERENT)

        assert self.carried(gpu, stub, 0, 1) == [(None, None)] * 2

    def test_the_driver_gets_its_memory_back(self, sensor):
        """Two samples, when the sensor is closed; once more is no error."""
        gpu, stub = sensor(self.COHERENT)
        assert (stub.gpm_samples, gpu.lag_s) == (2, pytest.approx(0.12))

        gpu.close()
        gpu.close()

        assert (stub.gpm_samples, gpu.lag_s) == (0, 0.0)

    def test_a_loss_in_it_is_a_loss(self, sensor):
        """Nothing is asked any more, and the memory can still be given back."""
        gpu, stub = sensor(
            self.COHERENT | {"gpm": over_time((0, self.COHERENT["gpm"]), (2, error(LOST)))},
        )
        assert self.carried(gpu, stub, 0, 1)[1] == (1000 * MIB, 3000 * MIB)
        stub.advance(2)

        assert (gpu.read(3 * NS_PER_S, everything=True), gpu.lost, gpu.lag_s) == (None, "GPU is lost", 0.0)
        gpu.close()
        assert stub.gpm_samples == 0

    def test_links_without_a_counter_are_told_by_rates(self, sensor):
        """NVLink of an H100 and PCIe, where the driver has no field of them."""
        script = {"20": ramp((0, 0), (10, 10)), "21": ramp((0, 0), (10, 20)), "60": ramp((0, 0), (10, 30)), "61": 0}
        gpu, stub = sensor(GPUS["h100"] | {"fields": {"186": 500_000}, "gpm": script})

        gpu.read(0, everything=True)
        stub.advance(10)
        sample = gpu.read(10 * NS_PER_S, everything=True)

        assert (sample.pcie_tx_bytes, sample.pcie_rx_bytes) == (10 * MIB, 20 * MIB)
        assert (sample.nvlink_tx_bytes, sample.nvlink_rx_bytes) == (0, 30 * MIB)
        assert sample.c2c_tx_bytes is None
