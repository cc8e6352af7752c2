"""pytest-llmperf: performance-regression tests of LLM serving.

The public names are imported when they are first used, so that having the package installed costs
a pytest run next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmperf.load import (
        burst,
        closed_loop,
        constant,
        exponential,
        lognormal,
        poisson,
        replay,
        round_robin,
    )
    from pytest_llmperf.results import PerfResult
    from pytest_llmperf.verdicts import Verdict
    from pytest_llmperf.workloads.conversations import conversations
    from pytest_llmperf.workloads.knowledge_graph import knowledge_graph
    from pytest_llmperf.workloads.multi_round import multi_round
    from pytest_llmperf.workloads.multiple_choice import multiple_choice
    from pytest_llmperf.workloads.shared_prefix import shared_prefix
    from pytest_llmperf.workloads.single_turn import single_turn
    from pytest_llmperf.workloads.trace import trace, write_trace

_HOMES = {
    "PerfResult": "pytest_llmperf.results",
    "Verdict": "pytest_llmperf.verdicts",
    "burst": "pytest_llmperf.load",
    "closed_loop": "pytest_llmperf.load",
    "constant": "pytest_llmperf.load",
    "conversations": "pytest_llmperf.workloads",
    "exponential": "pytest_llmperf.load",
    "knowledge_graph": "pytest_llmperf.workloads",
    "lognormal": "pytest_llmperf.load",
    "multi_round": "pytest_llmperf.workloads",
    "multiple_choice": "pytest_llmperf.workloads",
    "poisson": "pytest_llmperf.load",
    "replay": "pytest_llmperf.load",
    "round_robin": "pytest_llmperf.load",
    "shared_prefix": "pytest_llmperf.workloads",
    "single_turn": "pytest_llmperf.workloads",
    "trace": "pytest_llmperf.workloads",
    "write_trace": "pytest_llmperf.workloads",
}

__all__ = [
    "PerfResult",
    "Verdict",
    "burst",
    "closed_loop",
    "constant",
    "conversations",
    "exponential",
    "knowledge_graph",
    "lognormal",
    "multi_round",
    "multiple_choice",
    "poisson",
    "replay",
    "round_robin",
    "shared_prefix",
    "single_turn",
    "trace",
    "write_trace",
]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
