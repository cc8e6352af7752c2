"""Stored results: what is written, what is found again, and what is refused."""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import nullcontext
from dataclasses import replace
from datetime import date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.baselines import Baselines, Match, check_name, name_of, number_of
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import BaselineError, ConfigurationError
from pytest_llmperf.judged import Provenance
from pytest_llmperf.result_file import SCHEMA_VERSION, comparable, read
from pytest_llmperf.stats import KNOWN_NIGHTS

KEY = "NVIDIA-GH200-96GB"
TEST = "perf_tests/test_it.py::test_rounds[4]"
SPEC = EngineSpec(kind="vllm", model="m", prefix_caching=True, args=("--swap", "4"), env=(("A", "1"),))
PROVENANCE = Provenance(
    test=TEST,
    name=None,
    hardware_key=KEY,
    workload="multi_round",
    workload_digest="0123456789abcdef",
    load="round_robin()",
    open_load=False,
    cache="as_is",
    engine_kind=SPEC.kind,
    engine_identity={**SPEC.identity(), "model": "m"},
    engine_words=SPEC.words(),
    engine={},
)


def row(metric="ttft_p50", values=(0.01, 0.011), provenance=PROVENANCE):
    """One benchmark of a result file, with what pytest-llmperf reads of it."""
    return {
        "fullname": f"{provenance.measurement}::{metric}",
        "stats": {"data": list(values)},
        "extra_info": {
            "llmperf": {
                "measurement": provenance.measurement,
                "metric": metric,
                "comparable": comparable(provenance),
                "engine_words": provenance.engine_words,
            }
        },
    }


def document(*rows, key=KEY, version=SCHEMA_VERSION):
    return {
        "machine_info": {"llmperf": {"schema_version": version, "hardware_key": key}},
        "benchmarks": list(rows),
        "datetime": "",
    }


@pytest.fixture
def folder(tmp_path):
    """The folder of baselines, not there yet."""
    return tmp_path / "baselines"


@pytest.fixture
def stored(folder):
    """Writes a file by hand, as whoever made it left it."""

    def write(content, name="0001_main.json", key=KEY):
        path = folder / key / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_what_was_saved_is_found_again(folder):
    """A measurement's values come back exactly, with the file they lie in."""
    content = {**document(row(values=(0.1, 1 / 3, 1e-7))), "datetime": "2026-11-21T01:02:03+00:00"}
    path = Baselines(folder).save("main", KEY, content)

    found = Baselines(folder).find(PROVENANCE, "ttft_p50")

    assert isinstance(found, Match)
    assert ((0.1, 1 / 3, 1e-7), ()) == (found.newest.stored_values, found.differences)
    assert (path, TEST, "ttft_p50") == (found.newest.path, found.newest.measurement, found.newest.metric)
    assert "2026-11-21T01:02:03+00:00" == found.newest.saved_at


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(min_value=1e-300, max_value=1e300), min_size=1, max_size=5))
def test_any_positive_values_survive_the_file(tmp_path_factory, values):
    """No digit is lost on the way through the file."""
    folder = tmp_path_factory.mktemp("baselines")
    path = Baselines(folder).save("main", KEY, document(row(values=values)))

    (entry,) = read(path).entries

    assert tuple(values) == entry.stored_values


def test_a_file_from_before_prompts_had_forms_is_comparable(folder):
    """What a file does not say was not asked for; text and chat are other requests."""
    before = row()
    del before["extra_info"]["llmperf"]["comparable"]["engine prompts"]
    Baselines(folder).save("main", KEY, document(before))
    chat = replace(PROVENANCE, engine_identity={**PROVENANCE.engine_identity, "prompts": "chat"})

    assert isinstance(Baselines(folder).find(PROVENANCE, "ttft_p50"), Match)
    assert "engine prompts was None, is 'chat'" in Baselines(folder).find(chat, "ttft_p50")


