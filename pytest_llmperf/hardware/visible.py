"""Which of the GPUs that NVML lists CUDA lets a process use, by `CUDA_VISIBLE_DEVICES`.

NVML itself takes no notice of that variable. What `NVIDIA_VISIBLE_DEVICES` keeps from a container,
NVML does not list in the first place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llmperf.hardware.gpu import Gpu
from pytest_llmperf.units import count

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
_PCI_ORDER = "PCI_BUS_ID"
_NUMBER = re.compile(r"\+?\d+")
"""CUDA reads the number that an entry begins with, as C's strtoul does."""
# How one writes that no GPU is wanted; the last is Slurm's.
_NOTHING = ("", "-1", "NoDevFiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """GPUs in the order in which they were asked for, and a sentence on each thing to know of that."""

    gpus: tuple[Gpu, ...]
    notes: tuple[str, ...] = ()


def select(gpus: Sequence[Gpu], devices: str | None, order: str | None = None) -> Selection:
    """The GPUs that CUDA shows where the variables have these values; None for one that is not set.

    An entry that names no GPU hides itself and those after it, as CUDA does; a GPU named twice
    leaves none. An index counts GPUs in NVML's order; one whose MIG is on stands for its slices.
    """
    if devices is None or not gpus:
        return Selection(gpus=tuple(gpus))
    chosen, problem = _chosen(gpus, devices)
    hidden = len(gpus) - len(chosen)
    notes = list(_read_in_part(devices))
    if hidden or problem is not None:
        fact = problem or f"hides {hidden} of {count(len(gpus), 'GPU')}"
        notes.append(f"{fact}; unset it to use all")
    if hidden and _depends_on_order(gpus, devices, order):
        notes.append(
            f"is read in the order of the PCI bus, while CUDA counts the fastest GPU first; set {ORDER}={_PCI_ORDER}"
        )
    return Selection(gpus=tuple(chosen), notes=tuple(f"{VARIABLE}={devices!r} {note}" for note in notes))


def _chosen(gpus: Sequence[Gpu], devices: str) -> tuple[list[Gpu], str | None]:
    """The GPUs that the entries name, and what is wrong with an entry that ends the list."""
    chosen: list[Gpu] = []
    for entry in map(str.strip, devices.split(",")):
        named = _named(entry, gpus)
        if not named:
            return chosen, None if entry in _NOTHING else f"names no GPU with {entry!r}, which hides all from there on"
        if any(gpu in chosen for gpu in named):
            return [], f"names a GPU twice with {entry!r}, which hides all"
        chosen += named
    return chosen, None


def _named(entry: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPU, or the slices, that an entry stands for; none if there is no such thing, or more than one."""
    if entry.startswith("MIG-"):
        return _only([[gpu] for gpu in gpus if gpu.gpu_uuid and _is_slice(gpu, entry)])
    wholes = _wholes(gpus)
    if entry.startswith("GPU-"):
        return _only([whole for whole in wholes if (whole[0].gpu_uuid or whole[0].uuid or "").startswith(entry)])
    number = _NUMBER.match(entry)
    index = int(number[0]) if number else len(wholes)
    return wholes[index] if index < len(wholes) else []


def _read_in_part(devices: str) -> Iterator[str]:
    """What CUDA passes over without a word: `0:1`, which container tools take for a slice, is 0 to it."""
    for entry in map(str.strip, devices.split(",")):
        number = _NUMBER.match(entry)
        if number is None:
            return
        if number.end() < len(entry):
            yield (
                f"has {entry!r}, of which CUDA reads {number[0]!r} alone; write the number, or for a slice its UUID "
                "(MIG-..., see nvidia-smi -L)"
            )


def _is_slice(gpu: Gpu, entry: str) -> bool:
    """By its UUID, or by what drivers before 470 called it: its GPU and the numbers of its two instances."""
    former = f"MIG-{gpu.gpu_uuid}/{gpu.gpu_instance}/{gpu.compute_instance}"
    return (gpu.uuid or "").startswith(entry) or former == entry


def _only(found: list[list[Gpu]]) -> list[Gpu]:
    return found[0] if len(found) == 1 else []


def _wholes(gpus: Sequence[Gpu]) -> list[list[Gpu]]:
    """GPUs, each as what may be used of it: itself or its slices."""
    by_index: dict[int | None, list[Gpu]] = {}
    for gpu in gpus:
        by_index.setdefault(gpu.index, []).append(gpu)
    return list(by_index.values())


def _depends_on_order(gpus: Sequence[Gpu], devices: str, order: str | None) -> bool:
    """Whether numbers mean other GPUs in CUDA's own order, which is unknown to NVML."""
    return order != _PCI_ORDER and bool(re.match(r"\s*\d", devices)) and len({gpu.name for gpu in gpus if gpu.name}) > 1
