"""Engines by kind. A kind's module is imported when it is first wanted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import cast

from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.spec import EngineSpec, changed_spec, parse_spec
from pytest_llmperf.errors import ConfigurationError, unknown

ENGINES: dict[str, str] = {
    "fleet": "pytest_llmperf.engines.fleet",
    "openai": "pytest_llmperf.engines.openai",
    "sglang": "pytest_llmperf.engines.sglang",
    "sim": "pytest_llmperf.engines.sim",
    "tensorrt_llm": "pytest_llmperf.engines.tensorrt_llm",
    "vllm": "pytest_llmperf.engines.vllm",
}
"""Kind: module.

The module's `WORDS` are the specification's words that it accepts, its `REQUIRED` those that it
cannot do without, each with the way to give it; its `make(spec, surroundings)` makes the engine. A
`check(spec)`, where it has one, raises `ConfigurationError` for what can be known to fail before a start;
a `build(spec)` says which version would be started.
"""


def check_kind(kind: str) -> None:
    """Raise `ConfigurationError` unless `kind` is one of ours."""
    if kind not in ENGINES:
        raise ConfigurationError(unknown("engine", kind, ENGINES))


def words_of(kind: str) -> frozenset[str]:
    """The specification's words that this kind of engine accepts."""
    return cast("frozenset[str]", _module(kind).WORDS)


def make_spec(kind: str, words: Mapping[str, object]) -> EngineSpec:
    """Check a mark's words. Raises `ConfigurationError` listing every mistake."""
    module = _module(kind)
    spec = parse_spec(kind, words, module.WORDS, module.REQUIRED)
    if hasattr(module, "check"):
        module.check(spec)
    return spec


def with_words(spec: EngineSpec, words: Mapping[str, object]) -> EngineSpec:
    """The same engine with some words changed. Raises `ConfigurationError` listing every mistake."""
    module = _module(spec.kind)
    changed = changed_spec(spec, words, module.WORDS)
    if hasattr(module, "check"):
        module.check(changed)
    return changed


def make_engine(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """Make an engine, not yet started."""
    return cast("Engine", _module(spec.kind).make(spec, surroundings))


def build_of(spec: EngineSpec) -> dict[str, str]:
    """What would be started for a specification, as far as it is known before: version, commit, the model's digest."""
    module = _module(spec.kind)
    return module.build(spec) if hasattr(module, "build") else {}


def _module(kind: str) -> ModuleType:
    check_kind(kind)
    return importlib.import_module(ENGINES[kind])


__all__ = [
    "ENGINES",
    "Engine",
    "EngineSpec",
    "Surroundings",
    "build_of",
    "check_kind",
    "make_engine",
    "make_spec",
    "with_words",
    "words_of",
]
