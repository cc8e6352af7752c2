"""What a test's marks ask of the hardware, and whether it is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware.detect import Hardware
from pytest_llmperf.hardware.gpu import Gpu, version
from pytest_llmperf.hardware.parts import NVLINKS
from pytest_llmperf.units import GIB

_SHOWN = 0.99
"""Share of its memory that a part shows at least: an H100 of 80 GB says 79.6 GiB, an RTX 4090 of 24 GB 23.99."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """All of it must hold, and for the same GPUs. Empty means that no GPU is needed."""

    parts: tuple[str, ...] = ()
    count: int | None = None
    memory_gib: float | None = None
    nvlink_c2c: bool | None = None
    compute_capability: tuple[int, int] | None = None
    """At least this."""
    nvlink: bool | None = None
    """Linked to its peers."""

    @property
    def is_empty(self) -> bool:
        return self == Requirement()

    def unmet_by(self, hardware: Hardware) -> str | None:
        """None if `hardware` meets this; else a sentence that says what was needed and found."""
        suitable = [gpu for gpu in hardware.gpus if self._suits(gpu) and self._is_linked_as_asked(gpu, hardware)]
        if self.is_empty or len(suitable) >= (self.count or 1):
            return None
        asked = [word for word in ("compute_capability", "nvlink", "nvlink_c2c") if getattr(self, word) is not None]
        return "; ".join([f"needs {self}, found {hardware.describe(asked)}", *hardware.notes])

    def _suits(self, gpu: Gpu) -> bool:
        return (
            all(gpu.part is not None and gpu.part.mark == mark for mark in self.parts)
            and (self.memory_gib is None or self._has_memory(gpu, self.memory_gib))
            and (self.nvlink_c2c is None or gpu.nvlink_c2c is self.nvlink_c2c)
            and (self.compute_capability is None or (gpu.compute_capability or (0, 0)) >= self.compute_capability)
        )

    def _is_linked_as_asked(self, gpu: Gpu, hardware: Hardware) -> bool:
        """Of hardware that was declared, the part says whether several of it are linked."""
        is_linked = gpu.nvlink
        if hardware.declared and gpu.part is not None:
            is_linked = len(hardware.gpus) > 1 and gpu.part.gpu_link in NVLINKS
        return self.nvlink is None or is_linked is self.nvlink

    @staticmethod
    def _has_memory(gpu: Gpu, gib: float) -> bool:
        """NVML gives a GPU whose MIG is on the memory of the whole part, of which a slice has some."""
        is_own = not gpu.mig or gpu.gpu_uuid is not None
        return gpu.memory_bytes is not None and is_own and gpu.memory_bytes >= _SHOWN * gib * GIB

    def __str__(self) -> str:
        what = " and ".join(mark.upper() for mark in self.parts) or "GPU"
        details = [f"{self.memory_gib:g} GiB"] if self.memory_gib is not None else []
        if self.compute_capability is not None:
            details.append(f"compute capability {version(self.compute_capability)}")
        for asked, name in ((self.nvlink, "NVLink"), (self.nvlink_c2c, "NVLink-C2C")):
            if asked is not None:
                details.append(name if asked else f"no {name}")
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
            if word not in _WORDS:
                problems.append(f"gpu({word}=...): unknown word; accepted: {', '.join(_WORDS)}")
                continue
            try:
                wanted.setdefault(word, _WORDS[word](value))
            except ValueError as expected:
                problems.append(f"gpu({word}={value!r}): expected {expected}")
    if problems:
        raise ConfigurationError(*problems)
    if gpu_marks and not wanted:
        wanted["count"] = 1
    return Requirement(parts=tuple(dict.fromkeys(part_marks)), **wanted)  # type: ignore[arg-type] # checked above


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number of at least 1")
    return value


def _positive(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError("a positive number")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("True or False")  # noqa: TRY004 - the caller makes one kind of error of all of them
    return value


def _capability(value: object) -> tuple[int, int]:
    """`9.0`, `"9.0"` and `9` are (9, 0); 90, as compilers write it (sm_90), is none: no GPU would ever have it."""
    found = re.fullmatch(r"([1-9]|[12]\d)(?:\.(\d))?", str(value))
    if not isinstance(value, (int, float, str)) or isinstance(value, bool) or found is None:
        raise ValueError('a version such as 9.0 or "9.0", which compilers call sm_90')
    return int(found[1]), int(found[2] or 0)


_WORDS: dict[str, Callable[[object], object]] = {
    "count": _count,
    "memory_gib": _positive,
    "nvlink_c2c": _flag,
    "compute_capability": _capability,
    "nvlink": _flag,
}
"""The words of the `gpu` mark; each function returns the value or raises `ValueError` with what is expected."""
