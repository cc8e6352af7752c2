"""One performance test, in order, on an engine in virtual time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from fakes import Script, VirtualEngine

from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import ConfigurationError, EngineAnswerError, EngineDiedError
from pytest_llmperf.load import closed_loop, constant, poisson, round_robin
from pytest_llmperf.record_file import read_requests
from pytest_llmperf.records import CacheCounters, EngineTimings, Failure, Phase, Remark, Window
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.workloads import multi_round, shared_prefix, single_turn

ROUNDS = multi_round(users=2, rounds=3, context_tokens=64, input_tokens=16, output_tokens=4)
ONE_ROUND = multi_round(users=2, rounds=1, context_tokens=64, input_tokens=16, output_tokens=4)
SINGLE = single_turn(requests=4, input_tokens=64, output_tokens=4)


def ask(workload=ROUNDS, **words):
    """A checked request; one run and no warm-up unless said otherwise."""
    given = {
        "load": None,
        "runs": 1,
        "warmup_runs": 0,
        "cache": "as_is",
        "prefill_context": False,
        "slo": None,
        "name": None,
    }
    return checked_request(workload, **{**given, **words})


@pytest.fixture
def setting(tmp_path):
    """Where all of these measurements take place; `said` keeps what was reported."""
    said = []

    def make(engine, test="test_it.py::test_it", team=None):
        return Setting(
            test=test,
            hardware_key="NVIDIA-TEST",
            clock=engine.clock,
            record_dir=tmp_path,
            progress=lambda step, detail="", done=None: said.append(step),
            team=team or LocalTeam(engine.clock),
        )

    make.said = said
    return make


@pytest.fixture
def run(setting):
    """`run(engine, workload, **words)` measures and returns the result."""

    def measured(engine, workload=ROUNDS, **words):
        return measure(engine, ask(workload, **words), setting(engine))

    return measured


def failing(*numbers, kind="timeout"):
    """A script in which the requests of these numbers fail."""
    return Script(fail=lambda number: Failure(kind, f"request {number}") if number in numbers else None)


def records(tmp_path):
    """All requests of the one record file."""
    (path,) = tmp_path.glob("*.jsonl")
    return list(read_requests(path))


class Remembering(VirtualEngine):
    """Serves a block of every prompt from a cache that it will not empty."""

    def serve(self, ids):
        super().serve(ids)
        return 16


class Small(VirtualEngine):
    """Forgets what it holds when more comes than its KV cache has room for."""

    held = 0

    def serve(self, ids):
        self.held += len(ids)
        if self.held > self.kv_capacity_tokens:
            self.cached.clear()
            self.held = len(ids)
        return super().serve(ids)


class Offloading(VirtualEngine):
    """Counts the bytes that its script of readings says."""

    readings = ((0, 0),)

    def cache_counters(self):
        offloaded, restored = self.readings[min(len(self.sent), len(self.readings) - 1)]
        return replace(super().cache_counters(), offloaded_bytes=offloaded, restored_bytes=restored)


class Tiered(VirtualEngine):
    """Counts one byte each way for a request, and so many tokens that were found on the device."""

    on_device = 0

    def cache_counters(self):
        count = len(self.sent)
        tiers = {"recomputed": 9 * count, "gpu": self.on_device * count, "host": count}
        return CacheCounters(tokens_by_tier=tiers, offloaded_bytes=count, restored_bytes=count)


class Silent(VirtualEngine):
    """Says nothing about its cache, neither per request nor in all."""

    def cache_counters(self):
        return CacheCounters()

    def finished(self, answer):
        return replace(answer, cached_tokens=None)


class Timing(VirtualEngine):
    """Says how it timed requests: beside each answer, and of as many others apart from them."""

    def finished(self, answer):
        return replace(answer, timings=EngineTimings(queue_ns=1_000_000))

    def request_timings(self):
        told, self.told = len(self.sent) - getattr(self, "told", 0), len(self.sent)
        return (EngineTimings(queue_ns=3_000_000),) * told


class Starting(VirtualEngine):
    """Takes two seconds to start, once."""

    def start(self):
        super().start()
        if self.ready_ns is None:
            self.clock.sleep(2.0)
            self.ready_ns = self.clock.now_ns()


def test_how_the_engine_timed_requests(run, tmp_path):
    """Each request has its own, a run those that are told apart; what came before a run is none of its."""
    result = run(Timing(), runs=2, cache="primed")

    assert [6, 6] == [len(record.timings) for record in result.records]
    assert {1_000_000} == {request.timings.queue_ns for request in records(tmp_path) if request.ok}
    assert (24, 0.002) == (result.engine_times.queue.count, result.engine_times.queue.mean)


def test_from_ready_to_the_first_request(run):
    """Is on record where this measurement has started the engine, with what preparing the first run took."""
    engine = Starting(Script(ttft_s=lambda computed, number: 0.5))

    first, second = (run(engine, cache="primed") for _ in range(2))

    assert 0 < first.provenance.engine["ready_to_first_request_s"] < 10
    assert "ready_to_first_request_s" not in second.provenance.engine
    assert "ready_to_first_request_s" not in run(VirtualEngine()).provenance.engine


def test_each_run_is_one_pass_of_the_whole_workload(run):
    """Five runs are five records with all requests of the workload each."""
    result = run(VirtualEngine(), runs=5)

    assert [6] * 5 == [len(record.requests) for record in result.records]
    assert [0, 1, 2, 3, 4] == [record.index for record in result.records]
    assert (30, {}, True) == (result.requests, result.errors, bool(result.validity))


def test_figures_are_those_of_the_engine(run):
    """What the virtual engine was told to take is what comes out."""
    engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.010 + number * 0.001, itl_s=0.002))

    result = run(engine, single_turn(requests=3, input_tokens=8, output_tokens=4))

    assert pytest.approx((0.010, 0.011, 0.012)) == result.ttft.values
    assert pytest.approx((0.002,) * 3) == result.tpot.values
    assert 0.051 == pytest.approx(result.duration_s)
    assert 12 / 0.051 == pytest.approx(result.output_throughput)


def test_the_engine_is_started_before_it_is_asked_anything(run):
    """Starting is part of measuring, and not of the time measured."""
    engine = VirtualEngine()

    run(engine)

    assert 1 == engine.started


def test_the_warm_up_is_not_in_the_result(run, tmp_path):
    """Warm-up runs are sent and recorded as such, and enter no figure."""
    engine = VirtualEngine(Script(ttft_s=lambda computed, number: 9.0 if number < 12 else 0.010))

    result = run(engine, runs=2, warmup_runs=2)

    assert [Phase.MEASURED] * 2 == [record.phase for record in result.records]
    assert (12, 24) == (result.requests, len(engine.sent))
    assert 0.010 == pytest.approx(result.ttft.p99)
    assert {(Phase.WARMUP, -2): 6, (Phase.WARMUP, -1): 6, (Phase.MEASURED, 0): 6, (Phase.MEASURED, 1): 6} == Counter(
        (record.phase, record.run) for record in records(tmp_path)
    )


def test_progress_says_which_run_it_is(run, setting):
    """Warm-ups are counted with the others and named; so is the measurement if it has a name."""
    run(VirtualEngine(), runs=2, warmup_runs=1)
    run(VirtualEngine(), name="cold")

    titles = [said for said in setting.said if "requests" not in said]
    assert ["run 1 of 3 (warm-up)", "run 2 of 3", "run 3 of 3", "cold: run 1 of 1"] == titles


def test_progress_says_how_far_a_run_has_come(run, setting):
    """Every half second, from what has been answered by then; the preparation is passed over."""
    script = Script(ttft_s=lambda computed, number: 0.3, itl_s=0.0)
    run(VirtualEngine(script), multi_round(users=1, rounds=4, context_tokens=20, input_tokens=4, output_tokens=5))

    assert [
        "run 1 of 1",
        "run 1 of 1: 2 of 4 requests, 16.7 tok/s",
        "run 1 of 1: 4 of 4 requests, 16.7 tok/s",
    ] == setting.said


def test_no_two_runs_share_a_prompt(run):
    """Each run draws ids of its own, so that none finds another's in the cache."""
    engine = VirtualEngine()

    run(engine, SINGLE, runs=3, warmup_runs=1)

    assert 16 == len({tuple(sent.token_ids[:16]) for sent in engine.sent})
    assert 0 == engine.counters["hit"]


