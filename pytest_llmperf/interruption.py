"""Ctrl-C and SIGTERM: a session that ends early ends in order, and what it writes is written whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """What the two signals do, from the plan of a session to its end."""

    def __init__(self) -> None:
        """Let a cancelled job end like an interrupted one: results written, engines stopped."""
        self.is_noted = False
        """Whether one came while it was put off."""
        self._handles_sigterm = False
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            self._handles_sigterm = True

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Within this a first signal is only noted, as what is done takes moments; a second one interrupts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = [
            number
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is signal.default_int_handler
        ]
        for number in ours:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, signal.default_int_handler)

    def restore(self) -> None:
        """The session is over."""
        if self._handles_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_noted:
            signal.default_int_handler(number, frame)
        self.is_noted = True
