"""One performance test, in order: engine, cache state, runs, validity, result."""

from __future__ import annotations

import re
import secrets
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pytest_llmperf import units
from pytest_llmperf.clock import NS_PER_S, Clock, seconds_between
from pytest_llmperf.driver import Driven, Job, LocalTeam, Team
from pytest_llmperf.engines.base import Engine
from pytest_llmperf.engines.process import Progress
from pytest_llmperf.errors import ConfigurationError, EngineAnswerError
from pytest_llmperf.judged import Provenance, Validity
from pytest_llmperf.load import Extent, Load, round_robin
from pytest_llmperf.metrics import span
from pytest_llmperf.record_file import RecordFile
from pytest_llmperf.records import CacheCounters, Failure, Phase, Remark, RequestRecord, RunRecord
from pytest_llmperf.request import Request
from pytest_llmperf.results import PerfResult
from pytest_llmperf.telemetry import Plan, Watch
from pytest_llmperf.workloads import Session, Turn
from pytest_llmperf.workloads.base import TokenSource

# After a failed request a dying server may still need a moment to be seen as dead.
_DYING_S = 3.0
_DYING_POLL_S = 0.25
# A multiple of every block size that engines use by default: 16, 32, 64 and 128 tokens.
_BLOCKS = 256
_TELL_EVERY_NS = NS_PER_S // 2
WRONG_LENGTH_SHARE = 0.01
"""Beyond this share of the tokens asked for, lengths that differ make a run invalid: prompts and answers each.

Prefill and decode take time in proportion to their tokens, so lengths that are off by 1 % move TTFT and
throughput by about as much: a tenth of the change that the gate is to see by default.
"""
# A client that uses more of its core may be what limits the throughput.
_BUSY_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and under what name a measurement takes place."""

    test: str
    hardware_key: str
    clock: Clock
    record_dir: Path
    progress: Progress
    team: Team
    """Who sends the load."""
    telemetry: Plan | None = None
    """What is sampled beside each run."""
    tolerated: frozenset[str] = frozenset()
    """Rules on the hardware whose breach makes a doubt, and no run invalid."""
    arm: str | None = None
    """Which of several builds is measured, where there are several."""


def measure(
    engine: Engine, request: Request, setting: Setting, is_enough: Callable[[PerfResult], bool] | None = None
) -> PerfResult:
    """Run the workload as often as asked and return what was measured.

    `is_enough` is asked at each look before the last whether the runs so far will do.
    Requests are on disk as soon as they have ended. A run that is spoiled ends the measurement:
    the others could not mend it. Raises `EngineError` if the engine cannot be started or dies,
    `ConfigurationError` if the workload does not fit it.
    """
    with Measurement(engine, request, setting) as measurement:
        for index in range(-request.warmup_runs, request.runs):
            if not measurement.run(index):
                break
            if is_enough is not None and index + 1 in request.budget.looks[:-1] and is_enough(measurement.result()):
                break
    return measurement.result()


class Measurement:
    """The runs of one workload on one engine, one at a time, as whoever measures asks for them."""

    def __init__(self, engine: Engine, request: Request, setting: Setting) -> None:
        """Start the engine, if it does not run. Raises as `measure` does."""
        began_ns = setting.clock.now_ns()
        engine.start()
        turns = _check_fit(engine, request)
        self.engine = engine
        self._ready_ns = engine.ready_ns if engine.ready_ns is not None and engine.ready_ns >= began_ns else None
        """When the engine was ready, if this measurement has started it."""
        self.provenance = _provenance(engine, request, setting)
        self.records: list[RunRecord] = []
        self.validity = Validity()
        self._request = request
        path = setting.record_dir / f"{_file_stem(self.provenance.measurement, setting.arm)}.jsonl"
        about = {
            "measurement": self.provenance.measurement,
            "hardware_key": self.provenance.hardware_key,
            **({} if setting.arm is None else {"arm": setting.arm}),
        }
        self._rows = RecordFile(path, about)
        self._watch = _watch(setting, path.with_suffix(".telemetry.ndjson"), about)
        self._runs = _Runs(engine, request, setting, self._rows, Extent.of(request.load, turns), self._watch)

    def __enter__(self) -> Measurement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the record file, and what samples beside the runs."""
        self._watch.close()
        self._rows.close()

    def run(self, index: int) -> bool:
        """One run; a negative `index` is a warm-up. False if it was spoiled: the others could not mend it."""
        record, spoiled = self._runs.run(index)
        self._note_first(record)
        self._rows.run(record)
        self.validity = Validity(spoiled)
        if record.phase is Phase.MEASURED or spoiled:
            self.records.append(record)
        return not spoiled

    def _note_first(self, record: RunRecord) -> None:
        """How long it was from ready to the first request of the first run, with all that preparing it took."""
        sent_ns = [request.sent_ns for request in record.requests if request.sent_ns is not None]
        if self._ready_ns is not None and sent_ns:
            took_s = round(seconds_between(self._ready_ns, min(sent_ns)), 3)
            about = {**self.provenance.engine, "ready_to_first_request_s": took_s}
            self.provenance, self._ready_ns = replace(self.provenance, engine=about), None

    def result(self) -> PerfResult:
        """What was measured so far."""
        return PerfResult(
            list(self.records),
            provenance=self.provenance,
            validity=self.validity,
            slo=self._request.slo,
            doubts=(*_doubts(self.engine, self._request, self.records), *self._watch.doubts),
            looks=self._request.budget.looks,
        )


