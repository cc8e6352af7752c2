"""Where the replicas of a fleet run: which GPUs and processors each of them gets, on which port it listens."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import ConfigurationError

_PINNING = "taskset"
_MOST_PROCESSORS = 8192
"""As many as Linux can be built for."""
_MOST_LISTED = 8
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server runs, if not simply here: what is put before its command, its environment, its port."""

    prefix: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    port: int | None = None
    number: int | None = None
    """Of several equal servers, which this is, the first is 0."""


def gpu_groups(spec: EngineSpec) -> list[tuple[str, ...]]:
    """The GPUs of each replica, by their numbers: as given, or as many as it needs, each its own."""
    replicas, each = spec.replicas or 1, spec.tensor_parallel or 1
    if not spec.gpus:
        return [tuple(str(number) for number in range(first * each, (first + 1) * each)) for first in range(replicas)]
    return [tuple(_numbers(group)) for group in _dealt(spec.gpus, replicas)]


def gpu_count(spec: EngineSpec) -> int:
    """GPUs of all replicas together."""
    return len({gpu for group in gpu_groups(spec) for gpu in group})


def sharers(spec: EngineSpec) -> int:
    """How many replicas run on one GPU at most; 1: each has its own."""
    return max(Counter(gpu for group in gpu_groups(spec) for gpu in group).values())


def placement_problems(spec: EngineSpec) -> Iterator[str]:
    """What is wrong with where the replicas are to run."""
    replicas = spec.replicas or 1
    for word, groups in (("gpus", spec.gpus), ("cpus", spec.cpus), ("ports", spec.ports)):
        if groups and len(groups) != replicas and (word == "ports" or len(groups) > 1):
            yield f"{word}: {len(groups)} given, but there are {replicas} replicas; give one for each"
    if spec.gpus and any(len(group) != (spec.tensor_parallel or 1) for group in gpu_groups(spec)):
        yield f"gpus={'|'.join(spec.gpus)!r}: each replica needs as many GPUs as tensor_parallel says"
    sharing = sharers(spec)
    if sharing > 1 and (spec.gpu_memory_fraction or 1.0) * sharing > 1:
        yield (
            f"gpus={'|'.join(spec.gpus)!r}: {sharing} replicas share a GPU; say what share of its memory each may "
            f"take: gpu_memory_fraction=... of at most {1 / sharing:.3g}"
        )


def check_processors(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` for processors that this machine, or its container, does not have."""
    if not spec.cpus:
        return
    if shutil.which(_PINNING) is None:
        raise ConfigurationError(
            f"fleet: cpus needs {_PINNING!r} (of util-linux), which is not on PATH; or leave cpus out"
        )
    asked = sorted({int(number) for group in spec.cpus for number in _numbers(group)})
    usable = _usable_processors()
    missing = [str(number) for number in asked if number not in usable]
    if missing:
        raise ConfigurationError(
            f"fleet: cpus={'|'.join(spec.cpus)!r}: there is no processor {', '.join(missing[:_MOST_LISTED])} here; "
            f"those that may be used are {_ranges(sorted(usable))}"
        )


def _usable_processors() -> frozenset[int]:
    """Those that a process of ours may be put on, whatever pytest itself was put on.

    Asked for in a thread, whose affinity ends with it: the kernel leaves of a mask what there is.
    """

    def widest() -> frozenset[int]:
        os.sched_setaffinity(0, range(_MOST_PROCESSORS))
        return frozenset(os.sched_getaffinity(0))

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(widest).result()


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in the form of the word: `0-7,16`."""
    firsts = [number for number in numbers if number - 1 not in numbers]
    lasts = [number for number in numbers if number + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def places(spec: EngineSpec) -> list[Place]:
    """One for each replica. Numbers of GPUs count those that this process may see."""
    replicas = spec.replicas or 1
    cpus = _dealt(spec.cpus, replicas) if spec.cpus else [""] * replicas
    ports = spec.ports or (None,) * replicas
    return [
        Place(
            prefix=(_PINNING, "--cpu-list", processors) if processors else (),
            env=((_VISIBLE, ",".join(_seen(group))),),
            port=port,
            number=number,
        )
        for number, (group, processors, port) in enumerate(zip(gpu_groups(spec), cpus, ports, strict=True))
    ]


def _dealt(groups: Sequence[str], replicas: int) -> list[str]:
    """A group for each; one for all where there is one only."""
    return list(groups) if len(groups) == replicas else [groups[0]] * replicas


def _numbers(group: str) -> Iterator[str]:
    """Each number of a group such as `0,2-3`."""
    for part in group.split(","):
        first, _, last = part.partition("-")
        yield from (str(number) for number in range(int(first), int(last or first) + 1))


def _seen(group: Sequence[str]) -> Iterator[str]:
    """GPUs as the driver knows them, where only some may be seen here."""
    visible = [name for name in os.environ.get(_VISIBLE, "").split(",") if name]
    for gpu in group:
        yield visible[int(gpu)] if int(gpu) < len(visible) else gpu
