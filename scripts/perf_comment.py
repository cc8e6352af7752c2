"""A comment on a pull request that quotes a report which nobody vouches for.

    python scripts/perf_comment.py REPORT --outcome success --head SHA --url URL

The report was written by code of a branch that nobody may have merged. It is shown as indented text, in which GitHub
reads neither Markdown nor HTML nor names of people, and from which nothing can break out: no fence that it could close.
Standard library alone, as the job that runs it may write.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

MOST_BYTES = 1_000_000
"""Of the report that are read at all."""
MOST_CHARACTERS = 50_000
"""Of the quotation, the report's last lines: GitHub takes 65,536 in a comment."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
_INDENT = "    "
_HEADINGS = {
    "success": "no regression was shown",
    "failure": "a regression, or a run that says nothing: see the verdicts",
    "cancelled": "cancelled, so nothing is known",
    "timed_out": "it took too long, so nothing is known",
}


def comment(report: str | None, *, outcome: str, head: str, url: str) -> str:
    """The comment's Markdown. `report`: None where the measuring job left none."""
    heading = _HEADINGS.get(outcome, f"it ended as {_plain(outcome)}")
    lines = [f"**Performance of {_plain(head)[:10]} against its base: {heading}.**", f"Measured by {_plain(url)}.", ""]
    lines += ["The measuring job left no report."] if report is None else _quoted(report)
    return "\n".join(lines) + "\n"


def _quoted(report: str) -> list[str]:
    """Its last lines, where the verdicts are, without what is no text."""
    readable = _ESCAPES.sub("", report.replace("\r\n", "\n"))
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in readable.strip("\n").split("\n")]
    quoted: list[str] = []
    left = MOST_CHARACTERS
    for line in reversed(lines):
        left -= len(_INDENT) + len(line) + 1
        if left < 0:
            quoted.append(f"{_INDENT}... (the whole report is in the artifact)")
            break
        quoted.append(f"{_INDENT}{line}")
    return quoted[::-1]


def _plain(word: str) -> str:
    """A word of the event, in which nothing is Markdown."""
    return re.sub(r"[^A-Za-z0-9_./:-]", "?", word)


def read(path: Path) -> str | None:
    """The report's text; None where there is none. A link is not followed."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - MOST_BYTES))
        return stream.read(MOST_BYTES).decode("utf-8", errors="replace")


def main() -> int:
    """Print the comment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--outcome", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--url", required=True)
    given = parser.parse_args()
    sys.stdout.write(comment(read(given.report), outcome=given.outcome, head=given.head, url=given.url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
