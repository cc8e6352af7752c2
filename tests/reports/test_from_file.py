"""The content of a report from a result file and what lies beside it."""

import json
from dataclasses import replace

import pytest
from night_files import put, row
from result_files import KEY, TEST, benchmark, document, plain, plain_benchmark, runs, written

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.record_file import RecordFile, read_header, read_windows
from pytest_llmperf.records import Phase, RequestRecord, RunRecord, Window
from pytest_llmperf.reports.benchmark import judgement_json
from pytest_llmperf.reports.from_file import judgement_of, report_of
from pytest_llmperf.reports.html import page
from pytest_llmperf.result_file import read
from pytest_llmperf.verdicts import Finding, Judgement, Verdict

JUDGED = Judgement(
    verdict=Verdict.REGRESSED,
    findings=(
        Finding(
            metric=METRICS["ttft_p50"],
            verdict=Verdict.REGRESSED,
            baseline=0.1,
            now=0.12,
            change=0.2,
            interval=(0.1, 0.3),
            p=1e-7,
            detectable=0.05,
            base_runs=5,
            new_runs=5,
            note="a note",
        ),
    ),
    against="0001_main.json",
    doubts=("a doubt",),
    advice="an advice",
)


def judged(judgement=JUDGED, **words):
    made = benchmark(**words)
    made["extra_info"]["llmperf"]["judgement"] = judgement_json(judgement)
    return made


def file_with(path, *rows, **words):
    return read(written(path / "now.json", document(*rows, **words)))


def records(path, measurement=TEST, count=4, window=None):
    file = RecordFile(path, {"measurement": measurement, "hardware_key": KEY})
    for place in range(count):
        sent = place * 10**9
        file.request(
            RequestRecord(
                run=0,
                phase=Phase.MEASURED,
                session=place,
                turn=0,
                released_ns=sent,
                sent_ns=sent,
                end_ns=sent + 10**8,
                arrivals=Arrivals([sent + 10**8], [1], [0]),
                new_tokens=1,
                input_tokens=1,
                output_tokens_asked=1,
            )
        )
    file.run(RunRecord(index=0, phase=Phase.MEASURED, start_ns=0, end_ns=9, requests=(), window=window))
    file.close()
    return path


def test_a_judgement_comes_back_as_it_was_written():
    assert judgement_of(judgement_json(JUDGED), {}) == JUDGED


@pytest.mark.parametrize(
    "stored",
    [{}, {"verdict": "UNHEARD_OF"}, {"verdict": "PASS", "findings": [{}]}, {"verdict": "PASS", "findings": 7}],
)
def test_a_judgement_of_another_form_is_none(stored):
    assert judgement_of(stored, {}) is None


def test_a_file_says_what_its_session_said(tmp_path):
    report = report_of(file_with(tmp_path, judged(), benchmark(metric="tpot_p50")))

    (section,) = report.sections
    assert section.judgement == JUDGED
    assert section.name == TEST
    assert [quantity.name for quantity in section.values] == ["ttft_p50", "tpot_p50"]
    assert report.tally() == "1 REGRESSED"
    assert report.hardware_keys == (KEY,)


def test_a_file_of_one_run_without_a_judgement_or_a_baseline(tmp_path):
    (section,) = report_of(file_with(tmp_path, benchmark(values=[0.1]))).sections

    assert section.verdict is None
    assert section.before is None
    assert list(section.values.values()) == [(0.1,)]


def test_a_file_of_nothing_is_a_report_of_nothing(tmp_path):
    assert report_of(file_with(tmp_path)).tally() == "nothing was measured"


def test_a_file_of_another_plugin_s_tests_is_shown(tmp_path):
    report = report_of(read(written(tmp_path / "now.json", plain(plain_benchmark()))))

    assert [section.name for section in report.sections] == ["tests/test_sort.py::test_sort"]


def test_what_was_not_judged_is_judged_by_the_stored_nights(tmp_path):
    for number in range(1, 7):
        written(tmp_path / "base" / KEY / f"{number:04d}_main.json", document(benchmark(runs(0.1 + 0.0001 * number))))

    report = report_of(file_with(tmp_path, benchmark(runs(0.2))), baselines=tmp_path / "base")

    (section,) = report.sections
    assert section.verdict is Verdict.REGRESSED
    assert len(section.series[0].nights) == 6


def test_the_night_that_was_judged_against_is_set_beside(tmp_path):
    words = {"executable": "/a", "args": ["--old"]}
    for number, args in ((1, ["--old"]), (2, ["--newer"])):
        made = benchmark(words={**words, "args": args})
        made["extra_info"]["llmperf"]["result"] = {"ttft": {"p50": number}, "runs": []}
        written(tmp_path / KEY / f"{number:04d}_main.json", document(made))

    report = report_of(file_with(tmp_path, judged(words={"args": ["--new"]})), baselines=tmp_path)

    (section,) = report.sections
    assert section.before.name == "0001_main.json"
    assert section.before.figures["ttft"] == {"p50": 1}
    assert section.differences == ("args ['--old'] -> ['--new']",)


def test_a_judgement_that_names_no_night_is_set_beside_none(tmp_path):
    written(tmp_path / KEY / "0001_main.json", document(benchmark()))
    judgement = replace(JUDGED, against="the base build")

    (section,) = report_of(file_with(tmp_path, judged(judgement)), baselines=tmp_path).sections

    assert section.before is None
    assert len(section.series) == 1