@pytest.mark.parametrize(
    ("before", "now"),
    [("constant(10)", "constant(20)"), ("poisson(10)", "poisson(10, seed=1)"), ("closed_loop(8)", "constant(8)")],
)
def test_another_load_is_not_comparable(folder, before, now):
    """The reason names both, with every argument."""
    Baselines(folder).save("main", KEY, document(row(provenance=replace(PROVENANCE, load=before))))

    found = Baselines(folder).find(replace(PROVENANCE, load=now), "ttft_p50")

    assert f"load was {before!r}, is {now!r}" in found


def test_files_are_numbered_as_they_come(folder):
    """The first is 0001, and each next one follows the highest there is."""
    baselines = Baselines(folder)

    names = [baselines.save(name, KEY, document(row())).name for name in ("main", "main", "2026-11-21")]

    assert ["0001_main.json", "0002_main.json", "0003_2026-11-21.json"] == names


def test_numbers_follow_the_highest_and_not_the_count(folder, stored):
    """A file that was removed does not let a new one take an old one's place in the order."""
    stored(document(row()), "0041_old.json")

    assert "0042_main.json" == Baselines(folder).save("main", KEY, document(row())).name


def test_each_hardware_counts_for_itself(folder):
    """Another key has another folder and begins at 0001."""
    baselines = Baselines(folder)
    baselines.save("main", KEY, document(row()))

    path = baselines.save("main", "NVIDIA-L4-24GB", document(row(), key="NVIDIA-L4-24GB"))

    assert folder / "NVIDIA-L4-24GB" / "0001_main.json" == path


def test_nothing_but_the_file_is_left_of_saving(folder):
    """Drafts are gone, and others may read what was saved."""
    path = Baselines(folder).save("main", KEY, document(row()))

    assert [path] == list((folder / KEY).iterdir())
    assert 0o644 == path.stat().st_mode & 0o777


def test_a_file_that_cannot_be_written_leaves_nothing(folder, monkeypatch):
    """An interruption leaves neither a half file nor a draft."""

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.link", fail)

    with pytest.raises(OSError, match="disk full"):
        Baselines(folder).save("main", KEY, document(row()))

    assert [] == list((folder / KEY).iterdir())


def test_two_savers_at_once_keep_both_files(folder, monkeypatch):
    """Where no lock can be had, whoever finds the name taken in the last moment takes the next number."""
    link = os.link
    monkeypatch.setattr("pytest_llmperf.folder_lock.held", lambda *_: nullcontext())

    def overtaken(draft, path):
        monkeypatch.setattr("os.link", link)
        Baselines(folder).save("main", KEY, document(row()))
        link(draft, path)

    monkeypatch.setattr("os.link", overtaken)
    Baselines(folder).save("main", KEY, document(row()))

    assert ["0001_main.json", "0002_main.json"] == sorted(path.name for path in (folder / KEY).iterdir())


def test_an_older_comparable_file_is_found_behind_a_newer_one_that_is_not(folder):
    """Two models that take turns in one folder do not hide each other's levels."""
    other = replace(PROVENANCE, workload_digest="other")
    Baselines(folder).save("first", KEY, document(row()))
    Baselines(folder).save("second", KEY, document(row(provenance=other)))

    assert "0001_first.json" == Baselines(folder).find(PROVENANCE, "ttft_p50").newest.path.name


def test_a_number_that_json_does_not_know_is_never_written(folder):
    """NaN and infinity are no JSON; saving them fails before there is a file."""
    with pytest.raises(ValueError, match="JSON"):
        Baselines(folder).save("main", KEY, document(row(values=(float("nan"),))))

    assert not folder.exists()


def test_the_newest_file_comes_first(folder):
    """Of several files the one with the highest number is compared with."""
    baselines = Baselines(folder)
    for name, value in (("zz", 0.1), ("mm", 0.2), ("aa", 0.3)):
        baselines.save(name, KEY, document(row(values=(value, value))))

    assert ["0003_aa.json", "0002_mm.json", "0001_zz.json"] == [entry.path.name for entry in baselines.entries(KEY)]
    assert (0.3, 0.3) == baselines.find(PROVENANCE, "ttft_p50").newest.stored_values


