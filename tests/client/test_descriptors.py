"""Too few descriptors are said before the run, with what helps."""

from __future__ import annotations

import resource

import pytest

from pytest_llmperf.client.descriptors import check_descriptors
from pytest_llmperf.errors import ConfigurationError


@pytest.fixture
def limit(monkeypatch):
    """`limit(soft, hard)`: what the process may open."""

    def change(soft, hard):
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))

    return change


def test_enough(limit):
    limit(1024, 1024)
    check_descriptors(100)


def test_without_a_limit(limit):
    limit(resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    check_descriptors(1_000_000)


def test_the_limit_can_be_raised(limit):
    limit(1024, 524_288)
    with pytest.raises(
        ConfigurationError, match=r"4000 connections.* may have 1024; raise that before: ulimit -n 4\d\d\d"
    ):
        check_descriptors(4000)


def test_the_limit_cannot_be_raised(limit):
    limit(1024, 4096)
    with pytest.raises(ConfigurationError, match="can be raised to 4096 only"):
        check_descriptors(8000)


def test_open_descriptors_count(limit, tmp_path):
    files = [tmp_path.joinpath(str(number)).open("w") for number in range(50)]
    limit(100, 100)
    try:
        with pytest.raises(ConfigurationError):
            check_descriptors(40)
    finally:
        for file in files:
            file.close()
