"""Detection through the real NVML binding, each in a fresh process, on machines that a stub makes up."""

from __future__ import annotations

import os

import pytest
from nvml import GPUS, LOST, NO_PERMISSION, NOT_SUPPORTED, UNKNOWN, error

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware import MARKS, PARTS, Requirement, declared, simulated_part
from pytest_llmperf.hardware.detect import remote

MACHINES = {
    ("gh200",): ("NVIDIA-GH200-96GB", ["gh200"], "1 x NVIDIA GH200 480GB (95.6 GiB)"),
    ("gh200 144",): ("NVIDIA-GH200-144GB", ["gh200"], "1 x NVIDIA GH200 144G HBM3e (143 GiB)"),
    ("h100",) * 8: ("8x-NVIDIA-H100-80GB-HBM3", ["h100"], "8 x NVIDIA H100 80GB HBM3 (79.6 GiB)"),
    ("h100 pcie",): ("NVIDIA-H100-80GB-PCIe", ["h100"], "1 x NVIDIA H100 PCIe (79.6 GiB)"),
    ("h200",): ("NVIDIA-H200", ["h200"], "1 x NVIDIA H200 (140 GiB)"),
    ("a100",): ("NVIDIA-A100-SXM4-40GB", ["a100"], "1 x NVIDIA A100-SXM4-40GB (40.0 GiB)"),
    ("a100 mig",): ("NVIDIA-A100-SXM4-40GB-MIG", [], "1 x NVIDIA A100-SXM4-40GB (40.0 GiB), MIG enabled"),
    ("l4",): ("NVIDIA-L4", ["l4"], "1 x NVIDIA L4 (22.5 GiB)"),
    ("rtx4090",): ("NVIDIA-RTX-4090", ["rtx4090"], "1 x NVIDIA GeForce RTX 4090 (24.0 GiB)"),
    ("a100 slices",): (
        "2x-NVIDIA-A100-SXM4-40GB-MIG-1g.5gb+NVIDIA-A100-SXM4-40GB-MIG-3g.20gb",
        [],
        "2 x NVIDIA A100-SXM4-40GB MIG 1g.5gb (4.75 GiB), 1 x NVIDIA A100-SXM4-40GB MIG 3g.20gb (19.5 GiB)",
    ),
    ("h200", "l4", "l4"): (
        "NVIDIA-H200+2x-NVIDIA-L4",
        ["h200", "l4"],
        "1 x NVIDIA H200 (140 GiB), 2 x NVIDIA L4 (22.5 GiB)",
    ),
}

NAMES = {
    "NVIDIA GH200 480GB": ("NVIDIA-GH200-96GB", "gh200"),
    "NVIDIA GH200 120GB": ("NVIDIA-GH200-96GB", "gh200"),
    "NVIDIA GH200 144G HBM3e": ("NVIDIA-GH200-144GB", "gh200"),
    "NVIDIA H100 80GB HBM3": ("NVIDIA-H100-80GB-HBM3", "h100"),
    "NVIDIA H100 PCIe": ("NVIDIA-H100-80GB-PCIe", "h100"),
    "NVIDIA H100 NVL": ("NVIDIA-H100-94GB-NVL", "h100"),
    "NVIDIA H200": ("NVIDIA-H200", "h200"),
    "NVIDIA H200 NVL": ("NVIDIA-H200-NVL", "h200"),
    "NVIDIA A100-SXM4-40GB": ("NVIDIA-A100-SXM4-40GB", "a100"),
    "NVIDIA A100-PCIE-40GB": ("NVIDIA-A100-PCIE-40GB", "a100"),
    "NVIDIA A100-SXM4-80GB": ("NVIDIA-A100-SXM4-80GB", "a100"),
    "NVIDIA A100 80GB PCIe": ("NVIDIA-A100-PCIE-80GB", "a100"),
    "NVIDIA L4": ("NVIDIA-L4", "l4"),
    "NVIDIA L40S": ("NVIDIA-L40S", "l40s"),
    "NVIDIA GeForce RTX 4090": ("NVIDIA-RTX-4090", "rtx4090"),
    "NVIDIA B200": ("NVIDIA-B200", "b200"),
    "NVIDIA GB200": ("NVIDIA-GB200", "gb200"),
}

