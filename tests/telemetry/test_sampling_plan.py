"""Which GPUs are sampled beside an engine, and the whole of it over the stub of NVML."""

from __future__ import annotations

import threading

import pytest
from nvml import GPUS, error, over_time, ramp

from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.hardware import declared, detect
from pytest_llmperf.hardware.detect import remote
from pytest_llmperf.telemetry import Plan, planned
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.plan import sensors

VLLM = {"kind": "vllm", "model": "m"}


@pytest.fixture
def chosen(nvml_here, monkeypatch):
    """`chosen(visible=..., **words)`: UUIDs of the GPUs sampled beside an engine on a machine with four."""

    def choose(visible=None, **words):
        nvml_here(*("h100",) * 4)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        plan = planned(10.0, EngineSpec(**{**VLLM, **words}), detect())
        return [gpu.uuid for gpu in plan.gpus]

    return choose


@pytest.mark.parametrize(
    ("words", "uuids"),
    [
        ({}, ["GPU-0"]),
        ({"tensor_parallel": 2}, ["GPU-0", "GPU-1"]),
        ({"replicas": 3}, ["GPU-0", "GPU-1", "GPU-2"]),
        ({"replicas": 2, "gpus": ("1", "3")}, ["GPU-1", "GPU-3"]),
        ({"replicas": 2, "gpus": ("2",)}, ["GPU-2"]),
        ({"visible": "2,3"}, ["GPU-2"]),
        ({"visible": "3,2", "tensor_parallel": 2}, ["GPU-3", "GPU-2"]),
        ({"visible": ""}, []),
        ({"env": (("CUDA_VISIBLE_DEVICES", "1,2"),)}, ["GPU-1", "GPU-2"]),
        ({"visible": "0", "env": (("CUDA_VISIBLE_DEVICES", "3"),)}, ["GPU-3"]),
        ({"args": ("--pipeline-parallel-size", "2")}, ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]),
        ({"args": ("-tp", "2")}, ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]),
        ({"args": ("--tp-size=2",)}, ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]),
        ({"args": ("--tpot-limit", "2")}, ["GPU-0"]),
        ({"kind": "openai", "url": "http://127.0.0.1:8000"}, ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]),
    ],
    ids=str,
)
def test_the_gpus_are_those_that_the_engine_may_use(chosen, words, uuids):
    """By its words; all that it sees where these do not tell."""
    assert chosen(**words) == uuids


def test_nothing_is_planned_where_nothing_can_be_known(nvml_here):
    """Simulated engines, other machines, hardware that somebody declared, and telemetry that is off."""
    nvml_here("h200")
    here, vllm = detect(), EngineSpec(**VLLM)
    elsewhere = EngineSpec(kind="openai", url="http://gpu-7.example.com:8000")

    assert planned(None, vllm, here) is None
    assert planned(10.0, EngineSpec(kind="sim", part="h200"), declared("sim:h200")) is None
    assert planned(10.0, elsewhere, remote("gpu-7.example.com")) is None
    assert planned(10.0, elsewhere, declared("NVIDIA-H200")) is None
    assert planned(10.0, EngineSpec(kind="openai", url="http://127.0.0.1:1"), declared("NVIDIA-H200")) is None


def wait_for_samples(stub, more):
    """Until so many more have been taken, or there is nobody who takes them."""
    until = stub.asked("clock") + 2 * more  # two clocks a sample
    for _ in range(200):
        if stub.asked("clock") >= until or not stub.open_sessions:
            return
        threading.Event().wait(0.005)


def test_a_slice_is_sampled_as_itself(nvml_here):
    """Slices of one GPU share NVML's number; they are told apart by UUID and by their place."""
    nvml_here("a100 slices")
    spec = EngineSpec(kind="openai", url="http://127.0.0.1:8000")

    gpus = planned(10.0, spec, detect()).gpus

    assert [(gpu.gpu, gpu.index) for gpu in gpus] == [(0, 0), (1, 0), (2, 0)]
    assert all(gpu.uuid.startswith("MIG-") for gpu in gpus)
    with sensors(gpus) as found:
        samples = [gpu.read(0, everything=True) for gpu in found.gpus]
    assert [(sample.gpu, sample.energy_j, sample.power_w) for sample in samples] == [
        (number, None, None) for number in range(3)
    ]


