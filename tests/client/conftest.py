"""Servers and clients that are gone after the test."""

from __future__ import annotations

import contextlib
import socket

import pytest
from helpers import WAIT_S, wait
from servers import RawServer

from pytest_llmperf.client import Address, HttpClient, Limits
from pytest_llmperf.clock import RealClock


@pytest.fixture
def serve():
    """Start raw servers that are stopped after the test, and after the clients."""
    with contextlib.ExitStack() as stack:
        yield lambda *scripts, **options: stack.enter_context(RawServer(*scripts, **options))


@pytest.fixture
def connect(serve):
    """Make clients that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(server_or_address, *, silence_s=WAIT_S, exchange_s=3600.0, headers=None):
            address = server_or_address
            if isinstance(server_or_address, RawServer):
                address = Address.parse(server_or_address.url)
            limits = Limits(silence_s=silence_s, exchange_s=exchange_s)
            client = HttpClient(address, RealClock(), headers=headers or {}, limits=limits)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def get(serve, connect):
    """Play one script to one GET request and return the exchange."""

    def play(*script, **limits):
        client = connect(serve(script), **limits)
        client.send(7, client.encode("GET", "/x"))
        (exchange,) = wait(client)
        exchange.settle()
        return exchange

    return play


@pytest.fixture
def resolve(monkeypatch):
    """Say which addresses the name `server.test` has."""

    real = socket.getaddrinfo

    def names(*found):
        def getaddrinfo(host, port, *args, **options):
            if host != "server.test":
                return real(host, port, *args, **options)
            return [(family, socket.SOCK_STREAM, 6, "", where) for family, where in found]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return names