def test_no_two_measurements_share_a_prompt(setting):
    """Another test, and another name in the same test, have other ids."""
    engine = VirtualEngine()

    measure(engine, ask(SINGLE), setting(engine))
    measure(engine, ask(SINGLE, name="again"), setting(engine))
    measure(engine, ask(SINGLE), setting(engine, "test_it.py::test_other"))

    assert 12 == len({tuple(sent.token_ids[:16]) for sent in engine.sent})


def test_the_same_measurement_sends_the_same_prompts(run):
    """On an engine of ours a repetition is exact: same test, same ids, same times."""
    one, other = VirtualEngine(), VirtualEngine()

    results = [run(engine, runs=2, warmup_runs=1) for engine in (one, other)]

    assert [[*sent.token_ids] for sent in one.sent] == [[*sent.token_ids] for sent in other.sent]
    assert results[0].records == results[1].records


def test_a_server_that_is_not_ours_never_sees_a_prompt_again(run):
    """It may remember an earlier session's prompts, so each measurement has its own."""
    one, other = VirtualEngine(is_ours=False), VirtualEngine(is_ours=False)

    results = [run(engine, SINGLE) for engine in (one, other)]

    assert not {tuple(sent.token_ids[:16]) for sent in one.sent} & {tuple(sent.token_ids[:16]) for sent in other.sent}
    assert results[0].workload_digest == results[1].workload_digest


def test_the_load_decides_the_order(run):
    """The default is one user after another; another load is obeyed."""
    default = run(VirtualEngine())
    closed = run(VirtualEngine(), load=closed_loop(1))

    assert [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)] == [
        (request.session, request.turn) for request in default.records[0].requests
    ]
    assert [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] == [
        (request.session, request.turn) for request in closed.records[0].requests
    ]
    assert ("round_robin()", "closed_loop(1)") == (default.provenance.load, closed.provenance.load)


def test_as_is_leaves_the_cache_alone(run):
    """Nothing is reset and nothing sent ahead."""
    engine = VirtualEngine()
    engine.cached.add((1, 2, 3))

    result = run(engine)

    assert (1, 2, 3) in engine.cached
    assert 6 == len(engine.sent)
    assert (True, ()) == (bool(result.validity), result.doubts)


@pytest.mark.parametrize("words", [{"cache": "primed"}, {"prefill_context": True}])
def test_primed_contexts_are_sent_once_and_unmeasured(run, tmp_path, words):
    """Before each run each session's context is sent for one token; its first turn finds it cached."""
    engine = VirtualEngine()

    result = run(engine, runs=2, **words)

    assert (12, "primed") == (result.requests, result.provenance.cache)
    assert [64] * 4 == [request.cached_tokens for request in result.by_round[0].requests]
    ahead = [engine.sent[n] for n in (0, 1, 8, 9)]
    assert [(64, 1, False)] * 4 == [(len(g.token_ids), g.output_tokens, g.return_token_ids) for g in ahead]
    assert [list(g.token_ids) for g in ahead[:2]] == [list(g.token_ids[:64]) for g in engine.sent[2:4]]
    assert {Phase.PREPARE: 4, Phase.MEASURED: 12} == Counter(record.phase for record in records(tmp_path))


