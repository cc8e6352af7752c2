"""What a test asks of `llm_perf`, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.load import Load, round_robin
from pytest_llmperf.metrics import LATENCIES
from pytest_llmperf.option_values import Budget, budget
from pytest_llmperf.workloads import Workload

CACHE_STATES = ("as_is", "cold", "primed", "evicted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a test asks of `llm_perf`, checked."""

    workload: Workload
    load: Load
    budget: Budget
    warmup_runs: int
    cache: str
    slo: Mapping[str, float] | None
    name: str | None

    @property
    def runs(self) -> int:
        """The most runs there may be."""
        return self.budget.runs


def checked_request(
    workload: object,
    *,
    load: object,
    runs: object,
    warmup_runs: object,
    cache: object,
    prefill_context: object,
    slo: object,
    name: object,
) -> Request:
    """Check the arguments of `llm_perf`. Raises `ConfigurationError` listing every mistake."""
    problems = []
    if not (hasattr(workload, "digest") and hasattr(workload, "within")):
        problems.append(f"llm_perf: expected a workload such as multi_round(...), got {workload!r}")
    if not (load is None or hasattr(load, "schedule")):
        problems.append(f"llm_perf: load must be a load model such as closed_loop(8), got {load!r}")
    spent = runs if isinstance(runs, Budget) else _budget(runs)
    if spent is None:
        problems.append(f"llm_perf: runs must be a whole number of at least 1, or 'auto', got {runs!r}")
    if isinstance(warmup_runs, bool) or not isinstance(warmup_runs, int) or warmup_runs < 0:
        problems.append(f"llm_perf: warmup_runs must be a whole number of at least 0, got {warmup_runs!r}")
    if cache not in CACHE_STATES:
        problems.append(f"llm_perf: unknown cache state {cache!r}; accepted: {', '.join(CACHE_STATES)}")
    if prefill_context and cache not in ("as_is", "primed"):
        problems.append(f"llm_perf: prefill_context=True is cache='primed'; it cannot go with cache={cache!r}")
    problems += _slo_problems(slo)
    if name is not None and (not str(name) or "::" in str(name) or not str(name).isprintable()):
        problems.append(
            f"llm_perf: name must not be empty, be of printable characters, and not contain '::', got {name!a}"
        )
    if not problems and (prefill_context or cache in ("primed", "evicted")) and not _has_context(workload):
        problems.append(
            f"llm_perf: {workload.name} has no context to prefill; use multi_round or shared_prefix, or another cache "  # type: ignore[attr-defined]
            "state"
        )
    if problems:
        raise ConfigurationError(*problems)
    return Request(
        workload=workload,  # type: ignore[arg-type] # checked above, like all that follow
        load=round_robin() if load is None else load,  # type: ignore[arg-type]
        budget=spent,  # type: ignore[arg-type]
        warmup_runs=warmup_runs,  # type: ignore[arg-type]
        cache="primed" if prefill_context else str(cache),
        slo=slo,  # type: ignore[arg-type]
        name=None if name is None else str(name),
    )


def _budget(runs: object) -> Budget | None:
    """What a test's own `runs` mean: a number, or text as the option takes it."""
    if isinstance(runs, bool) or not isinstance(runs, (int, str)):
        return None
    try:
        return budget(str(runs))
    except ConfigurationError:
        return None


def _has_context(workload: object) -> bool:
    """Whether the workload's first session begins with something to send ahead."""
    return bool(next(iter(workload)).context)  # type: ignore[call-overload] # a workload, as was checked


def _slo_problems(slo: object) -> list[str]:
    accepted = ", ".join(LATENCIES)
    if slo is None:
        return []
    if not isinstance(slo, Mapping):
        return [f"llm_perf: slo must be a dict of seconds by {accepted}, got {slo!r}"]
    return [
        f"llm_perf: slo has {word!r}: {limit!r}; expected a positive number of seconds for one of {accepted}"
        for word, limit in slo.items()
        if word not in LATENCIES or isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0
    ]
