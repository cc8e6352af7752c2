"""What the kernel's errors are called, and what is said of them."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from pytest_llmperf.client import Address
from pytest_llmperf.client.failures import connect_failure, receive_failure

WHERE = Address.parse("http://server.test:8000")


def error(number):
    return OSError(number, os.strerror(number))  # of the subclass that belongs to it


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (error(errno.ECONNREFUSED), "connection_refused", "nothing listens at http://server.test:8000"),
        (error(errno.ETIMEDOUT), "connect_timeout", "did not accept a connection within 10 s"),
        (error(errno.EMFILE), "too_many_files", "ulimit -n"),
        (error(errno.ENFILE), "too_many_files", "fs.file-max"),
        (error(errno.EADDRNOTAVAIL), "no_local_port", "net.ipv4.ip_local_port_range"),
        (socket.gaierror(socket.EAI_NONAME, "not known"), "unknown_host", "'server.test' does not resolve: not known"),
        (error(errno.EHOSTUNREACH), "connect_failed", "No route to host"),
    ],
)
def test_while_connecting(raised, kind, said):
    failure = connect_failure(WHERE, raised, 10.0)

    assert kind == failure.kind
    assert said in failure.detail


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNRESET, "connection_reset"),
        (errno.EPIPE, "connection_reset"),
        (errno.ETIMEDOUT, "peer_gone"),
        (errno.EHOSTUNREACH, "peer_gone"),
        (errno.ENETUNREACH, "peer_gone"),
    ],
)
def test_while_receiving(number, kind):
    failure = receive_failure(WHERE, error(number))

    assert kind == failure.kind
    assert os.strerror(number) in failure.detail