@pytest.mark.slow
def test_where_no_steps_can_be_looked_for_the_nights_are_shown_and_that_is_noted(tmp_path, monkeypatch):
    def missing():
        raise ConfigurationError("finding steps needs the ruptures library")

    monkeypatch.setattr("pytest_llmperf.history.steps._ruptures", missing)
    for number in range(1, 7):
        written(tmp_path / KEY / f"{number:04d}_main.json", document(benchmark()))

    report = report_of(file_with(tmp_path, judged()), baselines=tmp_path)

    assert report.notes == ("finding steps needs the ruptures library",)
    assert "Stored nights" in page(report)


@pytest.mark.parametrize("given", ["base", f"base/{KEY}"])
def test_the_nights_may_be_given_with_or_without_their_hardware(tmp_path, given):
    put(tmp_path / "base", 1, row([0.1, 0.1]), key=KEY)

    report = report_of(file_with(tmp_path, judged(**{"engine model": None})), baselines=tmp_path / given)

    assert report.notes == ()


def test_a_night_that_is_the_file_itself_is_no_past(tmp_path):
    path = written(tmp_path / "base" / KEY / "0001_main.json", document(benchmark()))

    (section,) = report_of(read(path), baselines=tmp_path / "base").sections

    assert section.before is None
    assert section.series == ()


@pytest.fixture
def differences(tmp_path):
    """`differences(before, now)`: what a report says of a machine's two fingerprints."""

    def on(fingerprint):
        made = document(benchmark())
        made["machine_info"]["llmperf"]["fingerprint"] = fingerprint
        return made

    def told(before, now):
        written(tmp_path / "base" / KEY / "0001_main.json", on(before))
        report = report_of(read(written(tmp_path / "now.json", on(now))), baselines=tmp_path / "base")
        return report.environment.get(KEY)

    return told


def test_the_machine_s_differences_are_told(differences):
    assert differences({"driver": "550"}, {"driver": "570"}) == ("driver '550' -> '570'",)


def test_a_link_that_idled_when_it_was_asked_is_no_difference(differences):
    """The generation of the moment; what a GPU can have at most, and its lanes, are told."""
    idle = {"uuid": "GPU-0", "pcie_generation": 1, "pcie_generation_max": 5, "pcie_width": 16}
    assert differences({"gpus": [idle]}, {"gpus": [idle | {"pcie_generation": 5}]}) is None
    narrow = idle | {"pcie_generation_max": 4, "pcie_width": 8}
    assert differences({"gpus": [idle]}, {"gpus": [narrow]}) == (
        "GPU 0: pcie_generation_max 5 -> 4",
        "GPU 0: pcie_width 16 -> 8",
    )


def test_what_has_changed_on_several_gpus_is_told_once(differences):
    """By their places; GPUs that came or went are counted."""
    gpus = [{"uuid": f"GPU-{number}", "power_limit_w": 700.0} for number in range(3)]
    lowered = [gpus[0], *({**gpu, "power_limit_w": 500.0} for gpu in gpus[1:])]
    assert differences({"gpus": gpus}, {"gpus": lowered}) == ("GPU 1, 2: power_limit_w 700.0 -> 500.0",)
    assert differences({"gpus": gpus}, {"gpus": gpus[:1]}) == ("gpus 3 -> 1",)


def test_fingerprints_of_other_forms_are_read_past(differences):
    """A file that somebody else has written, or edited."""
    assert differences({"gpus": "two"}, {"gpus": [7], "cpus": 2}) == ("cpus None -> 2",)


def test_a_stored_night_that_cannot_be_read_is_noted_and_the_others_count(tmp_path):
    written(tmp_path / "base" / KEY / "0001_main.json", document(benchmark()))
    written(tmp_path / "base" / KEY / "0002_main.json", "{")

    report = report_of(file_with(tmp_path, benchmark()), baselines=tmp_path / "base")

    assert "0002_main.json" in report.notes[0]
    assert report.sections[0].before.name == "0001_main.json"


def test_records_give_the_course(tmp_path):
    records(tmp_path / "out" / "records" / "a.jsonl")

    (section,) = report_of(file_with(tmp_path, benchmark()), records=tmp_path / "out").sections

    assert section.timeline.requests == 4


def test_records_of_other_measurements_and_of_telemetry_are_left_alone(tmp_path):
    records(tmp_path / "out" / "other.jsonl", "other")
    written(tmp_path / "out" / "a.telemetry.ndjson", '{"schema": "another"}\n')

    report = report_of(file_with(tmp_path, benchmark()), records=tmp_path / "out")

    assert report.sections[0].timeline is None
    assert report.notes == ()


def test_records_that_cannot_be_used_are_noted(tmp_path):
    written(tmp_path / "out" / "broken.jsonl", '{"schema": "pytest-llmperf-records", "version": 1}\n')

    report = report_of(file_with(tmp_path, benchmark()), records=tmp_path / "out")

    assert "broken.jsonl was left out" in report.notes[0]


def test_the_part_that_counts_comes_from_the_run_s_row(tmp_path):
    path = records(tmp_path / "a.jsonl", window=Window(10**9, 2 * 10**9))

    assert read_header(path)["measurement"] == TEST
    assert read_windows(path) == {0: Window(10**9, 2 * 10**9)}
    (section,) = report_of(file_with(tmp_path, benchmark()), records=tmp_path).sections
    assert section.timeline.distributions["ttft"].count == 2


def test_parameters_of_the_test_are_kept(tmp_path):
    made = benchmark()
    made["params"] = {"rate": 5}

    assert report_of(file_with(tmp_path, made)).sections[0].params == {"rate": 5}


def test_shipped_baselines_make_reports(pytestconfig):
    for path in sorted((pytestconfig.rootpath / "baselines").glob("*/*.json")):
        report = report_of(read(path))
        names = {one["extra_info"]["llmperf"]["measurement"] for one in json.loads(path.read_text())["benchmarks"]}
        assert {section.name for section in report.sections} == names