LOOKALIKES = {
    "NVIDIA H100": "NVIDIA-H100",
    "NVIDIA H20-3e": "NVIDIA-H20-3e",
    "NVIDIA L40": "NVIDIA-L40",
    "NVIDIA GeForce RTX 4090 D": "NVIDIA-GeForce-RTX-4090-D",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "NVIDIA-GeForce-RTX-4090-Laptop-GPU",
    "NVIDIA GB300": "NVIDIA-GB300",
    "GRID A100-10C": "GRID-A100-10C",
}


@pytest.mark.parametrize("gpus", MACHINES, ids=" + ".join)
def test_a_machine_gets_its_key_its_marks_and_its_description(machine, found_on, gpus):
    """Key, satisfied marks and one-line description follow from what NVML reports."""
    key, marks, description = MACHINES[gpus]

    found = found_on(machine(*gpus))

    assert (found["key"], found["marks"], found["describe"]) == (key, marks, description)
    assert found["problem"] is None
    assert found["open_sessions"] == 0


def test_neither_slots_nor_drivers_nor_uuids_change_a_key(machine, found_on):
    """What an update, a repair or a reboot may change."""
    other = GPUS["h200"] | {"uuid": "GPU-8d3", "memory_reserved_mib": 900, "power_limit": 500_000, "c2c": error(13)}

    found = [found_on(machine("h200", "l4")), found_on(machine("l4", other, driver="595.1.2", cuda=13020))]

    assert [each["key"] for each in found] == ["NVIDIA-H200+NVIDIA-L4"] * 2


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_part_leads_to_its_key_and_its_mark_alone(machine, found_on, name):
    """A part's NVML name, matched whole, gives the key of its baselines and no other part's mark."""
    key, mark = NAMES[name]

    found = found_on(machine({"name": name}))

    assert (found["key"], found["marks"]) == (key, [mark])


def test_the_golden_names_are_those_of_the_table():
    """A part that is added to the table is added to the golden names, too."""
    assert {name: (part.key, part.mark) for part in PARTS for name in part.nvml_names} == NAMES


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_part_with_a_similar_name_satisfies_no_mark(machine, found_on, name):
    """A name that merely contains, or is contained in, a known one is another part with a key of its own."""
    found = found_on(machine({"name": name, "memory_mib": 97887}))

    assert (found["key"], found["marks"]) == (f"{LOOKALIKES[name]}-96GiB", [])


def test_an_unknown_part_without_memory_figures_is_known_by_its_name(machine, found_on):
    """A part whose memory calls are not supported, as on GB10, has no size in its key or description."""
    found = found_on(machine({"name": "NVIDIA GB10"}))

    assert (found["key"], found["describe"], found["marks"]) == ("NVIDIA-GB10", "1 x NVIDIA GB10", [])


def test_the_fingerprint_holds_all_that_the_driver_says(machine, found_on):
    """Of each GPU all that does not change from one second to the next, and the driver's versions."""
    fingerprint = found_on(machine("gh200"))["fingerprint"]

    assert fingerprint.pop("cpu")
    assert fingerprint == {
        "gpus": [
            {
                "name": "NVIDIA GH200 480GB",
                "memory_bytes": 97871 * 2**20,
                "uuid": "GPU-0",
                "compute_capability": [9, 0],
                "nvlink_c2c": True,
                "mig": False,
                "index": 0,
                "pci_bus_id": "00000000:01:00.0",
                "pci_device_id": "233010DE",
                "pci_subsystem_id": "16C110DE",
                "pcie_generation": 5,
                "pcie_generation_max": 5,
                "pcie_generation_gpu_max": 5,
                "pcie_width": 16,
                "pcie_width_max": 16,
                "nvlinks": 0,
                "ecc": True,
                "ecc_pending": True,
                "persistence": True,
                "power_limit_w": 700.0,
                "power_limit_default_w": 700.0,
                "sm_clock_max_mhz": 1980,
                "memory_clock_max_mhz": 2619,
                "numa_node": 0,
            }
        ],
        "driver": "570.133.20",
        "cuda": "12.8",
        "cpus": len(os.sched_getaffinity(0)),
        "declared": False,
        "key": "NVIDIA-GH200-96GB",
    }


