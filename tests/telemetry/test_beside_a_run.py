"""Telemetry beside real requests: into the run's record, the result, its JSON, and back."""

from __future__ import annotations

import json
import threading
from importlib.resources import files
from types import SimpleNamespace

import jsonschema
import orjson
import pytest
from fakes import VirtualEngine, no_progress, setting
from nvml import GPUS, ramp
from servers import CompletionsServer

from pytest_llmperf.client import Limits
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.engines.openai import make
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.gate import Criterion
from pytest_llmperf.hardware import Hardware, detect
from pytest_llmperf.load import constant
from pytest_llmperf.metrics import output_tokens
from pytest_llmperf.readings import telemetry_from
from pytest_llmperf.reports.benchmark import document, rows
from pytest_llmperf.reports.figures import figures_json
from pytest_llmperf.request import checked_request
from pytest_llmperf.result_file import read, write
from pytest_llmperf.session import measure
from pytest_llmperf.telemetry import Plan, planned, read_samples
from pytest_llmperf.units import MIB
from pytest_llmperf.workloads import single_turn

pytestmark = pytest.mark.real_time

WORK = single_turn(requests=10, input_tokens=16, output_tokens=4)
STEADY = GPUS["h200"] | {"fields": GPUS["h200"]["fields"] | {"83": ramp((0, 0), (1000, 200_000_000))}}


def asked(runs=2):
    """Ten requests in a quarter of a second."""
    return checked_request(
        WORK, load=constant(40.0), runs=runs, warmup_runs=1, cache="as_is", prefill_context=False, slo=None, name=None
    )


@pytest.fixture
def measured(tmp_path):
    """`measured(rate_hz)`: what two runs against a server on this machine give."""

    def run(rate_hz=50.0):
        with CompletionsServer() as server:
            spec = EngineSpec(kind="openai", url=server.url)
            around = Surroundings(
                clock=RealClock(), log_dir=tmp_path, cache_dir=tmp_path, start_timeout_s=5.0,
                limits=Limits(silence_s=5.0), api_key=None, progress=no_progress,
            )  # fmt: skip
            plan = planned(rate_hz, spec, detect())
            return measure(make(spec, around), asked(), setting(tmp_path, RealClock(), telemetry=plan))

    return run


@pytest.mark.slow
def test_each_run_has_its_telemetry(nvml_here, measured, tmp_path):
    """Of the server's GPU, within the run; the energy over its tokens is a metric; nothing stays open."""
    stub = nvml_here(STEADY, real_time=True)

    result = measured()

    assert result.validity
    for run in result.records:
        (gpu,) = run.telemetry.gpus
        assert (gpu.uuid, gpu.name, gpu.lost) == ("GPU-0", "NVIDIA H200", None)
        assert gpu.samples >= 2
        # 200 W; a tenth of the run for a processor that others want, too.
        assert gpu.energy_j == pytest.approx(200 * result.duration_s / 2, rel=0.1)
    assert result.values("joules_per_token") == [
        pytest.approx(run.telemetry.gpus[0].energy_j / output_tokens(run)) for run in result.records
    ]
    assert result.gpu.mean_power_w == pytest.approx(70)
    assert result.gpu.joules_per_token == pytest.approx(sum(result.values("joules_per_token")) / 2)
    assert not [doubt for doubt in result.doubts if "telemetry" in doubt]
    assert stub.open_sessions == 0
    assert "llmperf-telemetry" not in {thread.name for thread in threading.enumerate()}
    (series,) = tmp_path.glob("*.telemetry.ndjson")
    assert len(list(read_samples(series))) > sum(run.telemetry.gpus[0].samples for run in result.records)


@pytest.mark.slow
def test_the_traffic_to_a_grace_is_in_every_run(nvml_here, measured):
    """By rates, from before the run until after it; the driver has its memory back in the end."""
    stub = nvml_here("gh200", real_time=True)

    result = measured()

    for run in result.records:
        (gpu,) = run.telemetry.gpus
        seconds = gpu.c2c_tx_bytes / (1000 * MIB)
        assert gpu.duration_s < seconds < gpu.duration_s + 2
        assert gpu.c2c_rx_bytes == pytest.approx(3 * gpu.c2c_tx_bytes, rel=1e-6)
    assert stub.asked("gpm sample") > 4
    assert (stub.gpm_samples, stub.open_sessions) == (0, 0)


@pytest.mark.slow
def test_the_record_and_the_result_hold_it(nvml_here, measured, tmp_path):
    """In the form of the schema, and it can be read back."""
    nvml_here(STEADY, real_time=True)

    result = measured()
    written = json.loads(json.dumps(figures_json(result)))

    schema = json.loads(files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())
    jsonschema.validate(written, {"$ref": "#/$defs/figures", "$defs": schema["$defs"]})
    taken = [run.telemetry for run in result.records]
    assert [telemetry_from(run) for run in written["telemetry"]] == taken
    assert written["gpu"]["joules_per_token"] == pytest.approx(result.gpu.joules_per_token)
    (path,) = tmp_path.glob("*.jsonl")
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [telemetry_from(row["run"]["telemetry"]) for row in rows if "run" in row][-2:] == taken


@pytest.mark.slow
def test_it_is_stored_once_and_read_back(nvml_here, measured, tmp_path):
    """Energy is gated like any metric; of a measurement's rows the first has the telemetry of its runs."""
    nvml_here(STEADY, real_time=True)
    result = measured()
    criteria = [Criterion("ttft_p50"), Criterion("joules_per_token")]

    made = rows(SimpleNamespace(name="test_it"), result, criteria)
    write(document(made, Hardware(key="test")), tmp_path / "night.json")
    stored = read(tmp_path / "night.json")

    assert ["telemetry" in row.extra_info["llmperf"]["result"] for row in made] == [True, False]
    assert stored.telemetry == {"test_it.py::test_it": [run.telemetry for run in result.records]}
    energy = stored.entries[1]
    assert (energy.metric, energy.quantity.unit) == ("joules_per_token", "J/token")
    assert list(energy.stored_values) == result.values("joules_per_token")
    schema = json.loads(files("pytest_llmperf.reports").joinpath("result.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "night.json").read_text()), schema)


@pytest.mark.slow
def test_without_telemetry_there_is_nothing_of_it(measured, tmp_path):
    """Switched off, it leaves neither a file nor a field."""
    result = measured(rate_hz=None)

    assert [run.telemetry for run in result.records] == [None, None]
    assert (result.gpu, result.values("joules_per_token")) == (None, [None, None])
    assert not {"gpu", "telemetry"} & figures_json(result).keys()
    assert not list(tmp_path.glob("*.telemetry.ndjson"))


@pytest.mark.slow
def test_a_driver_that_fails_is_a_doubt(nvml_here, measured):
    """The figures of the requests stand; those of the GPUs are not there, and it is said why."""
    from pytest_llmperf import hardware

    stub = nvml_here("h200")
    found = hardware.detect()
    stub = nvml_here("h200", init_error=999)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(globals(), "detect", lambda: found)
        result = measured()

    assert result.validity
    assert result.gpu is None
    assert [doubt for doubt in result.doubts if doubt.startswith("no telemetry of the GPUs: NVML: Unknown Error")]
    assert stub.open_sessions == 0


def test_in_virtual_time_nothing_is_sampled(tmp_path):
    """Sensors know no virtual time: no thread, no file, no field."""
    engine = VirtualEngine()

    result = measure(engine, asked(), setting(tmp_path, engine.clock, telemetry=Plan(10.0)))

    assert [run.telemetry for run in result.records] == [None, None]
    assert not list(tmp_path.glob("*.telemetry.ndjson"))