def test_an_older_file_serves_where_the_newest_has_nothing(folder):
    """A file that holds other tests does not hide this one's baseline."""
    baselines = Baselines(folder)
    baselines.save("all", KEY, document(row()))
    baselines.save("some", KEY, document(row(provenance=replace(PROVENANCE, test="other"))))

    assert "0001_all.json" == baselines.find(PROVENANCE, "ttft_p50").newest.path.name
    assert {"other"} == baselines.newest_tests(KEY)
    assert ["some", "all"] == [name_of(path) for path in baselines.paths(KEY)]


def test_each_question_has_its_own_answer(folder):
    """The same measurement, asked again with another load or another engine's words, is not answered as before."""
    baselines = Baselines(folder)
    baselines.save("main", KEY, document(row()))
    off = replace(PROVENANCE, engine_words={**PROVENANCE.engine_words, "prefix_caching": False})

    before = baselines.find(PROVENANCE, "ttft_p50")
    changed = baselines.find(off, "ttft_p50")
    elsewhere = baselines.find(replace(PROVENANCE, load="poisson(1)"), "ttft_p50")

    assert ((), True) == (before.differences, bool(changed.differences))
    assert elsewhere.startswith("0001_main.json is not comparable: load")
    assert before == baselines.find(PROVENANCE, "ttft_p50")


def test_files_are_read_once(folder, stored):
    """What a session compares with does not change while it runs."""
    baselines = Baselines(folder)
    stored(document(row()))
    before = baselines.entries(KEY)

    stored(document(row()), "0002_late.json")

    assert before == baselines.entries(KEY)


@pytest.mark.parametrize("name", ["notes.json", "0001.json", "1_main.json", "0001_main.txt", ".draft-abc"])
def test_other_files_in_the_folder_are_left_alone(folder, stored, name):
    """Only what is named as a stored result is read."""
    stored("not JSON", name)

    assert [] == Baselines(folder).entries(KEY)


def test_a_folder_that_is_not_there_holds_nothing(folder):
    """No baseline is stored yet, which is no error."""
    found = Baselines(folder).find(PROVENANCE, "ttft_p50")

    assert f"nothing is stored for {KEY} in {folder}" == found


@pytest.mark.parametrize(
    ("provenance", "metric"),
    [
        (replace(PROVENANCE, test="another"), "ttft_p50"),
        (replace(PROVENANCE, name="cold"), "ttft_p50"),
        (PROVENANCE, "tpot_p50"),
    ],
)
def test_a_measurement_that_is_not_stored_is_said_to_be_missing(folder, stored, provenance, metric):
    """There are files for this hardware, but none has this metric of this test."""
    stored(document(row()))

    found = Baselines(folder).find(provenance, metric)

    what = f"{metric} of this test" if provenance is PROVENANCE else "this test"
    assert f"no file for {KEY} in {folder} has {what}" == found


def test_results_of_other_hardware_are_not_looked_at(folder, stored):
    """Only the folder of the measurement's own key counts."""
    stored(document(row(), key="NVIDIA-L4-24GB"), key="NVIDIA-L4-24GB")

    found = Baselines(folder).find(PROVENANCE, "ttft_p50")

    assert f"nothing is stored for {KEY} in {folder}, only for NVIDIA-L4-24GB" == found


def test_the_hardware_of_which_something_is_stored_is_named_up_to_three(folder, stored):
    """The likest first: it may have been meant."""
    for key in ("NVIDIA-L4-24GB", f"2x-{KEY}", "sim-h100", "CPU-8-cores"):
        stored(document(row(), key=key), key=key)

    found = Baselines(folder).find(PROVENANCE, "ttft_p50")

    assert found.startswith(f"nothing is stored for {KEY} in {folder}, only for 2x-{KEY}, ")
    assert found.endswith(", and 1 more")


def about(**words):
    """What a stored file says of its workload."""
    return {"workload": "multi_round", "workload_words": {"users": 4, "rounds": 2, "context_tokens": 8000, **words}}


