"""A judgement in plain text: its first line, and the last line of a session."""

from __future__ import annotations

import pytest
from report_contents import finding, report, section

from pytest_llmperf.judged import Judged, Provenance, Validity
from pytest_llmperf.reports import text
from pytest_llmperf.verdicts import Judgement, Verdict

ABOUT = Provenance(
    test="test_it.py::test_it",
    name=None,
    hardware_key="NVIDIA-H200",
    workload="single_turn",
    workload_digest="1",
    load="burst",
    open_load=False,
    cache="as_is",
    engine_kind="vllm",
    engine_identity={},
    engine_words={},
    engine={},
)
CLOCKS = "the GPUs worked at 1700 MHz and at 1980 MHz when the baseline was stored [clocks]"
MEND = "the GPU driver (NVML) does not answer; look at dmesg for an Xid, then reset the GPU or reboot"


def judged(verdict, **words):
    result = Judged(ABOUT, Validity())
    result.judgement = Judgement(verdict=verdict, **words)
    return result


def test_the_first_line_says_why_the_gate_has_called_a_run_invalid():
    """Once: it is the verdict's reason, and no doubt about it."""
    result = judged(Verdict.INVALID_RUN, doubts=(CLOCKS,), advice="measure again")

    assert list(text.measurement(result)) == [
        f"INVALID_RUN test_it.py::test_it: {CLOCKS}",
        "  what to do: measure again",
    ]


def test_so_it_does_where_two_files_are_compared():
    judgement = Judgement(verdict=Verdict.INVALID_RUN, doubts=(CLOCKS,))

    assert list(text.judged("test_it", judgement)) == [f"INVALID_RUN test_it: {CLOCKS}"]


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.IMPROVED])
def test_a_green_session_on_a_broken_machine_says_what_to_do(verdict):
    """In the last line, whatever the best of the verdicts is."""
    results = [judged(Verdict.PASS), judged(verdict, advice=MEND)]

    assert text.closing(results, stored=False).endswith(f"; what to do: {MEND}")
    assert text.closing([judged(verdict)], stored=False).endswith("; nothing to do")


def test_so_do_its_page_and_its_comment():
    """They have the same advice."""
    green = section(judgement=Judgement(verdict=Verdict.PASS, findings=(finding(),), advice=MEND))

    assert report(green).advice == MEND
    assert report(section(judgement=Judgement(verdict=Verdict.PASS, findings=(finding(),)))).advice == "nothing to do"
