"""Records as a file."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf import metrics
from pytest_llmperf.arrivals import Arrival, Arrivals
from pytest_llmperf.errors import LLMPerfError
from pytest_llmperf.readings import HostSummary, TelemetrySummary
from pytest_llmperf.record_file import (
    SCHEMA_VERSION,
    Extant,
    RecordFile,
    read_extant,
    read_header,
    read_requests,
    read_runs,
)
from pytest_llmperf.records import (
    CacheCounters,
    ClientStats,
    EngineTimings,
    Failure,
    Phase,
    Remark,
    RequestRecord,
    RunRecord,
    Window,
)

NS = st.integers(0, 2**63 - 1)
COUNT = st.integers(0, 2**31 - 1)
ARRIVAL = st.builds(Arrival, NS, st.none() | COUNT, st.just(0) | NS)
REQUEST = st.builds(
    RequestRecord,
    run=st.integers(-3, 100),
    phase=st.sampled_from(Phase),
    session=COUNT,
    turn=COUNT,
    released_ns=NS,
    sent_ns=st.none() | NS,
    flushed_ns=st.none() | NS,
    connect_ns=st.none() | NS,
    end_ns=NS,
    arrivals=st.lists(ARRIVAL, max_size=5).flatmap(lambda rows: st.sampled_from([tuple(rows), Arrivals.of(rows)])),
    new_tokens=COUNT,
    input_tokens=COUNT,
    output_tokens_asked=COUNT,
    prompt_tokens=st.none() | COUNT,
    output_tokens=st.none() | COUNT,
    cached_tokens=st.none() | COUNT,
    timings=st.none()
    | st.builds(EngineTimings, queue_ns=st.none() | NS, prefill_ns=st.none() | NS, ttft_ns=st.none() | NS),
    failure=st.none() | st.builds(Failure, kind=st.text(), detail=st.text()),
    remarks=st.lists(st.builds(Remark, st.text(), st.text()), max_size=2).map(tuple),
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


def long(turn, tokens):
    """A request whose tokens came one by one."""
    return request(turn, arrivals=Arrivals(range(turn, turn + tokens), [1] * tokens, [0] * tokens))


def write(path, records, **words):
    """A closed record file with these requests; returns the form in which they are kept."""
    rows = RecordFile(path, {"measurement": "test"}, **words)
    kept = [rows.request(record) for record in records]
    rows.close()
    return kept


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


@pytest.mark.slow
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
    assert 2 == SCHEMA_VERSION


def test_a_request_is_in_the_file_before_the_next_one_comes(path):
    """Rows are readable while the file is still open, so that a crash loses none."""
    rows = RecordFile(path, {})

    rows.request(request())

    assert [request()] == list(read_requests(path))
    rows.close()


@pytest.mark.parametrize("late_ns", [0, 3])
def test_arrivals_stand_in_columns(path, late_ns):
    """An unknown number of tokens is -1; how late they may be stands there only where something is late."""
    write(path, [request(arrivals=(Arrival(5, 1), Arrival(8, None, late_ns)))])

    late = {"late_ns": [0, 3]} if late_ns else {}
    row = json.loads(path.read_text().splitlines()[1])["request"]
    assert {"at_ns": [5, 8], "tokens": [1, -1]} | late == row["arrivals"]


def test_a_run_is_written_without_repeating_its_requests(path):
    """A run's row has its window, its counters and what the client saw of itself; readers of requests pass over it."""
    client = ClientStats(resent=1, cpu_shares=[0.5], clock_offsets_ns={"node": (3, 1)})
    client.away.add(1_000_000)
    run = RunRecord(
        index=2,
        phase=Phase.WARMUP,
        start_ns=1,
        end_ns=9,
        requests=(request(),),
        window=Window(3, None),
        shed=5,
        cache=CacheCounters(hit_tokens=7),
        client=client,
    )
    rows = RecordFile(path, {})

    rows.run(run)
    rows.run(replace(run, window=None))
    rows.request(request())
    rows.close()

    row, other = (json.loads(line)["run"] for line in path.read_text().splitlines()[1:3])
    assert ("warmup", 2, 7, 5) == (row["phase"], row["index"], row["cache"]["hit_tokens"], row["shed"])
    assert ({"start_ns": 3, "end_ns": None}, None) == (row["window"], other["window"])
    assert ([1], 1, [0.5], {"node": [3, 1]}) == (
        list(row["client"]["away"].values()),
        row["client"]["resent"],
        row["client"]["cpu_shares"],
        row["client"]["clock_offsets_ns"],
    )
    assert "requests" not in row
    assert [request()] == list(read_requests(path))


