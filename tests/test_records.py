"""Rows and their file form."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.records import (
    SCHEMA_VERSION,
    Arrival,
    CacheCounters,
    ClientStats,
    Failure,
    Phase,
    RecordFile,
    RequestRecord,
    RunRecord,
    read_requests,
)

NS = st.integers(0, 2**63 - 1)
COUNT = st.integers(0, 2**31)
ARRIVAL = st.builds(Arrival, NS, st.none() | COUNT)
REQUEST = st.builds(
    RequestRecord,
    run=st.integers(-3, 100),
    phase=st.sampled_from(Phase),
    session=COUNT,
    turn=COUNT,
    released_ns=NS,
    sent_ns=st.none() | NS,
    end_ns=NS,
    arrivals=st.lists(ARRIVAL, max_size=5).map(tuple),
    new_tokens=COUNT,
    input_tokens=COUNT,
    output_tokens_asked=COUNT,
    prompt_tokens=st.none() | COUNT,
    output_tokens=st.none() | COUNT,
    cached_tokens=st.none() | COUNT,
    failure=st.none() | st.builds(Failure, kind=st.text(), detail=st.text()),
)


def request(turn=0, **words):
    given = {
        "run": 0,
        "phase": Phase.MEASURED,
        "session": 0,
        "turn": turn,
        "released_ns": 0,
        "sent_ns": 1,
        "end_ns": 9,
        "arrivals": (Arrival(5, 1), Arrival(8, 1)),
        "new_tokens": 4,
        "input_tokens": 20,
        "output_tokens_asked": 2,
    }
    return RequestRecord(**{**given, **words})


def write(path, records):
    """A closed record file with these requests."""
    rows = RecordFile(path, {"measurement": "test"})
    for record in records:
        rows.request(record)
    rows.close()


@given(records=st.lists(REQUEST, max_size=4))
@settings(deadline=None, max_examples=50)
def test_requests_survive_the_file_unchanged(tmp_path_factory, records):
    """What is read back equals what was written, in the same order."""
    path = tmp_path_factory.mktemp("records") / "rows.jsonl"

    write(path, records)

    assert records == list(read_requests(path))


def test_the_first_line_says_what_the_file_is(tmp_path):
    """The header has the schema, its version and what the caller knows."""
    path = tmp_path / "new" / "rows.jsonl"

    RecordFile(path, {"measurement": "test_it"}).close()

    expected = {"schema": "pytest-llmperf-records", "version": SCHEMA_VERSION, "measurement": "test_it"}
    assert expected == json.loads(path.read_text())


def test_a_request_is_in_the_file_before_the_next_one_comes(tmp_path):
    """Rows are readable while the file is still open, so that a crash loses none."""
    path = tmp_path / "rows.jsonl"
    rows = RecordFile(path, {})

    rows.request(request())

    assert [request()] == list(read_requests(path))
    rows.close()


def test_a_run_is_written_without_repeating_its_requests(tmp_path):
    """A run's row has its counters and the client's lag; readers of requests pass over it."""
    path = tmp_path / "rows.jsonl"
    rows = RecordFile(path, {})
    run = RunRecord(
        index=2,
        phase=Phase.WARMUP,
        start_ns=1,
        end_ns=9,
        requests=(request(),),
        cache=CacheCounters(hit_tokens=7),
        client=ClientStats(busy_ns=(3, 4)),
    )

    rows.run(run)
    rows.request(request())
    rows.close()

    row = json.loads(path.read_text().splitlines()[1])["run"]
    assert ("warmup", 2, 7, [3, 4]) == (
        row["phase"],
        row["index"],
        row["cache"]["hit_tokens"],
        row["client"]["busy_ns"],
    )
    assert "requests" not in row
    assert [request()] == list(read_requests(path))


@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_last_line_cut_short_is_left_out(tmp_path, cut):
    """A crash in the middle of a write costs that one request."""
    path = tmp_path / "rows.jsonl"
    write(path, [request(0), request(1)])

    path.write_bytes(path.read_bytes()[:-cut])

    assert [request(0)] == list(read_requests(path))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json\n",
        b"[1, 2]\n",
        b'"text"\n',
        b"\xff\xfe\x00binary\n",
        b'{"schema": "another", "version": 1}\n',
        b'{"schema": "pytest-llmperf-records", "version": 99}\n',
        b'{"schema": "pytest-llmperf-records"}\n',
        b'{"schema": "pytest-llmperf-rec',
    ],
)
def test_a_file_that_is_not_ours_is_refused_by_its_first_line(tmp_path, line):
    """Another file, or another schema version, raises an error that quotes what was found."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line)

    with pytest.raises(LLMPerfError, match="is not a record file of schema version 1: its first line is"):
        list(read_requests(path))


