"""What to do about a verdict: it follows from what was found, and from what becomes of the measurement."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.verdicts import Finding, Remedy, Verdict

STORE = "store this level with --llmperf-save-baseline NAME"
STORED = "nothing; this session stores this level, and the next one is judged by it"
REFUSED = "mend the test, which failed: what it measured is not stored"
NO_LEVEL = "mend what the doubts say; what is not of the cache state that it declares is not stored"
MEND = "mend what made it invalid and measure again"
INVALID = f"nothing was compared; {MEND}"
_OTHERWISE = "undo what differs, or "
_REGRESSED = (
    "look for the change that caused it; if it is accepted, say so until a day with pytest-llmperf baseline acknowledge"
)
_REGRESSED_IN_TURN = "look for the change between the two builds that caused it"
_ASK_LESS = "say with llm_gate(detect=...) how large a change has to show"


def advice(
    findings: Sequence[Finding], verdict: Verdict, *, in_turn: bool = False, is_saving: bool = False
) -> str | None:
    """What to do about a measurement with these findings; None where nothing is to be done.

    `in_turn`: another build was measured with it, and not stored nights. `is_saving`: the session is going to store it.
    """
    if verdict is Verdict.REGRESSED:
        return _REGRESSED_IN_TURN if in_turn else _REGRESSED
    if verdict is Verdict.INCONCLUSIVE:
        return inconclusive(findings)
    if verdict is Verdict.NO_BASELINE and not in_turn:
        if is_saving:
            return STORED
        return _OTHERWISE + STORE if any(finding.is_other for finding in findings) else STORE
    return MEND if verdict is Verdict.INVALID_RUN else None


def inconclusive(findings: Sequence[Finding]) -> str:
    """What would let all of these see what they are asked to see: so many runs, or what else it takes."""
    remedies = [one.remedy for one in findings if one.verdict is Verdict.INCONCLUSIVE and one.remedy is not None]
    wanted = [_wanted(remedies), *([_ASK_LESS] if all(one.or_less for one in remedies) else [])]
    return "; or ".join(wanted)


def _wanted(remedies: Sequence[Remedy]) -> str:
    others = dict.fromkeys(one.otherwise for one in remedies if one.otherwise is not None)
    if others:
        return "; ".join(others)
    runs = max((one.runs for one in remedies if one.runs is not None), default=None)
    if runs is None:
        return "raise --llmperf-runs"
    of_base = any(one.of_base for one in remedies)
    stored = ", and store a night of as many with --llmperf-save-baseline NAME" if of_base else ""
    return f"measure {runs} runs (--llmperf-runs {runs}, or runs={runs} in the test){stored}"
