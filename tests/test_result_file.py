"""Result files: what is read of them, what is refused, and how they are written."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_files import COMPARABLE, KEY, TEST, benchmark, document, plain, plain_benchmark, written

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.judged import Provenance
from pytest_llmperf.metrics import METRICS, Quantity
from pytest_llmperf.readings import GpuSummary, TelemetrySummary
from pytest_llmperf.result_file import UNKNOWN_KEY, comparable, differences, read, unlike, write

PROVENANCE = Provenance(
    test=TEST,
    name=None,
    hardware_key=KEY,
    workload="multi_round",
    workload_digest="0123456789abcdef",
    load="round_robin()",
    open_load=False,
    cache="as_is",
    engine_kind="vllm",
    engine_identity={"model": "m", "dtype": None},
    engine_words={},
    engine={},
)


@pytest.fixture
def reading(tmp_path):
    """What is read of a document."""

    def go(content):
        return read(written(tmp_path / "result.json", content))

    return go


class TestReading:
    """What an entry has is what the file says."""

    def test_a_metric_of_ours(self, reading):
        """Values as they are stored, the words that decide about a comparison, and what the test asked."""
        file = reading(document(benchmark([0.1, 0.2], words={"args": ["--x"]}, criterion={"detect": 3.0})))

        (entry,) = file.entries
        assert (KEY, True, "") == (file.hardware_key, file.is_ours, file.saved_at)
        assert (TEST, METRICS["ttft_p50"], (0.1, 0.2)) == (entry.measurement, entry.quantity, entry.stored_values)
        assert {"kind": "vllm", "model": "m", "args": ["--x"]} == entry.engine_words
        assert ({"detect": 3.0, "min_effect": 0.0}, False) == (dict(entry.criterion), entry.simulated)

    def test_telemetry_is_that_of_the_row_that_has_it(self, reading):
        """A run's is None where none was taken or its form is another's; a file from before has none at all."""
        telemetry = TelemetrySummary(gpus=(GpuSummary(gpu=0, samples=3, duration_s=0.5, energy_j=7.5),), rate_hz=10.0)
        first, second = benchmark([0.1, 0.2, 0.3]), benchmark([1, 2, 3], metric="tpot_p50")
        first["extra_info"]["llmperf"]["result"] = {"telemetry": [telemetry.to_json(), {}, {"rate_hz": 1, "new": 2}]}

        file = reading(document(first, second))

        assert file.telemetry == {TEST: [telemetry, None, None]}
        assert reading(document(second)).telemetry == {}

    def test_a_test_that_only_pytest_benchmark_knows(self, reading):
        """Its one metric is its time; the file does not say what it was measured on."""
        file = reading(plain(plain_benchmark([0.1, 0.2], test="t.py::test_sort")))

        (entry,) = file.entries
        assert (UNKNOWN_KEY, False) == (file.hardware_key, file.is_ours)
        assert ("t.py::test_sort", "time", "s", (0.1, 0.2)) == (
            entry.measurement, entry.metric, entry.quantity.unit, entry.stored_values,
        )  # fmt: skip
        assert ({}, {}, {}) == (entry.comparable, entry.engine_words, dict(entry.criterion))

    def test_a_session_may_hold_both(self, reading):
        """A benchmark of another plugin's test does not make the file of a session unusable."""
        file = reading(document(benchmark(), plain_benchmark()))

        assert ["ttft_p50", "time"] == [entry.metric for entry in file.entries]

    def test_what_is_better_hangs_on_the_metric_and_not_on_the_file(self, reading):
        """A file cannot turn the direction of a metric that is known."""
        row = benchmark(metric="output_throughput")
        row["extra_info"]["llmperf"]["stored_as"] = "value"

        assert reading(document(row)).entries[0].quantity is METRICS["output_throughput"]

    def test_a_metric_that_is_not_ours_is_as_the_file_says(self, reading):
        """Other tools' results have other metrics."""
        row = benchmark(metric="goodput")
        row["extra_info"]["llmperf"] |= {"unit": "requests/s", "stored_as": "1/value"}

        (entry,) = reading(document(row)).entries

        assert Quantity("goodput", "requests/s", higher_is_better=True) == entry.quantity

    def test_a_file_that_asks_nothing_has_no_criterion(self, reading):
        """Which is not the same as asking for 0."""
        row = benchmark()
        del row["extra_info"]["llmperf"]["criterion"]

        assert {} == reading(document(row)).entries[0].criterion

    @pytest.mark.parametrize("date", ["", "yesterday", None, 7, ["2999-01-01"]])
    def test_a_date_that_says_nothing_decides_nothing(self, reading, date):
        """Only a day to come is a reason to refuse."""
        assert 1 == len(reading(document(benchmark(), datetime=date)).entries)


