"""One performance test, in order: engine, runs, validity, result."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pytest_llmperf import __version__, units
from pytest_llmperf.atomic import why
from pytest_llmperf.clock import seconds_between
from pytest_llmperf.engines import build_of
from pytest_llmperf.engines.base import Engine
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.journal import Stand
from pytest_llmperf.judged import Provenance, Validity, measurement_name
from pytest_llmperf.load import Extent
from pytest_llmperf.record_file import RecordFile
from pytest_llmperf.records import Phase, RunRecord
from pytest_llmperf.request import Request
from pytest_llmperf.results import PerfResult
from pytest_llmperf.resume import Kept
from pytest_llmperf.resume import doubts as resumed_doubts
from pytest_llmperf.run import Runs, Setting, by_kind, is_verified
from pytest_llmperf.telemetry import Watch
from pytest_llmperf.workloads.base import words_of

# A client that uses more of its core may be what limits the throughput.
_BUSY_SHARE = 0.9


def measure(
    engine: Engine, request: Request, setting: Setting, is_enough: Callable[[PerfResult], bool] | None = None
) -> PerfResult:
    """Run the workload as often as asked and return what was measured.

    `is_enough` is asked at each look before the last whether the runs so far will do.
    Requests are on disk as soon as they have ended, unless the disk cannot take them, which is a doubt.
    A run that is spoiled ends the measurement: the others could not mend it. Raises `EngineError` if the
    engine cannot be started, dies or hangs, `ConfigurationError` if the workload does not fit it.
    """
    with Measurement(engine, request, setting, kept_of(engine, request, setting)) as measurement:

        def is_done() -> bool:
            if is_enough is None or measurement.done not in request.budget.looks[:-1]:
                return False
            return is_enough(measurement.result())

        missing = () if measurement.kept and is_done() else measurement.missing
        for index in missing:
            if not measurement.run(index) or (index >= 0 and is_done()):
                break
        measurement.finish()
    return measurement.result()


def kept_of(engine: Engine, request: Request, setting: Setting) -> Kept | None:
    """What an earlier session has of a measurement that counts for it; None where there is nothing."""
    if setting.earlier is None:
        return None
    name = measurement_name(setting.test, request.name)
    return setting.earlier.kept(name, setting.arm, _terms(engine, request, setting))


class Measurement:
    """The runs of one workload on one engine, one at a time, as whoever measures asks for them."""

    def __init__(self, engine: Engine, request: Request, setting: Setting, kept: Kept | None = None) -> None:
        """Start the engine, if it does not run and anything is to be measured. Raises as `measure` does.

        `kept`: runs of an earlier session that count as this one's.
        """
        name = measurement_name(setting.test, request.name)
        label = name if setting.arm is None else f"{name} ({setting.arm})"
        self._stand = Stand(request.runs) if setting.journal is None else setting.journal.begin(label, request.runs)
        self.engine = engine
        self._request = request
        self._setting = setting
        self.records: list[RunRecord] = []
        self.validity = Validity()
        self._ready_ns: int | None = None
        """When the engine was ready, if this measurement has started it."""
        self._turns = 0
        if kept is not None and kept.is_complete and engine.is_ours:
            self.provenance = kept.provenance
        else:
            self.provenance = self._start()
            kept = self._still_alike(kept)
        self._kept = kept
        path = setting.record_dir / f"{_file_stem(self.provenance.measurement, setting.arm)}.jsonl"
        about = {
            "measurement": self.provenance.measurement,
            "hardware_key": self.provenance.hardware_key,
            **({} if setting.arm is None else {"arm": setting.arm}),
        }
        of = {"terms": _terms(engine, request, setting), "provenance": asdict(self.provenance)}
        self._rows = RecordFile(path, {**about, **of})
        series = path.with_suffix(".telemetry.ndjson")
        self._watch = _watch(setting, series, about) if self.missing else Watch(setting.clock)
        self._runs = Runs(engine, request, setting, self._rows, Extent.of(request.load, self._turns), self._watch)
        for run in () if kept is None else kept.runs():
            self._keep(run)

    def _start(self) -> Provenance:
        began_ns = self._setting.clock.now_ns()
        self.engine.start()
        self._turns = _check_fit(self.engine, self._request)
        ready_ns = self.engine.ready_ns
        self._ready_ns = ready_ns if ready_ns is not None and ready_ns >= began_ns else None
        return _provenance(self.engine, self._request, self._setting)

    def _still_alike(self, kept: Kept | None) -> Kept | None:
        """What was kept, unless the engine that has started is another one than that it was measured on."""
        unlike = [] if kept is None else kept.unlike(self.provenance)
        if unlike and self._setting.earlier is not None:
            self._setting.earlier.anew(self.provenance.measurement, unlike)
        return None if unlike else kept

    def _keep(self, run: RunRecord) -> None:
        """Take a run of an earlier session over, so that this session's records are whole."""
        run = replace(run, requests=tuple(map(self._rows.request, run.requests)))
        self._rows.run(run)
        self._watch.remember(run.telemetry)
        self.records.append(run)
        self._stand.done += 1

    @property
    def kept(self) -> int:
        """How many runs are of an earlier session."""
        return 0 if self._kept is None else self._kept.count

    @property
    def done(self) -> int:
        """How many measured runs there are."""
        return len(self.records)

    @property
    def missing(self) -> Sequence[int]:
        """The runs that are to be measured, warm-ups first: the prompts of a run follow from its number."""
        if self._kept is not None and self._kept.is_complete:
            return ()
        return (*range(-self._request.warmup_runs, 0), *range(self.kept, self._request.runs))

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
        self._rows.run(record, spoiled)
        self.validity = Validity(spoiled)
        if record.phase is Phase.MEASURED or spoiled:
            self.records.append(record)
        if record.phase is Phase.MEASURED and not spoiled:
            self._stand.done += 1
        return not spoiled

    def finish(self) -> None:
        """No more runs are wanted."""
        self._stand.is_complete = bool(self.validity)
        self._rows.end(complete=self._stand.is_complete)

    def _note_first(self, record: RunRecord) -> None:
        """How long it was from ready to the first request of the first run, with all that preparing it took."""
        sent_ns = [request.sent_ns for request in record.requests if request.sent_ns is not None]
        if self._ready_ns is not None and sent_ns:
            took_s = round(seconds_between(self._ready_ns, min(sent_ns)), 3)
            about = {**self.provenance.engine, "ready_to_first_request_s": took_s}
            self.provenance, self._ready_ns = replace(self.provenance, engine=about), None

    def result(self) -> PerfResult:
        """What was measured so far."""
        earlier = self._setting.earlier
        resumed = () if earlier is None else earlier.told(self.records)
        result = PerfResult(
            list(self.records),
            provenance=self.provenance,
            validity=self.validity,
            slo=self._request.slo,
            doubts=(
                *_doubts(self.engine, self._request, self.records, self.provenance.engine),
                *filter(None, [self._runs.unfit]),
                *self._watch.doubts,
                *resumed_doubts(resumed, len(self.records)),
                *filter(None, [self._rows.problem]),
            ),
            looks=self._request.budget.looks,
            resumed=resumed,
        )
        told = (record.telemetry.advice for record in self.records if record.telemetry is not None)
        result.advice = next(filter(None, told), None)
        result.is_level = self._runs.unfit is None
        return result


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


