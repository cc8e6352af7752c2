"""Keeping nights: what becomes one, what is there already, what goes."""

from __future__ import annotations

import json
import re

import pytest
from night_files import KEY, TEST, acknowledged, document, put, row

from pytest_llmperf.baselines import Baselines
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.keeping import nights_in, nights_of, stored, superfluous
from pytest_llmperf.result_file import read

OTHER = "perf_tests/test_it.py::test_other"


@pytest.fixture
def result(tmp_path):
    """Writes a result file, as `--benchmark-json` does."""

    def write(*rows, name="result.json", **words):
        path = tmp_path / name
        path.write_text(json.dumps(document(*rows, **words)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def baselines(tmp_path):
    return Baselines(tmp_path / "baselines")


def again(baselines):
    """The folder as another process finds it."""
    return Baselines(baselines.directory)


def names(baselines, key=KEY):
    return [path.name for path in reversed(baselines.paths(key))]


class TestResultFiles:
    """`nights_of`: what a session has measured becomes a night."""

    def test_files_become_the_next_nights_in_the_order_given(self, result, baselines):
        """Each keeps its values, its day and its machine."""
        put(baselines.directory, 6, row([0.1, 0.2]))
        later, earlier = result(row([0.3]), name="b.json", day="2025-11-03"), result(row([0.4]), name="a.json")

        made = list(stored(nights_of([later, earlier], "main"), baselines))

        assert ["0006_main.json", "0007_main.json", "0008_main.json"] == names(baselines)
        assert [(True, later), (True, earlier)] == [(one.is_new, one.night.source) for one in made]
        found = read(baselines.paths(KEY)[1])
        assert ((0.3,), "2025-11-03") == (found.entries[0].stored_values, found.saved_at[:10])

    def test_the_same_result_gives_the_same_bytes(self, result, baselines, tmp_path):
        """Sorted and indented, whatever the file that it comes from looks like."""
        path = result(row([0.1]))
        turned = tmp_path / "turned.json"
        turned.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=4))

        (first,), (second,) = nights_of([path], "main"), nights_of([turned], "main")

        assert first.content == second.content

    def test_a_night_is_stored_once(self, result, baselines):
        """Its twin would make nights look alike that nobody measured."""
        path = result(row([0.1, 0.2]), row([0.3], test=OTHER))
        list(stored(nights_of([path], "main"), baselines))

        (repeated,) = stored(nights_of([path], "nightly"), again(baselines))
        twice = list(stored(nights_of([path, path], "main"), Baselines(baselines.directory.parent / "new")))

        assert (False, "0001_main.json") == (repeated.is_new, repeated.path.name)
        assert [True, False] == [one.is_new for one in twice]
        assert ["0001_main.json"] == names(baselines)

    @pytest.mark.parametrize("changed", [{"workload": "other"}, {"test": OTHER}, {"metric": "e2e_p99"}])
    def test_equal_values_of_something_else_are_another_night(self, result, baselines, changed):
        """Simulated values may well be equal."""
        sources = [result(row([0.1]), name="a.json"), result(row([0.1], **changed), name="b.json")]

        assert [True, True] == [one.is_new for one in stored(nights_of(sources, "main"), baselines)]

    @pytest.mark.parametrize("verdict", ["REGRESSED", "INVALID_RUN"])
    def test_what_regressed_or_is_invalid_is_left_out_and_told(self, result, baselines, verdict):
        """The rest is stored."""
        path = result(row([0.2], verdict=verdict), row([0.1], test=OTHER, verdict="PASS"))

        (one,) = stored(nights_of([path], "main"), baselines)

        assert [OTHER] == [entry.measurement for entry in read(one.path).entries]
        assert (f"ttft_p50 of {TEST} is {verdict}",) == one.night.left_out

    def test_what_regressed_can_be_accepted_and_what_is_invalid_cannot(self, result, baselines):
        """An accepted level is stored like any other."""
        path = result(row([0.2], verdict="REGRESSED"), row([0.1], test=OTHER, verdict="INVALID_RUN"))

        (one,) = stored(nights_of([path], "main", accept_regressed=True), baselines)

        assert [TEST] == [entry.measurement for entry in read(one.path).entries]
        assert (f"ttft_p50 of {OTHER} is INVALID_RUN",) == one.night.left_out

    def test_a_file_of_two_machines_becomes_two_nights(self, result, baselines):
        """A simulated engine brings its hardware along; its night owes nothing to this machine or day."""
        simulated_row = row([0.2], test=OTHER, key="sim-h100", simulated=True)
        path = result(row([0.1]), simulated_row, row([0.3], test="slow", verdict="REGRESSED"))

        made = list(stored(nights_of([path], "main"), baselines))

        found = {one.night.hardware_key: one.path for one in made}
        assert [("ttft_p50 of slow is REGRESSED",), ()] == [one.night.left_out for one in made]

        assert [KEY, "sim-h100"] == list(found)
        assert ([TEST], [OTHER]) == tuple([e.measurement for e in read(path).entries] for path in found.values())
        simulated = json.loads(found["sim-h100"].read_text())
        assert {"llmperf": {"schema_version": 1, "hardware_key": "sim-h100"}} == simulated["machine_info"]
        assert "1970-01-01" == simulated["datetime"][:10]
        assert len(again(baselines).entries("sim-h100")) == 1

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("not JSON", "is not readable JSON: "),
            ({"benchmarks": []}, "is not a result of pytest-llmperf: no machine_info.llmperf; save one with"),
            (document(), "has no measurement in it"),
            (document(row([0.1]), key="unknown"), "does not say what hardware it was measured on"),
            (document(row([0.1]), key="../up"), "hardware_key is '../up', which cannot name a folder"),
            (document(row([0.1]), key=".."), "which cannot name a folder"),
            (document(row([0.1]), key=""), "which cannot name a folder"),
            (
                document(row([0.1], verdict="REGRESSED")),
                f"has nothing that may be stored: ttft_p50 of {TEST} is REGRESSED; --accept-regressed stores",
            ),
            (document(row([0.1], verdict="INVALID_RUN")), f"ttft_p50 of {TEST} is INVALID_RUN"),
            ({**document(row([0.1])), "version": float("nan")}, "holds numbers that JSON does not know"),
        ],
    )
    def test_what_cannot_become_a_night_is_refused(self, tmp_path, result, content, complaint):
        """With its name, and before any file is stored."""
        bad = tmp_path / "bad.json"
        bad.write_text(content if isinstance(content, str) else json.dumps(content))

        with pytest.raises(BaselineError, match=re.escape(f"{bad} ") + ".*" + re.escape(complaint)):
            nights_of([result(row([0.1])), bad], "main")

    def test_every_file_that_cannot_is_named(self, tmp_path, result):
        """One line each."""
        missing = [tmp_path / "a.json", tmp_path / "b.json"]

        with pytest.raises(BaselineError) as caught:
            nights_of([missing[0], result(row([0.1])), missing[1]], "main")

        assert list(map(str, missing)) == [line.partition(" ")[0] for line in str(caught.value).splitlines()]


