"""Writes the tables of `docs/hardware.md`.

    python scripts/hardware_page.py            write them
    python scripts/hardware_page.py --check    say whether they are up to date; exit code 1 if not

Each table stands between `<!-- NAME: made by scripts/hardware_page.py -->` and `<!-- end -->`; what is outside
is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pytest_llmperf.hardware import MARKS, PARTS, Gpu, Hardware, Requirement
from pytest_llmperf.hardware.advice import GPU_RULES, HOST_RULES

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"
_BLOCK = re.compile(r"(<!-- (\w+): made by scripts/hardware_page\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def parts() -> str:
    """Every name that NVML may give to a known part, and what follows from it."""
    lines = []
    for part in PARTS:
        for name in part.nvml_names:
            gpu = Gpu(name=name, compute_capability=part.compute_capability, nvlink_c2c=part.nvlink_c2c, mig=False)
            found = Hardware(gpus=(gpu,))
            marks = [mark for mark in MARKS if Requirement(parts=(mark,)).unmet_by(found) is None]
            capability = ".".join(map(str, part.compute_capability))
            lines.append((f"`{name}`", f"`{gpu.key}`", ", ".join(f"`{mark}`" for mark in marks), capability))
    return _table(("NVML's name", "hardware key", "marks satisfied", "compute capability"), lines)


def rules() -> str:
    """When the doctor advises."""
    whose = [("GPU", rule) for rule in GPU_RULES] + [("host", rule) for rule in HOST_RULES]
    return _table(("of", "advises where"), [(of, (rule.__doc__ or "").rstrip(".")) for of, rule in whose])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


BLOCKS: dict[str, Callable[[], str]] = {"parts": parts, "rules": rules}


def filled(page: str) -> str:
    """The page with each table made anew. Raises `KeyError` for a block that nobody makes."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]]()}\n{block[3]}", page)


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    is_check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before)
    if is_check and after != before:
        sys.stderr.write("docs/hardware.md is not what the code says; run python scripts/hardware_page.py\n")
        return 1
    if not is_check:
        PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
