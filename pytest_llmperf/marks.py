"""What a test's marks say: the hardware it needs, the engine it wants, how it is gated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_llmperf.engines import EngineSpec, check_kind, make_spec, words_of
from pytest_llmperf.engines.placement import gpu_count
from pytest_llmperf.engines.sim.settings import DEFAULT_LIKE, LIKE
from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.gate import DETECT, Criterion
from pytest_llmperf.hardware import MARKS, Hardware, Requirement, requirement_of, simulated, simulated_part
from pytest_llmperf.judged import RATIO_PREFIX
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.options import Options

if TYPE_CHECKING:
    import pytest


def requirement(item: pytest.Item) -> Requirement:
    """The hardware that all marks of the test ask for together.

    Raises `ConfigurationError` listing every mistake.
    """
    parts = [mark for mark in item.iter_markers() if mark.name in MARKS]
    problems = [
        f"{mark.name} takes no arguments; say how many with gpu(count=...)"
        for mark in parts
        if mark.args or mark.kwargs
    ]
    names = list(dict.fromkeys(mark.name for mark in parts))
    if problems:
        raise ConfigurationError(*problems)
    return requirement_of(names, [(mark.args, mark.kwargs) for mark in item.iter_markers("gpu")])


def contradiction(item: pytest.Item) -> str | None:
    """Why no machine can have what the test's marks ask for; None where one can."""
    names = list(dict.fromkeys(mark.name for mark in item.iter_markers() if mark.name in MARKS))
    if len(names) < 2:
        return None
    return (
        f"{item.nodeid} is marked {' and '.join(names)}, and no GPU is both; parametrize the test with values that "
        f"have a mark each, such as pytest.param({names[0]!r}, marks=pytest.mark.{names[0]})"
    )


def engine_spec(item: pytest.Item, options: Options, *, is_head: bool = True) -> EngineSpec:
    """The engine that the closest `llm_engine` mark names, as the options change it.

    An option that puts another kind in place of the mark's own keeps the words that this kind
    knows. `is_head`: with the words that only the build under test has. Raises `ConfigurationError`
    listing every mistake.
    """
    mark = item.get_closest_marker("llm_engine")
    return resolved_spec(_marked_kind(mark), mark.kwargs if mark else {}, options, is_head=is_head)


def resolved_spec(
    marked_kind: str | None, given: Mapping[str, Any], options: Options, *, is_head: bool = True
) -> EngineSpec:
    """The specification that kind and words of a mark, or of a call, become by the options."""
    kind = _kind(marked_kind, options)
    if kind is None:
        msg = (
            "uses llm_engine, but has no llm_engine mark: add @pytest.mark.llm_engine('vllm', model=...), "
            "or give --llmperf-engine KIND or --llmperf-url URL"
        )
        raise ConfigurationError(msg)
    accepted = words_of(kind)
    words = dict(given)
    if kind != marked_kind:
        known = words_of(marked_kind) if marked_kind else frozenset()
        words = {word: value for word, value in words.items() if word in accepted or word not in known}
    if kind == "sim":
        words |= _simulation_words(marked_kind, given, options)
    overrides = {**options.overrides, **(options.head if is_head else {})}
    words |= {word: value for word, value in overrides.items() if word in accepted}
    words |= {word: value for word, value in (("url", options.url), ("model", options.model)) if value is not None}
    return make_spec(kind, words)


def _kind(marked_kind: str | None, options: Options) -> str | None:
    """The options' kind before the mark's."""
    if options.url:
        return "openai"
    return "sim" if options.is_simulated else options.engine or marked_kind


def _simulation_words(marked_kind: str | None, given: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """What a simulated engine is told beside a mark's own words: the part, and the engine that it stands for."""
    words: dict[str, Any] = {}
    part = simulated_part(options.hardware)
    if part is not None and given.get("part") is None:
        words["part"] = part
    like = given.get("engine") if marked_kind == "fleet" else marked_kind
    if like in LIKE and like != DEFAULT_LIKE:
        words["like"] = like
    return words


def simulated_hardware(spec: EngineSpec) -> Hardware:
    """The hardware that a simulated engine brings with it. Raises `ConfigurationError` for an unknown part."""
    return simulated(gpu_count(spec), spec.part or "")


def _marked_kind(mark: pytest.Mark | None) -> str | None:
    if mark is None:
        return None
    if len(mark.args) != 1 or not isinstance(mark.args[0], str):
        msg = (
            f"llm_engine takes the engine's kind and words for it, as in llm_engine('vllm', model=...), got {mark.args}"
        )
        raise ConfigurationError(msg)
    kind: str = mark.args[0]
    check_kind(kind)
    return kind


def criteria(item: pytest.Item) -> tuple[Criterion, ...]:
    """What the test's `llm_gate` marks ask; empty where there is none and the defaults hold.

    The closest mark wins where several name one metric. Raises `ConfigurationError` listing every
    mistake.
    """
    found: dict[str, Criterion] = {}
    problems = []
    for mark in item.iter_markers("llm_gate"):
        mistakes = _gate_problems(mark)
        if mistakes:
            problems += mistakes
        else:
            found.setdefault(mark.kwargs["metric"], Criterion(**mark.kwargs))
    if problems:
        raise ConfigurationError(*problems)
    return tuple(found.values())


def _gate_problems(mark: pytest.Mark) -> list[str]:
    unexpected = [word for word in mark.kwargs if word not in ("metric", "detect", "min_effect")]
    if mark.args or unexpected or "metric" not in mark.kwargs:
        given = ", ".join([*map(repr, mark.args), *(f"{word}={value!r}" for word, value in mark.kwargs.items())])
        return [
            f"llm_gate({given}): expected llm_gate(metric=NAME, detect=SHARE, min_effect=SHARE), the shares optional"
        ]
    problems = []
    metric = mark.kwargs["metric"]
    detect, min_effect = mark.kwargs.get("detect", DETECT), mark.kwargs.get("min_effect", 0.0)
    if metric not in METRICS and not str(metric).startswith(RATIO_PREFIX):
        problems.append(f"llm_gate: {unknown('metric', metric, METRICS)}")
    if not _is_share(detect) or detect == 0:
        problems.append(f"llm_gate: detect must be a positive share such as 0.1 for 10 %, got {detect!r}")
    if not _is_share(min_effect):
        problems.append(f"llm_gate: min_effect must be a share of at least 0, got {min_effect!r}")
    if not problems and detect <= min_effect:
        problems.append(f"llm_gate: detect={detect} must be more than min_effect={min_effect}")
    return problems


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