def test_what_the_driver_does_not_say_is_absent(machine, found_on):
    """A call that is not supported, or not permitted, leaves its field out; a link that is not supported is none."""
    refused = ("uuid", "pci", "persistence", "ecc", "power_limit", "nvlinks", "pcie_width", "memory_affinity")
    gpu = {"name": "NVIDIA L4", "memory_mib": error(NOT_SUPPORTED)} | dict.fromkeys(refused, error(NO_PERMISSION))

    fingerprint = found_on(machine(gpu, driver=None, cuda=None))["fingerprint"]

    assert fingerprint["gpus"] == [{"name": "NVIDIA L4", "index": 0, "nvlink_c2c": False}]
    assert fingerprint.keys() == {"gpus", "cpu", "cpus", "declared", "key"}


def test_a_link_that_is_off_is_told_from_one_that_is_unknown(machine, found_on):
    """C2C is false where the driver says so or does not support it, and absent where one may not ask."""
    hidden = {"name": "NVIDIA L4", "c2c": error(NO_PERMISSION)}

    gpus = found_on(machine("gh200", "h200", "l4", hidden))["fingerprint"]["gpus"]

    assert [gpu.get("nvlink_c2c") for gpu in gpus] == [True, False, False, None]


def test_a_driver_without_the_late_functions_is_enough(machine, found_on):
    """A function that the driver's library lacks costs its field and nothing else."""
    found = found_on(machine("gh200", library="old"))

    assert (found["key"], found["marks"], found["problem"]) == ("NVIDIA-GH200-96GB", ["gh200"], None)
    assert found["fingerprint"]["driver"] == "570.133.20"
    assert "cuda" not in found["fingerprint"]
    assert GPUS["gh200"].keys() > {"c2c", "mig", "memory_affinity", "pcie_generation_gpu_max"}
    assert not found["fingerprint"]["gpus"][0].keys() & {"nvlink_c2c", "mig", "pcie_generation_gpu_max"}
    assert found["fingerprint"]["gpus"][0]["power_limit_w"] == 700


def test_a_binding_without_the_c2c_call_is_enough(machine, found_on):
    """Bindings before 12.550 lack `nvmlDeviceGetC2cModeInfoV`: what only such a part has still tells."""
    unknown = {name: value for name, value in GPUS["gh200"].items() if name != "addressing_mode"}
    counted = [unknown | {"fields": {"170": number}} for number in (1, 0)]

    found = found_on(machine("gh200", unknown, *counted), before="import pynvml; del pynvml.nvmlDeviceGetC2cModeInfoV")

    assert found["marks"] == ["gh200"]
    assert [gpu.get("nvlink_c2c") for gpu in found["fingerprint"]["gpus"]] == [True, None, True, False]


