"""What becomes one series, and what another."""

from __future__ import annotations

import sys
from datetime import timedelta

import pytest
from nights import FIRST, KEY, TEST, commit_of, document, levels, row, save, save_nights

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.history import series_of, stored_files


def series_in(folder, **words):
    return series_of(stored_files([folder]).files, **words)


def test_a_folder_is_a_series_of_each_metric(tmp_path):
    """With each night's level, date, file, commit and engine."""
    for night, version in enumerate(["0.31", "0.32"]):
        rows = [row(0.1 + night, version=version), row(400.0, metric="output_throughput", version=version)]
        save(tmp_path, document(*rows, night=night), f"{night + 1:04d}_main.json")

    ttft, throughput = series_in(tmp_path)

    assert (KEY, TEST, TEST, "ttft_p50") == (ttft.hardware_key, ttft.measurement, ttft.test, ttft.quantity.name)
    assert [0.1, 1.1] == pytest.approx([ttft.value(level) for level in ttft.levels])
    assert [400, 400] == pytest.approx([throughput.value(level) for level in throughput.levels])
    assert [FIRST, FIRST + timedelta(days=1)] == [night.at for night in ttft.nights]
    assert ["0001_main.json", "0002_main.json"] == [night.path.name for night in ttft.nights]
    assert [commit_of(0), commit_of(1)] == [night.commit for night in ttft.nights]
    assert ["0.31", "0.32"] == [night.engine_version for night in ttft.nights]
    assert ttft.steps is None, "two nights cannot tell"


def test_another_workload_is_another_series(tmp_path):
    """The older one says what came in its place; one night with another cuts nothing."""
    words = ["a", "a", "other", "a", "b", "b"]
    for night, workload in enumerate(words):
        save(tmp_path, document(row(0.1, workload=workload), night=night), f"{night + 1:04d}_main.json")

    *older, current = series_in(tmp_path)

    assert [3, 1] == [len(series.nights) for series in older]
    assert [("workload was 'a', is 'b'",), ("workload was 'other', is 'b'",)] == [series.replaced for series in older]
    assert (2, ()) == (len(current.nights), current.replaced)


def test_hardware_test_and_metric_tell_series_apart(tmp_path):
    """Those of one test on one hardware stand together."""
    for key in ("A", "B"):
        for night in range(2):
            rows = [row(0.1, test="t1"), row(0.1, test="t2", name="cold"), row(0.1, test="t1", metric="tpot_p50")]
            save(tmp_path / key, document(*rows, night=night, key=key), f"{night + 1:04d}_main.json")

    found = [(one.hardware_key, one.measurement, one.test, one.quantity.name) for one in series_in(tmp_path)]

    names = [("t1", "t1", "ttft_p50"), ("t1", "t1", "tpot_p50"), ("t2::cold", "t2", "ttft_p50")]
    assert [(key, *name) for key in ("A", "B") for name in names] == found


def test_tests_and_metrics_can_be_chosen(tmp_path):
    """By text in the name, brackets and all, and by the metric's whole name."""
    rows = [row(0.1, test=test, metric=metric) for test in ("t[1]", "t[2]") for metric in ("ttft_p50", "tpot_p50")]
    save(tmp_path, document(*rows), "0001_main.json")

    found = series_in(tmp_path, test="[2]", metrics=frozenset(["tpot_p50"]))

    assert [("t[2]", "tpot_p50")] == [(one.measurement, one.quantity.name) for one in found]


def test_a_missing_library_is_said(tmp_path, monkeypatch):
    """With the line that installs it; the nights themselves need none."""
    monkeypatch.setitem(sys.modules, "ruptures", None)
    save_nights(tmp_path, levels((0.1, 8)))

    (series,) = series_in(tmp_path)

    assert 8 == len(series.levels)
    with pytest.raises(ConfigurationError, match=r"needs the ruptures library: pip install 'pytest-llmperf\[history\]"):
        _ = series.steps


def test_a_step_is_told_in_the_metrics_own_direction(tmp_path):
    """Less throughput is worse, by as much as it is less; the level now is that since the step."""
    pytest.importorskip("ruptures", reason="no release for this Python")
    save_nights(tmp_path, levels((400.0, 8), (360.0, 8)), metric="output_throughput")

    (series,) = series_in(tmp_path)

    (step,) = series.steps
    assert step.is_worse
    assert -0.1 == pytest.approx(series.change(step), abs=0.005)
    assert 360 == pytest.approx(series.value(series.level), rel=0.005)
    assert 0.005 < series.noise < 0.02


def test_files_of_pytest_benchmark_have_series_too(tmp_path):
    """Of their one metric, time."""
    for night in range(2):
        content = {
            "benchmarks": [{"fullname": "test_x", "stats": {"data": [1.0]}}],
            "datetime": f"2026-01-0{night + 1}",
        }
        save(tmp_path, content, f"run{night}.json")

    (series,) = series_in(tmp_path)

    assert ("unknown", "test_x", "time", 2) == (
        series.hardware_key, series.test, series.quantity.name, len(series.nights)
    )  # fmt: skip
    assert series.newest.commit is series.newest.engine_version is None