@pytest.mark.parametrize(
    ("was", "now", "what"),
    [
        (about(), {"users": 6}, "workload users was 4, is 6"),
        (about(), {}, "workload multi_round has other content"),
        (
            {"workload": "multi_round"},
            {},
            "workload multi_round has other words or content, of which the stored night does not say more",
        ),
        ({**about(), "workload": "trace"}, {}, "workload was 'trace', is 'multi_round'"),
        (
            about(seed=1, forks=2),
            {"users": 6, "rounds": 3, "seed": 2, "forks": 3},
            "workload users was 4, is 6; workload rounds was 2, is 3; workload seed was 1, is 2; and 1 more",
        ),
    ],
)
def test_of_another_workload_the_words_are_named_and_no_digest(folder, stored, was, now, what):
    """At most three; the others are counted."""
    one = row()
    one["extra_info"]["llmperf"]["provenance"] = was
    stored(document(one))
    words = {**about()["workload_words"], **now}

    found = Baselines(folder).find(replace(PROVENANCE, workload_digest="f" * 16, workload_words=words), "ttft_p50")

    assert f"0001_main.json is not comparable: {what}" == found


def test_the_nearest_stored_night_is_the_one_that_is_named(folder, stored):
    """Not the newest, from which more differs."""
    stored(document(row()), "0001_main.json")
    further = row()
    further["extra_info"]["llmperf"]["comparable"] |= {"load": "poisson(1)", "cache": "cold"}
    stored(document(further), "0002_main.json")

    found = Baselines(folder).find(replace(PROVENANCE, load="closed_loop(8)"), "ttft_p50")

    assert "0001_main.json is not comparable: load was 'round_robin()', is 'closed_loop(8)'" == found


def identity(**words):
    return {"engine_identity": {**PROVENANCE.engine_identity, **words}}


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"workload_digest": "f" * 16}, "workload was '0123456789abcdef', is 'ffffffffffffffff'"),
        ({"load": "closed_loop(8)"}, "load was 'round_robin()', is 'closed_loop(8)'"),
        ({"cache": "cold"}, "cache was 'as_is', is 'cold'"),
        ({"engine_kind": "openai"}, "engine was 'vllm', is 'openai'"),
        (identity(model="n"), "engine model was 'm', is 'n'"),
        (identity(dtype="fp8"), "engine dtype was None, is 'fp8'"),
        (identity(kv_cache_dtype="fp8"), "engine kv_cache_dtype was None, is 'fp8'"),
        (identity(max_model_len=8), "engine max_model_len was None, is 8"),
        (identity(tensor_parallel=2), "engine tensor_parallel was None, is 2"),
        (
            {"load": "closed_loop(8)", "cache": "cold"},
            "load was 'round_robin()', is 'closed_loop(8)'; cache was 'as_is', is 'cold'",
        ),
    ],
)
def test_what_makes_two_results_incomparable_is_named(folder, stored, changed, what):
    """Each word that has to be equal and is not is said, with both values."""
    stored(document(row()))

    found = Baselines(folder).find(replace(PROVENANCE, **changed), "ttft_p50")

    assert f"0001_main.json is not comparable: {what}" == found