@pytest.mark.parametrize(("number", "version"), [(12040, "12.4"), (12080, "12.8"), (13000, "13.0")])
def test_cuda_is_read_from_its_number(machine, found_on, number, version):
    """NVML packs major and minor CUDA version into one number."""
    assert found_on(machine("l4", cuda=number))["fingerprint"]["cuda"] == version


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ({"init_error": 4}, "NVML: Insufficient Permissions; see who may read /dev/nvidiactl"),
        (
            {"init_error": 9},
            "NVML: Driver Not Loaded; load the driver's kernel module (modprobe nvidia) and look at dmesg",
        ),
        (
            {"init_error": 18},
            "NVML: RM has detected an NVML/RM version mismatch; "
            "the driver was updated under way: reboot, or load its kernel modules again",
        ),
        ({"init_error": 27}, "NVML: stub error 27"),
        (
            {"init_error": 999},
            "NVML: Unknown Error; look at dmesg; in a container that once had its GPUs, start it anew",
        ),
        (
            {"count_error": 999},
            "NVML: Unknown Error; look at dmesg; in a container that once had its GPUs, start it anew",
        ),
    ],
    ids=str,
)
def test_a_driver_that_fails_is_a_problem_with_a_reason(machine, found_on, lines, problem):
    """An error of NVML ends in a reason and no GPU, never in an exception."""
    found = found_on(machine("h200", **lines))

    assert found["problem"] == problem
    assert found["describe"] == f"no GPU ({problem})"
    assert found["fingerprint"]["driver_fails"]
    assert (found["marks"], found["fingerprint"]["gpus"], found["open_sessions"]) == ([], [], 0)


def test_an_error_at_the_very_end_costs_nothing(machine, found_on):
    """What NVML has said before it failed to shut down stands."""
    found = found_on(machine("h200", shutdown_error=999))

    assert (found["key"], found["problem"]) == ("NVIDIA-H200", None)


LOST_GPUS = ("lost", {"name": "NVIDIA H200", "memory_mib": error(LOST)}, {"name": error(UNKNOWN)})


@pytest.mark.parametrize("lost", LOST_GPUS[:2], ids=["at once", "in between"])
def test_a_lost_gpu_is_a_problem_with_a_reason(machine, found_on, lost):
    """A GPU that fell off the bus is said, not passed over, and NVML is shut down all the same."""
    problem = "NVML: GPU is lost (GPU 1); it fell off the bus: look for an Xid in dmesg, then reset it or reboot"

    found = found_on(machine("h200", lost))

    assert found["problem"] == f"{problem}; or leave it out with CUDA_VISIBLE_DEVICES"
    assert (found["marks"], found["open_sessions"]) == ([], 0)
    assert found["fingerprint"]["driver_fails"]
    alone = found_on(machine("h200", lost) | {"CUDA_VISIBLE_DEVICES": "1"})
    assert (alone["problem"], alone["marks"]) == (problem, [])


@pytest.mark.parametrize("lost", LOST_GPUS, ids=["at once", "in between", "by another error"])
def test_a_lost_gpu_that_is_not_selected_does_not_matter(machine, found_on, lost):
    """The healthy one is measured on, by its number and by its UUID; the numbers stay as they were."""
    for devices in ("1", "GPU-1"):
        found = found_on(machine(lost, "h200") | {"CUDA_VISIBLE_DEVICES": devices})

        assert (found["key"], found["problem"], found["marks"]) == ("NVIDIA-H200", None, ["h200"])
        assert [gpu["index"] for gpu in found["fingerprint"]["gpus"]] == [1]
        assert found["fingerprint"]["notes"] == [
            f"CUDA_VISIBLE_DEVICES={devices!r} hides 1 of 2 GPUs; unset it to use all"
        ]


def test_a_withheld_gpu_does_not_hide_the_others(machine, found_on):
    """NVML counts devices that a container withholds and then refuses their handles; the rest is found."""
    withheld = {"handle": error(NO_PERMISSION), "name": "NVIDIA H200"}

    found = found_on(machine(withheld, "h200", withheld))

    assert (found["key"], found["problem"]) == ("NVIDIA-H200", None)
    assert [gpu["uuid"] for gpu in found["fingerprint"]["gpus"]] == ["GPU-1"]


