"""Engines by kind. A kind's module is imported when it is first wanted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from pytest_llmperf.engines.base import Engine, EngineSpec, Surroundings, parse_spec
from pytest_llmperf.errors import ConfigurationError, unknown

ENGINES: dict[str, tuple[str, str]] = {
    "openai": ("pytest_llmperf.engines.openai", "OpenAIEngine"),
    "vllm": ("pytest_llmperf.engines.vllm", "VllmEngine"),
}
"""Kind: module and class. The module's `WORDS` are the specification's words that it accepts."""


def check_kind(kind: str) -> None:
    """Raise `ConfigurationError` unless `kind` is one of ours."""
    if kind not in ENGINES:
        raise ConfigurationError(unknown("engine", kind, ENGINES))


def words_of(kind: str) -> frozenset[str]:
    """The specification's words that this kind of engine accepts."""
    check_kind(kind)
    return cast("frozenset[str]", importlib.import_module(ENGINES[kind][0]).WORDS)


def make_spec(kind: str, words: Mapping[str, object]) -> EngineSpec:
    """Check a mark's words. Raises `ConfigurationError` listing every mistake."""
    return parse_spec(kind, words, words_of(kind))


def make_engine(spec: EngineSpec, surroundings: Surroundings) -> Engine:
    """Make an engine, not yet started. Raises `ConfigurationError` if a word is missing."""
    module, name = ENGINES[spec.kind]
    return cast("Engine", getattr(importlib.import_module(module), name)(spec, surroundings))


__all__ = ["ENGINES", "Engine", "EngineSpec", "Surroundings", "check_kind", "make_engine", "make_spec", "words_of"]
