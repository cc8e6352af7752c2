"""Which devices a measurement must have to itself, and when a session passes them on."""

from __future__ import annotations

import pytest
from fakes import VirtualEngine

from pytest_llmperf.engines import EngineSpec, pool
from pytest_llmperf.hardware import Gpu, Hardware, remote, simulated
from pytest_llmperf.suite import devices_of

ONE = Gpu(name="NVIDIA H100", uuid="GPU-1")
TWO = Gpu(name="NVIDIA H100", uuid="GPU-2")
SLICES = tuple(Gpu(name="NVIDIA H100 MIG 1g", uuid=f"MIG-{n}", gpu_uuid="GPU-1") for n in range(2))


@pytest.mark.parametrize(
    ("spec", "hardware", "devices"),
    [
        (EngineSpec(kind="vllm"), Hardware(gpus=(ONE, TWO)), ("GPU-1", "GPU-2")),
        (EngineSpec(kind="vllm"), Hardware(gpus=SLICES), ("GPU-1",)),
        (EngineSpec(kind="vllm"), Hardware(), ("CPU",)),
        (EngineSpec(kind="openai", url="http://127.0.0.1:8000"), Hardware(gpus=(ONE,)), ("GPU-1",)),
        (EngineSpec(kind="openai", url="http://far.test:8000/v1"), remote("far.test"), ("far.test:8000",)),
        (EngineSpec(kind="openai", url="http://127.0.0.1:80"), Hardware(gpus=(ONE,), declared=True), ("127.0.0.1:80",)),
        (EngineSpec(kind="sim", part="gh200"), Hardware(gpus=(ONE,)), ()),
        (EngineSpec(kind="vllm"), simulated(1, "gh200"), ()),
    ],
    ids=["GPUs", "slices of one", "no GPU", "a server here", "a server elsewhere", "a tunnel", "sim", "simulated"],
)
def test_of_an_engine(spec, hardware, devices):
    assert devices == devices_of(spec, hardware)


def test_engines_of_ours_give_way(monkeypatch):
    """They are stopped, and are there for their next user; those of others are left alone."""
    kinds = {"vllm": VirtualEngine(), "openai": VirtualEngine(is_ours=False), "sim": VirtualEngine(is_simulated=True)}
    monkeypatch.setattr(pool, "make_engine", lambda spec, surroundings: kinds[spec.kind])
    specs = [EngineSpec(kind=kind) for kind in kinds]
    engines = pool.EnginePool(None, specs)
    made = [engines.get(spec) for spec in specs]

    engines.rest()

    assert [1, 0, 0] == [engine.stopped for engine in made]
    assert made == [engines.get(spec) for spec in specs]
    assert [kinds["vllm"]] == engines.on_devices
