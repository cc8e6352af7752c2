"""Whether this process may open as many sockets as a run will need.

Found out before the run: in the middle of one, requests would fail for a reason that is not the server's.
"""

from __future__ import annotations

import os
import sys

from pytest_llmperf.errors import ConfigurationError

_SPARE = 32
"""Descriptors that a run opens beside its connections: selectors, record files, the engine's log."""
_FOLDER = "/proc/self/fd"
_USUALLY_OPEN = 64
"""Taken where the system does not tell how many are open."""


def check_descriptors(connections: int) -> None:
    """Raise `ConfigurationError` unless so many further connections can be open at a time."""
    if sys.platform == "win32":  # has no such limit
        return
    import resource  # noqa: PLC0415 - not to be had there

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _open_now() + _SPARE
    if allowed in (resource.RLIM_INFINITY, -1) or needed <= allowed:
        return
    if most in (resource.RLIM_INFINITY, -1) or needed <= most:
        remedy = f"raise that before: ulimit -n {needed}"
    else:
        remedy = (
            f"that can be raised to {most} only, which takes an administrator to change (nofile in "
            "/etc/security/limits.conf, or --ulimit nofile of the container)"
        )
    msg = (
        f"{connections} connections at a time need about {needed} open files, and this process may have {allowed}; "
        f"{remedy}, or spread the load over more workers (--llmperf-workers), or ask for less at a time"
    )
    raise ConfigurationError(msg)


def _open_now() -> int:
    try:
        return len(os.listdir(_FOLDER))
    except OSError:
        return _USUALLY_OPEN
