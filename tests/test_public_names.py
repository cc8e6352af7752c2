"""The names that other suites rely on."""

from __future__ import annotations

import pytest_llmperf


def test_every_public_name_is_there():
    """`__all__` is sorted, complete, and each of its names can be imported."""
    assert sorted(pytest_llmperf._HOMES) == pytest_llmperf.__all__
    assert all(getattr(pytest_llmperf, name) is not None for name in pytest_llmperf.__all__)
    assert set(pytest_llmperf.__all__) <= set(dir(pytest_llmperf))


def test_the_names_of_the_loads_are_public():
    """Each load, and each way to think, is imported from the package itself."""
    loads = {"burst", "closed_loop", "constant", "poisson", "replay", "round_robin"}

    assert loads | {"exponential", "lognormal"} <= set(pytest_llmperf.__all__)
    assert all(callable(getattr(pytest_llmperf, name)) for name in loads)
