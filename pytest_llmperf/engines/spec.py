"""What a test asks of an engine: the words of its mark, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pytest_llmperf.client import Address
from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.secret import Secret, fingerprint, is_secret_flag, without_credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What engine is wanted: the words of the `llm_engine` mark, checked.

    Two tests with equal specifications share one engine. A word left out is None: the engine's own
    default holds.
    """

    kind: str
    model: str | None = None
    """What is served."""
    dtype: str | None = None
    """Of the weights."""
    kv_cache_dtype: str | None = None
    """Of the KV cache; None: as the weights."""
    prefix_caching: bool | None = None
    """Whether prompts that begin alike are computed once."""
    kv_offload_gib: float | None = None
    """Room for KV cache outside the GPUs, all of them together."""
    kv_offload_backend: str | None = None
    """What keeps the KV cache outside the device; None: the engine's own, in host memory."""
    max_model_len: int | None = None
    """The longest context, input and output together."""
    tensor_parallel: int | None = None
    """GPUs that share each layer; None: one."""
    args: tuple[str, ...] = ()
    """Further arguments of the engine's command line, passed on as they are."""
    env: tuple[tuple[str, str], ...] = ()
    """Of the engine's process, beside that of pytest."""
    url: str | None = None
    """Where the server is."""
    prompts: str | None = None
    """How prompts are sent: as text, or as a chat message; None: as token ids."""
    tokenizer: str | None = None
    """The model's tokenizer, a folder or file, to make texts of exact lengths with; None: what the server offers."""
    executable: str | None = None
    """The Python that has the engine installed; None: the one that runs the tests."""
    in_process: bool | None = None
    """Whether the engine's Python interface is used, in one process with the sender of requests; None: its server."""
    gpu_memory_fraction: float | None = None
    """The share of each GPU's memory that the engine may take, as it counts it; None: its own default."""
    engine: str | None = None
    """What the replicas of a fleet are; None: vLLM."""
    replicas: int | None = None
    """How many equal engines stand behind a router; None: one."""
    router: str | None = None
    """The program in front of them, its path, or the URL of one that runs; None: vllm-router."""
    router_args: tuple[str, ...] = ()
    """Further arguments of the router's command line."""
    policy: str | None = None
    """How the router chooses; None: one after another."""
    gpus: tuple[str, ...] = ()
    """The GPUs of each replica, numbers with commas; one group is everybody's. Empty: its own for each."""
    cpus: tuple[str, ...] = ()
    """The processors of each replica, numbers and ranges with commas. Empty: all for each."""
    ports: tuple[int, ...] = ()
    """Where the replicas listen. Empty: on any free ones."""
    part: str | None = None
    """The GPU that is simulated."""
    like: str | None = None
    """The engine that the simulated one is like; None: vLLM."""
    run_noise: float | None = None
    """Standard deviation of the simulated engine's pace from run to run, a share."""
    request_noise: float | None = None
    """By what share an answer is late: half-normal with this standard deviation."""
    noise_seed: int | None = None
    """Which noise: another seed is another night."""
    slow: str | None = None
    """Slowdowns that are put in on purpose."""
    constants: tuple[tuple[str, object], ...] = ()
    """Constants of the simulation with other values than their own."""

    def identity(self) -> dict[str, Any]:
        """The words that say what is asked of the engine; results that differ here are not compared.

        The other words are how the engine goes about it, which is what a comparison is about:
        prefix caching switched off by mistake is a regression, not another test.
        """
        always = {word: getattr(self, word) for word in IDENTITY_WORDS}
        return always | ({} if self.engine is None else {"engine": self.engine})

    def words(self) -> dict[str, Any]:
        """Every word that was given, for the result file."""
        given = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        if self.env:
            given["env"] = {name: fingerprint(name, value) for name, value in self.env}
        if self.constants:
            given["constants"] = dict(self.constants)
        return given

    def __str__(self) -> str:
        rest = ", ".join(f"{word}={value!r}" for word, value in self.words().items() if word != "kind")
        return f"{self.kind}({rest})"


IDENTITY_WORDS = ("model", "dtype", "kv_cache_dtype", "max_model_len", "tensor_parallel", "prompts", "replicas")


PROMPTS = ("ids", "text", "chat")


_GROUP = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")


def parse_spec(
    kind: str, words: Mapping[str, object], accepted: frozenset[str], required: Mapping[str, str]
) -> EngineSpec:
    """Check the words of a mark and make a specification of them.

    `accepted`: the words that this kind knows; `required`: those that it cannot do without, each
    with the way to give it. Raises `ConfigurationError` listing every mistake.
    """
    problems = [f"{kind}: {word} is missing; {how}" for word, how in required.items() if words.get(word) is None]
    checked: dict[str, Any] = {}
    for word, value in words.items():
        if word not in accepted:
            problems.append(f"{kind}: {unknown('word', word, sorted(accepted))}")
        elif value is not None:
            expected, convert = WORDS[word]
            try:
                checked[word] = convert(value)
            except (TypeError, ValueError):
                problems.append(f"{kind}: {word}={_quoted(word, value)}; expected {expected}")
            else:
                problems += [f"{kind}: {problem}" for problem in _exposed(word, checked[word])]
    if problems:
        raise ConfigurationError(*problems)
    return EngineSpec(kind=kind, **checked)


def changed_spec(spec: EngineSpec, words: Mapping[str, object], accepted: frozenset[str]) -> EngineSpec:
    """The specification with some words changed. Raises `ConfigurationError` listing every mistake."""
    changed = parse_spec(spec.kind, words, accepted, {})
    return replace(spec, **{word: getattr(changed, word) for word in words})


