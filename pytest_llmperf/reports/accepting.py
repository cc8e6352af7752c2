"""The commands that accept a regression which was meant: to be pasted, with a reason of one's own in them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from pytest_llmperf.acknowledged import PLACEHOLDER, is_change
from pytest_llmperf.clock import timestamp
from pytest_llmperf.files import nearby
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

_FOR = timedelta(days=30)
"""How long the new level is expected, unless the reader writes another day."""
_BASELINES = Path("baselines")
"""Where the command looks of itself, from where it is given."""
_WIDTH = 74
_FURTHER = "  "


def commands(measurement: str, hardware_key: str, judgement: Judgement | None, baselines: Path) -> tuple[str, ...]:
    """Lines of a shell, each of at most 80 columns with an indent of 4 as far as names allow.

    None where nothing has regressed against stored nights, or by nothing that a command could say.
    """
    if judgement is None or not judgement.is_of_nights or not f"{measurement}{hardware_key}".isprintable():
        return ()
    folder = () if baselines.resolve() == _BASELINES.resolve() else (f"--baselines {shlex.quote(nearby(baselines))}",)
    start = ("pytest-llmperf baseline acknowledge", shlex.quote(hardware_key), shlex.quote(measurement))
    end = (f"--expires {(timestamp() + _FOR).date()}", f"--reason '{PLACEHOLDER}'", *folder)
    changes = (_change(finding) for finding in judgement.findings if finding.verdict is Verdict.REGRESSED)
    return tuple(line for change in changes if change for line in _packed((*start, *change, *end)))


def _change(finding: Finding) -> tuple[str, ...]:
    """Metric and change, in its own direction as the table shows it; nothing where it is none that can be accepted."""
    percent = None if finding.change is None else f"{100 * finding.change:+.2f}"
    if percent is None or not is_change(float(percent) / 100):
        return ()
    return (f"--metric {shlex.quote(finding.metric.name)}", f"--change={percent}%")


def _packed(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces that stay whole, in as few lines as they take; a shell goes on where a line ends with a backslash."""
    line = ""
    for piece in pieces:
        longer = f"{line} {piece}" if line.strip() else f"{line}{piece}"
        if len(longer) > _WIDTH and line.strip():
            yield f"{line} \\"
            longer = f"{_FURTHER}{piece}"
        line = longer
    yield line