@pytest.mark.parametrize(
    "gpus", [(), ({"handle": error(NO_PERMISSION), "name": "NVIDIA H200"},)], ids=["none", "withheld"]
)
def test_a_driver_without_a_device_is_a_problem_with_a_reason(machine, found_on, gpus):
    """A driver that offers this process no device is told apart from a missing driver."""
    found = found_on(machine(*gpus))

    assert found["describe"] == "no GPU (NVML lists no device that this process may use)"
    assert found["fingerprint"]["driver"] == "570.133.20"


def test_no_driver_is_a_problem_with_a_reason(no_driver, found_on):
    """Without NVML's library there is no GPU, no driver, and the processor gives the key."""
    found = found_on(no_driver)

    assert found["describe"] == "no GPU (NVML: Shared Library Not Found; is NVIDIA's driver installed?)"
    assert found["marks"] == []
    assert found["key"].startswith("CPU-")
    assert found["fingerprint"].keys() == {"gpus", "cpu", "cpus", "problem", "declared", "key"}


def test_no_binding_is_a_problem_with_a_reason(no_driver, found_on):
    """Without the package nvidia-ml-py nothing is asked, and the reason names the package."""
    found = found_on(no_driver, before="import sys; sys.modules['pynvml'] = None")

    assert found["describe"] == "no GPU (the package nvidia-ml-py is not installed)"