def whole_run(index, **words):
    """A run with all that one can have, and its requests' numbers."""
    counted = CacheCounters(queried_tokens=5, hit_tokens=2, tokens_by_tier={"gpu": 2, "recomputed": 3})
    client = ClientStats(unstamped=1, clock_steps=2, resent=3, cpu_shares=[0.5], clock_offsets_ns={"other": (7, 1)})
    client.away.add(12_345)
    given = {
        "index": index,
        "phase": Phase.MEASURED,
        "start_ns": 1,
        "end_ns": 9,
        "requests": (request(0, run=index), request(1, run=index)),
        "window": Window(2, 8),
        "shed": 4,
        "cache": replace(counted, replicas=(counted, counted)),
        "client": client,
        "timings": (EngineTimings(queue_ns=3),),
        "telemetry": TelemetrySummary(host=HostSummary(samples=3), rate_hz=10.0),
    }
    return RunRecord(**{**given, **words})


def write_runs(path, runs, spoiled=()):
    """A record file with warm-up and these runs; `spoiled`: the numbers of those that are no evidence."""
    rows = RecordFile(path, {"measurement": "test"})
    for run in (whole_run(-1, phase=Phase.WARMUP, requests=(request(run=-1, phase=Phase.WARMUP),)), *runs):
        rows.request(request(run=run.index, phase=Phase.PREPARE))
        for one in run.requests:
            rows.request(one)
        rows.run(run, ["no reason"] if run.index in spoiled else ())
    return rows


def test_runs_survive_the_file_unchanged(path):
    """The measured ones, each with its own requests, in the order in which they ended."""
    runs = [whole_run(0), whole_run(1, window=None, telemetry=None, session="20260101-000000-1")]
    write_runs(path, runs).close()

    assert runs == list(read_runs(path))


@pytest.mark.parametrize(("spoiled", "kept"), [((), 3), ((0,), 0), ((1,), 1), ((2,), 2)])
def test_runs_count_up_to_the_first_that_is_spoiled(path, spoiled, kept):
    write_runs(path, [whole_run(0), whole_run(1), whole_run(2)], spoiled).close()

    assert Extant(header=read_header(path), runs=kept, is_complete=False) == read_extant(path)


@pytest.mark.parametrize("complete", [True, False])
def test_a_measurement_says_whether_it_is_complete(path, complete):
    rows = write_runs(path, [whole_run(0)])
    rows.end(complete=complete)
    rows.close()

    assert (1, complete) == (read_extant(path).runs, read_extant(path).is_complete)


def test_a_run_that_was_cut_short_does_not_count(path):
    """Its requests are there, what is known of the whole is not; wherever the file ends."""
    write_runs(path, [whole_run(0), whole_run(1)]).close()
    content = path.read_bytes()
    first = content.index(b'{"run":{"index":1')

    for end in (len(content) - 1, first + 5, first - 5):
        path.write_bytes(content[:end])
        assert 1 == read_extant(path).runs
        assert [whole_run(0)] == list(read_runs(path))


