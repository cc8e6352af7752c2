"""One figure of a test over another, run by run."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.judged import Judged, RatioResult
from pytest_llmperf.stats import Statistic

_PLAIN_NUMBER = "made of a plain number, so of one value: give statistics as they are, whose runs are known"


def ratio(name: str, over: float, under: float, parts: Sequence[Judged], *, higher_is_better: bool) -> RatioResult:
    """The ratio of each run, of what a test has measured so far.

    Raises `ConfigurationError` listing every mistake.
    """
    ratios = _ratios(name, over, under, parts)
    result = RatioResult(name, ratios, higher_is_better=higher_is_better, parts=parts)
    if not (isinstance(over, Statistic) and isinstance(under, Statistic)):
        result.doubts = (_PLAIN_NUMBER,)
    return result


def _ratios(name: str, over: float, under: float, parts: Sequence[Judged]) -> list[float]:
    """The ratio of each run. Raises `ConfigurationError` listing every mistake."""
    problems = [
        f"llm_perf.ratio: expected a positive figure such as result.ttft.p50, got {given!r}"
        for given in (over, under)
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < float("inf")
    ]
    if not (isinstance(name, str) and name.strip() and name.isprintable() and "::" not in name):
        problems.append(f"llm_perf.ratio: expected a name without '::', got {name!r}")
    if not parts:
        problems.append("llm_perf.ratio: nothing was measured in this test yet; call llm_perf(...) first")
    if problems:
        raise ConfigurationError(*problems)
    pairs = zip(_each(over), _each(under), strict=False)  # a measurement of more runs than the other has some to spare
    return [one / other for one, other in pairs if one > 0 and other > 0]


def _each(figure: float) -> Sequence[float]:
    return figure.runs if isinstance(figure, Statistic) else (float(figure),)
