"""`engines/placement.py`: which replica gets what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.engines import make_spec
from pytest_llmperf.engines.placement import gpu_count, gpu_groups, places, sharers
from pytest_llmperf.errors import ConfigurationError


def fleet(**words):
    return make_spec("fleet", {"model": "m", **words})


@given(replicas=st.integers(1, 8), each=st.integers(1, 4))
def test_without_a_word_each_has_its_own(replicas, each):
    """As many GPUs as each needs, none of them twice."""
    spec = fleet(replicas=replicas, tensor_parallel=each)
    groups = gpu_groups(spec)
    assert [each] * replicas == [len(group) for group in groups]
    assert replicas * each == gpu_count(spec) == len({gpu for group in groups for gpu in group})
    assert 1 == sharers(spec)


@pytest.mark.parametrize("gpus", ["2,3|0-1", ["2,3", "0-1"], " 2 , 3 | 0-1 "])
def test_as_given(gpus):
    """A list, or a text with bars; ranges are spelt out."""
    spec = fleet(replicas=2, tensor_parallel=2, gpus=gpus)
    assert [("2", "3"), ("0", "1")] == gpu_groups(spec)
    assert ["2,3", "0,1"] == [dict(place.env)["CUDA_VISIBLE_DEVICES"] for place in places(spec)]


@given(groups=st.lists(st.lists(st.integers(0, 9999), min_size=2, max_size=2, unique=True), min_size=2, max_size=5))
def test_what_is_given_is_what_each_gets(groups):
    """Whatever the numbers are, in their order."""
    texts = [",".join(map(str, group)) for group in groups]
    words = {"replicas": len(groups), "tensor_parallel": 2, "gpu_memory_fraction": 0.01}
    expected = [tuple(map(str, group)) for group in groups]
    assert expected == gpu_groups(fleet(gpus=texts, **words)) == gpu_groups(fleet(gpus="|".join(texts), **words))


def test_all_on_one():
    """One group is everybody's."""
    spec = fleet(replicas=4, gpus="1", gpu_memory_fraction=0.22)
    assert (4, 1, [("1",)] * 4) == (sharers(spec), gpu_count(spec), gpu_groups(spec))


def test_numbers_count_what_may_be_seen(monkeypatch):
    """Where this process sees GPUs 4 and 6 only, its first is 4."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert ["4", "6"] == [dict(place.env)["CUDA_VISIBLE_DEVICES"] for place in places(fleet(replicas=2))]


def test_processors_and_ports():
    """Processors by `taskset`, ports as given."""
    first, second = places(fleet(replicas=2, cpus="0-3|4-7", ports=[8101, 8102]))
    assert (("taskset", "--cpu-list", "0-3"), 8101) == (first.prefix, first.port)
    assert (("taskset", "--cpu-list", "4-7"), 8102) == (second.prefix, second.port)
    assert [((), None)] * 2 == [(place.prefix, place.port) for place in places(fleet(replicas=2))]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"gpus": "0|1|2"}, "gpus: 3 given, but there are 2 replicas; give one for each"),
        ({"cpus": "0|1|2"}, "cpus: 3 given, but there are 2 replicas"),
        ({"ports": [1]}, "ports: 1 given, but there are 2 replicas"),
        ({"gpus": "0,1|2"}, "each replica needs as many GPUs as tensor_parallel says"),
        ({"gpus": "0"}, r"2 replicas share a GPU; say what .* gpu_memory_fraction=\.\.\. of at most 0\.5"),
        ({"gpus": "0", "gpu_memory_fraction": 0.6}, r"gpu_memory_fraction=\.\.\. of at most 0\.5"),
        ({"gpus": "0;1"}, r"gpus='0;1'; expected GPU numbers for each replica, such as '0,1\|2,3'"),
        ({"cpus": ""}, "cpus=''; expected processors for each replica"),
        ({"gpus": "3-1|0"}, r"gpus='3-1\|0'; expected GPU numbers"),
        ({"gpus": []}, r"gpus=\[\]; expected"),
        ({"ports": [80, 80]}, "expected a list of different port numbers"),
        ({"ports": [80, 70_000]}, "expected a list of different port numbers"),
        ({"ports": "80,81"}, "expected a list of different port numbers"),
    ],
)
def test_what_does_not_fit(words, problem):
    """Each mistake is said before anything starts."""
    with pytest.raises(ConfigurationError, match=problem):
        fleet(replicas=2, **words)
