"""The records and the telemetry that lie beside a result file."""

import pytest
from result_files import KEY, TEST, written

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.readings import GpuSample, HostSample
from pytest_llmperf.record_file import RecordFile
from pytest_llmperf.records import Phase, RequestRecord
from pytest_llmperf.reports.beside import beside, gauges_of
from pytest_llmperf.telemetry.series import SeriesFile

SECOND = 10**9


def records(path, count=1, **header):
    file = RecordFile(path, {"measurement": TEST, "hardware_key": KEY, **header})
    for place in range(count):
        sent = place * SECOND
        file.request(
            RequestRecord(
                run=0,
                phase=Phase.MEASURED,
                session=place,
                turn=0,
                released_ns=sent,
                sent_ns=sent,
                end_ns=sent + 1,
                arrivals=Arrivals([sent + 1], [1], [0]),
                new_tokens=1,
                input_tokens=1,
                output_tokens_asked=1,
            )
        )
    file.close()
    return path


def test_records_are_found_by_what_they_are_of(tmp_path):
    records(tmp_path / "records" / "a.jsonl", 3)
    records(tmp_path / "records" / "b.jsonl", measurement="other")

    found = beside(tmp_path, [TEST])

    assert found.timeline(TEST).requests == 3
    assert found.timeline("other") is None
    assert found.notes == []


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a")])
def test_the_base_build_s_records_are_left_alone_and_the_first_measurement_s_go_first(tmp_path, names):
    records(tmp_path / f"{names[0]}.jsonl", 1)
    records(tmp_path / f"{names[1]}.jsonl", 2, arm="head")
    records(tmp_path / f"{names[2]}.jsonl", 3, arm="base")

    assert beside(tmp_path, [TEST]).timeline(TEST).requests == 1


def test_of_two_builds_the_one_under_test_counts(tmp_path):
    records(tmp_path / "a.jsonl", 2, arm="head")
    records(tmp_path / "b.jsonl", 3, arm="base")

    assert beside(tmp_path, [TEST]).timeline(TEST).requests == 2


def test_telemetry_is_found_beside_its_records(tmp_path):
    path = records(tmp_path / "a.jsonl")
    series = SeriesFile(path.with_suffix(".telemetry.ndjson"), {"measurement": TEST}, [])
    series.run(0)
    series.add(GpuSample(at_ns=5, gpu=0, sm_clock_mhz=1980, power_w=400.0))
    series.add(HostSample(at_ns=6, cpu_share=0.5))
    series.close()

    gauges = beside(tmp_path, [TEST]).timeline(TEST).gauges

    assert [(one.label, one.of, one.unit, list(one.at_ns), list(one.values)) for one in gauges] == [
        ("GPU SM clock", "GPU 0", "MHz", [5], [1980.0]),
        ("GPU power", "GPU 0", "W", [5], [400.0]),
    ]


def test_telemetry_that_cannot_be_used_is_noted_and_the_records_count(tmp_path):
    path = records(tmp_path / "a.jsonl")
    written(path.with_suffix(".telemetry.ndjson"), "{}\n")

    found = beside(tmp_path, [TEST])

    assert found.timeline(TEST).gauges == ()
    assert "a.telemetry.ndjson was left out" in found.notes[0]


def test_what_was_not_measured_is_no_gauge_and_gpus_stand_apart():
    samples = [
        GpuSample(at_ns=at, gpu=gpu, memory_used_bytes=2**30 * (gpu + 1), temperature_c=40 if gpu else None)
        for at in (1, 2)
        for gpu in (1, 0)
    ]

    assert [(one.label, one.of, list(one.values)) for one in gauges_of(samples)] == [
        ("GPU memory used", "GPU 0", [1.0, 1.0]),
        ("GPU memory used", "GPU 1", [2.0, 2.0]),
        ("GPU temperature", "GPU 1", [40.0, 40.0]),
    ]


def test_records_cut_short_are_noted(tmp_path):
    path = records(tmp_path / "a.jsonl")
    with path.open("ab") as stream:
        stream.write(b'{"request": {}}\n')

    found = beside(tmp_path, [TEST])

    assert found.timeline(TEST) is None
    assert "a.jsonl was left out" in found.notes[0]


def test_nothing_lies_beside_where_no_folder_is_given():
    assert beside(None, [TEST]).timeline(TEST) is None
