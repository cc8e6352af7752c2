"""What one GPU says of itself, by NVML: asked often, so that only what it offers is asked.

Field values are preferred to calls: one call reads many, and the counters among them have no gaps
between samples. Links of which it has no such counter are told by GPM. Left out are what blocks (PCIe
throughput, 20 ms) and per-process bandwidth, which NVML has not in a form to rely on. A deprecated call
is made only where the driver lacks its heir.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from pytest_llmperf.hardware.nvml import nvlink_c2c, nvlinks_up
from pytest_llmperf.readings import GpuSample
from pytest_llmperf.telemetry.gpm import LinkMeter, link_meter

_Reader = Callable[[ModuleType, Any], Any]
"""Asks NVML, given as its binding, about a device's handle."""

_CALLS: dict[str, tuple[_Reader, ...]] = {
    "sm_clock_mhz": (lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),),
    "utilisation": (lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,),
    "clock_reasons": (
        lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
        lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
    ),
    "power_w": (lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,),
    "energy_j": (lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000,),
}
"""Calls by what they tell, the preferred one first; made where no field value tells it."""

_RARE_CALLS: dict[str, tuple[_Reader, ...]] = {
    "temperature_c": (
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperatureV(gpu, nvml.NVML_TEMPERATURE_GPU),
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
    "memory_clock_mhz": (lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),),
    "memory_used_bytes": (
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2).used,
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    "pcie_generation": (lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu),),
    "pcie_width": (lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu),),
    "processes": (
        lambda nvml, gpu: _memory_by_pid(nvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu)),
        lambda nvml, gpu: _memory_by_pid(nvml.nvmlDeviceGetComputeRunningProcesses_v2(gpu)),
    ),
}
"""The same of what changes slowly."""


class _Field(NamedTuple):
    """A field value of NVML and where it goes."""

    number: int
    name: str
    part: str | None = None
    """Under which name within `name`, where that holds several."""
    scale: float | int = 1
    """From NVML's unit to ours."""
    scope: int = 0


_ALL_LINKS = 0xFFFFFFFF
_KIB = 1024
_FIELDS = (
    _Field(186, "power_w", scale=1e-3),
    _Field(185, "power_w", scale=1e-3),
    _Field(83, "energy_j", scale=1e-3),
    _Field(74, "throttled_ns", "sw_power_cap"),
    _Field(75, "throttled_ns", "thermal"),
    _Field(76, "throttled_ns", "sync_boost"),
    _Field(77, "throttled_ns", "board_limit"),
    _Field(78, "throttled_ns", "low_utilisation"),
    _Field(79, "throttled_ns", "reliability"),
    _Field(269, "throttled_ns", "sw_thermal"),
    _Field(270, "throttled_ns", "hw_thermal"),
    _Field(271, "throttled_ns", "hw_power_brake"),
)
"""Of two for one place the first that is offered is read: power at the moment before its average."""
_RARE_FIELDS = (
    _Field(197, "pcie_tx_bytes"),
    _Field(198, "pcie_rx_bytes"),
    _Field(138, "nvlink_tx_bytes", scale=_KIB, scope=_ALL_LINKS),
    _Field(139, "nvlink_rx_bytes", scale=_KIB, scope=_ALL_LINKS),
    _Field(3, "ecc", "corrected"),
    _Field(4, "ecc", "uncorrected"),
    _Field(5, "ecc", "corrected_lifetime"),
    _Field(6, "ecc", "uncorrected_lifetime"),
    _Field(142, "ecc", "rows_remapped_corrected"),
    _Field(143, "ecc", "rows_remapped_uncorrected"),
    _Field(144, "ecc", "row_remap_pending"),
    _Field(145, "ecc", "row_remap_failed"),
)


_HEAD = "24xIi"
"""NVML's structure of a field value: id, scope, time and latency, which are skipped; type and code. Then its value."""
_ROOM = 8
"""Bytes of a value."""
_TYPES = "dILQqiH"
"""How a value is read, by its type."""


