"""Tests at several loads, as a curve."""

from report_contents import figures, section

from pytest_llmperf.reports.sweeps import sweeps_in


def at(load, throughput, parameter="rate", test="t.py::test_it", **words):
    measured = {**figures(), "output_throughput": throughput, "load": {"offered": 1.02 * load}}
    params = {parameter: load, **words.pop("others", {})}
    name = f"{test}[{'-'.join(map(str, params.values()))}]"
    return section(name=name, figures=measured, params=params, is_open=parameter == "rate", **words)


def test_a_rate_is_drawn_over_what_was_offered_and_has_a_knee():
    (found,) = sweeps_in([at(4, 40), at(1, 10), at(2, 20), at(8, 50)])

    assert [point.load for point in found.points] == [1.02, 2.04, 4.08, 8.16]
    assert found.knee == 2
    assert found.is_rate
    assert found.name == "t.py::test_it"


def test_users_are_drawn_over_their_number():
    (found,) = sweeps_in([at(n, 10 * n, "users") for n in (2, 4, 8)])

    assert [point.load for point in found.points] == [2, 4, 8]
    assert found.knee is None


def test_other_parameters_part_sweeps():
    sections = [at(n, 10 * n, others={"model": model}) for n in (1, 2, 3) for model in ("a", "b")]

    assert [found.name for found in sweeps_in(sections)] == ["t.py::test_it (model='a')", "t.py::test_it (model='b')"]


def test_two_loads_are_no_sweep_and_invalid_ones_do_not_count():
    assert sweeps_in([at(1, 10), at(2, 20), at(3, 30, invalid=("failed",))]) == ()


def test_parameters_that_are_no_load_or_no_number_are_left_alone():
    assert sweeps_in([at(n, 10, "seed") for n in (1, 2, 3)]) == ()
    assert sweeps_in([section(params={"rate": value}) for value in ("1", None, True, -1)]) == ()


def test_throughput_that_is_not_known_has_no_knee():
    (found,) = sweeps_in([at(1, 10), at(2, None), at(3, 10)])

    assert found.knee is None
    assert found.points[1].output_throughput is None