def test_preparing_is_not_in_the_counters_of_the_run(run):
    """The cache result is of the measured requests alone."""
    result = run(VirtualEngine(), ONE_ROUND, cache="primed")

    assert (160, 128) == (sum(result.cache.tiers.values()), result.cache.tiers["gpu"])
    assert 0.8 == pytest.approx(result.cache.hit_rate)


def test_a_prefix_that_sessions_share_is_sent_ahead_once(run):
    """Three groups are three contexts, however many requests they have."""
    engine = VirtualEngine()
    workload = shared_prefix(prefixes=3, requests_per_prefix=4, prefix_tokens=32, input_tokens=16, output_tokens=2)

    result = run(engine, workload, cache="primed")

    assert [32] * 3 == [len(sent.token_ids) for sent in engine.sent[:3]]
    assert 15 == len(engine.sent)
    assert [32] * 12 == [request.cached_tokens for request in result.records[0].requests]


@pytest.mark.parametrize("cache", ["primed", "evicted"])
def test_a_workload_without_a_context_cannot_be_primed(run, cache):
    """The error says which workloads can, and which states need no context."""
    with pytest.raises(ConfigurationError, match="single_turn has no context to prefill; use multi_round or"):
        run(VirtualEngine(), SINGLE, cache=cache)


def test_cold_begins_each_run_with_an_empty_cache(run):
    """The cache is reset, and no first turn is served from it."""
    engine = VirtualEngine()
    engine.cached.add((1, 2, 3))

    result = run(engine, runs=2, cache="cold")

    assert (1, 2, 3) not in engine.cached
    assert [0] * 4 == [request.cached_tokens for request in result.by_round[0].requests]
    assert (True, ()) == (bool(result.validity), result.doubts)


def test_cold_holds_on_an_engine_that_cannot_be_reset(run):
    """Where there is no way to empty the cache, prompts of its own make each run cold."""
    engine = VirtualEngine(resettable=False)

    result = run(engine, runs=3, cache="cold")

    assert [0] * 6 == [request.cached_tokens for request in result.by_round[0].requests]
    assert result.validity


@pytest.mark.parametrize("cache", ["cold", "evicted"])
def test_a_first_turn_from_the_cache_spoils_what_was_declared_empty(run, cache):
    """The declared state is checked against the engine's own counts."""
    result = run(Remembering(kv_capacity_tokens=512), cache=cache, runs=5)

    assert (
        f"the cache was declared {cache}, but the engine took 32 tokens of 2 first turns from it",
    ) == result.validity.reasons
    assert 1 == len(result.records)


@pytest.mark.parametrize("cache", ["as_is", "primed"])
def test_a_first_turn_from_the_cache_is_fine_where_it_may_be(run, cache):
    """Only states that say otherwise are checked."""
    assert run(Remembering(), cache=cache).validity


def test_a_shared_prefix_may_be_cached_though_the_run_began_cold(run):
    """What one session of a run leaves for the next is the workload's point."""
    workload = shared_prefix(prefixes=1, requests_per_prefix=4, prefix_tokens=32, input_tokens=16, output_tokens=2)

    result = run(VirtualEngine(), workload, cache="cold")

    assert [0, 32, 32, 32] == [request.cached_tokens for request in result.records[0].requests]
    assert result.validity


def test_evicted_floods_the_cache_after_priming(run, tmp_path):
    """Contexts are sent ahead, then unrelated prompts in whole blocks that fill the capacity and more."""
    engine = Small(max_model_len=1001, kv_capacity_tokens=2500)

    result = run(engine, ONE_ROUND, cache="evicted", runs=2)

    assert [64, 64, *[768] * 5, 80, 80] * 2 == [len(sent.token_ids) for sent in engine.sent]
    assert [*[1] * 7, 4, 4] * 2 == [sent.output_tokens for sent in engine.sent]
    assert 14 == len({tuple(sent.token_ids[:64]) for sent in engine.sent})
    assert {Phase.PREPARE: 14, Phase.MEASURED: 4} == Counter(record.phase for record in records(tmp_path))
    assert [0] * 4 == [request.cached_tokens for request in result.by_round[0].requests]
    assert (4, True) == (result.requests, bool(result.validity))


def test_an_eviction_that_did_not_happen_makes_the_run_invalid(run):
    """A cache that still holds the contexts after the flood has been seen to."""
    result = run(VirtualEngine(max_model_len=1001, kv_capacity_tokens=2500), cache="evicted")

    assert (
        "the cache was declared evicted, but the engine took 128 tokens of 2 first turns from it",
    ) == result.validity.reasons


def test_a_small_cache_is_flooded_by_a_prompt_of_its_size(run):
    """No prompt is longer than the cache, which could not hold it."""
    engine = Small(max_model_len=20_000, kv_capacity_tokens=512)

    result = run(engine, ONE_ROUND, cache="evicted")

    assert [64, 64, 512] == [len(sent.token_ids) for sent in engine.sent[:3]]
    assert result.validity


@pytest.mark.parametrize("unknown", [{"kv_capacity_tokens": None}, {"max_model_len": None}])
def test_a_cache_of_unknown_size_cannot_be_flooded(run, unknown):
    """The error says what the engine does not tell."""
    with pytest.raises(EngineAnswerError, match="cache='evicted' needs the KV capacity and the context length, which"):
        run(VirtualEngine(**unknown), cache="evicted")


