"""Engines that take long to start, shared by the tests of this folder."""

from __future__ import annotations

import pytest
from engine_cases import made


@pytest.fixture(scope="session")
def real_vllm(tmp_path_factory):
    """A server of the real vLLM, started by the first test that wants it."""
    with made("real-vllm", tmp_path_factory.mktemp("real")) as engine:
        engine.start()
        yield engine


@pytest.fixture(scope="session")
def real_vllm_in_process(tmp_path_factory):
    """The real vLLM in a process with the sender."""
    with made("real-vllm-in-process", tmp_path_factory.mktemp("real")) as engine:
        engine.start()
        yield engine