@pytest.fixture
def sampled(nvml_here, tmp_path):
    """`sampled(gpus, *seconds)`: the telemetry of a run with a sample after each advance of the stub's time."""

    def run(*gpus, advances=(0.5, 0.5), **words):
        stub = nvml_here(*gpus, **words)
        addresses = tuple(GpuAddress(number, index=number, uuid=f"GPU-{number}") for number in range(len(gpus)))
        clock = RealClock()
        sampler = Plan(100.0, addresses).start(clock, tmp_path / "x.telemetry.ndjson", {})
        try:
            sampler.begin(0)
            start_ns = clock.now_ns()
            wait_for_samples(stub, 2 * len(gpus))  # before anything changes, so that the beginning lies between equals
            for seconds in advances:
                stub.advance(seconds)
                wait_for_samples(stub, 2 * len(gpus))
            end_ns = clock.now_ns()
            sampler.end()
            summary = sampler.summary((start_ns, end_ns))
        finally:
            sampler.close()
        assert stub.open_sessions == 0
        return summary

    return run


def test_a_run_over_the_real_binding(sampled):
    """Clocks, heat and energy over time come to what was scripted; NVML is shut down."""
    gpu = GPUS["h200"] | {
        "clock": {"sm": over_time((0, 1700), (1, 1980), (2, 1500)), "memory": 3201},
        "temperature": ramp((0, 40), (2, 60)),
        "fields": GPUS["h200"]["fields"] | {"83": ramp((0, 0), (2, 1_400_000))},
        "processes": over_time((0, []), (1, [{"pid": 11, "memory_mib": 5}])),
        "xid": [[1.5, 94]],
    }

    summary = sampled(gpu, "h200", advances=(1.0, 1.0))

    first, second = summary.gpus
    assert (first.sm_clock_mhz.min, first.sm_clock_mhz.max) == (1500, 1980)
    assert first.temperature_c.max == 60
    assert first.energy_j == pytest.approx(1400)
    assert (first.energy_from, second.energy_from) == ("counter", "counter")
    assert [process.pid for process in first.processes] == [11]
    assert second.processes == ()
    assert (first.xids, second.xids) == ((94,), ())
    assert summary.problems == ()
    assert summary.host is not None


def test_a_gpu_lost_in_mid_run(sampled):
    """It is named with the driver's words; the other one is whole."""
    summary = sampled("lost in mid-run", "h200", advances=(1.0, 20.0, 1.0))

    assert [gpu.lost for gpu in summary.gpus] == ["GPU is lost", None]
    assert summary.gpus[0].energy_j is None
    assert summary.gpus[1].energy_j is not None


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ({"init_error": 9}, "Driver Not Loaded"),
        ({"init_error": 18}, "version mismatch"),
        ({"init_error": 4}, "Insufficient Permissions"),
    ],
    ids=["no driver", "mismatch", "no permission"],
)
def test_a_driver_that_fails_is_a_reason(sampled, lines, problem):
    """No figures of GPUs, and the machine's all the same."""
    summary = sampled("h200", advances=(), **lines)

    assert summary.gpus == ()
    assert len(summary.problems) == 1
    assert summary.problems[0].startswith("no telemetry of the GPUs: NVML: ")
    assert problem in summary.problems[0]
    assert summary.host is not None


def test_a_driver_that_fails_to_shut_down_takes_nothing_away(sampled):
    """All had been measured."""
    assert sampled("h200", shutdown_error=999).gpus[0].samples > 0


def test_a_gpu_that_tells_next_to_nothing(sampled):
    """A name and a clock: the rest is absent."""
    summary = sampled({"name": "NVIDIA L4", "clock": {"sm": 900}, "fields": error(3)})

    (gpu,) = summary.gpus
    assert gpu.sm_clock_mhz.mean == 900
    assert (gpu.power_w, gpu.energy_j, gpu.reasons, gpu.processes, gpu.lost) == (None,) * 5