def test_failures_make_a_run_invalid_with_an_example_of_each_kind(run):
    """The reason counts what failed and shows the first of each kind."""

    def fail(number):
        return {1: Failure("timeout", "after 60 s"), 2: Failure("http_500", "oops"), 3: Failure("timeout", "late")}.get(
            number
        )

    result = run(VirtualEngine(Script(fail=fail)), SINGLE)

    assert ("3 of 4 requests failed: 2 timeout (after 60 s); 1 http_500 (oops)",) == result.validity.reasons
    assert {"timeout": 2, "http_500": 1} == result.errors


def test_turns_that_were_never_sent_count_as_failed(run):
    """A session that broke off is not a shorter session."""
    result = run(VirtualEngine(failing(0)))

    assert (
        "3 of 6 requests failed: 2 abandoned (never sent, because turn 0 of the session failed); 1 timeout (request 0)",
    ) == result.validity.reasons


def test_a_spoiled_run_ends_the_measurement(run):
    """The runs after it could not mend it, and cost time."""
    engine = VirtualEngine(failing(8))

    result = run(engine, SINGLE, runs=5)

    assert (3, 12) == (len(result.records), len(engine.sent))
    assert not result.validity


def test_a_spoiled_warm_up_is_shown_instead_of_measuring(run):
    """What failed is in the result, for the reader; nothing is measured after it."""
    engine = VirtualEngine(failing(0))

    result = run(engine, SINGLE, runs=5, warmup_runs=1)

    assert [Phase.WARMUP] == [record.phase for record in result.records]
    assert ("1 of 4 requests failed: 1 timeout (request 0)",) == result.validity.reasons


def test_a_context_that_could_not_be_sent_ahead_makes_the_run_invalid(run):
    """Preparing is not measured, but it has to have happened."""
    result = run(VirtualEngine(failing(0)), cache="primed")

    assert ("1 of 2 requests could not be prepared: 1 timeout (request 0)",) == result.validity.reasons


def test_after_failures_a_dying_engine_gets_a_moment_to_be_seen_dead(run):
    """A server whose requests fail first and whose process ends a little later has died all the same."""

    class Dying(VirtualEngine):
        """Its process has ended half a second after its first failure, and not before."""

        def check(self):
            if self.clock.now_ns() > 500_000_000:
                raise EngineDiedError("the server has ended")

    with pytest.raises(EngineDiedError, match="the server has ended"):
        run(Dying(failing(3), clock=VirtualClock()), SINGLE)


def test_without_failures_nothing_is_waited_for(run):
    """The moment is taken only where something failed."""
    first, second = run(VirtualEngine(), runs=2).records

    assert first.end_ns == second.start_ns


def test_when_the_engine_dies_the_record_file_holds_what_had_ended(run, tmp_path):
    """The error comes through; everything before it can be read, the failure included."""
    engine = VirtualEngine(failing(*range(9, 100), kind="connection_reset"), dies_after=9)

    with pytest.raises(EngineDiedError, match="killed by SIGKILL"):
        run(engine, runs=5)

    ended = records(tmp_path)
    assert [0] * 6 + [1] * 3 == [record.run for record in ended[:9]]
    assert [True] * 9 == [record.ok for record in ended[:9]]
    assert {"connection_reset": 2, "abandoned": 1} == Counter(record.failure.kind for record in ended[9:])


def test_the_record_file_is_named_after_the_measurement(run, tmp_path):
    """Its name can be read, and its first line says what it is of."""
    run(VirtualEngine(), name="cold start")

    (path,) = tmp_path.glob("*.jsonl")
    header = json.loads(path.read_text().splitlines()[0])
    assert path.name.startswith("test_it.py_test_it_cold_start-")
    assert ("test_it.py::test_it::cold start", "NVIDIA-TEST") == (header["measurement"], header["hardware_key"])


def test_measurements_that_look_alike_have_files_of_their_own(setting, tmp_path):
    """Names that differ only in what a file name cannot hold are told apart, however long they are."""
    tests = ["a/b", "a:b", "a b", "x" * 500, "x" * 501]

    for test in tests:
        engine = VirtualEngine()
        measure(engine, ask(SINGLE), setting(engine, test))

    paths = list(tmp_path.glob("*.jsonl"))
    assert 5 == len(paths)
    assert max(len(path.name) for path in paths) < 200