def without(*path):
    """A valid document that lacks what stands at this path."""
    content = document(benchmark())
    place = content
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return content


def having(value, *path):
    """A valid document with another value at this path."""
    content = document(benchmark())
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return content


ROW = ("benchmarks", 0)
OURS = (*ROW, "extra_info", "llmperf")
DATA = (*ROW, "stats", "data")
FOREIGN = {**benchmark()["extra_info"]["llmperf"], "metric": "goodput"}


def nested(levels):
    value = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is not readable JSON: Expecting value"),
        (json.dumps(document(benchmark()))[:-40], "is not readable JSON: "),
        ("[" * 100_000, "is not readable JSON: "),
        ("[]", "is not a result file: expected pytest-benchmark's JSON with a list of benchmarks"),
        ({"results": []}, "is not a result file: "),
        (having({}, "benchmarks"), "is not a result file: "),
        (having(2, "machine_info", "llmperf", "schema_version"), "has schema version 2, this release reads 1"),
        (having(None, "machine_info", "llmperf"), "machine_info.llmperf is not what pytest-llmperf stores"),
        (having([], "machine_info", "llmperf"), "machine_info.llmperf is not what pytest-llmperf stores"),
        (having(7, "machine_info", "llmperf", "hardware_key"), "does not say what it was measured on"),
        (without("machine_info", "llmperf", "hardware_key"), "does not say what it was measured on"),
        (without("machine_info", "llmperf"), "but not what they were measured on (machine_info.llmperf)"),
        (without("machine_info"), "but not what they were measured on (machine_info.llmperf)"),
        (having("2999-01-01T00:00:00Z", "datetime"), "is from the future (2999-01-01T00:00:00Z); set the clock of "),
        (document(benchmark(), benchmark()), f"has ttft_p50 of {TEST} twice; measure again"),
        (plain(plain_benchmark(), plain_benchmark()), "has time of tests/test_sort.py::test_sort twice"),
        (having("text", *ROW), "the benchmark ? lacks what pytest-llmperf stores (TypeError: "),
        (without(*ROW, "stats"), f"the benchmark {TEST}::ttft_p50 lacks what pytest-llmperf stores (KeyError: 'stats'"),
        (without(*OURS, "comparable"), "(KeyError: 'comparable')"),
        (having([["load", 1]], *OURS, "comparable"), "expected words with their values, got [['load', 1]]"),
        (having(nested(300), *OURS, "comparable", "load"), "nested 8 levels deep at most"),
        (having(nested(300), *OURS, "engine_words", "args"), "nested 8 levels deep at most"),
        (having(nested(300), *OURS, "measurement"), "expected a name, got [[[[[["),
        (having("one\ntwo", *OURS, "measurement"), "expected a name, got 'one\\ntwo'"),
        (having(["a"], *OURS, "metric"), "expected a name, got ['a']"),
        (having({**FOREIGN, "unit": "furlongs"}, *OURS), "goodput is in 'furlongs', stored as 'value'; accepted: s, "),
        (having({**FOREIGN, "stored_as": "log"}, *OURS), "goodput is in 's', stored as 'log'; accepted: s, "),
        (having(float("nan"), *OURS, "criterion", "detect"), "expected a share of at least 0, got nan"),
        (having(-3, *OURS, "criterion", "detect"), "expected a share of at least 0, got -3"),
        (having(-0.5, *OURS, "criterion", "min_effect"), "expected a share of at least 0, got -0.5"),
        (having("10 %", *OURS, "criterion", "detect"), "expected a number, got '10 %'"),
        (having(None, *OURS, "criterion"), "(AttributeError: "),
        (having([], *DATA), f"ttft_p50 of {TEST} holds values that are not positive numbers"),
        (having([0.1, 0], *DATA), "holds values that are not positive numbers"),
        (having([0.1, -0.1], *DATA), "holds values that are not positive numbers"),
        (having([0.1, float("nan")], *DATA), "holds values that are not positive numbers"),
        (having([0.1, float("inf")], *DATA), "holds values that are not positive numbers"),
        (having([0.1, 5e-324], *DATA), "holds values that are not positive numbers"),
        (having([0.1, 1.7e308], *DATA), "holds values that are not positive numbers"),
        (having([0.1, "0.1"], *DATA), "(TypeError: expected a number, got '0.1')"),
        (having([0.1, True], *DATA), "(TypeError: expected a number, got True)"),
        (having([0.1, None], *DATA), "(TypeError: expected a number, got None)"),
        (having("111", *DATA), "(TypeError: expected a list of numbers, got '111')"),
        (having({"1": 1}, *DATA), "(TypeError: expected a list of numbers, got {'1': 1})"),
        (having([10**400], *DATA), "(OverflowError: "),
        (plain({**plain_benchmark(), "stats": {"mean": 1}}), "has no values of single runs (KeyError: 'data'); "),
        (plain({**plain_benchmark(), "fullname": None}), "the benchmark ? has no values of single runs (TypeError: "),
        (plain(None), "the benchmark ? has no values of single runs (TypeError: "),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_sentence(reading, tmp_path, content, complaint):
    """Which file, what is wrong with it, on one line."""
    with pytest.raises(BaselineError, match=re.escape(complaint)) as refused:
        reading(content)

    assert str(refused.value).startswith(str(tmp_path / "result.json"))
    assert 1 == len(str(refused.value).splitlines())


