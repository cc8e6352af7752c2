"""Samples as a file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.readings import GpuSample, HostSample, Xid
from pytest_llmperf.telemetry import read_samples
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.series import SeriesFile

COUNT = st.none() | st.integers(0, 2**63 - 1)
NUMBER = st.none() | st.floats(0, 1e12)
NAMES = st.none() | st.dictionaries(st.text(max_size=5), st.integers(0, 2**63 - 1), max_size=3)
GPU = st.builds(
    GpuSample,
    at_ns=st.integers(0, 2**63 - 1),
    gpu=st.integers(0, 15),
    **dict.fromkeys(("sm_clock_mhz", "clock_reasons", "pcie_tx_bytes", "c2c_rx_bytes", "pcie_width"), COUNT),
    **dict.fromkeys(("power_w", "energy_j", "utilisation"), NUMBER),
    **dict.fromkeys(("throttled_ns", "ecc"), NAMES),
    processes=st.none() | st.dictionaries(st.integers(0, 2**31), COUNT, max_size=3),
)
XID = st.builds(Xid, at_ns=st.integers(0, 2**63 - 1), gpu=st.integers(0, 15), code=st.integers(0, 200))
HOST = st.builds(HostSample, at_ns=st.integers(0, 2**63 - 1), cpu_share=NUMBER, swap_used_bytes=COUNT)


@pytest.mark.slow
@given(samples=st.lists(GPU | HOST | XID, max_size=8))
def test_what_is_written_is_read_back(tmp_path_factory, samples):
    """Every field and every absence, in the order in which they were taken."""
    path = tmp_path_factory.mktemp("series") / "run.telemetry.jsonl"
    file = SeriesFile(path, {"measurement": "test"}, [])

    for sample in samples:
        file.add(sample)
    file.close()

    assert list(read_samples(path)) == samples


def test_the_first_line_says_what_it_is_of(tmp_path):
    """Schema, measurement, and which GPU is which."""
    path = tmp_path / "new" / "run.jsonl"

    SeriesFile(path, {"measurement": "test_it"}, [GpuAddress(0, uuid="GPU-7", name="NVIDIA H200")]).close()

    assert json.loads(path.read_text()) == {
        "schema": "pytest-llmperf-telemetry",
        "version": 1,
        "measurement": "test_it",
        "gpus": [{"gpu": 0, "uuid": "GPU-7", "name": "NVIDIA H200"}],
    }


def test_what_was_not_measured_takes_no_room(tmp_path):
    """A field that is None is not in the row."""
    file = SeriesFile(tmp_path / "run.jsonl", {}, [])
    file.add(GpuSample(at_ns=1, gpu=0, power_w=0.0))
    file.close()

    assert json.loads(file.path.read_text().splitlines()[1]) == {"gpu": {"at_ns": 1, "gpu": 0, "power_w": 0.0}}


def test_the_samples_of_a_run_are_found_again(tmp_path):
    """From the place that was noted when it began."""
    file = SeriesFile(tmp_path / "run.jsonl", {}, [])
    file.run(0)
    file.add(GpuSample(at_ns=1, gpu=0))
    place = file.run(1)
    file.add(GpuSample(at_ns=2, gpu=0))
    file.flush()

    assert list(file.since(place)) == [GpuSample(at_ns=2, gpu=0)]
    assert len(list(read_samples(file.path))) == 2
    file.close()


def test_it_is_written_in_batches(tmp_path):
    """A sample alone costs no call of the system, and not more than some hundreds wait in memory."""
    file = SeriesFile(tmp_path / "run.jsonl", {}, [])
    file.add(GpuSample(at_ns=0, gpu=0))
    assert not file.path.stat().st_size

    for at_ns in range(1000):
        file.add(GpuSample(at_ns=at_ns, gpu=0))

    assert file.path.read_bytes().count(b"\n") > 500
    file.close()


def test_a_last_line_cut_short_is_left_out(tmp_path):
    """A crash takes nothing that was written before."""
    file = SeriesFile(tmp_path / "run.jsonl", {}, [])
    for at_ns in range(3):
        file.add(GpuSample(at_ns=at_ns, gpu=0))
    file.close()
    file.path.write_bytes(file.path.read_bytes()[:-4])

    assert [sample.at_ns for sample in read_samples(file.path)] == [0, 1]


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\xfe", b'{"schema":"pytest-llmperf-telemetry","version":9}\n'])
def test_another_file_is_an_error_that_shows_its_first_line(tmp_path, content):
    """Whatever it holds."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)

    with pytest.raises(LLMPerfError, match="is not a telemetry file of schema version 1: its first line is"):
        list(read_samples(path))