@pytest.mark.parametrize(
    ("spec", "differences"),
    [
        (SPEC, ()),
        (replace(SPEC, prefix_caching=False), ("prefix_caching True -> False",)),
        (replace(SPEC, kv_offload_gib=4.0), ("kv_offload_gib None -> 4.0",)),
        (
            replace(SPEC, prefix_caching=None, args=("--swap", "8")),
            ("args ['--swap', '4'] -> ['--swap', '8']", "prefix_caching True -> None"),
        ),
        (replace(SPEC, env=(("A", "2"),)), ("env {'A': 'sha256:6b86b273'} -> {'A': 'sha256:d4735e3a'}",)),
    ],
)
def test_how_the_engine_differs_is_told_and_does_not_prevent_a_comparison(folder, stored, spec, differences):
    """Prefix caching switched off by mistake is a regression to be found, not another test."""
    stored(document(row()))

    found = Baselines(folder).find(replace(PROVENANCE, engine_words=spec.words()), "ttft_p50")

    assert differences == found.differences


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not JSON", "is not readable JSON: "),
        ("", "is not readable JSON: "),
        ("[]", "is not a result file: expected pytest-benchmark's JSON with a list of benchmarks"),
        ("null", "is not a result file: expected pytest-benchmark's JSON"),
        ({"machine_info": {"cpu": {}}, "benchmarks": []}, "is not a result of pytest-llmperf: no machine_info.llmperf"),
        (document(version=99), "has schema version 99, this release reads 1"),
        (document(key="NVIDIA-L4-24GB"), f"was measured on NVIDIA-L4-24GB, but lies in the folder of {KEY}"),
        ({**document(), "benchmarks": {}}, "is not a result file: "),
        ({**document(), "datetime": "2999-01-01T00:00:00"}, "is from the future (2999-01-01T00:00:00)"),
        (document(row(), row()), f"has ttft_p50 of {TEST} twice"),
        ("[" * 100_000, "is not readable JSON: "),
        (document({"fullname": "x"}), "the benchmark x lacks what pytest-llmperf stores (KeyError: 'extra_info')"),
        (document("text"), "the benchmark ? lacks what pytest-llmperf stores (TypeError: "),
        (document({**row(), "stats": {}}), "lacks what pytest-llmperf stores (KeyError: 'data')"),
        (document(row(values=("fast",))), "lacks what pytest-llmperf stores (TypeError: "),
        (document(row(values=())), f"ttft_p50 of {TEST} holds values that are not positive numbers"),
        (document(row(values=(0.1, 0.0))), f"ttft_p50 of {TEST} holds values that are not positive numbers"),
        (document(row(values=(0.1, -0.1))), f"ttft_p50 of {TEST} holds values that are not positive numbers"),
        (document(row(values=(0.1, float("nan")))), f"ttft_p50 of {TEST} holds values that are not positive numbers"),
        (document(row(values=(0.1, float("inf")))), f"ttft_p50 of {TEST} holds values that are not positive numbers"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(folder, stored, content, complaint):
    """The error says which file, and what is wrong with it."""
    path = stored(content)

    with pytest.raises(BaselineError, match=re.escape(str(path)) + ".*" + re.escape(complaint)):
        Baselines(folder).entries(KEY)


@pytest.mark.parametrize("content", [{"benchmarks": []}, document(version=99), document(key="NVIDIA-L4-24GB")])
def test_a_file_that_does_not_belong_here_comes_with_a_remedy(folder, stored, content):
    """The error says what to do with it."""
    stored(content)

    with pytest.raises(BaselineError, match="move it away, or save a new one with --llmperf-save-baseline NAME"):
        Baselines(folder).entries(KEY)


def test_every_file_that_cannot_be_used_is_named_at_once(folder, stored):
    """One error, one line for each."""
    stored("not JSON", "0001_a.json")
    stored(document(row()), "0002_b.json")
    stored(document(version=99), "0003_c.json")
    stored("not JSON", "acknowledged.json")

    with pytest.raises(BaselineError) as caught:
        Baselines(folder).entries(KEY)

    named = [line.partition(" ")[0] for line in str(caught.value).splitlines()]
    assert [str(folder / KEY / name) for name in ("acknowledged.json", "0003_c.json", "0001_a.json")] == named


def test_a_file_in_another_encoding_is_refused(folder, stored):
    """Bytes that are no text raise the same kind of error."""
    stored("x").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(BaselineError, match="is not readable JSON"):
        Baselines(folder).entries(KEY)


OTHER = "perf_tests/test_it.py::test_other"


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({TEST: ["ttft_p50", "tpot_p50"], OTHER: ["ttft_p50", "tpot_p50"]}, 4),
        ({TEST: ["ttft_p50"], OTHER: ["ttft_p50"]}, 3),
        ({TEST: ["ttft_p50", "e2e_p99"]}, 2),
        ({OTHER: ["ttft_p50"]}, 1),
        ({TEST: []}, 0),
        ({}, 0),
    ],
)
def test_what_can_be_compared_is_counted_before_measuring(folder, metrics, expected):
    """Each gated metric of each named measurement counts once, however many files have it."""
    baselines = Baselines(folder)
    rows = [
        row(),
        row("tpot_p50"),
        row(provenance=replace(PROVENANCE, name="cold")),
        row("itl_p50"),
        row(provenance=replace(PROVENANCE, test=OTHER)),
        row(provenance=replace(PROVENANCE, test="perf_tests/test_it.py::test_not_collected")),
    ]
    baselines.save("one", KEY, document(*rows))
    baselines.save("two", KEY, document(*rows))

    assert expected == baselines.gated_pairs(KEY, list(metrics), metrics)