class FieldBlock:
    """Field values that are asked for together, in memory that is used again, and read all at once.

    The binding makes a new array for each call and one object for each value, which takes ten times as long.
    """

    def __init__(self, nvml: ModuleType, fields: Sequence[_Field]) -> None:
        """`nvml`: the binding, within a session."""
        self.fields = tuple(fields)
        self._error: Callable[[int], Exception] = nvml.NVMLError
        self._gone = _codes_of_loss(nvml)
        self._function = getattr(nvml.nvmlLib, "nvmlDeviceGetFieldValues", None)
        self._not_found: int = nvml.NVML_ERROR_FUNCTION_NOT_FOUND
        self._memory = (nvml.c_nvmlFieldValue_t * len(self.fields))()
        self._lay_out((0,) * len(self.fields))
        assert self._layout.size == ctypes.sizeof(self._memory), "NVML's field values have another form"
        for value, field in zip(self._memory, self.fields, strict=True):
            value.fieldId, value.scopeId = field.number, field.scope

    def read(self, handle: Any) -> Sequence[float | None]:
        """Of each field its value, None where it has none now; raises `NVMLError` if the GPU is gone."""
        code = self.ask(handle)
        if code in self._gone:
            raise self._error(code)
        if code != 0:
            return (None,) * len(self.fields)
        told = self._layout.unpack_from(self._memory)
        if told[::3] != self._types:
            self._lay_out(told[::3])
            told = self._layout.unpack_from(self._memory)
        codes, values = told[1::3], told[2::3]
        return self._without_refused(codes, values) if self._has_unknown or any(codes) else values

    def ask(self, handle: Any) -> int:
        """Have the driver write the values; returns the call's code. Nothing is asked where nothing is wanted."""
        if not self.fields:
            return 0
        if self._function is None:
            return self._not_found
        code: int = self._function(handle, len(self.fields), self._memory)
        return code

    def _lay_out(self, types: tuple[int, ...]) -> None:
        """From now on read values of these types, which a driver hardly ever changes."""
        self._types = types
        self._has_unknown = any(kind >= len(_TYPES) for kind in types)
        self._layout = struct.Struct("".join(map(_form, types)))

    def _without_refused(self, codes: Sequence[int], values: Sequence[float | None]) -> Sequence[float | None]:
        for code in codes:
            if code in self._gone:
                raise self._error(code)
        is_known = (code == 0 and not isinstance(value, bytes) for code, value in zip(codes, values, strict=True))
        return [value if known else None for known, value in zip(is_known, values, strict=True)]


def _form(kind: int) -> str:
    """Of one field value, for `struct`; bytes where its type is not known: a driver newer than we are."""
    if kind >= len(_TYPES):
        return f"{_HEAD}{_ROOM}s"
    return f"{_HEAD}{_TYPES[kind]}{_ROOM - struct.calcsize(_TYPES[kind])}x"


@dataclass(frozen=True, slots=True)
class GpuAddress:
    """Which GPU: its number among those that this process may see, its UUID, its name."""

    gpu: int
    index: int | None = None
    """NVML's own number, to open it by where there is no UUID."""
    uuid: str | None = None
    name: str | None = None


