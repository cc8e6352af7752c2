"""The JSON Schema that ships, held against the code that writes and the files that are there."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from pytest_llmperf import units
from pytest_llmperf.ceiling import Ceiling
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.gate import Criterion
from pytest_llmperf.hardware import Gpu, Hardware
from pytest_llmperf.judged import Provenance
from pytest_llmperf.metrics import LATENCIES, METRICS, STATISTICS
from pytest_llmperf.readings import GpuSummary, HostSummary, TelemetrySummary
from pytest_llmperf.result_file import SCHEMA_VERSION, read
from pytest_llmperf.result_rows import READERS
from pytest_llmperf.results import CacheResult, ClientResult, LoadResult, Tokens
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
SCHEMA = json.loads(resources.files("pytest_llmperf.reports").joinpath("result.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SHIPPED = sorted(path for path in (ROOT / "baselines").glob("*/*.json") if path.name != "acknowledged.json")
DEFS = SCHEMA["$defs"]
FIGURES = DEFS["figures"]["properties"]
MACHINE = SCHEMA["properties"]["machine_info"]["properties"]["llmperf"]


def test_it_is_a_schema_of_the_version_that_is_written():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["$id"] == f"urn:pytest-llmperf:result:{SCHEMA_VERSION}"
    assert {"const": SCHEMA_VERSION} == MACHINE["properties"]["schema_version"]
    assert {"const": SCHEMA_VERSION} == DEFS["row"]["properties"]["schema_version"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_shipped_files_follow_it(path):
    """Simulated nights and published figures."""
    VALIDATOR.validate(json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize("version", READERS)
def test_a_file_of_each_version_is_still_read(version):
    """Stored nights outlive a release: a new version adds a reader and takes none away."""
    found = read(DATA / f"result-{version}.json")

    routed, gain = found.entries
    assert "sim-gh200" == found.hardware_key
    assert ("ttft_p50", "s", False) == (routed.metric, routed.quantity.unit, routed.quantity.higher_is_better)
    assert pytest.approx(0.027724751) == routed.stored_values[0]
    assert ("ratio:prefix_caching_gain", True) == (gain.metric, gain.quantity.higher_is_better)
    assert {"detect": 0.1, "min_effect": 0.0} == gain.criterion
    assert 5 == len(found.figures[routed.measurement])


OWNED = {
    "provenance": (DEFS["provenance"], Provenance),
    "finding": (DEFS["finding"], Finding),
    "judgement": (DEFS["judgement"], Judgement),
    "criterion": (DEFS["criterion"], Criterion),
    "hardware": (DEFS["hardware"], Hardware),
    "gpu": (DEFS["gpu"], Gpu),
    "engine_words": (DEFS["engine_words"], EngineSpec),
    "cache": (DEFS["cache"], CacheResult),
    "load": (FIGURES["load"], LoadResult),
    "client": (FIGURES["client"], ClientResult),
    "tokens": (DEFS["tokens"], Tokens),
    "ceiling": (FIGURES["ceiling"], Ceiling),
    "gpu_telemetry": (DEFS["gpu_telemetry"], GpuSummary),
    "host_telemetry": (DEFS["telemetry"]["properties"]["host"], HostSummary),
    "telemetry": (DEFS["telemetry"], TelemetrySummary),
}
"""What is written field by field: its place in the schema, and the class that it is written from."""


@pytest.mark.parametrize("name", OWNED)
def test_a_field_that_is_written_has_its_line(name):
    """A new field of the class is missing from the schema, and one that is gone is too many there."""
    schema, written = OWNED[name]

    known = {one.name for one in fields(written)}
    if name == "criterion":
        known.discard("metric")  # the row's own
    if name == "finding":
        known -= {"remedy", "is_other"}  # the judgement's advice is made of them
    assert known == set(schema["properties"])


def test_the_words_are_those_of_the_code():
    """Verdicts, units, distributions and metrics."""
    assert [verdict.value for verdict in Verdict] == DEFS["verdict"]["enum"]
    assert set(units.FORMATS) == set(DEFS["row"]["properties"]["unit"]["enum"])
    assert {"count", *STATISTICS} == set(DEFS["distribution"]["properties"])
    assert set(LATENCIES) == set(DEFS["latencies"]["properties"])
    VALIDATOR.evolve(schema={"$ref": "#/$defs/runs", "$defs": DEFS}).validate([dict.fromkeys(METRICS, 1.0)])


FOREIGN = ("root", "machine_info", "benchmark", "extra_info")
"""Objects of pytest-benchmark, in which ours stand."""


def objects(schema, name="root"):
    """Each subschema that lists properties, by where it stands."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield name, schema
        for key, value in schema.items():
            if key == "then":  # narrows what is closed already
                continue
            if key == "items":
                yield from objects(value, "benchmark" if name == "benchmarks" else f"{name}[]")
            else:
                yield from objects(value, name if key in ("properties", "$defs") else key)


