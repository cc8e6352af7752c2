"""What is sampled beside the runs on an engine, and how its sensors are opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.clock import Clock
from pytest_llmperf.engines.placement import gpu_groups
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import NvmlError
from pytest_llmperf.hardware import Gpu, Hardware
from pytest_llmperf.hardware.nvml import look, session
from pytest_llmperf.hardware.visible import VARIABLE, select
from pytest_llmperf.readings import Taken
from pytest_llmperf.telemetry.gpu import GpuAddress, GpuSensor
from pytest_llmperf.telemetry.host import host_sensor
from pytest_llmperf.telemetry.sampler import Sampler, Sensors
from pytest_llmperf.telemetry.xid import XidWatch, xid_watch

_PARALLEL = re.compile(r"--?(tp|pp|dp|ep)\b|--.*parallel")
"""Arguments that make an engine take more GPUs than its words say."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to sample, and how often."""

    rate_hz: float
    gpus: tuple[GpuAddress, ...] = ()
    known: tuple[Gpu, ...] = ()
    """What detection found them to be."""
    taken: Callable[[], Mapping[int, Taken]] = dict
    """Tells what others held of their memory just before the engine was started."""

    def start(self, clock: Clock, path: Path, header: Mapping[str, Any]) -> Sampler:
        """A sampler that has begun to open its sensors; `path`: its series file. Raises `OSError`."""
        return Sampler(
            lambda: sensors(self.gpus), gpus=self.gpus, rate_hz=self.rate_hz, clock=clock, path=path, header=header
        )


def planned(rate_hz: float | None, spec: EngineSpec, hardware: Hardware) -> Plan | None:
    """The plan for an engine; `hardware`: what it runs on.

    None where nothing is to be sampled (`rate_hz` is None), and for an engine that is simulated or
    runs on another machine, of which nothing is known here.
    """
    is_here = spec.url is None or Address.parse(spec.url).is_loopback
    if rate_hz is None or hardware.simulated or hardware.declared or not is_here:
        return None
    return Plan(rate_hz, tuple(_addresses(spec, hardware.gpus)), hardware.gpus)


def _addresses(spec: EngineSpec, visible: Sequence[Gpu]) -> Iterator[GpuAddress]:
    """The GPUs that the engine may use."""
    own = dict(spec.env).get(VARIABLE)
    if own is not None:
        visible = _shown_by(own)
    wanted = None if own is not None and not spec.replicas else _wanted(spec)
    for number, gpu in enumerate(visible):
        if wanted is None or str(number) in wanted:
            yield GpuAddress(gpu=number, index=gpu.index, uuid=gpu.uuid, name=gpu.name)


def _wanted(spec: EngineSpec) -> set[str] | None:
    """By their numbers; None where it is not known which of those that it sees it takes."""
    if spec.url is not None or any(map(_PARALLEL.match, spec.args)):
        return None
    return {number for group in gpu_groups(spec) for number in group}


def _shown_by(devices: str) -> Sequence[Gpu]:
    """What a value of `CUDA_VISIBLE_DEVICES` leaves of all GPUs of this machine."""
    try:
        return select(look().gpus, devices).gpus  # one that is lost is sampled as lost
    except NvmlError:
        return ()


@contextmanager
def sensors(gpus: Sequence[GpuAddress]) -> Iterator[Sensors]:
    """The sensors of these GPUs and of the machine, open; a driver that fails leaves the machine's."""
    with ExitStack() as opened:
        host = opened.enter_context(host_sensor())
        found: tuple[GpuSensor, ...] = ()
        xids: XidWatch | None = None
        problems: tuple[str, ...] = ()
        if gpus:
            try:
                nvml = opened.enter_context(session())
                found = tuple(GpuSensor(nvml, gpu) for gpu in gpus)
                for sensor in found:
                    opened.callback(sensor.close)
                xids = opened.enter_context(xid_watch(nvml, found))
            except NvmlError as error:
                problems = (f"no telemetry of the GPUs: {error}",)
        yield Sensors(found, host, xids, problems)
