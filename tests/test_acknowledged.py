"""Accepted changes: what their file may hold, and what they make of the stored nights."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from night_files import KEY, TEST, acknowledged, put, row

from pytest_llmperf.acknowledged import (
    Acknowledgement,
    expected,
    read_acknowledged,
    selects,
    sort,
    write_acknowledged,
)
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.result_rows import Entry

LAST = date(2026, 12, 31)
TODAY, OVER = date(2026, 11, 21), date(2027, 1, 1)
GOOD = {
    "test": TEST,
    "metric": "ttft_p50",
    "change": 0.08,
    "reason": "safer sampling",
    "since": 4,
    "expires": "2026-12-31",
}


def accepted(change=0.08, since=4, test=TEST, metric="ttft_p50", expires=LAST):
    return Acknowledgement(
        test=test, metric=metric, change=change, reason="safer sampling", since=since, expires=expires
    )


def entry(metric="ttft_p50", measurement=TEST, values=(0.1,)):
    return Entry(
        path=Path("0001_main.json"),
        saved_at="",
        measurement=measurement,
        quantity=METRICS[metric],
        stored_values=values,
        comparable={},
        engine_words={},
        criterion={},
    )


changes = st.floats(-0.9, 10, allow_subnormal=False).filter(lambda change: abs(change) > 1e-6)
metrics = st.sampled_from(sorted(METRICS))


@given(change=changes, metric=metrics, since=st.integers(1, 9), nights=st.integers(1, 12), is_over=st.booleans())
def test_all_nights_are_at_the_level_that_is_expected(change, metric, since, nights, is_over):
    """Whatever the step and wherever it is: the new level until it expires, then the old one."""
    before, quantity = 0.25, METRICS[metric]
    after = before * (1 + change)
    today = OVER if is_over else TODAY

    for night in range(1, nights + 1):
        stored = entry(metric, values=(quantity.stored(after if night >= since else before),))
        found = expected(stored, night, [accepted(change, since, metric=metric)], today)
        level = quantity.stored(math.exp(math.log(found.stored_values[0]) + found.shift))
        assert level == pytest.approx(before if is_over else after)


@given(first=changes, second=changes, over=st.tuples(st.booleans(), st.booleans()))
def test_several_steps_add_up(first, second, over):
    """Each is expected or not for itself; every night ends at the same level."""
    steps = [
        accepted(change, since, expires=TODAY - timedelta(days=1) if is_over else LAST)
        for change, since, is_over in zip((first, second), (3, 5), over, strict=True)
    ]
    wanted = math.prod(1 + step.change for step in steps if step.is_in_force(TODAY))

    for night in range(1, 7):
        level = math.prod(1 + step.change for step in steps if night >= step.since)
        found = expected(entry(values=(level,)), night, steps, TODAY)
        assert math.exp(math.log(level) + found.shift) == pytest.approx(wanted)


@pytest.mark.parametrize(("today", "in_force"), [(LAST, True), (LAST + timedelta(days=1), False)])
def test_the_last_day_still_counts(today, in_force):
    """Until the end of the day that is named."""
    assert in_force is accepted().is_in_force(today)


def test_other_tests_and_metrics_stay_as_they_are():
    """What is accepted of one is not accepted of the next."""
    for other in (entry("tpot_p50"), entry(measurement="another")):
        assert other is expected(other, 1, [accepted()], TODAY)


def test_what_is_accepted_is_said_while_it_lasts_and_afterwards():
    """With the metric, the change, the day and the reason."""
    assert ("ttft_p50: an accepted change of +8.0 % is in the baseline until 2026-12-31: safer sampling",) == expected(
        entry(), 1, [accepted()], TODAY
    ).accepted
    assert (
        "ttft_p50: an accepted change of +8.0 % expired on 2026-12-31, so that the level before it is expected again: "
        "safer sampling",
    ) == expected(entry(), 1, [accepted()], OVER).accepted


@pytest.mark.parametrize(
    ("pattern", "is_meant"),
    [
        (TEST, True),
        ("perf_tests/*", True),
        ("*::test_rounds[[]4]", False),
        ("*::test_rounds[*]", True),
        ("*::test_rounds[?]", True),
        ("*::test_rounds[5]", False),
        ("*::test_rounds", False),
        ("*::TEST_rounds[4]", False),
    ],
)
def test_brackets_are_those_of_parameters(pattern, is_meant):
    """A test's name can be pasted as it is."""
    assert is_meant is selects(pattern, TEST)


