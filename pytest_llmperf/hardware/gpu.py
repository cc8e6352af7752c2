"""One GPU, or one MIG slice of it: what the driver says of it, and the name of its baselines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_llmperf.hardware.parts import BY_NVML_NAME, Part
from pytest_llmperf.units import GIB, MIB, size

MOMENTARY = frozenset({"pcie_generation"})
"""Fields of `Gpu` that change from one moment to the next on the same machine."""
_WHOLE = 0.9
"""Share of a part's memory that all of it shows at least: ECC takes a sixteenth of GDDR."""
_SLICE = re.compile(r"(?P<whole>.+) MIG (?P<profile>\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one slice of it where MIG is on. A field is None where the driver does not say.

    What a slice shares with others (links, power, clocks, modes) is that of its GPU, and so is `index`.
    """

    name: str
    memory_bytes: int | None = None
    uuid: str | None = None
    compute_capability: tuple[int, int] | None = None
    nvlink_c2c: bool | None = None
    """NVLink-C2C joins it and the CPU."""
    mig: bool | None = None
    """MIG is on: this is a slice, or a GPU that offers none."""
    gpu_uuid: str | None = None
    """Of a slice: the GPU's own UUID."""
    gpu_instance: int | None = None
    compute_instance: int | None = None
    index: int | None = None
    """NVML's number, which counts in the order of the PCI bus, those that are withheld from us, too."""
    pci_bus_id: str | None = None
    pci_device_id: str | None = None
    """Device and vendor, eight hexadecimal digits, as `233010DE`."""
    pci_subsystem_id: str | None = None
    """Board and maker, likewise."""
    pcie_generation: int | None = None
    """At the moment of asking: it drops while the GPU is idle."""
    pcie_generation_max: int | None = None
    """Of GPU and slot together."""
    pcie_generation_gpu_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    nvlinks: int | None = None
    """Links to its peers that are up."""
    nvlink_version: int | None = None
    ecc: bool | None = None
    ecc_pending: bool | None = None
    """What it will be after the next reboot."""
    persistence: bool | None = None
    power_limit_w: float | None = None
    """As enforced."""
    power_limit_default_w: float | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    numa_node: int | None = None
    """The host's memory that is nearest."""

    @property
    def part(self) -> Part | None:
        """The known part that this is; None for an unknown one, and for a slice or another share of one."""
        return None if self.mig or self.is_partial else _part_called(self.name)

    @property
    def is_partial(self) -> bool:
        """It has the name of a known part and clearly less memory, as a share of one in a virtual machine may."""
        part = None if self.gpu_uuid else _part_called(self.name)
        return part is not None and self.memory_bytes is not None and self.memory_bytes < _WHOLE * part.memory_mib * MIB

    @property
    def nvlink(self) -> bool | None:
        """It is linked to its peers."""
        return None if self.nvlinks is None else self.nvlinks > 0

    @property
    def mig_profile(self) -> str | None:
        """The MIG profile, such as `1g.5gb`, where this is a slice and its name says so."""
        found = _SLICE.fullmatch(self.name)
        return found["profile"] if found else None

    @property
    def key(self) -> str:
        """The normalised name under which baselines are kept."""
        found = _SLICE.fullmatch(self.name)
        whole = found["whole"] if found else self.name
        part = _part_called(whole)
        key = part.key if part else slug(whole)
        gib = None if self.memory_bytes is None else f"{round(self.memory_bytes / GIB)}GiB"
        details = [gib] if (part is None or self.is_partial) and not self.gpu_uuid else []
        if self.mig:
            details += ["MIG", slug(found["profile"]) if found else gib if self.gpu_uuid else None]
        return "-".join([key, *filter(None, details)])

    def describe(self, asked: Sequence[str] = ()) -> str:
        """Name and memory, and what it has of the fields that were `asked` for, as far as that is known."""
        said = [_SAID[field](self) for field in asked if field in _SAID and getattr(self, field) is not None]
        details = [*filter(None, [self._memory()]), *said]
        inside = f" ({', '.join(details)})" if details else ""
        return f"{self.name}{inside}{', MIG enabled' if self.mig and not self.gpu_uuid else ''}"

    def _memory(self) -> str | None:
        """With that of the whole part where this is only some of it."""
        part = _part_called(self.name)
        if self.memory_bytes is None or part is None or not self.is_partial:
            return None if self.memory_bytes is None else size(self.memory_bytes)
        return f"{size(self.memory_bytes)} of {size(part.memory_mib * MIB)}"

    def settings(self) -> str:
        """All else that is known, for people, in one line."""
        said = (say(self) for say in _SETTINGS)
        return "; ".join(text for text in said if text is not None) or "the driver says no more"

    def __str__(self) -> str:
        return self.describe()


def version(number: tuple[int, int] | None) -> str:
    """`(9, 0)` is `9.0`."""
    return "-" if number is None else ".".join(map(str, number))


def slug(name: str) -> str:
    """A name as it may stand in a key and in a folder's name."""
    plain = re.sub(r"\((R|TM|C)\)|\bCPU\b|@.*", " ", name)
    return re.sub(r"[^A-Za-z0-9.]+", "-", plain).strip("-")


def _part_called(name: str) -> Part | None:
    """The part by NVML's name, which drivers before 470 gave without the maker's."""
    return BY_NVML_NAME.get(name) or BY_NVML_NAME.get(f"NVIDIA {name}")


def _pci(gpu: Gpu) -> str | None:
    ids = [f"PCI {gpu.pci_bus_id}", gpu.pci_device_id, gpu.pci_subsystem_id]
    return None if gpu.pci_bus_id is None else " ".join(filter(None, ids))


def _pcie(gpu: Gpu) -> str | None:
    if gpu.pcie_generation is None or gpu.pcie_width is None:
        return None
    most = f" of {gpu.pcie_generation_max} x{gpu.pcie_width_max}" if gpu.pcie_generation_max else ""
    return f"PCIe generation {gpu.pcie_generation} x{gpu.pcie_width}{most}"


def _nvlinks(gpu: Gpu) -> str | None:
    if gpu.nvlinks is None:
        return None
    made = f" (version {gpu.nvlink_version})" if gpu.nvlink_version else ""
    return f"{gpu.nvlinks or 'no'} NVLinks up{made}"


def _power(gpu: Gpu) -> str | None:
    if gpu.power_limit_w is None:
        return None
    default = f" of {gpu.power_limit_default_w:g} W" if gpu.power_limit_default_w else ""
    return f"power limit {gpu.power_limit_w:g} W{default}"


def _clocks(gpu: Gpu) -> str | None:
    if gpu.sm_clock_max_mhz is None or gpu.memory_clock_max_mhz is None:
        return None
    return f"clocks up to {gpu.sm_clock_max_mhz} MHz, memory {gpu.memory_clock_max_mhz} MHz"


def _switch(name: str, value: bool | None) -> str | None:
    return None if value is None else f"{name} {'on' if value else 'off'}"


_SETTINGS: tuple[Callable[[Gpu], str | None], ...] = (
    lambda gpu: gpu.uuid,
    _pci,
    lambda gpu: None if gpu.compute_capability is None else _SAID["compute_capability"](gpu),
    _pcie,
    _nvlinks,
    lambda gpu: "NVLink-C2C" if gpu.nvlink_c2c else None,
    lambda gpu: _switch("MIG", gpu.mig),
    lambda gpu: _switch("ECC", gpu.ecc),
    lambda gpu: _switch("persistence", gpu.persistence),
    _power,
    _clocks,
    lambda gpu: None if gpu.numa_node is None else f"NUMA node {gpu.numa_node}",
)

_SAID: dict[str, Callable[[Gpu], str]] = {
    "compute_capability": lambda gpu: f"compute capability {version(gpu.compute_capability)}",
    "nvlink": lambda gpu: "NVLink" if gpu.nvlink else "no NVLink",
    "nvlink_c2c": lambda gpu: "NVLink-C2C" if gpu.nvlink_c2c else "no NVLink-C2C",
}
