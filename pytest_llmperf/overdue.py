"""Calls into drivers, which may never come back: made in a thread that can be left behind.

Where such a thread stands is for whoever mends the driver: it is logged, or written beside the records.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pytest_llmperf.errors import OverdueError

T = TypeVar("T")
_FRAMES = 5
_LOG = logging.getLogger(__name__)


def within(limit_s: float, what: str, call: Callable[[], T]) -> T:
    """What the call returns or raises.

    Raises `OverdueError` if it takes longer than `limit_s`; where it stands is logged. Its thread is then left behind;
    it keeps nobody from ending.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def make() -> None:
        try:
            returned.append(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where it was waited for
            raised.append(error)

    thread = threading.Thread(target=make, name=f"llmperf: {what}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if raised:
        raise raised[0]
    if not returned:
        _LOG.info("%s stands in %s", what, standing(thread))
        raise OverdueError(f"{what} did not answer for {limit_s:g} s")
    return returned[0]


def standing(thread: threading.Thread) -> str:
    """Where a thread is, innermost first: `nvmlInit_v2 (pynvml.py:2155) < session (nvml.py:82)`."""
    frame = None if thread.ident is None else sys._current_frames().get(thread.ident)  # noqa: SLF001 - documented
    if frame is None:
        return "no Python code"
    frames = traceback.extract_stack(frame)[-_FRAMES:]
    return " < ".join(f"{one.name} ({Path(one.filename).name}:{one.lineno})" for one in reversed(frames))