class TestAnotherFolder:
    """`nights_in`: the nights of another folder join."""

    def test_nights_keep_their_bytes_and_take_the_next_numbers(self, tmp_path, baselines):
        """Oldest first, whatever their numbers were."""
        put(baselines.directory, 3, row([0.1]))
        sources = [put(tmp_path / "pr", number, row([0.1 * number]), name="pr-7") for number in (2, 11)]
        contents = [path.read_bytes() for path in sources]

        made = list(stored(nights_in(Baselines(tmp_path / "pr")), baselines))

        assert ["0003_main.json", "0004_pr-7.json", "0005_pr-7.json"] == names(baselines)
        assert contents == [one.path.read_bytes() for one in made]

    def test_what_is_there_is_skipped(self, tmp_path, baselines):
        """Promoting twice changes nothing; neither does what both have."""
        for number, value in enumerate((0.1, 0.2), 1):
            put(baselines.directory, number, row([value]))
        for number, value in enumerate((0.1, 0.2, 0.3), 1):
            put(tmp_path / "pr", number, row([value]))

        for expected in ([False, False, True], [False] * 3):
            made = list(stored(nights_in(Baselines(tmp_path / "pr")), again(baselines)))
            assert expected == [one.is_new for one in made]

        assert ["0001_main.json", "0002_main.json", "0003_main.json"] == names(baselines)

    def test_only_those_of_a_name(self, tmp_path, baselines):
        """On all hardware; a name that no night has is a mistake."""
        put(tmp_path / "pr", 1, row([0.1]), name="main")
        put(tmp_path / "pr", 2, row([0.2]), name="pr-7")
        put(tmp_path / "pr", 1, row([0.3]), name="pr-7", key="NVIDIA-L4-24GB")
        origin = Baselines(tmp_path / "pr")

        made = list(stored(nights_in(origin, "pr-7"), baselines))

        assert [KEY, "NVIDIA-L4-24GB"] == [one.path.parent.name for one in made]
        assert ["0001_pr-7.json"] * 2 == [one.path.name for one in made]
        with pytest.raises(BaselineError, match="has no night named 'pr-8'; there are main, pr-7"):
            nights_in(origin, "pr-8")

    def test_a_folder_without_nights_is_refused(self, tmp_path):
        """Such as one level too high or too low."""
        put(tmp_path / "pr", 1, row([0.1]))

        for folder in (tmp_path, tmp_path / "pr" / KEY, tmp_path / "missing"):
            with pytest.raises(BaselineError, match="has no stored result: expected folders by hardware key"):
                nights_in(Baselines(folder))

    def test_nothing_is_taken_where_a_file_is_wrong(self, tmp_path, baselines):
        """All of them are named."""
        put(tmp_path / "pr", 1, row([0.1]))
        put(tmp_path / "pr", 2, row([0.1]), key="NVIDIA-L4-24GB").write_text("no")
        put(tmp_path / "pr", 3, row([0.1])).write_text(json.dumps(document(key="sim-h100")))

        with pytest.raises(BaselineError) as caught:
            list(stored(nights_in(Baselines(tmp_path / "pr")), baselines))

        lines = str(caught.value).splitlines()
        assert [f"{KEY}/0003_main.json was measured on sim-h100", "NVIDIA-L4-24GB/0002_main.json is not readable"] == [
            re.search(r"NVIDIA-\S+ (was measured on [\w-]+|is not readable)", line).group() for line in lines
        ]
        assert not baselines.directory.exists()

    def test_nothing_is_stored_beside_a_file_that_is_wrong(self, tmp_path, baselines):
        """Whether a night is there already could not be told."""
        put(tmp_path / "pr", 1, row([0.1]))
        put(baselines.directory, 1, row([0.1])).write_text("no")

        with pytest.raises(BaselineError, match="is not readable JSON"):
            list(stored(nights_in(Baselines(tmp_path / "pr")), baselines))

        assert ["0001_main.json"] == names(baselines)

    def test_accepted_changes_do_not_come_along(self, tmp_path, baselines):
        """Their numbers are those of other nights."""
        put(tmp_path / "pr", 1, row([0.1]))
        acknowledged(tmp_path / "pr", {})

        list(stored(nights_in(Baselines(tmp_path / "pr")), baselines))

        assert ["0001_main.json"] == [path.name for path in (baselines.directory / KEY).iterdir()]


@pytest.mark.parametrize(("keep", "gone"), [(1, [1, 2, 9]), (3, [1]), (4, []), (9, []), (0, [1, 2, 9])])
def test_the_oldest_are_superfluous(baselines, keep, gone):
    """By their numbers, oldest first; the newest always stays, as the next number follows it."""
    for number in (9, 1, 10_000, 2):
        put(baselines.directory, number, row([0.1]))

    assert gone == [int(path.name.partition("_")[0]) for path in superfluous(baselines, KEY, keep)]
