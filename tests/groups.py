"""Processes with all that they start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


def interruptible():
    """Also where these tests run in the background, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def process_group(command, folder):
    """A process with all that it starts, of which nothing is left afterwards."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        start_new_session=True,
        preexec_fn=interruptible,  # noqa: PLW1509 - it starts no thread
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