def test_bytes_that_are_no_text_are_refused(tmp_path):
    """A picture is no result."""
    path = tmp_path / "picture.json"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00")

    with pytest.raises(BaselineError, match="is not readable JSON: "):
        read(path)


@pytest.mark.parametrize("name", ["none.json", "no/such/folder.json", "x" * 300])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    """Also where the name is longer than any can be."""
    with pytest.raises(BaselineError, match=r"is not there; give a file|is not readable JSON: File name too long"):
        read(tmp_path / name)


class TestWriting:
    """A result is there complete, or it is not there."""

    def test_what_was_written_is_read_again(self, tmp_path):
        """No digit is lost."""
        write(document(benchmark([1 / 3, 1e-9])), tmp_path / "a.json")

        assert (1 / 3, 1e-9) == read(tmp_path / "a.json").entries[0].stored_values

    def test_the_text_does_not_hang_on_the_order_of_what_is_written(self, tmp_path):
        """Sorted, a line for each value: two files differ where their content does."""
        content = document(benchmark())
        turned = dict(reversed(content.items()))

        write(content, tmp_path / "a.json")
        write(turned, tmp_path / "b.json")

        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
        assert (tmp_path / "a.json").read_text().endswith("}\n")

    def test_it_takes_the_place_of_an_older_one_and_leaves_nothing_else(self, tmp_path):
        """And others may read it."""
        path = written(tmp_path / "a.json", "old")

        write(document(benchmark()), path)

        assert ([path], 0o644) == (list(tmp_path.iterdir()), path.stat().st_mode & 0o777)
        assert 1 == len(read(path).entries)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_number_that_json_does_not_know_leaves_the_old_file_alone(self, tmp_path, value):
        """What was there is worth more than half of what comes."""
        path = written(tmp_path / "a.json", "old")

        with pytest.raises(ValueError, match="JSON"):
            write(document(benchmark([value])), path)

        assert ([path], "old") == (list(tmp_path.iterdir()), path.read_text())

    @pytest.mark.parametrize("step", ["os.fsync", "os.chmod"])
    def test_a_disk_that_fails_leaves_the_old_file_alone(self, tmp_path, monkeypatch, step):
        """And no draft beside it."""
        path = written(tmp_path / "a.json", "old")

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(step, fail)

        with pytest.raises(OSError, match="disk full"):
            write(document(benchmark()), path)

        assert ([path], "old") == (list(tmp_path.iterdir()), path.read_text())

    def test_a_place_that_cannot_be_taken_leaves_no_draft(self, tmp_path):
        """A folder stands where the file is to be."""
        (tmp_path / "a.json").mkdir()

        with pytest.raises(OSError, match=re.escape("a.json")):
            write(document(benchmark()), tmp_path / "a.json")

        assert [tmp_path / "a.json"] == list(tmp_path.iterdir())