@pytest.mark.parametrize(
    ("cpuinfo", "slug"),
    [
        ("processor : 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz\n", "Intel-Xeon-Platinum-8480C"),
        ("processor : 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\n", "AMD-EPYC-9654-96-Core-Processor"),
        ("processor : 0\nCPU implementer\t: 0x41\n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_without_a_gpu_the_processor_gives_the_key(no_driver, found_on, cpuinfo, slug):
    """The key names the processor and the cores that this process may use; Arm names no model."""
    text = "(_ for _ in ()).throw(FileNotFoundError())" if cpuinfo is None else repr(cpuinfo)
    before = (
        "import os, pathlib, platform\n"
        f"pathlib.Path.read_text = lambda *_, **__: {text}\n"
        "platform.processor, platform.machine = (lambda: ''), (lambda: 'aarch64')\n"
        "os.sched_getaffinity = lambda pid: {0, 1, 2}\n"
    )

    assert found_on(no_driver, before=before)["key"] == f"CPU-{slug}-3-cores"


def test_detecting_twice_finds_the_same(machine, found_on):
    """NVML can be asked again in one process: nothing of the first session is left open."""
    before = "from pytest_llmperf.hardware import detect; assert detect() == detect() and detect().gpus"

    found = found_on(machine("h200"), before=before)

    assert (found["key"], found["open_sessions"]) == ("NVIDIA-H200", 0)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.key)
@pytest.mark.parametrize(("prefix", "count"), [("", 1), ("16x-", 16)])
def test_every_key_can_be_declared_with_and_without_a_count(part, prefix, count):
    """A key names so many of a part, with what the part is known to have, and is marked as declared."""
    hardware = declared(f"{prefix}{part.key}")

    assert hardware.key == f"{prefix}{part.key}"
    assert hardware.declared
    assert [gpu.part for gpu in hardware.gpus] == [part] * count
    assert hardware.fingerprint() == {
        "gpus": [
            {
                "name": part.nvml_names[0],
                "memory_bytes": part.memory_mib * 2**20,
                "compute_capability": part.compute_capability,
                "nvlink_c2c": part.nvlink_c2c,
            }
        ]
        * count,
        "declared": True,
        "key": hardware.key,
    }


def test_a_declared_count_of_one_is_the_plain_key():
    """`1x-` in front changes nothing, so that both spellings meet the same baselines."""
    assert declared("1x-NVIDIA-H200") == declared("NVIDIA-H200")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "gh200",
        "NVIDIA GH200 480GB",
        "nvidia-h200",
        "0x-NVIDIA-H200",
        "-1x-NVIDIA-H200",
        "2x-",
        "2x-H200",
        "1e9x-L4",
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_accepted_ones(key):
    """The message repeats what was given, lists every key, and shows how a count is written."""
    with pytest.raises(ConfigurationError) as caught:
        declared(key)

    (problem,) = caught.value.problems
    assert problem.startswith(f"unknown hardware key {key!r}; accepted: ")
    assert all(part.key in problem for part in PARTS)
    assert "2x-NVIDIA-H200" in problem


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
@pytest.mark.parametrize(("prefix", "counted", "count"), [("", "", 1), ("1x-", "", 1), ("4x-", "4x-", 4)])
def test_every_part_can_be_simulated_with_and_without_a_count(part, prefix, counted, count):
    """It satisfies the part's mark, and its results lie apart from those of the part itself."""
    hardware = declared(f"sim:{prefix}{part.name}")

    assert (f"sim-{counted}{part.name}", part.name, True, True) == (
        hardware.key,
        hardware.part,
        hardware.simulated,
        hardware.declared,
    )
    assert [part] * count == [gpu.part for gpu in hardware.gpus]
    assert [part.mark] == [mark for mark in MARKS if Requirement(parts=(mark,)).unmet_by(hardware) is None]
    assert f"simulated {count} x {part.nvml_names[0]}" in hardware.describe()
    assert (True, part.name) == (hardware.fingerprint()["simulated"], hardware.fingerprint()["part"])
    assert part.name == simulated_part(f"sim:{prefix}{part.name}")


@pytest.mark.parametrize("key", ["sim:", "sim:GH200", "sim:0x-h100", "sim:x-h100", "sim:NVIDIA-H200"])
def test_an_unknown_simulated_part_is_an_error_that_names_the_known_ones(key):
    """With the one that may have been meant."""
    with pytest.raises(ConfigurationError) as caught:
        declared(key)

    (problem,) = caught.value.problems
    assert problem.startswith(f"unknown part {key.removeprefix('sim:')!r}")
    assert all(part.name in problem for part in PARTS)


@pytest.mark.parametrize("key", [None, "NVIDIA-H200", "gh200", "2x-NVIDIA-H200"])
def test_other_keys_simulate_nothing(key):
    """Nor does their absence."""
    assert simulated_part(key) is None


def test_measured_hardware_does_not_say_that_it_is_not_simulated():
    """A fingerprint from before there was a simulation looks like one from after."""
    assert not {"simulated", "part"} & declared("NVIDIA-H200").fingerprint().keys()


def test_names_and_keys_of_parts_are_their_own():
    """No two parts share one, and the first of a mark's parts is simulated by the mark's name."""
    assert len({part.name for part in PARTS}) == len({part.key for part in PARTS}) == len(PARTS)
    assert set(MARKS) <= {part.name for part in PARTS}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_s_rates_are_in_their_units(part):
    """A slip of a power of ten, or FLOP/s with sparsity, would be outside; each says where it is from."""
    figures = [part.bandwidth, part.flops_16bit, part.host_link, part.gpu_link, *filter(None, [part.flops_fp8])]

    assert 0.2e12 < part.bandwidth.value < 10e12
    assert 100e12 < part.flops_16bit.value < 3000e12
    assert part.flops_fp8 is None or part.flops_fp8.value == pytest.approx(2 * part.flops_16bit.value, rel=0.02)
    assert (part.flops_fp8 is None) == (part.compute_capability < (8, 9))
    assert 30e9 < part.host_link.value < 500e9
    assert part.nvlink_c2c == (part.host_link.value > 100e9)
    assert all(figure.source for figure in figures)


def test_a_remote_machine_is_kept_apart_by_its_host():
    """Behind a URL nothing is known but the host, and nothing is claimed."""
    hardware = remote("gpu-7.example.com")

    assert hardware.key == "remote-gpu-7.example.com"
    assert hardware.describe() == "no GPU (the server runs on gpu-7.example.com)"
    assert hardware.fingerprint().keys() == {"gpus", "problem", "declared", "key"}
