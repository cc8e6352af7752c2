"""`pytest-llmperf serve`: the simulated engine, or a server with a known answer, for any client."""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

from pytest_llmperf.cli import exit_codes
from pytest_llmperf.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_llmperf.engines.sim.plan import Plan
    from pytest_llmperf.engines.spec import EngineSpec

HELP = "serve a simulated engine, or a known answer, to any OpenAI-compatible client"
_DEFAULT_TTFT_MS = 100.0
_DEFAULT_ITL_MS = 10.0
_MOST_PORT = 65535
# A part, and a model that fits on it.
_EXAMPLE_PART = "gh200"
_EXAMPLE_MODEL = "llama-3.1-8b"

Made = TypeVar("Made")


class _Word(NamedTuple):
    """An option that is a word of the engine's specification."""

    name: str
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        return _flag(self.name)


_WORDS = (
    _Word("part", "PART", "GPU to simulate, such as gh200"),
    _Word("model", "MODEL", "model to simulate, such as llama-3.1-8b, or a folder with a config.json"),
    _Word("dtype", "DTYPE", "of the weights, such as fp8"),
    _Word("kv_cache_dtype", "DTYPE", "of the KV cache, such as fp8"),
    _Word("kv_offload_gib", "GIB", "host memory for KV cache that does not fit on the device"),
    _Word("max_model_len", "N", "longest sequence, tokens"),
    _Word("tensor_parallel", "N", "GPUs of each replica (default: 1)"),
    _Word("replicas", "N", "engines behind a router (default: 1)"),
    _Word("policy", "POLICY", "how the router chooses (default: round_robin)"),
    _Word("like", "ENGINE", "engine to be like (default: vllm)"),
    _Word("slow", "CHANGES", "slowdowns put in on purpose, such as decode:+5%%,prefix_cache:off"),
    _Word("run_noise", "SHARE", "standard deviation of the pace from run to run"),
    _Word("request_noise", "SHARE", "by what share an answer is late, half-normal"),
    _Word("noise_seed", "N", "of what the noise draws (default: 0)"),
)
_OWN = ("no_prefix_caching", "set")
_KNOWN_ANSWER = ("ttft_ms", "itl_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, and what to serve."""
    # Texts, all of them: what is wrong with their values is told together, not one by one.
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", default="8000", metavar="N", help="port; 0: any that is free (default: 8000)")
    simulated = parser.add_argument_group("a simulated engine; --part and --model are needed")
    for word in _WORDS:
        simulated.add_argument(word.flag, metavar=word.metavar, help=word.help)
    simulated.add_argument("--no-prefix-caching", action="store_true", help="compute every prompt from its beginning")
    simulated.add_argument(
        "--set", action="append", metavar="CONSTANT=VALUE", help="another value for a constant of the simulation"
    )
    known = parser.add_argument_group("a known answer instead")
    known.add_argument("--ttft-ms", metavar="MS", help=f"from request to first token (default: {_DEFAULT_TTFT_MS:g})")
    known.add_argument("--itl-ms", metavar="MS", help=f"from each token to the next (default: {_DEFAULT_ITL_MS:g})")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Serve until SIGINT or SIGTERM, then 0; 2 for a mistake in the arguments."""
    try:
        order = _order(arguments)
    except ConfigurationError as error:
        sys.stderr.writelines(f"pytest-llmperf serve: {problem}\n" for problem in error.problems)
        return exit_codes.USAGE
    _allow_many_sockets()
    # What is there now stays; a collection that looks through it would hold up every stream.
    gc.collect()
    gc.freeze()
    try:
        order.serve(out)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.stderr.write(
            f"pytest-llmperf serve: cannot listen on {order.host}, port {order.port}: {reason}; give another --host "
            "or --port (0: any port that is free)\n"
        )
        return exit_codes.USAGE
    return 0


class _Simulation(NamedTuple):
    """A simulated engine to serve."""

    host: str
    port: int
    spec: EngineSpec
    plan: Plan

    def serve(self, out: TextIO) -> None:
        """Until it is told to stop. Raises `OSError` if it cannot listen."""
        from pytest_llmperf.engines.sim.serving import exact_event_loop  # noqa: PLC0415

        loop = exact_event_loop()
        with contextlib.closing(loop):
            loop.run_until_complete(self._serve(out))

    async def _serve(self, out: TextIO) -> None:
        import asyncio  # noqa: PLC0415

        from pytest_llmperf import __version__  # noqa: PLC0415
        from pytest_llmperf.engines.sim.serving import SimServer  # noqa: PLC0415

        told = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        server = SimServer(self.spec, self.plan, __version__)
        deployment = self.plan.deployment
        replicas = f"{self.plan.replicas} replicas on " if self.plan.replicas > 1 else ""
        what = f"{server.model}, {replicas}{deployment.gpus} x {deployment.part.key}, simulated"
        _announce(out, await server.start(self.host, self.port), what)
        await told.wait()
        await server.stop()


class _KnownAnswer(NamedTuple):
    """A server with a known answer."""

    host: str
    port: int
    ttft_ms: float
    itl_ms: float

    def serve(self, out: TextIO) -> None:
        """Until it is told to stop. Raises `OSError` if it cannot listen."""
        from pytest_llmperf.origin import Origin  # noqa: PLC0415

        origin = Origin(self.ttft_ms / 1e3, self.itl_ms / 1e3, self.host, self.port)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        with contextlib.suppress(_StopError):
            _announce(out, origin.url, f"TTFT {self.ttft_ms:g} ms, ITL {self.itl_ms:g} ms")
            origin.serve()


class _StopError(BaseException):
    """A signal says that it is enough."""


def _stop(*_: object) -> None:
    raise _StopError


def _announce(out: TextIO, url: str, what: str) -> None:
    out.write(f"listening on {url} ({what})\n")
    out.flush()


def _allow_many_sockets() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Mistakes:
    """Collects what is wrong, so that all of it can be told at once."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def attempt(self, make: Callable[[], Made]) -> Made | None:
        """What is made, or None where that is a mistake."""
        try:
            return make()
        except ConfigurationError as error:
            self.problems += [_own_words(problem) for problem in error.problems]
            return None


def _order(arguments: argparse.Namespace) -> _Simulation | _KnownAnswer:
    """Raises `ConfigurationError` listing every mistake."""
    mistakes = _Mistakes()
    port = mistakes.attempt(lambda: _port(arguments.port))
    order: _Simulation | _KnownAnswer | None = None
    if any(getattr(arguments, name) is not None for name in _KNOWN_ANSWER):
        mistakes.problems += _strangers(arguments)
        ttft_ms = mistakes.attempt(lambda: _milliseconds("ttft_ms", arguments.ttft_ms, _DEFAULT_TTFT_MS))
        itl_ms = mistakes.attempt(lambda: _milliseconds("itl_ms", arguments.itl_ms, _DEFAULT_ITL_MS))
        if port is not None and ttft_ms is not None and itl_ms is not None:
            order = _KnownAnswer(arguments.host, port, ttft_ms, itl_ms)
    else:
        planned = _planned(arguments, mistakes)
        if port is not None and planned is not None:
            order = _Simulation(arguments.host, port, *planned)
    if mistakes.problems or order is None:
        raise ConfigurationError(*dict.fromkeys(mistakes.problems))
    return order


def _strangers(arguments: argparse.Namespace) -> Iterator[str]:
    names = [*(word.name for word in _WORDS), *_OWN]
    given = [_flag(name) for name in names if getattr(arguments, name)]
    if given:
        yield (
            f"{', '.join(given)}: for a simulated engine; --ttft-ms and --itl-ms serve a known answer, which simulates "
            "nothing. Give the one or the other"
        )


def _planned(arguments: argparse.Namespace, mistakes: _Mistakes) -> tuple[EngineSpec, Plan] | None:
    """The engine to simulate; None where there are mistakes."""
    from pytest_llmperf.engines import sim  # noqa: PLC0415 - numpy is not needed for a known answer
    from pytest_llmperf.engines.sim.plan import planned  # noqa: PLC0415
    from pytest_llmperf.engines.spec import parse_spec  # noqa: PLC0415

    missing = [_flag(name) for name in sim.REQUIRED if not getattr(arguments, name)]
    if missing:
        mistakes.problems.append(
            f"{' and '.join(missing)} missing: a simulated engine needs a part and a model, such as "
            f"--part {_EXAMPLE_PART} --model {_EXAMPLE_MODEL}; --ttft-ms and --itl-ms serve a known answer without them"
        )
    words = {word.name: _value(word.name, getattr(arguments, word.name)) for word in _WORDS}
    if arguments.no_prefix_caching:
        words["prefix_caching"] = False
    words["constants"] = _constants(arguments.set or [], mistakes)
    good: dict[str, Any] = {}
    for name, value in words.items():
        checked = {name: value}
        if mistakes.attempt(lambda checked=checked: parse_spec("sim", checked, sim.WORDS, {})) is not None:  # type: ignore[misc]
            good |= checked
    spec = parse_spec("sim", good, sim.WORDS, {})
    if missing:  # of the rest, what is wrong on any part and with any model
        plain = {"part": _EXAMPLE_PART, "model": _EXAMPLE_MODEL}
        plain |= {name: good[name] for name in ("like", "policy", "slow", "constants") if name in good}
        mistakes.attempt(lambda: planned(parse_spec("sim", plain, sim.WORDS, {})))
        return None
    plan = mistakes.attempt(lambda: planned(spec))
    return None if plan is None else (spec, plan)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _own_words(text: str) -> str:
    """The words of a specification are options here."""
    text = text.removeprefix("sim: ").replace("(tensor_parallel)", "(--tensor-parallel)")
    for name in (*(word.name for word in _WORDS), "constants"):
        flag = "--set" if name == "constants" else _flag(name)
        text = re.sub(rf"^{name}=", f"{flag} ", text)
        text = re.sub(rf"^{name}: ", f"{flag}: ", text)
    return text


def _value(name: str, text: str | None) -> Any:
    """A number where the word is one and the text can be one; what is wrong with it is said by who checks the word."""
    if text is None or name in ("part", "model", "dtype", "kv_cache_dtype", "policy", "like", "slow"):
        return text
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _constants(texts: list[str], mistakes: _Mistakes) -> dict[str, object]:
    constants = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if separator and name.strip():
            constants[name.strip()] = _value("", value.strip())
        else:
            mistakes.problems.append(f"--set {text!r}: expected CONSTANT=VALUE, such as max_num_seqs=128")
    return constants


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MOST_PORT):
        raise ConfigurationError(f"--port: expected a whole number from 0 to {_MOST_PORT}, got {text!r}")
    return int(text)


def _milliseconds(name: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigurationError(f"{_flag(name)}: expected a number of milliseconds of at least 0, got {text!r}")
    return value