class TestUnlike:
    """What forbids a comparison, in words."""

    def test_equal_words_forbid_nothing(self):
        assert [] == unlike(COMPARABLE, dict(COMPARABLE))

    @pytest.mark.parametrize("word", sorted(COMPARABLE))
    def test_every_word_forbids_one(self, word):
        """With what it was and what it is."""
        assert [f"{word} was {COMPARABLE[word]!r}, is 'new'"] == unlike(COMPARABLE, {**COMPARABLE, word: "new"})

    def test_a_word_that_only_the_older_file_has_does_not_count(self):
        """It says what is not asked for any more."""
        assert [] == unlike({**COMPARABLE, "engine old": 1}, COMPARABLE)

    def test_simulated_counts_either_way(self):
        """Although a measured result does not have the word at all."""
        assert ["simulated was True, is None"] == unlike({**COMPARABLE, "simulated": True}, COMPARABLE)
        assert ["simulated was None, is True"] == unlike(COMPARABLE, {**COMPARABLE, "simulated": True})

    def test_what_is_not_equal_to_itself_is_not_comparable(self):
        """NaN in a file is no reason to let it pass."""
        nan = float("nan")

        assert ["load was nan, is nan"] == unlike({"load": nan}, {"load": float(nan * 2)})


def test_the_parts_of_a_provenance_that_decide():
    """What is asked of the engine, and not how it goes about it or when."""
    assert COMPARABLE == comparable(PROVENANCE)
    assert COMPARABLE == comparable(replace(PROVENANCE, test="t", engine_words={"args": ["--x"]}, engine={"v": 1}))
    assert {**COMPARABLE, "simulated": True} == comparable(replace(PROVENANCE, simulated=True))


class TestDifferences:
    """How the engine goes about it, told beside a comparison."""

    def test_words_in_order(self):
        """Changed, new and gone ones."""
        before, now = {"z": 1, "gone": True, "same": 0}, {"z": 2, "new": "x", "same": 0}

        assert ("gone True -> None", "new None -> 'x'", "z 1 -> 2") == differences(before, now)

    def test_where_an_engine_is_does_not_count(self):
        """Nor which night is simulated."""
        assert () == differences({"url": "http://a", "executable": "/a", "noise_seed": 1}, {"url": "http://b"})

    def test_a_file_makes_lists_of_tuples(self):
        """Which is no difference."""
        assert () == differences({"args": ["--x", "1"]}, {"args": ("--x", "1")})

    @settings(max_examples=50, deadline=None)
    @given(st.dictionaries(st.sampled_from("abc"), st.none() | st.booleans() | st.integers() | st.text(max_size=3)))
    def test_nothing_differs_from_itself(self, words):
        assert () == differences(words, words)
