"""What a test's marks ask of the hardware, and whether it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware.detect import Gpu, Hardware
from pytest_llmperf.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """All of it must hold, and for the same GPUs. Empty means that no GPU is needed."""

    parts: tuple[str, ...] = ()
    count: int | None = None
    memory_gib: float | None = None
    nvlink_c2c: bool | None = None

    @property
    def is_empty(self) -> bool:
        return self == Requirement()

    def unmet_by(self, hardware: Hardware) -> str | None:
        """None if `hardware` meets this; else a sentence that says what was needed and found."""
        suitable = [gpu for gpu in hardware.gpus if self._suits(gpu)]
        if self.is_empty or len(suitable) >= (self.count or 1):
            return None
        return f"needs {self}, found {hardware.describe()}"

    def _suits(self, gpu: Gpu) -> bool:
        return (
            all(gpu.part is not None and gpu.part.mark == mark for mark in self.parts)
            and (self.memory_gib is None or self._has_memory(gpu, self.memory_gib))
            and (self.nvlink_c2c is None or gpu.nvlink_c2c is self.nvlink_c2c)
        )

    @staticmethod
    def _has_memory(gpu: Gpu, gib: float) -> bool:
        """NVML gives a MIG-enabled GPU the memory of the whole part, of which a slice has some."""
        return gpu.memory_bytes is not None and not gpu.mig and gpu.memory_bytes >= gib * GIB

    def __str__(self) -> str:
        what = " and ".join(mark.upper() for mark in self.parts) or "GPU"
        details = [f"{self.memory_gib:g} GiB"] if self.memory_gib is not None else []
        if self.nvlink_c2c is not None:
            details.append("NVLink-C2C" if self.nvlink_c2c else "no NVLink-C2C")
        suffix = f" with {' and '.join(details)}" if details else ""
        return f"{self.count or 1} x {what}{suffix}"


def requirement_of(
    part_marks: Sequence[str], gpu_marks: Sequence[tuple[tuple[object, ...], Mapping[str, object]]]
) -> Requirement:
    """Combine the parts' marks and the `gpu(...)` marks of one test, closest first.

    A `gpu` mark without words asks for one GPU of any kind. Raises `ConfigurationError` that lists
    every unknown or unusable argument.
    """
    wanted: dict[str, object] = {}
    problems = []
    for positional, words in gpu_marks:
        if positional:
            given = ", ".join(map(repr, positional))
            problems.append(f"gpu({given}): the gpu mark takes keywords only, such as gpu(count=2)")
        for word, value in words.items():
            problem = _problem(word, value)
            if problem:
                problems.append(problem)
            else:
                wanted.setdefault(word, value)
    if problems:
        raise ConfigurationError(*problems)
    if gpu_marks and not wanted:
        wanted["count"] = 1
    return Requirement(parts=tuple(dict.fromkeys(part_marks)), **wanted)  # type: ignore[arg-type] # checked above


def _problem(word: str, value: object) -> str | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if word == "count":
        bad = not isinstance(value, int) or isinstance(value, bool) or value < 1
        return f"gpu(count={value!r}): expected a whole number of at least 1" if bad else None
    if word == "memory_gib":
        return None if is_number and float(value) > 0 else f"gpu(memory_gib={value!r}): expected a positive number"  # type: ignore[arg-type]
    if word == "nvlink_c2c":
        return None if isinstance(value, bool) else f"gpu(nvlink_c2c={value!r}): expected True or False"
    return f"gpu({word}=...): unknown word; accepted: count, memory_gib, nvlink_c2c"
