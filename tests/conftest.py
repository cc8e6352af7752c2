"""Shared by all tests."""

from pathlib import Path

import hypothesis
import pytest
from nvml import found_on, machine, no_driver, nvml_here, nvml_stub  # noqa: F401 - fixtures, everybody's

# pytester forgets the modules that an in-process run has imported, and numpy cannot be loaded twice.
import pytest_llmperf.lifecycle  # noqa: F401

TIMEOUT_S = 20


def pytest_collection_modifyitems(items):
    """In our own tests a warning is an error and no test takes long; performance tests may.

    A virtual machine may be kept waiting for a tenth of a second and more: what has to do with real time then sees
    what is not so, and gets another chance.
    """
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
            if item.get_closest_marker("real_time") is not None:
                item.add_marker(pytest.mark.flaky(reruns=3, reruns_delay=3))


@pytest.fixture(autouse=True)
def no_worker(monkeypatch):
    """Where these tests are spread over processes, the runs within them are not: pytest-benchmark would think so."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture(autouse=True)
def no_github(monkeypatch):
    """Where these tests are a step of GitHub Actions, the runs within them leave its log and its summary alone."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """What is said within these tests stays on one line, where it is looked for; who cares for folds says how wide."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(autouse=True)
def quick_cpu_info(monkeypatch):
    """pytest-benchmark takes a second to ask the processor who it is."""
    monkeypatch.setattr("pytest_benchmark.plugin.get_cpu_info", lambda: {"brand_raw": "test", "hz_actual": [1, 0]})


@pytest.fixture(autouse=True)
def own_locks(monkeypatch, tmp_path_factory):
    """The runs within these tests wait for nobody's devices, whoever else measures on this machine."""
    monkeypatch.setenv("LLMPERF_LOCKS", str(tmp_path_factory.mktemp("locks")))


# More than a suite has time for: pytest --hypothesis-profile=fuzz
hypothesis.settings.register_profile("fuzz", max_examples=20_000, deadline=None)
# The same few examples for each mutant; mutmut runs a test again and again in one process.
hypothesis.settings.register_profile(
    "mutants",
    max_examples=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
