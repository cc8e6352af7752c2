"""The published figures that ship as results: made anew they are the same, and no gate ever sees them."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from pytest_llmperf.baselines import Baselines
from pytest_llmperf.result_file import read

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "baselines" / "published"
FILES = sorted(path.name for path in SHIPPED.glob("*.json"))


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("published", ROOT / "scripts" / "published.py")
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(__import__("sys").modules, "published", module)  # where its dataclasses look themselves up
        specification.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def made(script, tmp_path_factory):
    """A folder with the files, made anew."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["published.py", str(folder)])
        assert 0 == script.main()
    return folder


def own(path):
    """A file without what pytest-benchmark computes of it, which differs from release to release."""
    content = json.loads(path.read_text())
    rows = {row["fullname"]: (row["extra_info"], row["stats"]["data"]) for row in content["benchmarks"]}
    assert len(rows) == len(content["benchmarks"])
    return content["machine_info"], content["datetime"], rows


def values(path, measurement):
    """Metric to stored value of one measurement."""
    return {entry.metric: entry.stored_values[0] for entry in read(path).entries if entry.measurement == measurement}


def test_the_shipped_files_are_those_of_the_script(made):
    assert sorted(path.name for path in made.iterdir()) == FILES
    for name in FILES:
        assert own(made / name) == own(SHIPPED / name), f"{name}: python scripts/published.py"


@pytest.mark.parametrize("name", FILES)
def test_they_are_results_of_ours_with_a_source_each(name):
    content = json.loads((SHIPPED / name).read_text())
    schema = json.loads(resources.files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())
    jsonschema.validate(content, schema)
    key = content["machine_info"]["llmperf"]["hardware_key"]
    assert key.startswith("published-")
    for row in content["benchmarks"]:
        about = row["extra_info"]["llmperf"]
        assert about["comparable"]["published"] == about["published"]["source"]
        assert about["published"]["stated"]
        assert ("ratio" == about["unit"]) is about["metric"].startswith("ratio:")
        assert len(row["stats"]["data"]) == 1
    assert all(entry.path == SHIPPED / name for entry in read(SHIPPED / name).entries)


def test_no_gate_reads_them():
    """Neither under a hardware key of theirs nor under the folder's name."""
    keys = [json.loads((SHIPPED / name).read_text())["machine_info"]["llmperf"]["hardware_key"] for name in FILES]
    for key in ["published", *keys]:
        assert Baselines(ROOT / "baselines").entries(key) == []


@pytest.mark.parametrize("name", FILES)
def test_measurements_are_called_as_the_tests_that_repeat_them(name):
    for row in json.loads((SHIPPED / name).read_text())["benchmarks"]:
        file, function = re.match(r"([^:]+)::(\w+)", row["fullname"]).groups()
        assert f"def {function}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("policy", ["least_loaded", "prefix_hash"])
@pytest.mark.parametrize(
    ("concurrency", "suffix", "requests", "output", "total"),
    [
        (800, ", through a port-forward", 4000, 280247, 280247 + 3322414),
        *((concurrency, "", 8000, 608447, 608447 + 6656338) for concurrency in (1600, 3200, 8000)),
    ],
)
def test_kubeais_figures_agree_with_each_other(policy, concurrency, suffix, requests, output, total):
    """Each rate times the duration is what the same run counted: no figure was copied wrongly."""
    test = f"perf_tests/test_prefix_routing.py::test_prefix_routing[{concurrency}]::{policy}{suffix}"
    stored = values(SHIPPED / "kubeai.json", test)
    for metric, count in (("request", requests), ("output", output), ("total", total)):
        assert stored["duration"] / stored[f"{metric}_throughput"] == pytest.approx(count, rel=2e-4)
    for name in ("ttft", "tpot"):
        assert stored[f"{name}_p50"] < stored[f"{name}_p99"]
        assert stored[f"{name}_mean"] < stored[f"{name}_p99"]
    assert 0.01 < stored["tpot_p50"] < 0.3 < stored["ttft_p99"]


def test_ratios_are_what_was_stated():
    kv = "perf_tests/test_kv_offload.py::test_kv_offload::more than 7 users"
    assert values(SHIPPED / "gh200_over_h100.json", kv) == {
        "ratio:ttft_h100_over_gh200": 1.9,
        "ratio:duration_h100_over_gh200": 3.0,
    }
    graph = "perf_tests/test_llmperf_tasks.py::test_knowledge_graph::one GPU"
    assert values(SHIPPED / "llmperf.json", graph) == {
        "ratio:requests_a100_over_rtx4090_at_least": 2.0,
        "ratio:requests_a100_over_rtx4090_at_most": 3.0,
    }