def test_the_run_s_row_has_the_counters_of_the_run(run, tmp_path):
    """After its requests each run is recorded as a whole."""
    run(VirtualEngine(), SINGLE, runs=2)

    (path,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    runs = [row["run"] for row in rows if "run" in row]
    assert [256, 256] == [row["cache"]["queried_tokens"] for row in runs]
    assert [0, 1] == [row["index"] for row in runs]


def test_a_workload_that_is_too_long_is_refused_before_anything_is_sent(run):
    """The error has the longest session, and what the engine takes."""
    engine = VirtualEngine(max_model_len=123)

    with pytest.raises(
        ConfigurationError,
        match="multi_round grows to 124 tokens, input and output together, but virtual at http://virtual takes 123; ",
    ):
        run(engine)

    assert [] == engine.sent


@pytest.mark.parametrize("limit", [124, None])
def test_a_workload_that_just_fits_is_measured(run, limit):
    """The limit itself is allowed; an unknown one is not invented."""
    assert run(VirtualEngine(max_model_len=limit)).validity


def test_an_engine_without_token_ids_is_refused_where_sessions_go_on(run):
    """Nothing can be continued exactly there; the error says what can be measured."""
    engine = VirtualEngine(Script(token_ids=False))

    with pytest.raises(
        ConfigurationError, match=r"does not return token ids .* use single_turn or shared_prefix there"
    ):
        run(engine)

    assert [] == engine.sent


def test_an_engine_without_token_ids_can_answer_single_turns(run):
    """Where nothing is continued, none are needed."""
    assert run(VirtualEngine(Script(token_ids=False)), SINGLE).validity


def test_everything_that_does_not_fit_is_said_at_once(run):
    """Both mistakes are in one error."""
    engine = VirtualEngine(Script(token_ids=False), max_model_len=100)

    with pytest.raises(ConfigurationError) as caught:
        run(engine)

    assert 2 == len(caught.value.problems)


def offloading(*readings, gib=4.0):
    engine = Offloading(spec=EngineSpec(kind="vllm", model="virtual", kv_offload_gib=gib))
    engine.readings = readings
    return engine


def test_an_offload_that_never_happened_makes_the_run_invalid(run):
    """It was asked for, and the engine counted no byte either way."""
    result = run(offloading((7, 7)))

    assert ("kv_offload_gib=4 was asked for, but the engine moved no KV cache out or back",) == result.validity.reasons


@pytest.mark.parametrize("after", [(8, 7), (7, 8), (8, 8)])
def test_an_offload_that_happened_is_valid(run, after):
    """Bytes in either direction will do."""
    result = run(offloading((7, 7), after))

    assert result.validity
    assert (after[0] - 7, after[1] - 7) == (result.cache.offloaded_bytes, result.cache.restored_bytes)


def test_nothing_offloaded_is_fine_where_it_was_not_asked_for(run):
    """Without the word there is nothing to have happened."""
    assert run(offloading((7, 7), gib=None)).validity


def test_an_engine_that_does_not_count_its_offload_is_doubted(run):
    """Not counted is not zero: valid, and said."""
    result = run(VirtualEngine(spec=EngineSpec(kind="vllm", model="virtual", kv_offload_gib=4.0)))

    assert result.validity
    assert ("the engine does not say what it offloaded, so that it did is unverified",) == result.doubts


@pytest.mark.parametrize("cache", ["cold", "evicted"])
def test_a_cache_state_that_cannot_be_verified_is_doubted(run, cache):
    """An engine that does not say what it cached may have cached anything."""
    result = run(Silent(kv_capacity_tokens=512), cache=cache)

    assert result.validity
    assert (f"the engine does not say per request what it cached: that it was {cache} is unverified",) == result.doubts


@pytest.mark.parametrize(("on_device", "doubted"), [(0, False), (1, True)])
def test_an_eviction_into_an_outer_tier_is_verified_by_where_tokens_came_from(run, on_device, doubted):
    """What comes back from outside was evicted, what is found on the device may not have been."""
    engine = Tiered(spec=EngineSpec(kind="vllm", model="virtual", kv_offload_gib=4.0), kv_capacity_tokens=512)
    engine.on_device = on_device
    result = run(engine, cache="evicted")

    assert doubted is any("eviction is unverified" in doubt for doubt in result.doubts)
    assert result.validity


def test_a_cache_that_was_not_declared_is_not_doubted(run):
    """There is nothing to verify."""
    assert () == run(Silent(), cache="as_is").doubts


NOT_PRIMED = "the cache was declared primed, but the engine found nothing of the contexts that were sent ahead"


class Flushing(VirtualEngine):
    """Forgets all once the contexts have been sent ahead, as an engine does that somebody empties."""

    def cache_counters(self):
        self.cached.clear()
        return super().cache_counters()


class Counting(VirtualEngine):
    """Says in all, and not per request, what it found."""

    def finished(self, answer):
        return replace(answer, cached_tokens=None)


def without_prefix_caching():
    return VirtualEngine(Script(prefix_caching=False))


SHARED = shared_prefix(prefixes=1, requests_per_prefix=4, prefix_tokens=64, input_tokens=16, output_tokens=4)
PARTLY_SHARED = multi_round(
    users=3, rounds=2, context_tokens=64, shared_context_tokens=32, input_tokens=16, output_tokens=4
)


def unprimed(result):
    return [doubt for doubt in result.doubts if doubt.startswith(NOT_PRIMED)]


@pytest.mark.parametrize("workload", [ROUNDS, ONE_ROUND, SHARED, PARTLY_SHARED])
@pytest.mark.parametrize("make", [without_prefix_caching, Flushing])
def test_a_primed_run_that_found_nothing_primed_is_no_level(run, make, workload):
    """Whatever later turns, and others that begin alike, find of what the run itself has left. The figures stand."""
    result = run(make(), workload, runs=2, cache="primed")
    assert (True, False, 1) == (bool(result.validity), result.is_level, len(unprimed(result)))
    assert 2 == len(result.records)


@pytest.mark.parametrize("workload", [ROUNDS, ONE_ROUND, SHARED, PARTLY_SHARED])
def test_a_primed_run_that_found_its_contexts_is_valid(run, workload):
    """So that the test above can fail."""
    result = run(VirtualEngine(), workload, runs=2, cache="primed")
    assert (True, True, ()) == (bool(result.validity), result.is_level, result.doubts)


@pytest.mark.parametrize("caches", [True, False])
def test_a_primed_cache_by_the_engine_s_counters(run, caches):
    """Where no request says what it found, the sums do."""
    result = run(Counting(Script(prefix_caching=caches)), ONE_ROUND, cache="primed")
    assert (caches, 0 if caches else 1) == (result.is_level, len(unprimed(result)))


def test_what_an_engine_doubts_of_itself(run):
    """It is in what it tells, and beside each of its measurements."""

    class Doubting(VirtualEngine):
        def describe(self):
            return {**super().describe(), "doubts": ["it is newer than is known"]}

    assert ("it is newer than is known",) == run(Doubting()).doubts


@pytest.mark.parametrize("kind", ["connection_refused", "connection_closed", "timeout"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_server_that_is_gone_and_was_not_started_here(run, kind, is_ours):
    """Whose it is to start again; of more workers, or of what else its figures might suggest, nothing is said."""
    result = run(VirtualEngine(failing(*range(100), kind=kind), is_ours=is_ours, concurrent=True))
    advised = [reason for reason in result.validity.reasons if "was not started here" in reason]
    if is_ours or kind == "timeout":
        assert [] == advised
    else:
        (advice,) = advised
        assert "http://virtual was not started here, nor will it be again" in advice
        assert "start it again where it runs, and repeat the test" in advice
    assert () == result.doubts


@pytest.mark.parametrize(
    ("miscounted", "doubt"),
    [
        ("output_tokens", "6 of 6 answers have another length than was asked for"),
        ("prompt_tokens", "the server counts 6 of 6 inputs otherwise than they were sent"),
    ],
)
def test_lengths_that_are_not_what_was_asked_are_doubted(run, miscounted, doubt):
    """An answer that stopped early, or an input that the server changed, is said beside the figures."""

    result = run(miscounting(miscounted, 1), single_turn(requests=6, input_tokens=100, output_tokens=100))

    assert (doubt,) == result.doubts
    assert result.validity


def miscounting(count, *fewer, **words):
    """An engine whose answers, one after another and over again, have so many tokens fewer than asked for."""

    class Miscounting(VirtualEngine):
        def finished(self, answer):
            return replace(answer, **{count: getattr(answer, count) - fewer[len(self.sent) % len(fewer)]})

    return Miscounting(**words)


@pytest.mark.parametrize(
    ("miscounted", "prompts", "reason"),
    [
        (
            "prompt_tokens",
            None,
            "the prompts have 788 tokens as the server counts them and 800 were asked for, off by 1.5 % where 1.0 % is "
            "allowed: the server changes token ids that it is sent; ",
        ),
        (
            "prompt_tokens",
            "chat",
            "the prompts have 788 tokens as the server counts them and 800 were asked for, off by 1.5 % where 1.0 % is "
            "allowed: texts of known lengths could not be made; ",
        ),
        (
            "output_tokens",
            None,
            "the answers have 788 tokens as the server counts them and 800 were asked for, off by 1.5 % where 1.0 % is "
            "allowed: the server was told to pass over the model's own end (ignore_eos); ",
        ),
    ],
)
def test_lengths_that_are_not_what_was_asked_spoil_the_run(run, miscounted, prompts, reason):
    """Both lengths are said, and what to do; the other runs are not made."""
    engine = miscounting(miscounted, 1, 2, spec=EngineSpec(kind="openai", model="virtual", prompts=prompts))

    result = run(engine, single_turn(requests=8, input_tokens=100, output_tokens=100), runs=3)

    (said,) = result.validity.reasons
    assert said.startswith(reason)
    assert 1 == len(result.records)


def test_lengths_that_cancel_out_spoil_the_run(run):
    """Some prompts too long and as many too short are wrong prompts all the same."""
    result = run(miscounting("prompt_tokens", 5, -5), single_turn(requests=8, input_tokens=100, output_tokens=4))

    assert "have 800 tokens as the server counts them and 800 were asked for, off by 5.0 %" in str(result.validity)


@pytest.mark.parametrize("forces_lengths", [True, False])
def test_answers_that_a_model_may_end_are_doubted_only(run, forces_lengths):
    """Where the server does not take `ignore_eos`, their length is the model's own."""
    engine = miscounting("output_tokens", 50, forces_lengths=forces_lengths)

    result = run(engine, single_turn(requests=8, input_tokens=100, output_tokens=100))

    assert bool(result.validity) is not forces_lengths
    assert ("8 of 8 answers have another length than was asked for",) == result.doubts


@pytest.mark.parametrize(
    ("prompts", "doubts"),
    [(None, ()), ("text", ("the server does not say how many tokens its prompts had: their lengths are unverified",))],
)
def test_texts_that_nobody_counts_are_doubted(run, prompts, doubts):
    """Token ids need no counting."""

    class Silent(VirtualEngine):
        def finished(self, answer):
            return replace(answer, prompt_tokens=None)

    result = run(Silent(spec=EngineSpec(kind="openai", model="virtual", prompts=prompts)), SINGLE)

    assert doubts == result.doubts
    assert result.validity
    assert (4 * 64, None) == (result.input_tokens.asked, result.input_tokens.served)


def test_a_prompt_shorter_than_what_stands_around_it_is_a_mistake(run):
    """Nothing is sent; one that is as long is not."""
    engine = VirtualEngine(prompt_overhead=20)

    with pytest.raises(ConfigurationError) as caught:
        run(engine, single_turn(requests=4, input_tokens=19, output_tokens=4))

    assert (
        "single_turn has a prompt of 19 tokens, but every prompt that virtual at http://virtual sees has at least 20"
        in (str(caught.value))
    )
    assert [] == engine.sent
    assert 4 == run(engine, single_turn(requests=4, input_tokens=20, output_tokens=4)).requests


def test_a_template_in_the_cache_is_no_warm_cache(run):
    """Every prompt begins with it, so it is found, however cold the cache was."""
    assert run(Remembering(prompt_overhead=16), SINGLE, cache="cold").validity
    assert not run(Remembering(prompt_overhead=15), SINGLE, cache="cold").validity


def test_odd_answers_are_doubted(run):
    """What was odd is counted by kind, with an example of each."""

    class Odd(VirtualEngine):
        """Does not say how many tokens it made, or says it wrongly."""

        def finished(self, answer):
            kind = "no_usage" if len(self.sent) < 3 else "wrong_usage"
            return replace(answer, remarks=(Remark(kind, f"example {len(self.sent)}"),))

    result = run(Odd())

    assert ("odd answers among 6: 4 wrong_usage (example 3); 2 no_usage (example 1)",) == result.doubts
    assert {"no_usage": 2, "wrong_usage": 4} == result.remarks
    assert result.validity


def test_a_client_that_is_busy_all_the_time_is_doubted(run, monkeypatch):
    """It may be what limits the throughput, and the doubt says what would help."""
    readings = iter(range(0, 10**12, 10**9))
    engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.25, itl_s=0.0))
    monkeypatch.setattr(engine.clock, "cpu_ns", lambda: next(readings))

    busy, idle = (run(engine, single_turn(requests=n, input_tokens=4, output_tokens=2)) for n in (4, 5))

    assert (
        "a client process used 100.0 % of a processor, so it may be what limits the throughput; use more workers "
        "(--llmperf-workers)",
    ) == busy.doubts
    assert (1.0, 0.8, ()) == (busy.client.cpu_share, idle.client.cpu_share, idle.doubts)


def test_a_client_to_which_nothing_was_answered_is_not_doubted(run, monkeypatch):
    """More workers would help nobody."""
    readings = iter(range(0, 10**12, 10**9))
    engine = VirtualEngine(replace(failing(*range(100)), ttft_s=lambda computed, number: 0.25, itl_s=0.0))
    monkeypatch.setattr(engine.clock, "cpu_ns", lambda: next(readings))

    assert () == run(engine, single_turn(requests=4, input_tokens=4, output_tokens=2)).doubts


def test_a_wall_clock_that_was_set_is_doubted(run):
    """Stamps from that moment mean nothing."""

    class Stepping(VirtualEngine):
        def open_channel(self):
            channel = super().open_channel()
            channel.stats.clock_steps = 1
            return channel

    assert ("the wall clock was set 2 times; what arrived in those moments is stamped by when it was read",) == run(
        Stepping(), runs=2
    ).doubts


def test_the_channel_is_closed_whatever_happens(run):
    """No connection is left, neither after a run nor after an error."""
    healthy, dying = VirtualEngine(), VirtualEngine(failing(0), dies_after=0)

    run(healthy, cache="primed")
    with pytest.raises(EngineDiedError):
        run(dying)

    assert [True, True, True] == [channel.closed for channel in healthy.channels + dying.channels]


def test_the_client_s_delays_are_those_of_the_channel(run):
    """What the channel says of its own absence goes into the run, that of the preparation left out."""

    class Busy(VirtualEngine):
        def open_channel(self):
            channel = super().open_channel()
            channel.stats.away.add(5_000_000 * len(self.channels))
            return channel

    assert 0.005 == pytest.approx(run(Busy(), cache="primed").client.lag_p99_s, rel=0.04)


class TestLoads:
    """What the load makes of a run."""

    def test_a_window_without_a_request_spoils_the_run(self, run):
        """A warm-up that outlasts the run leaves nothing to be measured."""
        result = run(VirtualEngine(), ONE_ROUND, load=closed_loop(1, warmup_s=100.0))

        assert not result.validity
        assert "no request was meant to be sent within the window" in str(result.validity)

    def test_shed_load_spoils_the_run(self, run):
        """What was not sent was not measured; the reason says what to do."""
        engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.5), concurrent=True)

        result = run(engine, SINGLE, load=constant(10, max_in_flight=2), runs=3)

        assert (
            "2 turns of the load could not be sent within max_in_flight and were dropped; offer less, or allow more",
        ) == result.validity.reasons
        assert (2, 1, 2) == (result.load.shed, len(result.records), result.requests)

    def test_a_window_is_kept_with_the_run_and_decides_what_counts(self, run, tmp_path):
        """Requests of the warm-up are on record, and in no figure."""
        engine = VirtualEngine(Script(ttft_s=lambda computed, number: 0.1 * (1 + number % 5)), concurrent=True)
        load = constant(10, warmup_s=0.5, duration_s=1.5)

        result = run(engine, single_turn(requests=30, input_tokens=8, output_tokens=4), load=load)

        (record,) = result.records
        start_ns = record.start_ns
        assert Window(start_ns + 500_000_000, start_ns + 1_500_000_000) == record.window
        assert (15, 10, 10) == (len(record.requests), len(record.counted), result.requests)
        assert (10.0, 10.0) == (pytest.approx(result.load.offered), pytest.approx(result.load.achieved))
        rows = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
        assert [{"start_ns": start_ns + 500_000_000, "end_ns": start_ns + 1_500_000_000}] == [
            row["run"]["window"] for row in rows if "run" in row
        ]

    def test_a_session_that_the_load_cut_short_is_no_failure(self, run):
        """Turns that were never meant to be sent are not missing."""
        result = run(VirtualEngine(concurrent=True), load=closed_loop(2, max_requests=3))

        assert (True, {}, 3) == (bool(result.validity), result.errors, len(result.records[0].requests))

    @pytest.mark.parametrize(
        ("load", "is_open"), [(round_robin(), False), (closed_loop(2), False), (constant(9), True), (poisson(9), True)]
    )
    def test_it_is_told_whether_the_load_waits(self, run, load, is_open):
        """It stands in the provenance beside the load."""
        result = run(VirtualEngine(concurrent=True), load=load)

        assert (load.describe(), is_open) == (result.provenance.load, result.provenance.open_load)

    def test_requests_are_kept_in_the_order_of_their_ends(self, run):
        """In whatever order they were read."""
        engine = VirtualEngine(Script(ttft_s=lambda computed, number: [0.4, 0.1, 0.3, 0.2][number]), concurrent=True)

        (record,) = run(engine, SINGLE, load=closed_loop(4)).records

        assert [1, 3, 2, 0] == [request.session for request in record.requests]

    def test_another_team_drives_the_runs_and_not_the_preparation(self, setting):
        """Contexts are sent ahead by this process, one after another; its problems spoil the run."""

        phases = []

        class Watched(LocalTeam):
            def run(self, job, record, check_engine):
                phases.append(job.phase)
                driven = super().run(job, record, check_engine)
                driven.problems += ("a worker was lost",)
                return driven

        engine = VirtualEngine()

        result = measure(engine, ask(cache="primed"), setting(engine, team=Watched(engine.clock)))

        assert [Phase.MEASURED] == phases
        assert ("a worker was lost",) == result.validity.reasons