def test_a_request_knows_its_first_and_last_token():
    """They are the stamps of the first and the last arrival."""
    record = request(arrivals=(Arrival(5, 1), Arrival(7, 1), Arrival(8, 1)))

    assert (5, 8) == (record.first_token_ns, record.last_token_ns)


def test_a_request_without_an_arrival_has_no_token_times():
    """Nothing arrived: both are None."""
    record = request(arrivals=())

    assert (None, None) == (record.first_token_ns, record.last_token_ns)


def test_a_request_is_ok_unless_it_failed():
    """A failure is what makes it not ok, not a missing token."""
    assert (True, False) == (request(arrivals=()).ok, request(failure=Failure("timeout", "")).ok)


BEFORE = CacheCounters(
    queried_tokens=100,
    hit_tokens=10,
    tokens_by_tier={"recomputed": 90, "gpu": 10},
    offloaded_bytes=1000,
    restored_bytes=0,
    preemptions=1,
)
AFTER = CacheCounters(
    queried_tokens=300,
    hit_tokens=160,
    tokens_by_tier={"recomputed": 140, "gpu": 110, "host": 50},
    offloaded_bytes=1500,
    restored_bytes=200,
    preemptions=1,
)
BETWEEN = CacheCounters(
    queried_tokens=200,
    hit_tokens=150,
    tokens_by_tier={"recomputed": 50, "gpu": 100, "host": 50},
    offloaded_bytes=500,
    restored_bytes=200,
    preemptions=0,
)


def test_counters_since_a_reading_are_what_happened_between():
    """Each count is subtracted; a tier that was not there before starts at nothing."""
    assert BETWEEN == AFTER.since(BEFORE)


def test_counters_add_up():
    """Adding what happened to the earlier reading gives the later one."""
    assert AFTER == BEFORE.plus(BETWEEN)


@pytest.mark.parametrize("combine", [CacheCounters.since, CacheCounters.plus])
@pytest.mark.parametrize("sides", [(AFTER, CacheCounters()), (CacheCounters(), AFTER)])
def test_what_one_reading_does_not_say_is_unknown_of_both(combine, sides):
    """A missing count is not zero: the combination does not say it either."""
    assert CacheCounters() == combine(*sides)


def test_fields_are_known_or_unknown_one_by_one():
    """A field that both readings have is combined although another is missing."""
    combined = CacheCounters(hit_tokens=5, preemptions=1).since(CacheCounters(hit_tokens=3))

    assert CacheCounters(hit_tokens=2) == combined


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        (CacheCounters(queried_tokens=200, hit_tokens=150), 0.75),
        (CacheCounters(queried_tokens=200, hit_tokens=0), 0.0),
        (CacheCounters(), None),
        (CacheCounters(queried_tokens=200), None),
        (CacheCounters(hit_tokens=150), None),
        (CacheCounters(queried_tokens=0, hit_tokens=0), None),
        (CacheCounters(queried_tokens=0, hit_tokens=0, tokens_by_tier={"recomputed": 50}), 0.0),
        (CacheCounters(tokens_by_tier={"recomputed": 50, "gpu": 100, "host": 50}), 0.75),
        (CacheCounters(tokens_by_tier={"recomputed": 0, "gpu": 0}), None),
        (CacheCounters(tokens_by_tier={}), None),
        (CacheCounters(tokens_by_tier={"gpu": 100}), None),
    ],
)
def test_the_hit_rate_is_a_share_of_the_prompt_tokens_or_unknown(counters, expected):
    """Of the tokens looked up, else of all prompt tokens; without a whole there is no share."""
    assert expected == counters.hit_rate
