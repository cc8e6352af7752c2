"""Routers that tests run on, where they are installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

FOLDER = os.environ.get("LLMPERF_TEST_ROUTERS") or str(Path(sys.executable).parent)


def router(name: str) -> str | None:
    """The path of a router: in the folder of LLMPERF_TEST_ROUTERS, beside this Python, or on PATH."""
    return shutil.which(name, path=FOLDER) or shutil.which(name)