def test_the_provenance_says_what_was_measured(run):
    """Test, hardware, workload, load, cache and engine are all there."""
    spec = EngineSpec(kind="vllm", model="asked", dtype="bfloat16", prefix_caching=True)

    result = run(VirtualEngine(spec=spec), name="warm", load=round_robin(barrier=True), cache="cold")

    about = result.provenance
    assert ("test_it.py::test_it::warm", "NVIDIA-TEST") == (about.measurement, about.hardware_key)
    assert ("multi_round", ROUNDS.digest) == (about.workload, about.workload_digest)
    assert ("round_robin(barrier=True)", "cold", "vllm") == (about.load, about.cache, about.engine_kind)
    assert ("virtual", "bfloat16") == (about.engine_identity["model"], about.engine_identity["dtype"])
    assert {"kind": "vllm", "model": "asked", "dtype": "bfloat16", "prefix_caching": True} == about.engine_words
    assert {"model": "virtual", "version": "virtual"} == about.engine


def test_limits_reach_the_result(run):
    """`slo` is what goodput is of."""
    result = run(VirtualEngine(), SINGLE, slo={"ttft": 10.0})

    assert result.request_throughput == pytest.approx(result.goodput)


def test_what_is_left_out_has_its_default():
    """One user after another, and the cache as it is."""
    request = ask()

    assert (round_robin(), "as_is", None, None) == (request.load, request.cache, request.slo, request.name)


