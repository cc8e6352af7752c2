"""What of a package a Python has. Imported for this Python, run as a script by another: `python installed.py PACKAGE`.

Nothing of the package is imported: that takes seconds, changes the environment, or fails for want of a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from importlib import metadata
from pathlib import Path

_COMMIT = re.compile(r"commit_id\b[^\n]*=\s*['\"]g?([0-9a-f]{7,40})['\"]")
_LOCAL = re.compile(r"\+(?:.*\.)?g([0-9a-f]{7,40})")


def about(package: str) -> dict[str, str] | None:
    """Distribution, version and commit of an importable package, as far as it says; None if it is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    names = metadata.packages_distributions().get(package, [])
    told = {"distribution": names[0], "version": metadata.version(names[0])} if names else {}
    commit = _of_direct_url(names[0]) if names else None
    commit = commit or _of_version_file(spec.origin) or _found(_LOCAL, told.get("version", ""))
    return {**told, "commit": commit} if commit else told


def _of_direct_url(distribution: str) -> str | None:
    """Of what was installed from a repository."""
    text = metadata.distribution(distribution).read_text("direct_url.json")
    try:
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (ValueError, AttributeError):
        return None
    return commit if isinstance(commit, str) else None


def _of_version_file(origin: str | None) -> str | None:
    """Of what setuptools-scm has stamped."""
    if origin is None:  # a folder without an __init__.py
        return None
    file = Path(origin).with_name("_version.py")
    return _found(_COMMIT, file.read_text(errors="replace")) if file.is_file() else None


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match.group(1) if match else None


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, in which files are called as the engines are
    sys.stdout.write(json.dumps(about(sys.argv[1])) + "\n")