def test_without_files_nothing_can_be_compared(folder):
    """The family of comparisons is empty on new hardware."""
    assert 0 == Baselines(folder).gated_pairs(KEY, [TEST], {TEST: ["ttft_p50"]})


@pytest.mark.parametrize("name", ["main", "2026-11-21", "v1.2.3", "a", "9", "build+7_x"])
def test_plain_names_are_accepted(name):
    """Letters, digits and a few signs can stand in a file name anywhere."""
    check_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "../up", "a b", "ä", "a\n", "a\\b", "a:b", "*"])
def test_names_that_would_not_make_one_file_are_refused(name):
    """The error says what was given and what is accepted."""
    with pytest.raises(ConfigurationError, match=re.escape(repr(name)) + " cannot name a baseline; use letters"):
        check_name(name)


def nights_of(folder, *values, **words):
    """A folder with one file per night, the last one newest."""
    baselines = Baselines(folder, **words)
    for night in values:
        baselines.save("night", KEY, document(row(values=night)))
    return baselines


def test_a_history_is_made_of_the_newest_nights(folder):
    """Up to as many as asked for, newest first; the file's number decides what is newest."""
    baselines = nights_of(folder, (0.1, 0.2), (0.3,), (0.4, 0.5), nights=2)

    match = baselines.find(PROVENANCE, "ttft_p50")

    assert [(0.4, 0.5), (0.3,)] == [entry.stored_values for entry in match.entries]
    assert "2 nights up to 0003_night.json" == match.name
    assert [pytest.approx(math.log(0.4)), pytest.approx(math.log(0.5))] == list(match.history.nights[0])


def test_nights_that_may_not_be_compared_are_left_out(folder):
    """A workload that was changed for one night breaks no history."""
    other = replace(PROVENANCE, workload_digest="other")
    baselines = Baselines(folder)
    for provenance in (PROVENANCE, other, PROVENANCE):
        baselines.save("night", KEY, document(row(provenance=provenance)))

    numbers = [number_of(entry.path) for entry in baselines.find(PROVENANCE, "ttft_p50").entries]

    assert [3, 1] == numbers


def test_numbers_beyond_four_digits_are_newest(folder, stored):
    """The ten thousandth file is not sorted between the first two."""
    stored(document(row(values=(1.0,))), "9999_main.json")
    baselines = Baselines(folder)
    assert "10000_next.json" == baselines.save("next", KEY, document(row(values=(2.0,)))).name

    assert (2.0,) == Baselines(folder).find(PROVENANCE, "ttft_p50").newest.stored_values


def test_the_spread_between_nights_is_that_of_all_stored_tests(folder):
    """Also of tests that do not run tonight; with few nights it is not known."""
    baselines = Baselines(folder)
    for night in range(KNOWN_NIGHTS):
        shift = 1 + 0.05 * (night % 2)
        rows = [
            row(values=(shift * 0.1, shift * 0.1001), provenance=replace(PROVENANCE, test=f"test_{number}"))
            for number in range(4)
        ]
        assert Baselines(folder).spread(KEY, "ttft_p50") is None
        baselines.save("night", KEY, document(*rows))

    baselines = Baselines(folder)
    assert baselines.spread(KEY, "e2e_p50") is None
    spread = baselines.spread(KEY, "ttft_p50")

    assert spread.deviation == pytest.approx(math.log(1.05) / 2 * math.sqrt(6 / 5), rel=0.01)
    assert KNOWN_NIGHTS == spread.nights


TODAY, OVER = date(2026, 11, 21), date(2027, 1, 1)


