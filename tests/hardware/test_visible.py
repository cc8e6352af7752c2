"""What CUDA_VISIBLE_DEVICES leaves of the GPUs that NVML lists, and what is said about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.hardware.gpu import Gpu
from pytest_llmperf.hardware.visible import select

H200 = Gpu(name="NVIDIA H200", uuid="GPU-aaaa1111-0000", index=0)
L4 = Gpu(name="NVIDIA L4", uuid="GPU-aaaa2222-0000", index=1)
SLICES = [
    Gpu(
        name="NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        uuid=f"MIG-dddd{number}",
        gpu_uuid="GPU-bbbb",
        gpu_instance=number,
        compute_instance=0,
        index=2,
        mig=True,
    )
    for number in (1, 2)
]
GPUS = [H200, L4, *SLICES]


@pytest.mark.parametrize(
    ("devices", "left"),
    [
        (None, GPUS),
        ("0", [H200]),
        ("1,0", [L4, H200]),
        (" 1 , 0 ", [L4, H200]),
        ("+1", [L4]),
        ("1st,0th", [L4, H200]),
        ("2", SLICES),
        ("GPU-aaaa1111-0000", [H200]),
        ("GPU-aaaa2", [L4]),
        ("GPU-b", SLICES),
        ("MIG-dddd2", [SLICES[1]]),
        ("MIG-dddd2,MIG-dddd1", SLICES[::-1]),
        ("MIG-GPU-bbbb/2/0", [SLICES[1]]),
        ("MIG-GPU-bbbb/2/1", []),
        ("1,GPU-aaaa1", [L4, H200]),
        ("", []),
        ("-1", []),
        ("1,-1,0", [L4]),
        ("NoDevFiles", []),
        ("all", []),
        ("3", []),
        ("1,3,0", [L4]),
        ("GPU-aaaa", []),
        ("GPU-cccc,0", []),
        ("gpu-aaaa1", []),
        ("MIG-dddd", []),
        ("MIG-x", []),
        ("0,0", []),
        ("0,GPU-aaaa1", []),
        ("2,MIG-dddd1", []),
    ],
)
def test_what_is_left(devices, left):
    """Numbers, UUIDs and what they begin with, slices; what names none, or more than one, ends the list."""
    assert select(GPUS, devices).gpus == tuple(left)


@pytest.mark.parametrize(
    ("devices", "note"),
    [
        ("GPU-aaaa2", "hides 3 of 4 GPUs"),
        ("", "hides 4 of 4 GPUs"),
        ("GPU-aaaa2,GPU-x,0", "names no GPU with 'GPU-x', which hides all from there on"),
        ("GPU-aaaa2,GPU-aaaa2", "names a GPU twice with 'GPU-aaaa2', which hides all"),
    ],
)
def test_what_is_hidden_is_said(devices, note):
    """In one sentence, with what to do."""
    assert select(GPUS, devices).notes == (f"CUDA_VISIBLE_DEVICES={devices!r} {note}; unset it to use all",)


@pytest.mark.parametrize(("devices", "left"), [("2:1", SLICES), ("2:1,0", [*SLICES, H200]), ("0x1", [H200])])
def test_an_entry_that_is_read_in_part_is_said(devices, left):
    """CUDA takes the number that it begins with, where container tools mean a slice of that GPU."""
    found = select(GPUS, devices, "PCI_BUS_ID")
    entry = devices.partition(",")[0]

    assert found.gpus == tuple(left)
    assert found.notes[0] == (
        f"CUDA_VISIBLE_DEVICES={devices!r} has {entry!r}, of which CUDA reads {entry[0]!r} alone; write the number, or "
        "for a slice its UUID (MIG-..., see nvidia-smi -L)"
    )
    assert select(SLICES, "0:1").notes[0].startswith("CUDA_VISIBLE_DEVICES='0:1' has '0:1', of which CUDA reads '0'")


def test_nothing_is_said_where_nothing_is_hidden():
    """A variable that names all GPUs changes nothing."""
    assert select(GPUS, "2,0,1").notes == ()
    assert select(GPUS, None).notes == ()


def test_the_order_that_is_assumed_is_said():
    """Among unlike parts a number means another GPU in CUDA's own order, unless that is set to NVML's."""
    said = select([H200, L4], "1").notes[1]

    assert said == (
        "CUDA_VISIBLE_DEVICES='1' is read in the order of the PCI bus, while CUDA counts the fastest GPU first; "
        "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    )
    assert len(select([H200, L4], "1", "PCI_BUS_ID").notes) == 1
    assert len(select([H200, L4], "GPU-aaaa1").notes) == 1
    assert len(select([H200, Gpu(name="NVIDIA H200", index=1)], "1").notes) == 1


def test_numbers_count_the_gpus_that_may_be_used():
    """CUDA does not count a GPU that the container withholds, as NVML does."""
    assert select([L4], "0").gpus == (L4,)


def test_without_gpus_there_is_nothing_to_say():
    """That NVML lists none is the reason, whatever the variable says."""
    assert select([], "0").notes == ()


_ENTRIES = st.sampled_from(["0", "1", "2", "3", "-1", "", " 0", "GPU-aaaa1", "GPU-", "MIG-dddd1", "x", "0x"])


@given(st.one_of(st.text(max_size=12), st.lists(_ENTRIES, max_size=5).map(",".join)))
def test_any_text_leaves_some_of_them_each_once(devices):
    """No text is an error, none makes a GPU appear twice, and GPUs only go missing with a word."""
    found = select(GPUS, devices)

    assert len(set(found.gpus)) == len(found.gpus)
    assert set(found.gpus) <= set(GPUS)
    assert bool(found.notes) or len(found.gpus) == len(GPUS)


@given(st.permutations(range(2)))
def test_entries_after_one_that_names_nothing_do_not_count(order):
    """The list ends where CUDA ends it."""
    text = ",".join(map(str, order))

    assert select([H200, L4], f"{text[:1]},9,{text[2:]}").gpus == select([H200, L4], text[:1]).gpus