def test_a_name_is_text():
    """Whatever was given, the name is its text."""
    assert "7" == ask(name=7).name


@pytest.mark.parametrize("cache", ["as_is", "primed"])
def test_prefilling_the_context_is_another_word_for_primed(cache):
    """Both together are not a contradiction."""
    assert "primed" == ask(cache=cache, prefill_context=True).cache


def test_all_mistakes_are_reported_at_once():
    """The error lists each argument, what it was and what is accepted."""
    with pytest.raises(ConfigurationError) as caught:
        ask(
            ["not a workload"],
            load="round_robin",
            runs=0,
            warmup_runs=-1,
            cache="warm",
            prefill_context=True,
            slo={"ttft": -1, "latency": 0.5, "tpot": "fast", "itl": float("nan"), "e2e": True},
        )

    accepted = "expected a positive number of seconds for one of ttft, tpot, itl, e2e, scheduled_ttft"
    assert (
        "llm_perf: expected a workload such as multi_round(...), got ['not a workload']",
        "llm_perf: load must be a load model such as closed_loop(8), got 'round_robin'",
        "llm_perf: runs must be a whole number of at least 1, or 'auto', got 0",
        "llm_perf: warmup_runs must be a whole number of at least 0, got -1",
        "llm_perf: unknown cache state 'warm'; accepted: as_is, cold, primed, evicted",
        "llm_perf: prefill_context=True is cache='primed'; it cannot go with cache='warm'",
        f"llm_perf: slo has 'ttft': -1; {accepted}",
        f"llm_perf: slo has 'latency': 0.5; {accepted}",
        f"llm_perf: slo has 'tpot': 'fast'; {accepted}",
        f"llm_perf: slo has 'itl': nan; {accepted}",
        f"llm_perf: slo has 'e2e': True; {accepted}",
    ) == caught.value.problems


