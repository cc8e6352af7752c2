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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llmperf.atomic import why
from pytest_llmperf.client import Address
from pytest_llmperf.engines import installed, model_files, tiny_llama
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.engines.outer_tier import OuterTier
from pytest_llmperf.engines.placement import Place
from pytest_llmperf.engines.process import ServerProcess, free_port
from pytest_llmperf.engines.spec import COMMON_WORDS, EngineSpec
from pytest_llmperf.engines.started import ServedEngine
from pytest_llmperf.errors import ConfigurationError, EngineStartError
from pytest_llmperf.records import CacheCounters
from pytest_llmperf.secret import concealed, secrets_of

WORDS = COMMON_WORDS | {"executable", "gpu_memory_fraction"}
"""What every engine whose server we start accepts."""
REQUIRED = {"model": "give model=... in the mark or --llmperf-model MODEL"}

OWN_FLAGS = {
    "--host": "a server that is started here listens on loopback only",
    "--port": "it gets a free one, in a fleet the one that ports=[...] says",
}
"""What the command of every server has."""
_RESET_ATTEMPTS = 20
_RESET_PAUSE_S = 0.1
_FIND_TIMEOUT_S = 60.0
_SAID_LINES = 15


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
    newest: tuple[int, int] | None = None
    """The last one."""
    tried: str = ""
    """Which versions have been run, or read, in a few words."""
    own_flags: Mapping[str, str] = field(default_factory=dict)
    """Options that each of its commands has, with what there is in place of them; `_` is written `-`."""
    words: Callable[[EngineSpec], Sequence[str]] = lambda spec: ()
    """The options that a specification's words become."""
    word_flags: Mapping[str, str] = field(default_factory=dict)
    """Which word becomes an option."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of options, and those that say the opposite."""
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
    doubts: Callable[[EngineSpec, str], Iterable[str]] = lambda spec, python: ()
    """What of a specification it will do otherwise, or cannot be checked, a sentence each."""
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
        self._doubts: tuple[str, ...] = ()
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

    def report(self) -> str:
        return "" if self._process is None else self._process.report()

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
            "doubts": list(self._doubts) or None,
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
        self._doubts = (*_unknown_version(recipe, version), *recipe.doubts(self._spec, self._python))
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
    """What a Python has of a package; None if it has it not. Raises `ConfigurationError` if it cannot even tell."""
    if python == sys.executable:
        return installed.about(package)
    command = [python, installed.__file__, package]
    try:
        found = subprocess.run(command, timeout=_FIND_TIMEOUT_S, check=False, capture_output=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{kind}: executable={python!r} cannot be run: {error}"
        raise ConfigurationError(msg) from None
    lines = found.stdout.splitlines()
    try:
        told = json.loads(lines[-1] if found.returncode == 0 and lines else b"")  # a site's own words come before
    except ValueError:
        raise ConfigurationError(_broken(kind, python, found)) from None
    return told if isinstance(told, dict) else None


def _broken(kind: str, python: str, found: subprocess.CompletedProcess[bytes]) -> str:
    """What a Python said that should have told of a package, and did something else."""
    said = (found.stderr or found.stdout).decode(errors="replace")
    tail = [f"  | {line}" for line in concealed(said, secrets_of({})).splitlines()[-_SAID_LINES:]]
    msg = (
        f"{kind}: executable={python!r} did not say what it has installed (exit code {found.returncode}); it has to "
        "be a Python that runs, such as the bin/python of an environment"
    )
    return "\n".join([msg, *tail])


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
    number = _number(version)
    return number is not None and "dev" not in version and number < oldest


def _unknown_version(recipe: Recipe, version: str) -> Iterator[str]:
    """A doubt about what has come since; flags and metrics change from one version to the next."""
    number = _number(version)
    if recipe.newest is not None and number is not None and number > recipe.newest:
        yield (
            f"{recipe.package} {version} is newer than the versions that its options and metrics are known of "
            f"({recipe.tried}): what it does otherwise is not seen"
        )


def _number(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", version)
    return None if match is None else (int(match[1]), int(match[2]))


def served_by(recipe: Recipe, spec: EngineSpec, surroundings: Surroundings, place: Place | None = None) -> ServedEngine:
    """An engine whose server follows the recipe, not yet started."""
    model = served_name(spec) if recipe.names_models else None
    return ServedEngine(spec, ProcessHost(recipe, spec, surroundings, place), model, surroundings)


def flag_problems(recipe: Recipe, spec: EngineSpec) -> Iterator[str]:
    """Options in `args` that a start sets itself: the last one of a command wins, and the result would not say so."""
    set_by_words = {_canonical(recipe, option) for option in recipe.words(spec)}
    for argument in spec.args:
        flag = _canonical(recipe, argument)
        if flag in recipe.own_flags:
            yield f"args has {argument.partition('=')[0]}, which is set here; {recipe.own_flags[flag]}"
        elif flag in set_by_words and flag in recipe.word_flags:
            word = recipe.word_flags[flag]
            yield (
                f"args has {argument.partition('=')[0]}, which {word}={getattr(spec, word)!r} sets, too; say it by "
                f"{word}=... only, which the result then tells"
            )


def _canonical(recipe: Recipe, argument: str) -> str:
    option = option_of(argument)
    return recipe.aliases.get(option, option)


def option_of(argument: str) -> str:
    """The option of an argument such as `--max_model_len=8`, as it is told from others: `--max-model-len`."""
    name = argument.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


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
