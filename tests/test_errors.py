"""The errors, where they do more than being raised."""

from __future__ import annotations

import pickle

from pytest_llmperf.errors import ConfigurationError


def test_mistakes_stay_apart_on_the_way_from_another_process():
    """Each keeps its own line."""
    error = pickle.loads(pickle.dumps(ConfigurationError("one", "two")))

    assert ("one", "two") == error.problems
    assert "one\ntwo" == str(error)
