"""What the kernel's errors mean: a kind to count by, and a sentence on who did what."""

from __future__ import annotations

import errno
import socket
import ssl

from pytest_llmperf.client.address import Address
from pytest_llmperf.records import Failure

_GONE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""What is reported of a peer that has left without a word."""
_HERE = {
    errno.EMFILE: ("too_many_files", "raise this process's limit (ulimit -n), or ask for fewer requests at a time"),
    errno.ENFILE: ("too_many_files", "raise this machine's limit (fs.file-max), or ask for fewer requests at a time"),
    errno.EADDRNOTAVAIL: ("no_local_port", "widen net.ipv4.ip_local_port_range, or ask for fewer requests at a time"),
}
"""What this machine has run out of, and what to do about it."""


def connect_failure(address: Address, error: OSError, timeout_s: float) -> Failure:
    """Why a connection could not be made within `timeout_s`."""
    if error.errno in _HERE:
        kind, remedy = _HERE[error.errno]
        return Failure(kind, f"no connection to {address} could be opened: {error.strerror}; {remedy}")
    if isinstance(error, ConnectionRefusedError):
        return Failure("connection_refused", f"nothing listens at {address}")
    if isinstance(error, TimeoutError):
        return Failure("connect_timeout", f"{address} did not accept a connection within {timeout_s:g} s")
    if isinstance(error, socket.gaierror):
        return Failure("unknown_host", f"the name {address.host!r} does not resolve: {error.strerror}")
    if isinstance(error, ssl.SSLError):
        return Failure("tls", f"{address}: {error.reason or error}")
    return Failure("connect_failed", f"{address}: {error}")


def receive_failure(address: Address, error: OSError) -> Failure:
    """Why a connection ended within an answer."""
    if error.errno in _GONE:
        return Failure("peer_gone", f"{address} answers no more, not even its kernel does: {error.strerror}")
    return Failure("connection_reset", f"while receiving: {error}")
