"""How NVML is opened, asked and shut down, in this process."""

from __future__ import annotations

import sys

import pynvml
import pytest
from nvml import GPUS, LOST, MISMATCH, NO_PERMISSION, NOT_SUPPORTED, UNKNOWN, error

from pytest_llmperf.errors import NvmlError
from pytest_llmperf.hardware import host
from pytest_llmperf.hardware.nvml import Use, look, offered, session, uses

GIB = 2**30


def test_a_session_is_shut_down_behind_whatever_happens(nvml_here):
    """Contexts may be nested, and an error of NVML within one is ours."""
    stub = nvml_here("h200")

    with session() as outer, session() as inner:
        assert outer is inner is pynvml
        assert stub.open_sessions == 2
    assert stub.open_sessions == 0
    with pytest.raises(NvmlError, match="Invalid Argument"), session() as nvml:
        nvml.nvmlDeviceGetHandleByIndex(9)
    with pytest.raises(ZeroDivisionError), session():
        _ = 1 / 0
    assert stub.open_sessions == 0


def test_without_the_binding_the_error_names_the_package(monkeypatch):
    """`pip install` is the way out, and it is told what of."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    with pytest.raises(NvmlError, match="nvidia-ml-py is not installed"), session():
        pass


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH])
def test_what_is_not_offered_is_absent(nvml_here, code):
    """Not supported, not permitted, failing by itself, not in the driver, not in the binding."""
    nvml_here({"temperature": error(code)}, library="old")

    with session() as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        assert offered(nvml, "nvmlDeviceGetTemperature", handle, 0) is None
        assert offered(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle) is None
        assert offered(nvml, "nvmlDeviceGetSomethingOfTheFuture", handle) is None


@pytest.mark.parametrize("code", [LOST, MISMATCH, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_what_is_broken_is_not_absent(nvml_here, code):
    """A GPU that is lost is not one that lacks the field."""
    nvml_here({"temperature": error(code)})

    with pytest.raises(NvmlError, match=r"^NVML: "), session() as nvml:
        offered(nvml, "nvmlDeviceGetTemperature", nvml.nvmlDeviceGetHandleByIndex(0), 0)


@pytest.mark.parametrize("field", sorted(GPUS["gh200"].keys() - {"name"}))
@pytest.mark.parametrize("code", [UNKNOWN, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH])
def test_no_single_field_costs_the_gpu(nvml_here, field, code):
    """Whatever else a driver answers oddly, the part is known by its name."""
    nvml_here(GPUS["gh200"] | {field: error(code)})

    (found,) = look().gpus

    assert found.key == "NVIDIA-GH200-96GB"


def test_slices_stand_in_place_of_their_gpu(nvml_here):
    """Each with a UUID to open it by and that of its GPU, for what only the whole has."""
    nvml_here("a100 slices", "l4")

    found = look().gpus

    assert [gpu.mig_profile for gpu in found] == ["1g.5gb", "1g.5gb", "3g.20gb", None]
    assert [gpu.gpu_uuid for gpu in found] == ["GPU-0"] * 3 + [None]
    assert [gpu.index for gpu in found] == [0, 0, 0, 1]
    assert [(gpu.gpu_instance, gpu.compute_instance) for gpu in found] == [(7, 0), (8, 0), (9, 0), (None, None)]
    assert [gpu.nvlinks for gpu in found] == [0, 0, 0, 0]
    assert found[0].uuid != found[1].uuid
    assert found[0].memory_bytes == 4864 * 2**20
    assert found[0].power_limit_w == 400


@pytest.mark.parametrize(
    ("links", "number", "version"),
    [([1] * 18, 18, 4), ([0, 1, 1], 2, 4), ([0] * 12, 0, None), (error(NO_PERMISSION), None, None), (None, 0, None)],
)
def test_links_that_are_up_are_counted(nvml_here, links, number, version):
    """A part that does not know the question has none; who may not ask does not know."""
    gpu = {"name": "NVIDIA H100 80GB HBM3", "nvlink_version": 4}
    nvml_here(gpu if links is None else gpu | {"nvlinks": links})

    (found,) = look().gpus

    assert (found.nvlinks, found.nvlink_version) == (number, version)
    assert found.nvlink is (None if number is None else number > 0)


@pytest.mark.parametrize(("mask", "node"), [(0b1, 0), (0b1100, 2), (0, None), (error(NOT_SUPPORTED), None)])
def test_the_nearest_node_of_the_host(nvml_here, tmp_path, monkeypatch, mask, node):
    """The lowest in the mask; the kernel's word counts where NVML gives none."""
    monkeypatch.setattr(host, "_DEVICES", tmp_path)
    nvml_here({"name": "NVIDIA L4", "memory_affinity": mask})
    assert look().gpus[0].numa_node == node

    folder = tmp_path / "0000:01:00.0"
    folder.mkdir()
    folder.joinpath("numa_node").write_text("5\n", encoding="utf-8")
    assert look().gpus[0].numa_node == (5 if node is None else node)


def test_what_goes_on_on_a_gpu(nvml_here):
    """A process that computes and draws is one; memory is without the driver's own."""
    twice = [{"pid": 7, "memory_mib": 1024}]
    busy = {"processes": [*twice, {"pid": 8, "memory_mib": None}], "graphics_processes": twice, "memory_used_mib": 2048}
    nvml_here(GPUS["h200"] | busy, "l4", {"name": "NVIDIA GB10"})

    found = uses(["GPU-0", "GPU-1", "GPU-2"])

    assert found == {
        "GPU-0": Use(memory_used_bytes=2 * GIB, processes=2),
        "GPU-1": Use(memory_used_bytes=0, processes=0),
        "GPU-2": Use(),
    }


def test_what_goes_on_is_asked_of_an_old_driver_in_its_own_words(nvml_here):
    """The binding's calls without a version are of its own newest one; processes are then not known."""
    nvml_here(GPUS["h200"] | {"memory_used_mib": 2048}, library="old")

    assert uses(["GPU-0"]) == {"GPU-0": Use(memory_used_bytes=2 * GIB)}


def test_a_call_that_the_binding_refuses_to_make_is_not_offered(nvml_here):
    """By the name that has no version, of a driver older than the binding."""
    nvml_here("h200", library="old")

    with session() as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        assert offered(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) is None


def test_a_gpu_that_falls_off_the_bus(nvml_here):
    """It was there, and the next question says that it is not; the others are asked all the same."""
    stub = nvml_here("lost in mid-run", "h200")
    assert [gpu.index for gpu in look().gpus] == [0, 1]

    stub.advance(10)

    found = look()
    assert found.lost.keys() == {0}
    assert found.lost[0].startswith("NVML: GPU is lost (GPU 0); it fell off the bus")
    assert [(gpu.index, gpu.uuid) for gpu in found.gpus] == [(0, None), (1, "GPU-1")]
    with pytest.raises(NvmlError, match="GPU is lost"):
        uses(["GPU-0"])
    assert stub.open_sessions == 0