@pytest.mark.parametrize("runs", [0, -1, 1.0, True, "five", None])
def test_runs_that_are_no_positive_whole_number_are_refused(runs):
    """A run is run whole, and at least once."""
    with pytest.raises(ConfigurationError, match="runs must be a whole number of at least 1"):
        ask(runs=runs)


@pytest.mark.parametrize("load", [round_robin, closed_loop, 8])
def test_a_load_that_was_not_called_is_refused(load):
    """`load=round_robin` without parentheses is a mistake that is named."""
    with pytest.raises(ConfigurationError, match="load must be a load model such as"):
        ask(load=load)


def test_limits_may_be_any_positive_number_of_seconds():
    """Fractions are the usual case; 0 is not positive."""
    assert {"ttft": 0.5, "tpot": 1} == ask(slo={"ttft": 0.5, "tpot": 1}).slo
    with pytest.raises(ConfigurationError, match="slo has 'ttft': 0; expected a positive number"):
        ask(slo={"ttft": 0})


def test_limits_that_are_no_mapping_are_refused():
    """A single number does not say what it limits."""
    with pytest.raises(ConfigurationError, match=r"slo must be a dict of seconds by ttft, .*, got 0\.5"):
        ask(slo=0.5)


def test_prefilling_contradicts_an_empty_cache():
    """The two words cannot both hold."""
    with pytest.raises(ConfigurationError, match="it cannot go with cache='cold'"):
        ask(cache="cold", prefill_context=True)