def _doubts(
    engine: Engine, request: Request, records: Sequence[RunRecord], about: Mapping[str, Any]
) -> tuple[str, ...]:
    """What a reader should know about the figures although they stand. `about`: what the engine has told of itself."""
    requests = [r for record in records for r in record.requests if r.ok]
    doubts: list[str] = list(about.get("doubts", ()))
    restored = [record.cache.restored_bytes for record in records]
    if request.cache == "evicted" and engine.spec.kv_offload_gib is not None and restored and not any(restored):
        doubts.append("nothing came back from an outer tier: what was evicted is gone from there, too, and is computed")
    elif request.cache == "evicted" and not (is_verified(engine, request) or _left_the_device(records)):
        doubts.append("with KV offload an evicted context may come back from an outer tier, so eviction is unverified")
    elif request.cache != "as_is" and all(r.cached_tokens is None for r in requests):
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
        doubts.append(f"odd answers among {len(requests)}: {by_kind(remarks)}")
    told = (problem for record in records if record.telemetry is not None for problem in record.telemetry.problems)
    return (*doubts, *(_client_doubts(records) if requests else ()), *dict.fromkeys(told))


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


def _left_the_device(records: Sequence[RunRecord]) -> bool:
    """Whether the engine counted that no token of any prompt was found on the device."""
    return all((record.cache.tokens_by_tier or {}).get("gpu") == 0 for record in records)


def _terms(engine: Engine, request: Request, setting: Setting) -> dict[str, Any]:
    """What has to be the same for a run of another session to count for a measurement; known before a start."""
    return {
        "pytest_llmperf": __version__,
        "hardware_key": setting.hardware_key,
        "workload": request.workload.name,
        "workload_digest": request.workload.digest,
        "load": request.load.describe(),
        "cache": request.cache,
        "runs": asdict(request.budget),
        "warmup_runs": request.warmup_runs,
        "engine": engine.spec.words(),
        "build": build_of(engine.spec),
        "options": dict(setting.conditions),
    }


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
        workload_words=words_of(request.workload),
    )


def _watch(setting: Setting, path: Path, about: dict[str, Any]) -> Watch:
    """Who looks on; nothing is sampled where time is virtual, as sensors know none."""
    plan, clock = setting.telemetry, setting.clock
    if plan is None or clock.cpu_ns() is None:
        return Watch(clock)
    try:
        return Watch(clock, plan.start(clock, path, about), plan.known, setting.tolerated, plan.taken)
    except OSError as error:  # what is measured is worth more than what would have been seen beside it
        return Watch(clock, problem=f"no telemetry: {why(error, path)}")


def _file_stem(measurement: str, arm: str | None) -> str:
    """A file name for a measurement: readable, bounded in length, and no other's."""
    name = measurement if arm is None else f"{measurement} {arm}"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")
    return f"{plain[-140:]}-{zlib.crc32(name.encode()):08x}"


__all__ = ["Measurement", "Setting", "kept_of", "measure"]
