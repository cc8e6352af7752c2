"""Servers of our own: what is the same for every engine whose server we start.

What differs is a `Recipe`: the package, the command line, and how the cache is emptied.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llmperf.atomic import why
from pytest_llmperf.client import Address
from pytest_llmperf.engines import installed, model_files, tiny_llama
from pytest_llmperf.engines.base import COMMON_WORDS, EngineSpec, Surroundings
from pytest_llmperf.engines.outer_tier import OuterTier
from pytest_llmperf.engines.placement import Place
from pytest_llmperf.engines.process import ServerProcess, free_port
from pytest_llmperf.engines.server import ServedEngine
from pytest_llmperf.errors import ConfigurationError, EngineStartError
from pytest_llmperf.records import CacheCounters

WORDS = COMMON_WORDS | {"executable", "gpu_memory_fraction"}
"""What every engine whose server we start accepts."""
REQUIRED = {"model": "give model=... in the mark or --llmperf-model MODEL"}

_RESET_ATTEMPTS = 20
_RESET_PAUSE_S = 0.1
_FIND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start of a server: what its command line is made of."""

    spec: EngineSpec
    python: str
    """The Python that has the engine."""
    model: str
    """A name, or a folder."""
    served_name: str
    own_name: str | None = None
    """What it calls the model in its answers, so that it is known from its equals; None: as it is asked for."""
    port: int
    log: Path
    """Where its output goes; files written for it lie beside this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one engine's server is started and emptied."""

    kind: str
    package: str
    """What is imported of it, never by us."""
    install: str
    """How one gets it, in a few words."""
    command: Callable[[Launch], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    oldest: tuple[int, int] | None = None
    """The first version whose options we speak."""
    litters: bool = False
    """Whether it leaves files in the folder for temporary ones, and gets one that is removed with it."""
    names_models: bool = True
    """Whether its server can be told by what name the model is asked for."""
    names_itself: bool = False
    """Whether its server can be told to answer by another name than the one that is asked for."""
    empty: Callable[[Any], bool] | None = None
    """Asks the server once to empty its cache, outer tiers included; None: it has no way to."""
    lack: Callable[[EngineSpec, str], str | None] = lambda spec, python: None
    """What the engine of a Python lacks for a specification, in a sentence."""
    outer_tier: Callable[[Launch], OuterTier | None] = lambda launch: None
    """What has to be looked after beside the server."""


class ProcessHost:
    """A server process that follows a recipe."""

    is_ours = True

    def __init__(
        self, recipe: Recipe, spec: EngineSpec, surroundings: Surroundings, place: Place | None = None
    ) -> None:
        self._recipe = recipe
        self._spec = spec
        self._surroundings = surroundings
        self._place = place or Place()
        self._process: ServerProcess | None = None
        self._package: dict[str, str] = {}
        self._outer_tier: OuterTier | None = None

    @property
    def own_name(self) -> str | None:
        """What the server calls the model in its answers; None where it is not one of several, or cannot be told."""
        number = self._place.number
        return None if number is None or not self._recipe.names_itself else f"{served_name(self._spec)}#{number}"

    def launch(self) -> Address:
        self._package = self._check_installed()
        self._check_model()
        if self._place.port is not None:
            _check_port(self._place.port)
        place = self._place
        log = unused_path(self._surroundings.log_dir, self._recipe.kind)
        launch = Launch(
            spec=self._spec,
            python=self._python,
            model=self._model(),
            served_name=served_name(self._spec),
            own_name=self.own_name,
            port=place.port or free_port(),
            log=log,
        )
        self._outer_tier = self._recipe.outer_tier(launch)
        outer = () if self._outer_tier is None else self._outer_tier.folders
        scratch = _scratch_folder() if self._recipe.litters else None
        try:
            command = self._recipe.command(launch)
        except OSError as error:
            folder = Path(error.filename or os.environ.get("TMPDIR", "/tmp"))
            raise EngineStartError(f"{self._recipe.kind} was not started: {why(error, folder)}") from None
        self._process = ServerProcess(
            [*place.prefix, *command],
            env={
                **self._recipe.environment,
                **({} if scratch is None else {"TMPDIR": str(scratch)}),
                **dict(place.env),
                **dict(self._spec.env),
            },
            log=log,
            clock=self._surroundings.clock,
            folders=outer if scratch is None else (scratch, *outer),
        )
        return Address.parse(f"http://127.0.0.1:{launch.port}")

    def wait_until_ready(self, is_healthy: Callable[[], bool]) -> None:
        assert self._process is not None
        self._process.wait_until(is_healthy, self._surroundings.start_timeout_s, self._surroundings.progress)

    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def check(self) -> None:
        if self._process is not None:
            self._process.check()

    def end_hung(self) -> str:
        return "" if self._process is None else self._process.end_hung()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._outer_tier is not None:
            self._outer_tier.remove()

    def reset_cache(self, server: Any) -> bool:
        """Engines refuse while requests or stores are in flight, so it is asked for several times."""
        empty = self._recipe.empty
        for _ in range(0 if empty is None else _RESET_ATTEMPTS):
            assert empty is not None
            if empty(server):
                self._empty_outer_tier()
                return True
            self._surroundings.clock.sleep(_RESET_PAUSE_S)
        return False

    def completed(self, counters: CacheCounters) -> CacheCounters:
        return counters if self._outer_tier is None else self._outer_tier.completed(counters)

    def describe(self) -> dict[str, Any]:
        """The command, the package behind it and the model's files, as far as they can be told."""
        if self._process is None:
            return {}
        package = {name: value for name, value in self._package.items() if name != "commit"}
        folder = model_files.folder_of(self._model(), dict(self._spec.env))
        told = {
            "command": self._process.command_line,
            "package": " ".join(package.values()) or None,
            "commit": self._package.get("commit"),
            "model_digest": None if folder is None else model_files.digest(folder),
        }
        return {name: value for name, value in told.items() if value is not None}

    def _empty_outer_tier(self) -> None:
        if self._outer_tier is not None:
            self._outer_tier.empty()

    @property
    def _python(self) -> str:
        return self._spec.executable or sys.executable

    def _model(self) -> str:
        if self._spec.model == tiny_llama.NAME:
            return str(tiny_llama.ensure(self._surroundings.cache_dir))
        return str(self._spec.model)

    def _check_model(self) -> None:
        """A path that is not there would be taken for a name on a hub, and looked for there."""
        model = str(self._spec.model)
        if model.startswith((".", "/", "~")) and not Path(model).expanduser().exists():
            raise ConfigurationError(
                f"{self._recipe.kind}: there is no model at {model!r}; give the folder of a checkpoint, a name on the "
                f"hub, or {tiny_llama.NAME!r}"
            )

    def _check_installed(self) -> dict[str, str]:
        """What is installed. Says that the engine is missing, or too old, before a process is started for it."""
        recipe = self._recipe
        found = _installed(recipe.kind, recipe.package, self._python)
        if found is None:
            raise ConfigurationError(
                f"{recipe.package} is not installed for {self._python}; install it there ({recipe.install}), or name "
                "the Python that has it with executable=... in the mark or --llmperf-set executable=PATH"
            )
        version = found.get("version", "")
        if recipe.oldest is not None and _is_older(version, recipe.oldest):
            wanted = ".".join(map(str, recipe.oldest))
            raise ConfigurationError(
                f"{recipe.package} {version} is installed for {self._python}, and {wanted} or newer is needed; upgrade "
                f"it there ({recipe.install}), or name another Python with executable=... in the mark or "
                "--llmperf-set executable=PATH"
            )
        lack = recipe.lack(self._spec, self._python)
        if lack is not None:
            raise ConfigurationError(f"{recipe.kind}: {lack}")
        return found


def build_of(recipe: Recipe, spec: EngineSpec) -> dict[str, str]:
    """What a start would start, as far as it is known: version, commit, a digest of the model's files."""
    found = _build(recipe.kind, recipe.package, spec.executable or sys.executable)
    folder = model_files.folder_of(str(spec.model), dict(spec.env))
    return {**found, **({} if folder is None else {"model_digest": model_files.digest(folder)})}


@cache
def _build(kind: str, package: str, python: str) -> dict[str, str]:
    """Asked once: a session does not change what it measures."""
    try:
        return _installed(kind, package, python) or {}
    except ConfigurationError:
        return {}


def _installed(kind: str, package: str, python: str) -> dict[str, str] | None:
    """What a Python has of a package; None if it has it not, or cannot tell."""
    if python == sys.executable:
        return installed.about(package)
    command = [python, installed.__file__, package]
    try:
        found = subprocess.run(command, timeout=_FIND_TIMEOUT_S, check=False, stdout=subprocess.PIPE)
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{kind}: executable={python!r} cannot be run: {error}"
        raise ConfigurationError(msg) from None
    try:
        told = json.loads(found.stdout) if found.returncode == 0 else None
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _scratch_folder() -> Path:
    """A new name for a server's own temporary files: a short one, as a socket's path has room for 107 characters."""
    return Path(tempfile.gettempdir(), f"llmperf-{secrets.token_hex(6)}")


def _check_port(port: int) -> None:
    """Raise `EngineStartError` for a port that is taken: whatever is there would be measured in place of ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EngineStartError(f"port {port} cannot be listened on: {error.strerror}; give another one") from None


def _is_older(version: str, oldest: tuple[int, int]) -> bool:
    """False for what is no released version: a build from source may call itself anything."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and "dev" not in version and (int(match[1]), int(match[2])) < oldest


def served_by(recipe: Recipe, spec: EngineSpec, surroundings: Surroundings, place: Place | None = None) -> ServedEngine:
    """An engine whose server follows the recipe, not yet started."""
    model = served_name(spec) if recipe.names_models else None
    return ServedEngine(spec, ProcessHost(recipe, spec, surroundings, place), model, surroundings)


def served_name(spec: EngineSpec) -> str:
    """The model's name in requests: the word of the specification, or its folder's name."""
    assert spec.model is not None, "REQUIRED has been checked"
    folder = Path(spec.model)
    return folder.name if folder.is_dir() else spec.model


def flags(values: Mapping[str, object]) -> list[str]:
    """A command line's options with their values; those without one (None) are left out."""
    return [word for flag, value in values.items() if value is not None for word in (flag, str(value))]


def beside(python: str, program: str) -> str:
    """The path of a program that is installed with this Python; its bare name, for PATH, if there is no such file."""
    path = Path(python).parent / program
    return str(path) if path.is_file() else program


def unused_path(folder: Path, stem: str) -> Path:
    """The first `stem-N.log` in `folder` that does not exist yet."""
    number = 1
    while (path := folder / f"{stem}-{number}.log").exists():
        number += 1
    return path
