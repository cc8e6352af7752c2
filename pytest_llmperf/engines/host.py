"""Servers of our own: what is the same for every engine whose server we start.

What differs is a `Recipe`: the package, the command line, and how the cache is emptied.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.engines import tiny_llama
from pytest_llmperf.engines.base import COMMON_WORDS, EngineSpec, Surroundings
from pytest_llmperf.engines.outer_tier import OuterTier
from pytest_llmperf.engines.placement import Place
from pytest_llmperf.engines.process import ServerProcess, free_port
from pytest_llmperf.engines.server import OpenAIServer, ServedEngine
from pytest_llmperf.errors import ConfigurationError
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
    names_models: bool = True
    """Whether its server can be told by what name the model is asked for."""
    names_itself: bool = False
    """Whether its server can be told to answer by another name than the one that is asked for."""
    empty: Callable[[OpenAIServer], bool] | None = None
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
        self._outer_tier: OuterTier | None = None

    @property
    def own_name(self) -> str | None:
        """What the server calls the model in its answers; None where it is not one of several, or cannot be told."""
        number = self._place.number
        return None if number is None or not self._recipe.names_itself else f"{served_name(self._spec)}#{number}"

    def launch(self) -> Address:
        self._check_installed()
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
        self._process = ServerProcess(
            [*place.prefix, *self._recipe.command(launch)],
            env={**self._recipe.environment, **dict(place.env), **dict(self._spec.env)},
            log=log,
            clock=self._surroundings.clock,
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

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._outer_tier is not None:
            self._outer_tier.remove()

    def reset_cache(self, server: OpenAIServer) -> bool:
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
        return {} if self._process is None else {"command": self._process.command_line}

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

    def _check_installed(self) -> None:
        """Say that the engine is missing before a process is started for it."""
        package = self._recipe.package
        is_here = self._python == sys.executable
        if not (importlib.util.find_spec(package) if is_here else self._has(package)):
            msg = (
                f"{package} is not installed for {self._python}; install it there ({self._recipe.install}), or name "
                "the Python that has it with executable=... in the mark or --llmperf-set executable=PATH"
            )
            raise ConfigurationError(msg)
        lack = self._recipe.lack(self._spec, self._python)
        if lack is not None:
            raise ConfigurationError(f"{self._recipe.kind}: {lack}")

    def _has(self, package: str) -> bool:
        script = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        try:
            found = subprocess.run([self._python, "-c", script], timeout=_FIND_TIMEOUT_S, check=False)
        except OSError as error:
            msg = f"{self._recipe.kind}: executable={self._python!r} cannot be run: {error}"
            raise ConfigurationError(msg) from None
        return found.returncode == 0


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
