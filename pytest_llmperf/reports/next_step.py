"""What to do after a session: the one sentence for the last line, and for the head of page and comment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_llmperf.gate.advice import MEND, STORED, inconclusive
from pytest_llmperf.verdicts import Judgement, Verdict

GREEN = (Verdict.PASS, Verdict.IMPROVED)
WORST_FIRST = (
    Verdict.REGRESSED,
    Verdict.INVALID_RUN,
    Verdict.INCONCLUSIVE,
    Verdict.NO_BASELINE,
    Verdict.IMPROVED,
    Verdict.PASS,
)
NOTHING = "nothing to do"
WHY_FAILED = "see the output of pytest for why tests failed"
"""What to do where no verdict asks for anything and tests have failed all the same."""
STORED_NOW = "the next session is judged by what was stored"
_JUDGE = "judge them by leaving out --llmperf-gate off, once a level is stored with --llmperf-save-baseline NAME"
_NOT_STORED = "see above why the baseline was not stored, and measure again"
_SEARCH = "look for the change that caused it"
ANSWERS = (NOTHING, WHY_FAILED, STORED_NOW, _JUDGE)
"""What is no advice of a verdict."""

Outcome = tuple[Verdict | None, Judgement | None]
"""The verdict on a measurement, INVALID_RUN where its figures may not be believed, and what it rests on."""


def worst(outcomes: Sequence[Outcome]) -> Verdict | None:
    """The verdict that asks most of the reader; None where nothing was judged and nothing is invalid."""
    said = {verdict for verdict, _ in outcomes}
    return next((verdict for verdict in WORST_FIRST if verdict in said), None)


def next_step(outcomes: Sequence[Outcome], *, stored: bool, failed: bool) -> str:
    """What to do about the worst of the verdicts, from what has happened.

    `stored`: whether a baseline was saved. `failed`: whether tests failed for another reason than a verdict.
    """
    verdict = worst(outcomes)
    asks_little = verdict in (*GREEN, Verdict.NO_BASELINE, None)
    if failed and asks_little:
        return WHY_FAILED
    if verdict in GREEN:
        return next((one.advice for said, one in outcomes if said in GREEN and one and one.advice), NOTHING)
    if stored and asks_little:
        return STORED_NOW
    return _JUDGE if verdict is None else _advice(verdict, [one for said, one in outcomes if said is verdict])


def _advice(verdict: Verdict, judgements: Iterable[Judgement | None]) -> str:
    """What all measurements of this verdict take; of a file that says nothing, what the verdict always takes."""
    known = [one for one in judgements if one is not None]
    advices = list(dict.fromkeys(one.advice for one in known if one.advice is not None))
    if not advices:
        return _SEARCH if verdict is Verdict.REGRESSED else MEND
    if verdict is Verdict.INCONCLUSIVE and len(advices) > 1:
        return inconclusive([finding for one in known for finding in one.findings])
    return _NOT_STORED if advices[0] == STORED else advices[0]