def stepped(folder, stored, *, nights=KNOWN_NIGHTS, change=0.08, since=4):
    """Nights that are slower from the `since`th on, as it is accepted until the end of 2026."""
    for night in range(1, nights + 1):
        level = 0.1 * (1 + change if night >= since else 1)
        stored(document(row(values=(level, level * 1.001))), f"{night:04d}_main.json")
    entry = {"test": TEST, "metric": "ttft_p50", "change": change, "reason": "safer sampling"}
    stored([{**entry, "since": since, "expires": "2026-12-31"}], "acknowledged.json")


@pytest.mark.parametrize(("today", "level"), [(TODAY, 0.108), (OVER, 0.1)])
def test_an_accepted_change_leaves_one_level(folder, stored, today, level):
    """The new one, after the last day the old one; the values stay as they are stored."""
    stepped(folder, stored)

    match = Baselines(folder, today=today).find(PROVENANCE, "ttft_p50")

    assert [pytest.approx(level)] * KNOWN_NIGHTS == [math.exp(night[0]) for night in match.history.nights]
    assert (0.1, 0.1 * 1.08) == (match.entries[-1].stored_values[0], match.newest.stored_values[0])
    assert ["safer sampling"] == [sentence.rpartition(": ")[2] for sentence in match.accepted]


def test_an_accepted_change_is_no_spread_between_nights(folder, stored):
    """Without it, the step counts as what nights differ by."""
    stepped(folder, stored)
    spread = Baselines(folder, today=TODAY).spread(KEY, "ttft_p50")
    (folder / KEY / "acknowledged.json").unlink()

    raw = Baselines(folder, today=TODAY).spread(KEY, "ttft_p50")

    assert spread.deviation == pytest.approx(0, abs=1e-9)
    assert raw.deviation > 0.03


@pytest.mark.parametrize(("day", "level"), [("2026-12-31", 0.108), ("2027-01-01", 0.1)])
def test_a_change_expires_by_the_wall_clock(folder, stored, monkeypatch, day, level):
    """Unless another day is given it is today, in UTC."""
    stepped(folder, stored)
    monkeypatch.setattr("pytest_llmperf.baselines.timestamp", lambda: datetime.fromisoformat(f"{day}T23:59:59+00:00"))

    match = Baselines(folder).find(PROVENANCE, "ttft_p50")

    assert math.exp(match.history.nights[0][0]) == pytest.approx(level)


def test_what_is_stored_is_listed_by_hardware(folder, stored):
    """Folders with numbered files only; the next number follows the highest."""
    stored(document(row()), "0007_main.json")
    stored("no night", "acknowledged.json", key="NVIDIA-L4-24GB")
    (folder / "README.md").write_text("about them")

    baselines = Baselines(folder)

    assert [KEY] == baselines.keys()
    assert (8, 1) == (baselines.next_number(KEY), baselines.next_number("NVIDIA-L4-24GB"))
    assert [] == Baselines(folder / "elsewhere").keys()


def test_the_newest_of_each_test_with_what_it_may_be_compared_with(folder):
    """By measurement; other workloads of the same name do not count."""
    baselines = Baselines(folder)
    other = replace(PROVENANCE, workload_digest="other")
    for provenance in (PROVENANCE, other, PROVENANCE):
        baselines.save("night", KEY, document(row(provenance=provenance)))

    matches = baselines.newest(KEY, "ttft_p50")

    assert {TEST: [3, 1]} == {name: [number_of(e.path) for e in match.entries] for name, match in matches.items()}
    assert {} == baselines.newest(KEY, "e2e_p99")


@pytest.mark.parametrize(("hours", "nights"), [(0, 1), (5, 1), (6, 1), (7, 2)])
def test_files_of_a_few_hours_are_one_night(folder, hours, nights):
    """Six sessions of one afternoon say nothing about how nights differ."""
    baselines = Baselines(folder)
    for hour in (0, hours):
        when = f"2026-11-21T{1 + hour:02d}:02:03+00:00"
        baselines.save("night", KEY, {**document(row(values=(0.1, 0.2))), "datetime": when})

    history = baselines.find(PROVENANCE, "ttft_p50").history

    assert (nights, 4) == (history.count, len(history.runs))
