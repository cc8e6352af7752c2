"""Writes `docs/licences.md`: what comes with the package, extra by extra, and under which licences.

    python scripts/licences.py

Nothing is installed: pip (23.2 or newer) says what it would install here, with the metadata of each; the engines' own
hundreds of packages take some minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
_FOR_DEVELOPERS = {"dev", "docs", "beside", "browser"}
_MANY = 60
"""An extra with more packages than that is shown by licence instead of by package."""
_SHORT = 60
INTRODUCTION = """\
# Licences

pytest-llmperf is under the Apache Licence 2.0. It contains no other project's code; these are the packages that pip
installs with it, by what they say of themselves, as of {date} on Python {python}. `python scripts/licences.py` writes
this page. The wheel of each release is built beside a list of its parts in CycloneDX form.
"""

Licences = dict[str, tuple[str, str]]
"""By name: version and licence."""


def licence(metadata: Mapping[str, Any]) -> str:
    """What a package says of its licence, in the most exact form that it has."""
    expression, free = metadata.get("license_expression"), str(metadata.get("license") or "").strip()
    kinds = [line.rpartition(" :: ")[2] for line in metadata.get("classifier", []) if line.startswith("License")]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    if expression:
        return str(expression)
    if kinds:
        return ", ".join(kinds)
    first = free.partition("\n")[0]
    return first if 0 < len(first) <= _SHORT else "see its files"


def resolved(extra: str | None) -> tuple[Licences, list[str]]:
    """What would be installed with an extra, or without any, and which extras there are.

    Raises `CalledProcessError` if pip finds no way.
    """
    what = f"{ROOT}[{extra}]" if extra else str(ROOT)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        what,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    ours = next(one for one in found if one["name"] == "pytest-llmperf")
    return {str(one["name"]): (str(one["version"]), licence(one)) for one in found if one is not ours}, ours[
        "provides_extra"
    ]


def page(always: Licences, extras: Mapping[str, Licences]) -> str:
    """The whole of it."""
    now = datetime.now(timezone.utc)
    parts = [INTRODUCTION.format(date=f"{now:%Y-%m-%d}", python=f"{sys.version_info.major}.{sys.version_info.minor}")]
    parts += ["## Always\n", *_packages(always)]
    for name, packages in extras.items():
        more = {package: about for package, about in packages.items() if package not in always}
        parts.append(f"\n## With `{name}`\n")
        parts += _by_licence(more) if len(more) > _MANY else _packages(more)
    return "\n".join(parts) + "\n"


def _packages(packages: Licences) -> Iterator[str]:
    yield "| package | version | licence |"
    yield "| --- | --- | --- |"
    for name in sorted(packages, key=str.lower):
        yield f"| {name} | {packages[name][0]} | {packages[name][1]} |"


def _by_licence(packages: Licences) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name in sorted(packages, key=str.lower):
        names.setdefault(packages[name][1], []).append(name)
    yield f"{len(packages)} packages:\n"
    yield "| licence | packages |"
    yield "| --- | --- |"
    for kind, found in sorted(names.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"| {kind} | {', '.join(found)} |"


def main() -> None:
    """Ask pip, extra by extra, and write the page."""
    always, extras = resolved(None)
    wanted = [name for name in extras if name not in _FOR_DEVELOPERS]
    PAGE.write_text(page(always, {name: resolved(name)[0] for name in wanted}), encoding="utf-8")


if __name__ == "__main__":
    main()
