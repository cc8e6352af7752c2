"""What files a model is made of: a digest to tell two checkpoints of one name apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

_WHOLE_BYTES = 1 << 20
"""Files up to this size are read whole; of larger ones begin and end, where names, shapes and some weights stand."""
_SAMPLE_BYTES = 1 << 16


def folder_of(model: str, env: Mapping[str, str] | None = None) -> Path | None:
    """Where a model's files are: the folder itself, or the hub's cache of that name; None if neither is there."""
    if Path(model).is_dir():
        return Path(model)
    environment = {**os.environ, **(env or {})}
    home = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(environment.get("HF_HUB_CACHE", home / "hub")) / ("models--" + model.replace("/", "--"))
    try:
        snapshot = cache / "snapshots" / (cache / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


def digest(folder: Path) -> str:
    """A hash of the names, sizes and contents of a folder's files, of large ones a sample of the contents."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        found.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _WHOLE_BYTES:
                found.update(stream.read())
            else:
                found.update(stream.read(_SAMPLE_BYTES))
                stream.seek(-_SAMPLE_BYTES, os.SEEK_END)
                found.update(stream.read(_SAMPLE_BYTES))
    return found.hexdigest()