def test_every_object_of_ours_is_closed():
    """So that what is written without a line in the schema fails."""
    found = dict(objects(SCHEMA))

    assert {*FOREIGN, "row", "figures", "finding", "provenance"} <= set(found)
    assert all(one.get("additionalProperties") is False for name, one in found.items() if name not in FOREIGN), found


def paths(value, path=()):
    """The way to each object in a document."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


# What an engine says of itself is its own affair; what happened is counted by kinds that may be new.
OPEN = (
    "engine",
    "engine_identity",
    "errors",
    "remarks",
    "tiers",
    "env",
    "constants",
    "error_bounds",
    "clock_offsets_s",
)


@pytest.mark.slow
def test_a_new_field_anywhere_in_what_is_ours_fails():
    """Shown on a stored file, one object after the other."""
    document = json.loads((DATA / f"result-{SCHEMA_VERSION}.json").read_text("utf-8"))
    places = [(("benchmarks", n, "extra_info", "llmperf"), row) for n, row in enumerate(document["benchmarks"])]
    ours = [(*place, *path) for place, row in places for path in paths(row["extra_info"]["llmperf"])]
    ours += [("machine_info", "llmperf", *path) for path in paths(document["machine_info"]["llmperf"])]

    tried = 0
    for path in ours:
        if path[-1] in OPEN:
            continue
        spoilt = copy.deepcopy(document)
        inner = spoilt
        for step in path:
            inner = inner[step]
        inner["a_new_field"] = 1.0
        assert not VALIDATOR.is_valid(spoilt), path
        tried += 1
    assert tried > 20


SUITE = """
    import pytest
    from pytest_llmperf import constant, multi_round, single_turn

    @pytest.mark.llm_engine("sim", part="gh200", model="llama-3.1-8b", prefix_caching=True, run_noise=0.01)
    @pytest.mark.llm_gate(metric="ttft_p50", detect=0.5)
    @pytest.mark.llm_gate(metric="ratio:gain", detect=0.5)
    def test_cache(llm_engine, llm_perf):
        users = multi_round(users=2, rounds=2, context_tokens=2000, input_tokens=32, output_tokens=8)
        cold = llm_perf(llm_engine, users, cache="cold", name="cold")
        warm = llm_perf(llm_engine, users, cache="primed", name="warm", slo={"ttft": 0.5})
        llm_perf.ratio("gain", cold.ttft.p50, warm.ttft.p50)

    @pytest.mark.llm_engine("sim", part="gh200", model="llama-3.1-8b", kv_offload_gib=8)
    def test_open(llm_engine, llm_perf):
        requests = single_turn(requests=20, input_tokens=500, output_tokens=8)
        llm_perf(llm_engine, requests, load=constant(20, warmup_s=0.1))
"""


@pytest.mark.slow
def test_files_of_sessions_follow_it(pytester):
    """Stored, judged against, and worse: caches, offload, ratios, an open load, findings with intervals."""
    pytester.makepyfile(SUITE)
    pytester.runpytest("--llmperf-save-baseline", "main", "--benchmark-json", "first.json", "-q", "-W", "default")
    pytester.runpytest("--llmperf-set", "slow=prefill:+90%", "--benchmark-json", "second.json", "-q", "-W", "default")

    made = [*pytester.path.glob("*.json"), *pytester.path.glob("baselines/*/*.json")]
    assert 3 == len(made)
    for path in made:
        VALIDATOR.validate(json.loads(path.read_text("utf-8")))
    second = json.loads((pytester.path / "second.json").read_text("utf-8"))["benchmarks"]
    assert "REGRESSED" in {row["extra_info"]["llmperf"]["judgement"]["verdict"] for row in second}