class TestSpilling:
    """Arrivals beyond what memory has room for stay in the file."""

    @pytest.mark.slow
    @given(records=st.lists(REQUEST, max_size=6), room=st.integers(0, 12))
    @settings(deadline=None, max_examples=50)
    def test_records_are_equal_wherever_their_arrivals_are(self, tmp_path_factory, records, room):
        """Nothing that can be asked of a record depends on it."""
        path = tmp_path_factory.mktemp("records") / "rows.jsonl"

        kept = write(path, records, arrivals_in_memory=room)

        assert [replace(record, arrivals=Arrivals.of(record.arrivals)) for record in records] == kept
        assert [list(record.arrivals) for record in records] == [list(record.arrivals) for record in kept]
        assert [len(record.arrivals) for record in records] == [len(record.arrivals) for record in kept]
        assert [(r.first_token_ns, r.last_token_ns) for r in records] == [
            (r.first_token_ns, r.last_token_ns) for r in kept
        ]
        assert [replace(record, arrivals=()) for record in records] == [replace(record, arrivals=()) for record in kept]
        assert records == list(read_requests(path))

    def test_what_comes_first_stays_in_memory(self, path):
        """Records are handed back as they were until the room is used up, and from then on without their arrivals."""
        records = [long(turn, 10) for turn in range(4)]

        kept = write(path, records, arrivals_in_memory=25)

        assert [True, True, False, False] == [mine is theirs for mine, theirs in zip(records, kept, strict=True)]

    def test_the_file_is_not_read_for_the_first_and_the_last_token(self, path):
        """TTFT, TPOT and E2E are known without it; the rest is read back although the path is gone."""
        (kept,) = write(path, [replace(long(0, 100), output_tokens=100)], arrivals_in_memory=0)
        path.unlink()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("pytest_llmperf.row_file.Written.lines", None)
            assert (0, 99) == (kept.first_token_ns, kept.last_token_ns)
            assert (Arrival(0, 1), Arrival(99, 1), 100) == (kept.arrivals[0], kept.arrivals[-1], len(kept.arrivals))
            assert None not in (metrics.ttft_s(kept), metrics.tpot_s(kept), metrics.e2e_s(kept))

        assert list(long(0, 100).arrivals) == list(kept.arrivals)

    def test_single_arrivals_can_be_asked_for(self, path):
        """As of any other sequence, slices included; what is not there is an error."""
        _, kept = write(path, [long(0, 5), long(7, 5)], arrivals_in_memory=0)

        assert (Arrival(9, 1), Arrival(10, 1)) == (kept.arrivals[2], kept.arrivals[-2])
        assert [Arrival(8, 1), Arrival(9, 1)] == list(kept.arrivals[1:3])
        assert Arrival(11, 1) in kept.arrivals
        with pytest.raises(IndexError):
            kept.arrivals[5]

    def test_metrics_are_the_same(self, path):
        """Gaps between tokens are read back where they are needed."""
        record = request(arrivals=[Arrival(5, 1), Arrival(7, 2, 1), Arrival(12, 1)], output_tokens=4)

        (kept,) = write(path, [record], arrivals_in_memory=0)

        assert kept is not record
        assert list(metrics.itl_s(record)) == list(metrics.itl_s(kept)) != []

    @pytest.mark.slow
    def test_memory_is_bounded(self, path):
        """Ten times as many tokens as there is room for take hardly more than the room."""

        def held(turns, room):
            tracemalloc.start()
            try:
                kept = write(path, (long(turn, 5000) for turn in range(turns)), arrivals_in_memory=room)
                return tracemalloc.get_traced_memory()[0], kept
            finally:
                tracemalloc.stop()

        bounded, kept = held(100, 50_000)
        unbounded, _ = held(100, 10**9)

        assert 8 * 500_000 < unbounded
        assert bounded < unbounded / 3
        assert 500_000 == sum(len(record.arrivals) for record in kept)


@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_last_line_cut_short_is_left_out(path, cut):
    """A crash in the middle of a write costs that one request."""
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
        b'{"schema": "another", "version": 2}\n',
        b'{"schema": "pytest-llmperf-records", "version": 1}\n',
        b'{"schema": "pytest-llmperf-records", "version": 99}\n',
        b'{"schema": "pytest-llmperf-records"}\n',
        b'{"schema": "pytest-llmperf-rec',
    ],
)
def test_a_file_that_is_not_ours_is_refused_by_its_first_line(path, line):
    """Another file, or another schema version, raises an error that quotes what was found."""
    path.write_bytes(line)

    with pytest.raises(LLMPerfError, match="is not a record file of schema version 2: its first line is") as caught:
        list(read_requests(path))

    assert str(path) in str(caught.value)


def test_a_file_from_before_engines_told_times(tmp_path):
    """Reads as one in which no engine told any."""
    write(tmp_path / "rows.jsonl", [request(timings=EngineTimings(queue_ns=1))])
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {"queue_ns": 1, "prefill_ns": None, "ttft_ns": None} == lines[1]["request"].pop("timings")
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [request()] == list(read_requests(tmp_path / "old.jsonl"))
