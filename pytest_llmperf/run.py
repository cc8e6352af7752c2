"""One run: the cache brought into its state, the load driven, what spoils it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pytest_llmperf import units
from pytest_llmperf.clock import NS_PER_S, Clock, seconds_between
from pytest_llmperf.driver import Driven, Job, LocalTeam, Team
from pytest_llmperf.engines.base import Engine
from pytest_llmperf.engines.process import Progress
from pytest_llmperf.errors import EngineAnswerError
from pytest_llmperf.journal import Journal
from pytest_llmperf.load import Extent, Load, round_robin
from pytest_llmperf.metrics import span
from pytest_llmperf.record_file import RecordFile
from pytest_llmperf.records import CacheCounters, Failure, Phase, Remark, RequestRecord, RunRecord
from pytest_llmperf.request import Request
from pytest_llmperf.resume import Earlier
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
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Options that bear on what is measured."""
    earlier: Earlier | None = None
    """A session that was cut short, whose runs count where they are of the same."""
    journal: Journal | None = None
    """What keeps account of the session, where there is one."""


class Runs:
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
        self.unfit: str | None = None
        """Why what was measured is no level to hold others against, although its figures stand."""
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
        if any(not request.ok for request in requests):
            self._look_after_engine()  # before a dead one is asked anything, whose silence would be the error
        cache = self._engine.cache_counters().since(before)
        if not self._has_found_primed(requests, workload, cache):
            self.unfit = _NOT_PRIMED
        spoiled = (
            *driven.problems,
            *driven.unaccounted(requests),
            *_failures(requests, "failed"),
            *_shed(driven),
            *self._not_ours_to_start(requests),
            *self._wrong_cache(requests, workload),
            *self._wrong_lengths(requests),
            *self._no_offload(cache),
        )
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
        unanswered: list[RequestRecord] = []

        def record(request: RequestRecord) -> None:
            requests.append(self._rows.request(request))
            if request.failure is not None and request.failure.kind == "timeout":
                unanswered.append(request)
            if told is not None:
                told.ended(request)

        team = LocalTeam(setting.clock) if phase is Phase.PREPARE else setting.team
        job = Job(connector=self._engine.connector(), sessions=sessions, load=load, run=index, phase=phase)

        def check() -> None:
            """An engine that hangs would else keep every request for as long as one may stay silent."""
            self._engine.check()
            if unanswered and self._engine.is_ours:  # one of somebody else's is theirs to end
                unanswered.clear()
                self._engine.check_answers()

        driven = team.run(job, record, check)
        requests.sort(key=lambda request: (request.end_ns, request.session, request.turn))
        return tuple(requests), driven

    def _wrong_cache(self, requests: Sequence[RequestRecord], sessions: Iterable[Session]) -> Iterator[str]:
        """A first turn that was served from a cache that should not have held it."""
        if not is_verified(self._engine, self._request):
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

    def _has_found_primed(
        self, requests: Sequence[RequestRecord], sessions: Iterable[Session], cache: CacheCounters
    ) -> bool:
        """False if contexts were sent ahead and the engine found none of them."""
        answered = [request for request in requests if request.ok]
        if self._request.cache != "primed" or not answered:
            return True
        return primed_found(answered, sessions, cache, self._engine.prompt_overhead)

    def _not_ours_to_start(self, requests: Sequence[RequestRecord]) -> Iterator[str]:
        """What to do about a server that is gone, where it is somebody else's."""
        if not self._engine.is_ours and any(r.failure is not None and r.failure.kind in _GONE for r in requests):
            yield (
                f"the server at {self._engine.url} was not started here, nor will it be again: where it has ended, its "
                "own log says why; start it again where it runs, and repeat the test"
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


_NOT_PRIMED = (
    "the cache was declared primed, but the engine found nothing of the contexts that were sent ahead: its prefix "
    "caching is off, its cache was emptied or is too small for them, each is shorter than a block, or a router took "
    "them elsewhere"
)
_GONE = ("connection_refused", "connection_reset", "connection_closed", "truncated", "peer_gone")
"""How requests fail whose server ends."""
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
    yield f"{len(failed)} of {len(requests)} requests {what}: {by_kind(failed)}"


def by_kind(events: Sequence[Failure | Remark]) -> str:
    """How many of each kind, with an example."""
    examples = {event.kind: event.detail for event in reversed(events)}
    counts = Counter(event.kind for event in events)
    return "; ".join(f"{count} {kind} ({examples[kind]})" for kind, count in counts.most_common())


def primed_found(
    requests: Sequence[RequestRecord], sessions: Iterable[Session], cache: CacheCounters, overhead: int
) -> bool:
    """Whether anything that was sent ahead was found, as far as the engine tells; True where it does not.

    `requests`: answered ones; `overhead`: tokens with which every prompt begins. What sessions share proves it for
    the first one at each replica only: the others find what that one has left.
    """
    told = [r for r in requests if r.turn == 0 and r.sent_ns is not None and r.cached_tokens is not None]
    if not told:
        return cache.hit_tokens is None or cache.hit_tokens > 0
    shared = [session.shared_tokens for session in sessions]
    begun: set[int | None] = set()
    for one in sorted(told, key=lambda request: request.sent_ns or 0):
        proves_nothing = overhead + (shared[one.session] if one.replica in begun else 0)
        if (one.cached_tokens or 0) > proves_nothing:
            return True
        begun.add(one.replica)
    return False


def is_verified(engine: Engine, request: Request) -> bool:
    """Whether a first turn that is served from a cache belies the declared cache state."""
    return request.cache == "cold" or (request.cache == "evicted" and engine.spec.kv_offload_gib is None)