class GpuSensor:
    """One GPU, opened; what it offers is found out once."""

    def __init__(self, nvml: ModuleType, address: GpuAddress) -> None:
        """Within a session of NVML. A GPU that cannot be opened is `lost` from the beginning."""
        self.address = address
        self.lost: str | None = None
        """NVML's error with which it went away; nothing is asked any more."""
        self.handle: Any = None
        """NVML's own; None if it could not be opened."""
        self._nvml = nvml
        self._calls: dict[str, _Reader] = {}
        self._rare_calls: dict[str, _Reader] = {}
        self._fields = self._all_fields = FieldBlock(nvml, ())
        self._links: LinkMeter | None = None
        self._gone = _codes_of_loss(nvml)
        try:
            self.handle = _handle(nvml, address)
            self._find_what_is_offered()
        except nvml.NVMLError as error:
            self.lost = str(error)

    @property
    def lag_s(self) -> float:
        """How long it may take until all that its links have carried is in a sample."""
        return 0.0 if self._links is None or self.lost is not None else self._links.lag_s

    def close(self) -> None:
        """Give back what the driver lent; within the session of NVML."""
        if self._links is not None:
            self._links.close()

    def read(self, at_ns: int, *, everything: bool, links: bool = True) -> GpuSample | None:
        """A sample; with what changes slowly if `everything`. None from when the GPU is lost.

        `links`: whether those that are metered are asked with it, which is too soon for another sample right after.
        """
        if self.lost is not None:
            return None
        values: dict[str, Any] = {}
        try:
            self._read_fields(values, self._all_fields if everything else self._fields)
            self._read_calls(values, self._calls)
            if everything:
                self._read_calls(values, self._rare_calls)
            if self._links is not None and ((everything and links) or not self._links.has_begun):
                values |= self._links.read(at_ns)
        except self._nvml.NVMLError as error:
            self.lost = str(error)
            return None
        return GpuSample(at_ns=at_ns, gpu=self.address.gpu, **values)

    def _find_what_is_offered(self) -> None:
        """Ask everything once; what is refused is not asked again."""
        fields, rare = self._first_of_each(self._offered_fields(_FIELDS)), self._offered_fields(_RARE_FIELDS)
        self._fields = FieldBlock(self._nvml, fields)
        self._all_fields = FieldBlock(self._nvml, [*fields, *rare])
        known = {field.name for field in fields}
        self._calls = self._offered_calls({name: ways for name, ways in _CALLS.items() if name not in known})
        self._rare_calls = self._offered_calls(_RARE_CALLS)
        self._links = link_meter(self._nvml, self.handle, self._uncounted({field.name for field in rare}))

    def _uncounted(self, counted: Container[str]) -> list[str]:
        """The fields of links that are there, and of which no counter tells. A link that is not there has no bytes."""
        links = {
            ("c2c_tx_bytes", "c2c_rx_bytes"): nvlink_c2c,
            ("nvlink_tx_bytes", "nvlink_rx_bytes"): nvlinks_up,
            ("pcie_tx_bytes", "pcie_rx_bytes"): lambda *_: True,
        }
        missing = {tuple(name for name in pair if name not in counted): is_there for pair, is_there in links.items()}
        return [
            name for pair, is_there in missing.items() if pair and is_there(self._nvml, self.handle) for name in pair
        ]

    def _offered_fields(self, fields: Sequence[_Field]) -> list[_Field]:
        """Asked together; one by one where that comes to nothing, as one that a driver does not know may spoil all."""
        values = FieldBlock(self._nvml, fields).read(self.handle)
        offered = [field for field, value in zip(fields, values, strict=True) if value is not None]
        if offered or len(fields) == 1:
            return offered
        return [found for field in fields for found in self._offered_fields([field])]

    @staticmethod
    def _first_of_each(fields: Iterable[_Field]) -> list[_Field]:
        found: dict[tuple[str, str | None], _Field] = {}
        for field in fields:
            found.setdefault((field.name, field.part), field)
        return list(found.values())

    def _offered_calls(self, calls: Mapping[str, Sequence[_Reader]]) -> dict[str, _Reader]:
        found = {}
        for name, ways in calls.items():
            way = next((way for way in ways if self._is_offered(way)), None)
            if way is not None:
                found[name] = way
        return found

    def _is_offered(self, call: _Reader) -> bool:
        """Whether it may be made again; raises if the GPU is gone."""
        try:
            call(self._nvml, self.handle)
        except AttributeError:  # an older binding
            return False
        except self._nvml.NVMLError as error:
            if error.value in self._gone:
                raise
            return False
        return True

    def _read_fields(self, values: dict[str, Any], block: FieldBlock) -> None:
        for (_, name, part, scale, _), number in zip(block.fields, block.read(self.handle), strict=True):
            if number is None:
                continue
            if part is None:
                values[name] = number * scale
            else:
                values.setdefault(name, {})[part] = number * scale

    def _read_calls(self, values: dict[str, Any], calls: Mapping[str, _Reader]) -> None:
        for name, call in calls.items():
            try:
                values[name] = call(self._nvml, self.handle)
            except self._nvml.NVMLError as error:
                if error.value in self._gone:
                    raise


def _codes_of_loss(nvml: ModuleType) -> tuple[int, ...]:
    """With which NVML says that a GPU is gone."""
    return (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)


def _memory_by_pid(processes: Iterable[Any]) -> dict[int, int | None]:
    return {process.pid: process.usedGpuMemory for process in processes}


def _handle(nvml: ModuleType, address: GpuAddress) -> Any:
    if address.uuid is None:
        return nvml.nvmlDeviceGetHandleByIndex(address.gpu if address.index is None else address.index)
    return nvml.nvmlDeviceGetHandleByUUID(address.uuid)
