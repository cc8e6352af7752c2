"""Runs of other tools as measurements: which belong together, what they are called, what they may be compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest
from foreign_files import FILES, aiperf, guidellm, guidellm_benchmark, sglang, vllm, vllm_details, written

from pytest_llmperf.baselines import Baselines
from pytest_llmperf.errors import ForeignResultError
from pytest_llmperf.foreign import read_runs
from pytest_llmperf.foreign.document import Figure, document
from pytest_llmperf.foreign.imported import Naming, measurements, originals
from pytest_llmperf.result_file import read, write

KEY = "NVIDIA-GH200-96GB"


@pytest.fixture
def imported(tmp_path):
    """The measurements in files with these documents, one each."""

    def convert(*documents, **naming):
        files = [written(tmp_path / str(number), one) for number, one in enumerate(documents)]
        return measurements(read_runs(files), Naming(hardware_key=KEY, **naming))

    return convert


def figure(one, metric):
    (found,) = [each for each in one.measurement.figures if each.metric == metric]
    return found


def metrics(one):
    return {each.metric for each in one.measurement.figures}


class TestBelongingTogether:
    def test_files_of_the_same_work_are_runs_of_one_measurement(self, imported):
        (one,) = imported(vllm(), vllm(median_ttft_ms=120.0), vllm(median_ttft_ms=80.0, date="later"))
        assert figure(one, "ttft_p50").values == pytest.approx([0.1, 0.12, 0.08])

    @pytest.mark.parametrize(
        "change",
        [
            {"max_concurrency": 3},
            {"num_prompts": 5},
            {"request_rate": 2.0},
            {"total_input_tokens": 401},
            {"total_output_tokens": 80},
            {"model_id": "another"},
            {"backend": "openai-chat"},
            {"build": "abc"},
        ],
    )
    def test_what_makes_another_measurement(self, imported, change):
        one, other = imported(vllm(), vllm(**change))
        assert one.name != other.name

    def test_tools_are_never_mixed(self, imported):
        assert len(imported(vllm(), vllm(input_throughput=5.0), aiperf(), guidellm(), sglang())) == 5

    def test_a_metric_that_not_every_run_has_is_left_out(self, imported):
        (one,) = imported(vllm(), vllm(p90_ttft_ms=5.0, mean_ttft_ms=111.0))
        assert "ttft_p90" not in metrics(one)
        assert one.doubts == ("ttft_p90 is left out: not every run has it",)

    def test_a_metric_that_was_got_in_two_ways_is_left_out(self, imported):
        details = {"output_lens": [10] * 4, "ttfts": [0.1] * 4, "itls": [[0.01] * 9] * 4}
        (one,) = imported(sglang(), sglang(**details))
        assert "tpot_p50" not in metrics(one)
        assert "ttft_p50" in metrics(one)
        assert "tpot is left out: the files define it in different ways" in one.doubts

    def test_a_copy_is_no_second_run(self, imported):
        """Runs never agree to the last digit."""
        (one,) = imported(vllm(), vllm(median_ttft_ms=101.0), vllm())
        assert one.doubts == ("run 3 has the figures of one before it to the last digit: is it a copy?",)

    def test_a_file_given_twice_is_read_once(self, tmp_path):
        path = written(tmp_path, vllm())
        assert len(read_runs([path, path, tmp_path / "." / ".." / tmp_path.name / path.name])) == 1

    def test_answers_that_differ_in_length_are_pointed_at(self, imported):
        (one,) = imported(vllm(total_output_tokens=41), vllm(total_output_tokens=62, mean_ttft_ms=111.0))
        assert one.doubts == ("answers of 10.2 to 15.5 tokens on average: are the runs of one workload?",)


class TestNames:
    def test_one_measurement_takes_the_name_that_was_given(self, imported):
        (one,) = imported(vllm(), test="perf_tests/test_x.py::test_y")
        assert one.name == "perf_tests/test_x.py::test_y"

    def test_several_are_told_apart_by_load_and_digest(self, imported):
        names = [one.name for one in imported(guidellm(guidellm_benchmark(2), guidellm_benchmark(8)), test="t")]
        assert [name.split()[0] for name in names] == ["t::closed_loop(2)", "t::closed_loop(8)"]

    def test_a_name_does_not_depend_on_what_is_imported_beside_it(self, imported):
        (alone,) = imported(vllm())
        beside, _, _ = imported(vllm(), vllm(max_concurrency=7), aiperf())
        assert alone.name == beside.name

    def test_engines_that_differ_are_named_by_what_differs(self, imported):
        one, other = imported(vllm(build="a", part="x"), vllm(build="b", part="x"))
        assert one.name.endswith("; build=a")
        assert other.name.endswith("; build=b")


class TestDocument:
    @pytest.fixture
    def stored(self, imported, tmp_path):
        """What a file with these documents holds, and where it lies."""

        def make(*documents, **naming):
            made = imported(*documents, **naming)
            path = tmp_path / "out.json"
            write(document([one.measurement for one in made], KEY, originals=originals(made)), path)
            return path

        return make

    @pytest.mark.parametrize("tool", FILES)
    def test_it_is_read_back(self, stored, tool):
        entries = {entry.metric: entry for entry in read(stored(FILES[tool](), engine_kind="vllm")).entries}
        assert entries["ttft_p50"].stored_values == pytest.approx([0.1], rel=0.1)
        assert entries["output_throughput"].stored_values == pytest.approx([1 / 20])
        comparable = entries["ttft_p50"].comparable
        assert comparable["imported"] == tool
        assert comparable["cache"] == "as_is"
        assert comparable["engine"] == "vllm"
        assert len(comparable["workload"]) == 16
        assert comparable["definition"] != entries["output_throughput"].comparable["definition"]

    @pytest.mark.parametrize("tool", FILES)
    def test_it_is_what_the_schema_says(self, stored, tool):
        schema = json.loads(resources.files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())
        jsonschema.validate(json.loads(stored(FILES[tool]()).read_text()), schema)

    def test_pytest_benchmarks_figures_are_those_of_the_runs(self, stored):
        content = json.loads(stored(vllm(), vllm(median_ttft_ms=300.0)).read_text())
        (row,) = [row for row in content["benchmarks"] if row["group"] == "ttft_p50"]
        assert row["stats"]["data"] == pytest.approx([0.1, 0.3])
        assert (row["stats"]["rounds"], row["stats"]["mean"]) == (2, pytest.approx(0.2))
        assert row["fullname"].endswith("::ttft_p50")

    @pytest.mark.parametrize(("test", "name"), [("p/test_x.py::test_y[8]", "test_y[8]"), ("nightly", "nightly")])
    def test_tables_name_it_as_a_test(self, stored, test, name):
        rows = json.loads(stored(vllm(), test=test).read_text())["benchmarks"]
        assert {row["name"] for row in rows} == {f"{name}::{row['group']}" for row in rows}
        assert {row["fullname"] for row in rows} == {f"{test}::{row['group']}" for row in rows}

    def test_what_has_no_counterpart_is_kept(self, stored):
        content = json.loads(stored(vllm_details(spec_decode_acceptance_rate=0.7), test="t").read_text())
        (original,) = content["llmperf"]["originals"]["t"]
        assert original["spec_decode_acceptance_rate"] == 0.7
        about = content["benchmarks"][0]["extra_info"]["llmperf"]
        assert about["result"]["requests"] == 4
        assert about["result"]["errors"] == {"failed": 1}
        assert about["imported"]["files"] == ["result.json"]
        assert set(about["imported"]["definitions"]) >= {"ttft", "tpot", "e2e", "itl", "output_throughput"}

    def test_an_unlimited_rate_is_strict_json(self, stored):
        """SGLang writes Infinity."""
        text = stored(sglang(), test="t").read_text()
        content = json.loads(text, parse_constant=pytest.fail)
        assert content["llmperf"]["originals"]["t"][0]["request_rate"] == "inf"

    def test_it_never_meets_what_was_measured_here(self, stored, tmp_path):
        """Not even under the same words."""
        path = stored(vllm(), test="t", engine_kind="vllm")
        folder = tmp_path / "baselines" / KEY
        folder.mkdir(parents=True)
        path.rename(folder / "0001_main.json")
        baselines = Baselines(tmp_path / "baselines")
        content = json.loads((folder / "0001_main.json").read_text())
        words = content["benchmarks"][0]["extra_info"]["llmperf"]["provenance"]
        from pytest_llmperf.judged import Provenance

        found = baselines.find(Provenance(**words), "ttft_p50")
        assert "imported was 'vllm', is None" in found

    @pytest.mark.parametrize("values", [[], [0.0], [-1.0], [float("nan")], [1.0, float("inf")]])
    def test_figures_that_are_none(self, values):
        with pytest.raises(ForeignResultError, match="expected finite numbers above 0"):
            Figure(metric="m", unit="s", inverted=False, values=values).stored()

    def test_a_file_appears_whole_or_not_at_all(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            write({"x": float("nan")}, tmp_path / "out.json")
        with pytest.raises(IsADirectoryError):
            write({"x": 1}, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_identity_whatever_was_measured(tmp_path):
    """Only what the tool says of the work and the engine counts."""
    (run,) = read_runs([written(tmp_path, vllm())])
    other = replace(run, values={"ttft_p50": 9.0}, measured_at="then", file="other.json", doubts=("bad",))
    assert len(measurements([run, other], Naming(hardware_key=KEY))) == 1
