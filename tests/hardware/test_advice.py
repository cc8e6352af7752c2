"""What the doctor advises on machines that are set badly, each in one way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmperf.hardware import Gpu, Hardware, Host, Use, advise
from pytest_llmperf.hardware.advice import GPU_RULES, HOST_RULES

GIB, MIB = 2**30, 2**20
GOOD = Gpu(
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-0",
    index=0,
    mig=False,
    pcie_generation=5,
    pcie_generation_max=5,
    pcie_generation_gpu_max=5,
    pcie_width=16,
    pcie_width_max=16,
    ecc=True,
    ecc_pending=True,
    persistence=True,
    power_limit_w=700.0,
    power_limit_default_w=700.0,
)
IDLE = Use(memory_used_bytes=0, processes=0)
KEPT_WELL = Host(governors=("performance",) * 4, swap_used_bytes=0)


def advice_on(gpu=GOOD, use=IDLE, host=KEPT_WELL):
    return advise(Hardware(gpus=(gpu,)), host, {"GPU-0": use})


def test_nothing_is_said_of_a_machine_that_is_kept_well():
    """Advice that is always there is read by nobody."""
    assert advice_on() == []


def test_c2c_that_is_down_is_said_of_parts_that_have_it():
    """Where the driver says so: without that link offload is another thing. Others never had one."""
    grace = replace(GOOD, name="NVIDIA GH200 480GB", memory_bytes=97871 * MIB)

    (sentence,) = advice_on(replace(grace, nvlink_c2c=False))

    assert sentence == (
        "GPU 0: its NVLink-C2C to the CPU is down, so that KV offload goes another, slower way; see nvidia-smi c2c -s "
        "-i 0 and dmesg, then reset the machine or update its firmware"
    )
    for fine in (replace(grace, nvlink_c2c=True), replace(grace, nvlink_c2c=None), replace(GOOD, nvlink_c2c=False)):
        assert advice_on(fine) == []


def test_nothing_is_said_of_what_is_unknown():
    """A driver that answers little, and an operating system that answers nothing, give no advice."""
    assert advise(Hardware(gpus=(Gpu(name="NVIDIA GB10"),)), Host(), {}) == []
    assert advise(Hardware(problem="NVML: Driver Not Loaded"), Host(), {}) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"persistence": False},
            "persistence mode is off, so each first use waits for the driver; sudo nvidia-smi -i 0 -pm 1",
        ),
        (
            {"power_limit_w": 500.0},
            "its power limit is 500 W, 700 W by default; sudo nvidia-smi -i 0 -pl 700",
        ),
        (
            {"pcie_width": 8},
            "its PCIe link has 8 of 16 lanes; reseat it, or find out what shares the slot",
        ),
        (
            {"pcie_generation": 1},
            "its PCIe link is at generation 1 of 5, which is normal while idle; look again under load: "
            "nvidia-smi -i 0 --query-gpu=pcie.link.gen.current --format=csv",
        ),
        (
            {"pcie_generation": 4, "pcie_generation_max": 4},
            "its slot offers PCIe generation 4, it could do 5; try another slot, or the firmware's settings",
        ),
        (
            {"ecc": False, "ecc_pending": False},
            "ECC is off, unlike on most servers; sudo nvidia-smi -i 0 -e 1, and reboot",
        ),
        (
            {"ecc": False, "ecc_pending": True},
            "ECC goes on at the next reboot; reboot before a baseline is stored",
        ),
        (
            {"ecc_pending": False},
            "ECC goes off at the next reboot; reboot before a baseline is stored",
        ),
        (
            {"mig": True},
            "MIG is on, with no slice to use; make one (nvidia-smi mig), or sudo nvidia-smi -i 0 -mig 0",
        ),
        (
            {"mig": True, "gpu_uuid": "GPU-1"},
            "MIG is on: a process uses one slice, and slices of one GPU share its power and its link; "
            "sudo nvidia-smi -i 0 -mig 0 gives the whole",
        ),
    ],
    ids=str,
)
def test_each_bad_setting_has_a_sentence_with_what_to_do(changes, sentence):
    """One thing is wrong, and one sentence says so."""
    assert advice_on(replace(GOOD, **changes)) == [f"GPU 0: {sentence}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"power_limit_w": 699.5},
        {"power_limit_w": 750.0},
        {"name": "NVIDIA GeForce RTX 4090", "ecc": False, "ecc_pending": False},
    ],
    ids=str,
)
def test_what_is_as_it_should_be_is_let_alone(changes):
    """Rounding, a limit above the default, and GeForce parts as they are sold."""
    assert advice_on(replace(GOOD, **changes)) == []


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (Use(memory_used_bytes=20 * GIB, processes=2), "in use: 2 processes, 20.0 GiB of its memory taken; "),
        (Use(memory_used_bytes=20 * GIB, processes=0), "in use: processes that are not shown here, 20.0 GiB of its "),
        (Use(memory_used_bytes=20 * GIB), "in use: processes that are not shown here, 20.0 GiB of its memory taken; "),
        (Use(processes=1), "in use: 1 process; "),
    ],
    ids=str,
)
def test_a_gpu_that_others_use(use, sentence):
    """By its processes, and where those are out of sight by the memory that they hold."""
    (said,) = advice_on(use=use)

    assert said.startswith(f"GPU 0: {sentence}")


def test_a_little_memory_is_the_drivers_own():
    """A context that nobody uses is no neighbour."""
    assert advice_on(use=Use(memory_used_bytes=200 * 2**20, processes=0)) == []


def test_what_holds_for_several_gpus_is_said_once():
    """With all their numbers, in the sentence and in the command."""
    bad = [replace(GOOD, index=index, persistence=False) for index in (0, 1, 3)]

    (said,) = advise(Hardware(gpus=tuple(bad)), KEPT_WELL, {})

    assert said.startswith("GPUs 0,1,3: persistence")
    assert said.endswith("-i 0,1,3 -pm 1")


def test_slices_of_one_gpu_are_one_gpu():
    """What is wrong with a GPU is not said for each of its slices."""
    slices = tuple(replace(GOOD, mig=True, gpu_uuid="GPU-0", uuid=f"MIG-{n}", persistence=False) for n in range(7))

    assert [said[:7] for said in advise(Hardware(gpus=slices), KEPT_WELL, {})] == ["GPU 0: "] * 2


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (
            Host(governors=("powersave",) * 3 + ("performance",)),
            "the CPU frequency governor is powersave on 3 of 4 processors; sudo cpupower frequency-set -g performance",
        ),
        (
            Host(swap_used_bytes=3 * GIB),
            "3.00 GiB of swap is in use; stop what needs the memory, then sudo swapoff -a && sudo swapon -a",
        ),
    ],
    ids=str,
)
def test_the_host_is_looked_at_too(host, sentence):
    """Also without any GPU."""
    assert advise(Hardware(), host, {}) == [sentence]


def test_hidden_gpus_come_first():
    """Who misses a GPU looks there."""
    assert advise(Hardware(notes=("one is hidden",)), Host(swap_used_bytes=GIB), {})[0] == "one is hidden"


def test_every_rule_says_in_its_docstring_when_it_speaks():
    """docs/hardware.md lists them."""
    assert all(rule.__doc__ for rule in (*GPU_RULES, *HOST_RULES))