def test_what_is_written_is_read_again_sorted(tmp_path):
    """Indented, in an order of its own, and with a line's end: a change shows as a change."""
    given_ = [accepted(since=9), accepted(-0.05, test="a*"), accepted(metric="e2e_p99")]

    path = write_acknowledged(tmp_path, given_)

    assert tuple(sort(given_)) == read_acknowledged(tmp_path)
    content = path.read_bytes()
    write_acknowledged(tmp_path, list(reversed(given_)))
    assert (content, [path]) == (path.read_bytes(), list(tmp_path.iterdir()))
    assert content.startswith(b'[\n {\n  "change": -0.05,\n')
    assert content.endswith(b"\n]\n")


def test_nothing_accepted_is_no_file(tmp_path):
    """Neither before the first nor after the last."""
    assert () == read_acknowledged(tmp_path)
    write_acknowledged(tmp_path, [accepted()])
    write_acknowledged(tmp_path, [])
    assert [] == list(tmp_path.iterdir())


def test_every_field_is_asked_for(tmp_path):
    """An empty entry names each field once, with what is expected."""
    (tmp_path / "acknowledged.json").write_text("[{}]")

    with pytest.raises(BaselineError) as caught:
        read_acknowledged(tmp_path)

    problems = str(caught.value).splitlines()
    assert {field.name for field in fields(Acknowledgement)} == {
        re.findall(r": (\w+) is missing", p)[0] for p in problems
    }


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not JSON", "acknowledged.json is not readable JSON: "),
        ("[" * 100_000, "acknowledged.json is not readable JSON: "),
        ("{}", "acknowledged.json: expected a list of accepted changes, got {}; pytest-llmperf baseline acknowledge"),
        (
            [7],
            "acknowledged.json, entry 1: expected an object with test, metric, change, reason, since, expires, got 7",
        ),
        ([GOOD, {**GOOD, "change": 0}], "acknowledged.json, entry 2: change is 0, expected a share above -1"),
        ([{**GOOD, "change": -1}], "change is -1, expected a share above -1"),
        ([{**GOOD, "change": True}], "change is True, expected a share above -1"),
        ([{**GOOD, "change": "8 %"}], "change is '8 %', expected a share above -1"),
        ([{**GOOD, "change": 1e9}], "change is 1000000000.0, expected a share above -1, at most 1000"),
        ([{**GOOD, "since": 0}], "since is 0, expected the number of the first night at the new level"),
        ([{**GOOD, "since": 2.0}], "since is 2.0, expected the number"),
        ([{**GOOD, "expires": "31.12.2026"}], "expires is '31.12.2026', expected a day such as '2026-12-31'"),
        ([{**GOOD, "expires": "20261231"}], "expires is '20261231', expected a day"),
        ([{**GOOD, "expires": "2026-02-30"}], "expires is '2026-02-30', expected a day"),
        ([{**GOOD, "reason": " "}], "reason is ' ', expected a sentence on why it is accepted"),
        ([{**GOOD, "test": None}], "test is None, expected a test"),
        ([{**GOOD, "metric": ["a"]}], "metric is ['a'], expected a metric such as 'ttft_p50'"),
        ([{**GOOD, "expire": 1}], "unknown field 'expire'; did you mean 'expires'?"),
        ('[{"change": NaN}]', "change is nan, expected a share"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_the_place(tmp_path, content, complaint):
    """What is there, what is accepted."""
    path = tmp_path / "acknowledged.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))

    with pytest.raises(BaselineError, match=re.escape(str(tmp_path)) + ".*" + re.escape(complaint)):
        read_acknowledged(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(), inner),
    max_leaves=8,
)


@pytest.mark.slow
@settings(deadline=None)
@given(content=json_values | st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, json_values))))
def test_any_json_is_read_or_refused(tmp_path_factory, content):
    """Nothing but a `BaselineError`, and of what is read everything can be used."""
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "acknowledged.json").write_text(json.dumps(content), encoding="utf-8")

    try:
        found = read_acknowledged(folder)
    except BaselineError:
        return

    assert all(
        math.isfinite(expected(entry(one.metric), 1, [one], TODAY).shift) for one in found if one.metric in METRICS
    )


def test_mistakes_are_told_with_those_of_the_nights(tmp_path):
    """Everything that is wrong with a folder at once, before anything is started."""
    from pytest_llmperf.baselines import Baselines

    acknowledged(tmp_path, {}, {"change": "8 %"}, {"since": 0})
    put(tmp_path, 1, row([0.1]))
    (tmp_path / KEY / "0002_main.json").write_text("no")

    with pytest.raises(BaselineError) as caught:
        Baselines(tmp_path).entries(KEY)

    lines = str(caught.value).splitlines()
    assert 3 == len(lines)
    assert ("entry 2: change" in lines[0], "entry 3: since" in lines[1], "0002_main.json" in lines[2]) == (True,) * 3
