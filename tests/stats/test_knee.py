"""Where more load stops bringing more throughput."""

import pytest

from pytest_llmperf.stats import knee


@pytest.mark.parametrize(
    ("loads", "throughputs", "place"),
    [
        ([1, 2, 4, 8, 16], [10, 20, 40, 60, 60], 2),
        ([1, 2, 4, 8], [10, 20, 39, 79], None),  # follows the load to the end
        ([1, 2, 4], [10, 10, 10], None),  # never rose
        ([1, 2], [10, 11], None),  # no curve
        ([2, 4, 8, 16], [20, 40, 72.1, 73], 2),  # 90.1 % is kept
        ([1, 2, 4], [10, 18, 18], 1),  # 90 % is kept; three loads are a curve
        ([1, 2, 4, 8], [10, 20, 30, 80], 1),  # what comes after the knee does not undo it
    ],
)
def test_knee(loads, throughputs, place):
    assert knee(loads, throughputs) == place


def test_a_throughput_without_a_load_is_a_mistake():
    with pytest.raises(ValueError, match="shorter"):
        knee([1, 2, 4, 8], [10, 20, 30])
