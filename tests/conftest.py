"""Shared by all tests."""

# pytester forgets the modules that an in-process run has imported, and numpy cannot be loaded twice.
import pytest

import pytest_llmperf.lifecycle  # noqa: F401


@pytest.fixture(autouse=True)
def quick_cpu_info(monkeypatch):
    """pytest-benchmark takes a second to ask the processor who it is."""
    monkeypatch.setattr("pytest_benchmark.plugin.get_cpu_info", lambda: {"brand_raw": "test", "hz_actual": [1, 0]})