class _Runs:
    """The passes of one workload over one engine."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        setting: Setting,
        rows: RecordFile,
        extent: Extent,
        watch: Watch,
    ) -> None:
        self._engine = engine
        self._extent = extent
        self._request = request
        self._setting = setting
        self._rows = rows
        self._watch = watch
        names = [name for name in (setting.arm, request.name) if name is not None]
        self._label = ": ".join([*names, "run"])
        # A server that is not ours may still hold what an earlier session sent it.
        self._salt = "" if engine.is_ours else secrets.token_hex(8)

    def run(self, index: int) -> tuple[RunRecord, tuple[str, ...]]:
        """One pass; a negative `index` is a warm-up. Returns it and what spoils it."""
        phase = Phase.WARMUP if index < 0 else Phase.MEASURED
        number = index + self._request.warmup_runs + 1
        total = self._request.runs + self._request.warmup_runs
        most = "at most " if len(self._request.budget.looks) > 1 else ""
        title = f"{self._label} {number} of {most}{total}{' (warm-up)' if index < 0 else ''}"
        self._setting.progress(title, "", (number - 1) / total)
        workload = self._request.workload.within(self._namespace(f"run {index}"))
        prepared = self._prepare(index, workload)
        unprepared = tuple(_failures(prepared, "could not be prepared"))
        if unprepared:
            self._look_after_engine()
            now_ns = self._setting.clock.now_ns()
            return RunRecord(index=index, phase=phase, start_ns=now_ns, end_ns=now_ns, requests=()), unprepared
        self._engine.request_timings()  # those of what came before are nobody's
        before = self._engine.cache_counters()
        told = _Told(self._setting, title, self._extent, before=number - 1, runs=total)
        with self._watch.beside(index):
            requests, driven = self._drive(index, phase, workload, self._request.load, told)
        cache = self._engine.cache_counters().since(before)
        spoiled = (
            *driven.problems,
            *driven.unaccounted(requests),
            *_failures(requests, "failed"),
            *_shed(driven),
            *self._wrong_cache(requests, workload),
            *self._wrong_lengths(requests),
            *self._no_offload(cache),
        )
        if any(not request.ok for request in requests):
            self._look_after_engine()
        timings = self._engine.request_timings()
        record = driven.run(requests, index=index, phase=phase, cache=cache, timings=timings)
        record = replace(record, telemetry=self._watch.summary(span(record)))
        spoiled += tuple(self._watch.spoiled(record.telemetry, cache, is_ours=self._engine.is_ours))
        if requests and not record.counted:
            spoiled += (
                f"no request was meant to be sent within the window that counts ({self._request.load.describe()})",
            )
        return record, spoiled

    def _look_after_engine(self) -> None:
        """Raise if it was the engine's end that made requests fail."""
        for _ in range(int(_DYING_S / _DYING_POLL_S)):
            self._engine.check()
            self._setting.clock.sleep(_DYING_POLL_S)
        self._engine.check()

    def _namespace(self, part: str) -> str:
        name = self._request.name or ""
        return "\0".join((self._salt, self._setting.test, name, part))

    def _prepare(self, index: int, sessions: Iterable[Session]) -> tuple[RequestRecord, ...]:
        """Bring the cache into the declared state; returns the requests that took."""
        cache = self._request.cache
        if cache == "as_is":
            return ()
        self._engine.reset_cache()  # where it cannot, the prompts are disjoint all the same
        if cache == "cold":
            return ()
        contexts = [session.context for session in sessions]
        prompts = list(dict.fromkeys(tuple(context) for context in contexts if context))
        prepared = self._send_ahead(index, prompts)
        if cache == "evicted":
            prepared += self._send_ahead(index, self._flood(index))
        return prepared

    def _flood(self, index: int) -> list[tuple[int, ...]]:
        """Unrelated prompts that fill the device's whole KV cache once over."""
        capacity, longest = self._engine.kv_capacity_tokens, self._engine.max_model_len
        if not capacity or longest is None or longest < 2:
            msg = (
                f"cache='evicted' needs the KV capacity and the context length, which {self._engine.url} does not tell"
            )
            raise EngineAnswerError(msg)
        length = min(longest - 1, capacity)
        if length > _BLOCKS:  # the rest of a block is not kept, so it displaces nothing
            length -= length % _BLOCKS
        source = TokenSource(0, self._namespace(f"flood {index}"), self._request.workload.token_ids)
        return [tuple(source.draw(str(n), length).tolist()) for n in range(-(-capacity // length) + 1)]

    def _send_ahead(self, index: int, prompts: Sequence[tuple[int, ...]]) -> tuple[RequestRecord, ...]:
        """Send prompts one after another, unmeasured, one token of answer each."""
        nothing = np.empty(0, np.int32)
        turns = [Turn(prefix=np.array(ids, np.int32), new_ids=nothing, output_tokens=1) for ids in prompts]
        sessions = [Session(turns=(turn,)) for turn in turns]
        return self._drive(index, Phase.PREPARE, sessions, round_robin(), None)[0]

    def _drive(
        self, index: int, phase: Phase, sessions: Iterable[Session], load: Load, told: _Told | None
    ) -> tuple[tuple[RequestRecord, ...], Driven]:
        """Have the sessions driven; `told` says how far that has come."""
        setting = self._setting
        requests: list[RequestRecord] = []

        def record(request: RequestRecord) -> None:
            requests.append(self._rows.request(request))
            if told is not None:
                told.ended(request)

        team = LocalTeam(setting.clock) if phase is Phase.PREPARE else setting.team
        job = Job(connector=self._engine.connector(), sessions=sessions, load=load, run=index, phase=phase)
        driven = team.run(job, record, self._engine.check)
        requests.sort(key=lambda request: (request.end_ns, request.session, request.turn))
        return tuple(requests), driven

    def _wrong_cache(self, requests: Sequence[RequestRecord], sessions: Iterable[Session]) -> Iterator[str]:
        """A first turn that was served from a cache that should not have held it."""
        if not _is_verified(self._engine, self._request):
            return
        # What stands around every prompt, a chat template say, is the same for all.
        shared = [session.shared_tokens + self._engine.prompt_overhead for session in sessions]
        first = [request for request in requests if request.turn == 0 and request.cached_tokens is not None]
        warm = [r for r in first if (r.cached_tokens or 0) > shared[r.session]]
        if warm:
            tokens = sum(request.cached_tokens or 0 for request in warm)
            yield (
                f"the cache was declared {self._request.cache}, but the engine took {tokens} tokens of "
                f"{len(warm)} first turns from it"
            )

    def _wrong_lengths(self, requests: Sequence[RequestRecord]) -> Iterator[str]:
        """Prompts, and answers that the model could not end, whose real lengths are not those asked for."""
        answered = [request for request in requests if request.ok]
        prompts = [(r.input_tokens, r.prompt_tokens) for r in answered if r.prompt_tokens is not None]
        yield from _wrong_length("the prompts have", prompts, self._longer_prompts())
        if self._engine.forces_lengths:
            answers = [(r.output_tokens_asked, r.output_tokens) for r in answered if r.output_tokens is not None]
            yield from _wrong_length("the answers have", answers, _FULL_ANSWERS)

    def _longer_prompts(self) -> str:
        return _IDS_AS_THEY_ARE if self._engine.spec.prompts is None else _KNOWN_LENGTHS

    def _no_offload(self, cache: CacheCounters) -> Iterator[str]:
        asked = self._engine.spec.kv_offload_gib
        if asked is not None and cache.offloaded_bytes == 0 and not cache.restored_bytes:
            yield f"kv_offload_gib={asked:g} was asked for, but the engine moved no KV cache out or back"


class _Told:
    """Says every half second how far a run has come, by the engine's clock."""

    def __init__(self, setting: Setting, title: str, extent: Extent, *, before: int, runs: int) -> None:
        """`before`: the runs that are over, of `runs`."""
        self._setting = setting
        self._title = title
        self._extent = extent
        self._before = before
        self._of = runs
        self._requests = 0
        self._tokens: int | None = 0
        self._began_ns = self._told_ns = setting.clock.now_ns()

    def ended(self, request: RequestRecord) -> None:
        """One more request has its answer, or has failed."""
        self._requests += 1
        if self._tokens is not None and request.ok:
            self._tokens = None if request.output_tokens is None else self._tokens + request.output_tokens
        now_ns = self._setting.clock.now_ns()
        if now_ns - self._told_ns > _TELL_EVERY_NS:
            self._told_ns = now_ns
            passed_s = seconds_between(self._began_ns, now_ns)
            share = self._extent.share(self._requests, passed_s)
            self._setting.progress(f"{self._title}: {self._counts(passed_s)}", "", (self._before + share) / self._of)

    def _counts(self, passed_s: float) -> str:
        requests = f"{self._requests:,} of {units.count(self._extent.requests, 'request')}"
        if self._tokens is None:  # the server does not say
            return requests
        return f"{requests}, {units.quantity(self._tokens / passed_s, units.TOKENS_PER_SECOND)}"


_IDS_AS_THEY_ARE = (
    "the server changes token ids that it is sent; see that it neither cuts prompts nor adds to them, and that the "
    "workload's token_ids are in its vocabulary"
)
_KNOWN_LENGTHS = (
    "texts of known lengths could not be made; send token ids (prompts='ids') if the server takes them, or name the "
    "model's own tokenizer.json (tokenizer=...)"
)
_FULL_ANSWERS = (
    "the server was told to pass over the model's own end (ignore_eos); see what else ends its answers, such as a "
    "limit of its own, or ask for fewer tokens"
)


def _wrong_length(what: str, lengths: Sequence[tuple[int, int]], advice: str) -> Iterator[str]:
    """`lengths`: of each request, asked for and real."""
    asked, real = (sum(pair[index] for pair in lengths) for index in (0, 1))
    off = sum(abs(one - other) for one, other in lengths)
    if off > WRONG_LENGTH_SHARE * asked:
        yield (
            f"{what} {real:,} tokens as the server counts them and {asked:,} were asked for, off by "
            f"{units.share(off / asked)} where {units.share(WRONG_LENGTH_SHARE)} is allowed: {advice}"
        )


def _shed(driven: Driven) -> Iterator[str]:
    if driven.shed:
        yield (
            f"{units.count(driven.shed, 'turn')} of the load could not be sent within max_in_flight and "
            "were dropped; offer less, or allow more"
        )


def _failures(requests: Sequence[RequestRecord], what: str) -> Iterator[str]:
    """One sentence on the requests that have no answer, with an example of each kind."""
    failed = [request.failure for request in requests if request.failure is not None]
    if not failed:
        return
    yield f"{len(failed)} of {len(requests)} requests {what}: {_by_kind(failed)}"


def _by_kind(events: Sequence[Failure | Remark]) -> str:
    """How many of each kind, with an example."""
    examples = {event.kind: event.detail for event in reversed(events)}
    counts = Counter(event.kind for event in events)
    return "; ".join(f"{count} {kind} ({examples[kind]})" for kind, count in counts.most_common())


def _check_fit(engine: Engine, request: Request) -> int:
    """The workload's turns. Raises `ConfigurationError` if the engine cannot serve it; nothing was sent yet."""
    longest, shortest, continues, turns = 0, sys.maxsize, False, 0
    for session in request.workload:
        turns += len(session.turns)
        longest = max(longest, session.total_tokens)
        shortest = min(shortest, session.fewest_input_tokens)
        continues = continues or bool(session.continued_from)
    problems = []
    name, limit = request.workload.name, engine.max_model_len
    if limit is not None and longest > limit:
        problems.append(
            f"{name} grows to {longest} tokens, input and output together, but {engine.model} at {engine.url} takes "
            f"{limit}; shorten it or raise max_model_len, as far as the KV cache goes"
            f"{'' if engine.kv_capacity_tokens is None else f' ({engine.kv_capacity_tokens} tokens)'}"
        )
    if shortest < engine.prompt_overhead:
        problems.append(
            f"{name} has a prompt of {units.count(shortest, 'token')}, but every prompt that {engine.model} at "
            f"{engine.url} sees has at least {engine.prompt_overhead}: the chat template and what begins a text count, "
            "too; make the prompts longer, or send token ids (prompts='ids')"
        )
    if continues and not engine.returns_token_ids:
        problems.append(
            f"{name} continues from the tokens that the engine produced, but {engine.url} does not return token ids "
            "(return_token_ids, as vLLM has it); use single_turn or shared_prefix there"
        )
    if problems:
        raise ConfigurationError(*problems)
    return turns


def _doubts(engine: Engine, request: Request, records: Sequence[RunRecord]) -> tuple[str, ...]:
    """What a reader should know about the figures although they stand."""
    requests = [r for record in records for r in record.requests if r.ok]
    doubts = []
    restored = [record.cache.restored_bytes for record in records]
    if request.cache == "evicted" and engine.spec.kv_offload_gib is not None and restored and not any(restored):
        doubts.append("nothing came back from an outer tier: what was evicted is gone from there, too, and is computed")
    elif request.cache == "evicted" and not (_is_verified(engine, request) or _left_the_device(records)):
        doubts.append("with KV offload an evicted context may come back from an outer tier, so eviction is unverified")
    elif request.cache in ("cold", "evicted") and all(r.cached_tokens is None for r in requests):
        doubts.append(f"the engine does not say per request what it cached: that it was {request.cache} is unverified")
    other = sum(r.output_tokens is not None and r.output_tokens != r.output_tokens_asked for r in requests)
    if other:
        doubts.append(f"{other} of {len(requests)} answers have another length than was asked for")
    unlike = sum(r.prompt_tokens is not None and r.prompt_tokens != r.input_tokens for r in requests)
    if unlike:
        doubts.append(f"the server counts {unlike} of {len(requests)} inputs otherwise than they were sent")
    if engine.spec.prompts is not None and requests and all(r.prompt_tokens is None for r in requests):
        doubts.append("the server does not say how many tokens its prompts had: their lengths are unverified")
    if engine.spec.kv_offload_gib is not None and all(record.cache.offloaded_bytes is None for record in records):
        doubts.append("the engine does not say what it offloaded, so that it did is unverified")
    remarks = [remark for r in requests for remark in r.remarks]
    if remarks:
        doubts.append(f"odd answers among {len(requests)}: {_by_kind(remarks)}")
    told = (problem for record in records if record.telemetry is not None for problem in record.telemetry.problems)
    return (*doubts, *_client_doubts(records), *dict.fromkeys(told))


def _client_doubts(records: Sequence[RunRecord]) -> Iterator[str]:
    busiest = max((share for record in records for share in record.client.cpu_shares), default=0.0)
    if busiest > _BUSY_SHARE:
        yield (
            f"a client process used {units.share(busiest)} of a processor, so it may be what limits the throughput; "
            "use more workers (--llmperf-workers)"
        )
    again, late, connections = (
        sum(getattr(record.client, name) for record in records)
        for name in ("retransmitted", "out_of_order", "disturbed_connections")
    )
    if connections:
        yield (
            f"the network was disturbed: {units.count(again, 'segment')} had to be sent again and {late} came out of "
            f"order, on {units.count(connections, 'connection')}; what that took is in these latencies"
        )
    steps = sum(record.client.clock_steps for record in records)
    if steps:
        yield f"the wall clock was set {steps} times; what arrived in those moments is stamped by when it was read"


def _is_verified(engine: Engine, request: Request) -> bool:
    """Whether a first turn that is served from a cache belies the declared cache state."""
    return request.cache == "cold" or (request.cache == "evicted" and engine.spec.kv_offload_gib is None)


def _left_the_device(records: Sequence[RunRecord]) -> bool:
    """Whether the engine counted that no token of any prompt was found on the device."""
    return all((record.cache.tokens_by_tier or {}).get("gpu") == 0 for record in records)


def _provenance(engine: Engine, request: Request, setting: Setting) -> Provenance:
    return Provenance(
        test=setting.test,
        name=request.name,
        hardware_key=setting.hardware_key,
        workload=request.workload.name,
        workload_digest=request.workload.digest,
        load=request.load.describe(),
        open_load=request.load.is_open,
        cache=request.cache,
        engine_kind=engine.spec.kind,
        engine_identity={**engine.spec.identity(), "model": engine.model},
        engine_words=engine.spec.words(),
        engine=engine.describe(),
        simulated=engine.is_simulated,
    )


def _watch(setting: Setting, path: Path, about: dict[str, Any]) -> Watch:
    """Who looks on; nothing is sampled where time is virtual, as sensors know none."""
    plan, clock = setting.telemetry, setting.clock
    if plan is None or clock.cpu_ns() is None:
        return Watch(clock)
    return Watch(clock, plan.start(clock, path, about), plan.known, setting.tolerated)


def _file_stem(measurement: str, arm: str | None) -> str:
    """A file name for a measurement: readable, bounded in length, and no other's."""
    name = measurement if arm is None else f"{measurement} {arm}"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")
    return f"{plain[-140:]}-{zlib.crc32(name.encode()):08x}"
