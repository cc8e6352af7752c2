"""The name under which a GPU's baselines are kept, and how it is described."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.hardware import PARTS
from pytest_llmperf.hardware.gpu import Gpu, slug

GIB = 2**30
L4 = Gpu(name="NVIDIA L4", memory_bytes=23034 * 2**20, compute_capability=(8, 9), nvlinks=0)
SLICE = Gpu(name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", memory_bytes=4864 * 2**20, mig=True, gpu_uuid="GPU-0", index=0)


@pytest.mark.parametrize(
    ("gpu", "key"),
    [
        (SLICE, "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"),
        (replace(SLICE, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb+me"), "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb-me"),
        (replace(SLICE, name="NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb"), "NVIDIA-A100-SXM4-40GB-MIG-1c.3g.20gb"),
        (replace(SLICE, name="NVIDIA A30 MIG 1g.6gb"), "NVIDIA-A30-MIG-1g.6gb"),
        (replace(SLICE, name="NVIDIA A100-SXM4-40GB"), "NVIDIA-A100-SXM4-40GB-MIG-5GiB"),
        (Gpu(name="NVIDIA A100-SXM4-40GB", memory_bytes=40 * GIB, mig=True), "NVIDIA-A100-SXM4-40GB-MIG"),
        (Gpu(name="NVIDIA A30", memory_bytes=24 * GIB, mig=True), "NVIDIA-A30-24GiB-MIG"),
        (Gpu(name="NVIDIA A30", memory_bytes=24 * GIB, mig=False), "NVIDIA-A30-24GiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_slice_has_a_key_of_its_own(gpu, key):
    """Part and profile; the size where the driver names no profile."""
    assert gpu.key == key
    assert gpu.mig is False or gpu.part is None


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
@given(
    uuid=st.none() | st.text(max_size=5),
    index=st.none() | st.integers(0, 99),
    bus_id=st.none() | st.text(max_size=5),
    power_w=st.none() | st.floats(1, 1000),
    reserved=st.integers(0, GIB),
)
def test_a_key_depends_on_the_part_alone(part, uuid, index, bus_id, power_w, reserved):
    """Not on a UUID, a slot, a limit, nor on what a driver keeps of the memory."""
    for name in part.nvml_names:
        memory = part.memory_mib * 2**20 - reserved
        gpu = Gpu(
            name=name, memory_bytes=memory, uuid=uuid, index=index, pci_bus_id=bus_id, power_limit_w=power_w, mig=False
        )
        assert (gpu.key, gpu.part) == (part.key, part)


@pytest.mark.parametrize(
    ("gpu", "key", "told"),
    [
        (
            Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=40 * GIB),
            "NVIDIA-H100-80GB-HBM3-40GiB",
            "NVIDIA H100 80GB HBM3 (40.0 GiB of 79.6 GiB)",
        ),
        (replace(L4, memory_bytes=12 * GIB), "NVIDIA-L4-12GiB", "NVIDIA L4 (12.0 GiB of 22.5 GiB)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_share_of_a_part_is_not_the_part(gpu, key, told):
    """Less memory than the part has: a key of its own, no mark, and both sizes for people."""
    assert (gpu.key, gpu.part, str(gpu)) == (key, None, told)


def test_memory_that_ecc_takes_leaves_the_part_what_it_is():
    """A sixteenth of an RTX 4090's; and where nothing is told of the memory, the name stands."""
    whole = Gpu(name="NVIDIA GeForce RTX 4090", memory_bytes=24564 * 2**20 * 15 // 16)

    assert (whole.key, whole.part.mark) == ("NVIDIA-RTX-4090", "rtx4090")
    assert not Gpu(name="NVIDIA L4").is_partial


def test_a_name_without_the_maker_is_the_same_part():
    """Drivers before 470 called the part so: an update does not make it another one."""
    assert Gpu(name="A100-SXM4-40GB").key == Gpu(name="NVIDIA A100-SXM4-40GB").key


@given(st.text())
def test_a_slug_can_stand_in_a_folder_name_and_is_made_but_once(name):
    """Letters, digits, points and single dashes between them."""
    made = slug(name)

    assert made == made.strip("-")
    assert "--" not in made
    assert all(letter.isascii() and (letter.isalnum() or letter in ".-") for letter in made)
    assert slug(made) == made or "CPU" in made


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ((), "NVIDIA L4 (22.5 GiB)"),
        (("compute_capability",), "NVIDIA L4 (22.5 GiB, compute capability 8.9)"),
        (("compute_capability", "nvlink"), "NVIDIA L4 (22.5 GiB, compute capability 8.9, no NVLink)"),
    ],
)
def test_what_was_asked_for_is_described(asked, text):
    """Name and memory always, the rest where somebody wants to know."""
    assert L4.describe(asked) == text


def test_what_is_unknown_is_not_described():
    """Nothing is made up where the driver says nothing."""
    assert Gpu(name="NVIDIA GB10").describe(("compute_capability", "nvlink")) == "NVIDIA GB10"
    assert Gpu(name="NVIDIA GB10").settings() == "the driver says no more"


def test_slices_of_one_gpu_are_described_by_their_name():
    """A slice is not said to be a GPU whose MIG is on."""
    assert str(SLICE) == "NVIDIA A100-SXM4-40GB MIG 1g.5gb (4.75 GiB)"
    assert SLICE.mig_profile == "1g.5gb"
    assert L4.mig_profile is None