def _exposed(word: str, value: object) -> list[str]:
    """Secrets on a command line, which everybody on the machine can read."""
    arguments = value if word in ("args", "router_args") and isinstance(value, tuple) else ()
    return [
        f"{word} has {argument.partition('=')[0]}, whose value everybody on this machine could read in the list of "
        "processes, and the result would keep; give it in env= under the variable that the engine has for it, or not "
        "at all: a server of ours listens on loopback only"
        for argument in arguments
        if is_secret_flag(argument)
    ]


def _quoted(word: str, value: object) -> str:
    """A value that was not accepted, as it may be shown."""
    if word == "env":
        return f"<{type(value).__name__}>"
    return without_credentials(repr(value)) if word in ("url", "router") else repr(value)


def _text(value: object) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise TypeError
    return str(value)


def _path(value: object) -> str:
    """A name, or a path: what a shell would make of `~` is no business of the engine's."""
    text = _text(value)
    return os.path.expanduser(text) if text.startswith("~") else text


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _off(value: object) -> bool | None:
    return _switch(value) or None  # the default, written out, is no other engine


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError
    return value


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise TypeError
    return value


def _share(value: object) -> float:
    if _positive(value) > 1:
        raise ValueError
    return _positive(value)


def _noise(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise TypeError
    return value or None  # none is none, written out or not


def _group(value: object) -> int | None:
    return None if value == 1 and value is not True else _whole(value)  # the default, written out, is no other engine


def _address(value: object) -> str:
    text = _text(value)
    try:
        Address.parse(text)
    except ConfigurationError as error:
        raise ValueError from error
    return text


def _prompts(value: object) -> str | None:
    if value not in PROMPTS:
        raise ValueError
    return None if value == "ids" else str(value)  # the default, written out, is no other engine


def _backend(value: object) -> str | None:
    return None if value == "native" else _text(value)  # the default, written out, is no other engine


def _arguments(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError
    return tuple(str(argument) for argument in value)


def _environment(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise TypeError
    return tuple(sorted((str(name), Secret(content)) for name, content in value.items()))


def _groups(value: object) -> tuple[str, ...]:
    """Numbers and ranges, with commas, for each replica: a list, or one text with bars."""
    texts = value.split("|") if isinstance(value, str) else [str(group) for group in _arguments(value)]
    groups = tuple(text.replace(" ", "") for text in texts)
    if not groups or not all(_GROUP.fullmatch(group) and _ascends(group) for group in groups):
        raise ValueError
    return groups


def _ascends(group: str) -> bool:
    """Whether each range of a group goes up, so that it is not empty."""
    ranges = [part.split("-") for part in group.split(",")]
    return all(int(numbers[0]) <= int(numbers[-1]) for numbers in ranges)


def _ports(value: object) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise TypeError
    ports = tuple(_whole(port) for port in value)
    if max(ports) > 65535 or len(set(ports)) != len(ports):
        raise ValueError
    return ports


def _seed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def _constants(value: object) -> tuple[tuple[str, object], ...]:
    if not isinstance(value, Mapping):
        raise TypeError
    return tuple(sorted((str(name), content) for name, content in value.items()))


WORDS: dict[str, tuple[str, Callable[[object], object]]] = {
    "model": ("a model's name or folder", _path),
    "dtype": ("a name such as 'bfloat16'", _text),
    "kv_cache_dtype": ("a name such as 'fp8'", _text),
    "prefix_caching": ("True or False", _switch),
    "kv_offload_gib": ("a positive number of GiB", _positive),
    "kv_offload_backend": ("a backend such as 'native'", _backend),
    "max_model_len": ("a whole number of tokens, at least 1", _whole),
    "tensor_parallel": ("a whole number of GPUs, at least 1", _group),
    "args": ("a list of command-line arguments", _arguments),
    "env": ("a dict of environment variables", _environment),
    "url": ("http://HOST:PORT or https://HOST/PREFIX", _address),
    "prompts": ("one of " + ", ".join(PROMPTS), _prompts),
    "tokenizer": ("the path of a tokenizer.json or of its folder", _path),
    "executable": ("the path of a Python", _path),
    "in_process": ("True or False", _off),
    "gpu_memory_fraction": ("a share of at most 1, such as 0.45", _share),
    "engine": ("an engine such as 'vllm'", _text),
    "replicas": ("a whole number of engines, at least 1", _group),
    "router": ("a program such as 'vllm-router', its path, or a URL", _path),
    "router_args": ("a list of command-line arguments", _arguments),
    "gpus": ("GPU numbers for each replica, such as '0,1|2,3' or ['0,1', '2,3']", _groups),
    "cpus": ("processors for each replica, such as '0-7|8-15' or ['0-7', '8-15']", _groups),
    "ports": ("a list of different port numbers", _ports),
    "policy": ("a routing policy such as 'round_robin'", _text),
    "part": ("a GPU such as 'gh200'", _text),
    "like": ("an engine such as 'vllm'", _text),
    "run_noise": ("a share from 0 to 1, such as 0.02", _noise),
    "request_noise": ("a share from 0 to 1, such as 0.1", _noise),
    "noise_seed": ("a whole number of at least 0", _seed),
    "slow": ("changes such as 'decode:+5%'", _text),
    "constants": ("a dict of constants of the simulation, such as {'link_efficiency': 0.9}", _constants),
}


COMMON_WORDS = frozenset(
    ("model", "dtype", "kv_cache_dtype", "prefix_caching", "kv_offload_gib", "max_model_len", "tensor_parallel",
     "args", "env")
)  # fmt: skip
"""The words that mean the same for every kind."""

assert set(WORDS) == {word.name for word in fields(EngineSpec)} - {"kind"}
