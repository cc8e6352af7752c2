"""The performance tests of one pytest session: planned together, judged together.

The plan is made after collection and before anything is started: every mistake in the marks, every
unreadable baseline, and the number of comparisons that share the error rate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pytest_llmperf.arms import BASE, HEAD, Arm, SecondBuild, measure_in_turn, sameness
from pytest_llmperf.baselines import Baselines
from pytest_llmperf.ceiling import ceiling_of, roof_of
from pytest_llmperf.client import Address, Limits
from pytest_llmperf.clock import NS_PER_S, Clock, RealClock
from pytest_llmperf.driver import LocalTeam, team_of
from pytest_llmperf.engines import check_kind
from pytest_llmperf.engines.base import Engine, Surroundings
from pytest_llmperf.engines.pool import EnginePool
from pytest_llmperf.engines.process import Progress
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.errors import BaselineError, ConfigurationError, LLMPerfError
from pytest_llmperf.gate import Criterion, Gate, confirmed
from pytest_llmperf.gate.advice import REFUSED
from pytest_llmperf.hardware import DeviceLocks, Hardware, remote
from pytest_llmperf.hardware.lock import default_folder
from pytest_llmperf.journal import Journal
from pytest_llmperf.judged import Judged, RatioResult, Validity
from pytest_llmperf.marks import resolved_spec, simulated_hardware
from pytest_llmperf.metrics import METRICS, gated_by_default
from pytest_llmperf.option_values import Budget, GateMode
from pytest_llmperf.options import Options
from pytest_llmperf.ratio import ratio
from pytest_llmperf.request import Request
from pytest_llmperf.results import PerfResult
from pytest_llmperf.resume import RECORDS, Earlier
from pytest_llmperf.selfcheck import excesses, tolerated
from pytest_llmperf.session import Setting, measure
from pytest_llmperf.telemetry import Beforehand, Plan, planned
from pytest_llmperf.verdicts import Judgement, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTest:
    """One collected test that measures: its node id, its engine, and what its marks gate."""

    nodeid: str
    spec: EngineSpec | None
    plain: EngineSpec | None = None
    """The engine without the words that only the build under test has."""
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a session measures on one piece of hardware."""

    hardware_key: str
    engines: tuple[str, ...]
    """Kind and model of each; empty where only the tests' bodies know."""
    baseline: str
    """What it is held against."""

    def __str__(self) -> str:
        engines = f"; {', '.join(self.engines)}" if self.engines else ""
        return f"{self.hardware_key}{engines}; {self.baseline}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A result together with what was gated in it."""

    result: Judged
    criteria: tuple[Criterion, ...]


class Suite:
    """Everything that the performance tests of a session share."""

    def __init__(
        self,
        options: Options,
        hardware: Hardware,
        tests: Sequence[PlannedTest],
        *,
        clock: Clock,
        output: Path,
        progress: Progress,
        recording: bool,
        problems: Sequence[str],
        earlier: Earlier | None = None,
    ) -> None:
        """`recording`: False where benchmarks are disabled; then nothing is stored or judged.

        `earlier`: a session that was cut short and is gone on from.

        Raises `ConfigurationError` listing `problems`, mistakes found in the tests' marks, and
        every baseline that cannot be used.
        """
        self.options = options
        self.hardware = hardware
        self.recording = recording
        self.output = output
        self.earlier = earlier
        self.journal = Journal(output, None if earlier is None else earlier.accounts[0].name)
        self.measured: list[Measured] = []
        self.failed: set[str] = set()
        """Tests whose own assertions failed: nothing of theirs becomes a baseline."""
        self._seen: dict[str, list[PerfResult]] = {}
        """By test what was measured, recorded or not."""
        self.unconfirmed: list[str] = []
        """What was flagged and could not be measured again, with the reason."""
        self.settled: list[PerfResult] = []
        """What was flagged, now that it has been measured again or could not be."""
        self._flagged: list[_Flagged] = []
        self._confirmations: dict[str, Judgement] = {}
        self.hardware_by_key: dict[str, Hardware] = {}
        """What was measured on, in this session."""
        self._tests = {test.nodeid: test for test in tests}
        self._progress = progress
        self._second = SecondBuild(options.base, options.base_servers, is_given=bool(options.base or options.head))
        self._plain: dict[tuple[str, EngineSpec], EngineSpec] = {
            (test.nodeid, test.spec): test.plain for test in tests if test.spec is not None and test.plain is not None
        }
        self._team = team_of(options.workers, clock)
        self._beforehand = Beforehand(clock)
        self._locks = DeviceLocks(
            options.locks or default_folder(), clock=RealClock(), wait_s=options.lock_wait_s, told=progress
        )
        self._baselines = Baselines(options.baselines, options.nights)
        self.pool = EnginePool(
            Surroundings(
                clock=clock,
                log_dir=output,
                cache_dir=options.cache,
                start_timeout_s=options.start_timeout_s,
                limits=Limits(silence_s=options.timeout_s, exchange_s=options.request_timeout_s),
                api_key=options.api_key,
                progress=progress,
                before_start=self._before_start,
            ),
            [test.spec for test in tests if test.spec is not None],
        )
        self.gate: Gate | None = None
        found = [*problems, *self._second.problems(test.plain or test.spec for test in tests if test.spec is not None)]
        if options.gate is not GateMode.OFF and recording:
            try:
                self.gate = Gate(
                    self._baselines,
                    self._family_size(),
                    options.alpha,
                    options.night_spread,
                    is_screen=options.confirm is not None,
                    is_saving=options.save_baseline is not None,
                    tolerated=options.tolerated,
                )
            except BaselineError as error:
                found += str(error).splitlines()
        if found:
            raise ConfigurationError(*found)
        self.outlook = self._outlook()
        """What is measured, on what and against what was stored before, in the order of the tests."""

    def _outlook(self) -> list[Outlook]:
        engines: dict[str, dict[str, None]] = {}
        for test in self._tests.values():
            of_key = engines.setdefault(self.hardware_of(test.spec).key, {})
            if test.spec is not None:
                of_key[" ".join(filter(None, (test.spec.kind, test.spec.model)))] = None
        return [
            Outlook(hardware_key=key, engines=tuple(known), baseline=self._baseline(key))
            for key, known in engines.items()
        ]

    def _baseline(self, hardware_key: str) -> str:
        """What results of that hardware are held against, in words."""
        if self.gate is None:
            return "nothing is judged"
        if self._second.is_given and self.options.confirm is None:
            return "against the base build, measured in turn"
        stored = self._baselines.paths(hardware_key)
        if not stored:
            return f"no baseline in {self._baselines.shown}"
        more = f", the newest of {len(stored)} nights" if len(stored) > 1 else ""
        return f"baseline {stored[0].name}{more}"

    def engine_of(self, nodeid: str) -> Engine:
        """The engine that a planned test wants, started by its first user."""
        spec = self._tests[nodeid].spec
        assert spec is not None, f"{nodeid} was planned without an engine"
        self._hold(spec)
        return self.pool.get(spec)

    @contextmanager
    def engine_factory(self) -> Iterator[Callable[..., Engine]]:
        """Makes started engines for one test, and stops them at its end."""
        with ExitStack() as engines:

            def start(kind: str, **words: object) -> Engine:
                check_kind(kind)
                spec = resolved_spec(kind, words, self.options)
                self._plain[_ANY_TEST, spec] = resolved_spec(kind, words, self.options, is_head=False)
                self._hold(spec)
                engine = self.pool.make(spec)
                engines.callback(engine.stop)
                engine.start()
                return engine

            yield start

    def test_done(self, nodeid: str, next_nodeid: str | None, *, is_shared: bool) -> None:
        """Stop the test's engine if no other test wants it, and pass on the devices that it does not need or others do.

        `is_shared`: other processes take tests of this session, so that an engine may wait for a next test in vain.
        """
        test = self._tests.get(nodeid)
        if test is not None and test.spec is not None:
            self.pool.release(test.spec)
        if not self._locks.held:
            return
        following = self._tests.get(next_nodeid) if next_nodeid is not None else None
        goes_on = test is not None and following is not None and test.spec == following.spec
        if not self.pool.on_devices or (is_shared and not goes_on) or self._locks.is_wanted():
            self.pool.rest()
            self._locks.let_go()

    def _hold(self, spec: EngineSpec) -> None:
        """Have the devices that an engine of this specification is measured on to ourselves."""
        self._locks.hold(devices_of(spec, self.hardware_of(spec)))

    def measure(self, nodeid: str, engine: Engine, request: Request) -> PerfResult:
        """Measure, record, and judge as far as it can be judged now."""
        self._check_unused(nodeid, request.name)
        if self.recording:
            self.journal.open()
        self._hold(engine.spec)
        in_turn = self._second.is_given and self.options.confirm is None and self.gate is not None
        hardware = self.hardware_of(engine.spec)
        self.hardware_by_key[hardware.key] = hardware
        deadline_ns = self._deadline_ns(engine.clock, request)

        def is_enough(so_far: PerfResult, base: PerfResult | None = None) -> bool:
            if deadline_ns is not None and engine.clock.now_ns() >= deadline_ns:
                return True
            asked = self._criteria(nodeid, so_far, open_load=request.load.is_open)
            return self.gate is None or self.gate.is_clear(so_far, asked, base)

        if in_turn:
            result, base = self._in_turn(nodeid, engine, request, is_enough)
        else:
            result, base = measure(engine, request, self._setting(nodeid, engine), is_enough), None
        if hardware.driver_fails:
            result.doubts += (f"what GPUs there are is not known, nor what they did: {hardware.problem}",)
            result.advice = f"mend the GPU driver: {hardware.problem}"
        _hold_against_roof(result, engine, request, hardware)
        criteria = self._criteria(nodeid, result, open_load=request.load.is_open)
        for one in (result, base) if base is not None else (result,):
            _check_client(one, criteria)
        if self.gate is not None:
            result.judgement = self.gate.judge(result, criteria, base)
            if self.gate.flagged(result.provenance.measurement):
                self._flagged.append(_Flagged(result=result, engine=engine, request=request))
        self._seen.setdefault(nodeid, []).append(result)
        if self.recording:
            self.measured.append(Measured(result=result, criteria=criteria))
        return result

    def ratio(self, nodeid: str, name: str, over: float, under: float, *, higher_is_better: bool) -> RatioResult:
        """One figure over another of what the test has measured, recorded and judged like a metric."""
        result = ratio(name, over, under, self._seen.get(nodeid, []), higher_is_better=higher_is_better)
        self._check_unused(nodeid, result.provenance.name)
        asked = self._tests[nodeid].criteria if nodeid in self._tests else ()
        criteria = tuple(one for one in asked if one.metric == result.name) or (Criterion(result.name),)
        if self.gate is not None and not self._second.is_given:  # a build in turn has no ratio to compare with
            result.judgement = self.gate.judge(result, criteria)
        if self.recording:
            self.measured.append(Measured(result=result, criteria=criteria))
        return result

    def unrecorded(self, nodeid: str) -> str | None:
        """A sentence on ratios that the test's marks name and it did not record; None if there are none."""
        test = self._tests.get(nodeid)
        named = {one.metric for one in test.criteria if one.metric not in METRICS} if test is not None else set()
        own = [m.result for m in self.measured if m.result.provenance.test == nodeid]
        recorded = {result.name for result in own if isinstance(result, RatioResult)}
        missing = sorted(named - recorded)
        if not missing or not self.recording:
            return None
        return (
            f"llm_gate names {', '.join(missing)}, which the test did not record; "
            f"it recorded {', '.join(sorted(recorded)) or 'no ratio'} (llm_perf.ratio)"
        )

    def vanished(self, collected: Collection[str]) -> Iterator[str]:
        """A sentence on each stored test that is gone from a file of which tests were collected."""
        if self.gate is None:
            return
        files = {nodeid.partition("::")[0] for nodeid in collected}
        for key in self.hardware_by_key:
            newest = self._baselines.newest_tests(key)
            for test in sorted(newest - set(collected)):
                if test.partition("::")[0] in files:
                    yield f"MISSING: {test} is stored for {key} and is not there any more; was it renamed?"

    @property
    def awaited(self) -> set[str]:
        """Measurements that are flagged: they are measured again before they can fail their test."""
        return {one.result.provenance.measurement for one in self._flagged}

    def confirm(self, *, is_wanted: bool = True) -> None:
        """Measure what the stored nights flagged against the base build, and settle those judgements.

        An engine that fails leaves its measurement unconfirmed, and says so; so does a session that is not to measure
        any more (`is_wanted`).
        """
        flagged, self._flagged = self._flagged, []
        self.settled = [one.result for one in flagged]
        if self.gate is None or not flagged or self.options.confirm is None:
            return
        if not is_wanted:
            names = [result.provenance.measurement for result in self.settled]
            self.unconfirmed += [f"not confirmed: {name}: the session was interrupted" for name in names]
            return
        criteria = {
            one.result.provenance.measurement: self.gate.flagged(one.result.provenance.measurement) for one in flagged
        }
        size = sum(map(len, criteria.values()))
        confirmation = Gate(self._baselines, size, self.options.alpha, self.options.night_spread)
        for one in flagged:
            about = one.result.provenance
            request = replace(one.request, budget=Budget((self.options.confirm,)))
            try:
                head, base = self._in_turn(about.test, one.engine, request)
            except (LLMPerfError, OSError) as error:  # a full disk takes no verdict of the session away
                self.unconfirmed.append(f"not confirmed: {about.measurement}: {error}")
                continue
            finally:
                one.engine.stop()
            for arm in (head, base):
                _check_client(arm, criteria[about.measurement])
            confirmation.judge(head, criteria[about.measurement], base)
        self._confirmations = confirmation.review()

    def _in_turn(
        self,
        nodeid: str,
        engine: Engine,
        request: Request,
        is_enough: Callable[[PerfResult, PerfResult], bool] | None = None,
    ) -> tuple[PerfResult, PerfResult]:
        """The result of the engine, and that of the base build, measured in turn with it."""
        spec = engine.spec
        self._hold(spec)
        plain = self._plain.get((nodeid, spec)) or self._plain.get((_ANY_TEST, spec)) or spec
        base = self.pool.make(self._second.spec_of(plain))
        head_arm = Arm(engine, replace(self._setting(nodeid, engine), arm=HEAD))
        base_arm = Arm(base, replace(self._setting(nodeid, base), arm=BASE))
        together = self._second.stays_up(engine, base)
        result, of_base = measure_in_turn(head_arm, base_arm, request, together=together, is_enough=is_enough)
        result.doubts += sameness(spec, base.spec)
        return result, of_base

    @staticmethod
    def _deadline_ns(clock: Clock, request: Request) -> int | None:
        minutes = request.budget.minutes
        return None if minutes is None else clock.now_ns() + round(minutes * 60 * NS_PER_S)

    def _setting(self, nodeid: str, engine: Engine) -> Setting:
        return Setting(
            test=nodeid,
            hardware_key=self.hardware_of(engine.spec).key,
            clock=engine.clock,
            record_dir=self.output / RECORDS,
            progress=self._progress,
            team=LocalTeam(engine.clock) if engine.is_simulated else self._team,
            telemetry=self._telemetry(engine.spec),
            tolerated=self.options.tolerated,
            conditions=self.options.conditions,
            earlier=self.earlier,
            journal=self.journal,
        )

    def _telemetry(self, spec: EngineSpec) -> Plan | None:
        plan = planned(self.options.telemetry_hz, spec, self.hardware_of(spec))
        return None if plan is None else replace(plan, taken=partial(self._beforehand.of, spec))

    def _before_start(self, spec: EngineSpec) -> None:
        plan = planned(self.options.telemetry_hz, spec, self.hardware_of(spec))
        if plan is not None and plan.gpus:
            self._beforehand.look(spec, plan.gpus)

    def review(self) -> list[Judged]:
        """Bring every judgement up to date; returns the results that only now turned REGRESSED."""
        if self.gate is None:
            return []
        final = self.gate.review()
        late = []
        for measured in self.measured:
            result = measured.result
            before = result.verdict
            measurement = result.provenance.measurement
            if measurement not in final:
                continue  # a ratio, which has no base build to be held against
            result.judgement = final[measurement]
            if measurement in self._confirmations:
                result.judgement = confirmed(result.judgement, self._confirmations[measurement])
            if result.verdict is Verdict.NO_BASELINE and result.provenance.test in self.failed:
                result.judgement = replace(result.judgement, advice=REFUSED)
            if result.verdict is Verdict.REGRESSED and before is not Verdict.REGRESSED:
                late.append(result)
        return late

    def forget(self, nodeid: str) -> list[str]:
        """Drop what an earlier attempt of a test has measured; returns the measurements' names."""
        dropped = [m.result.provenance.measurement for m in self.measured if m.result.provenance.test == nodeid]
        self.measured = [m for m in self.measured if m.result.provenance.test != nodeid]
        self.failed.discard(nodeid)
        self._seen.pop(nodeid, None)
        for measurement in dropped:
            if self.gate is not None:
                self.gate.forget(measurement)
        self._flagged = [one for one in self._flagged if one.result.provenance.test != nodeid]
        return dropped

    def save_baselines(self, name: str, document: Callable[[str, Sequence[Measured]], dict[str, object]]) -> list[Path]:
        """Store what may be stored, one file per hardware key; `document` makes a file's content."""
        by_key: dict[str, list[Measured]] = {}
        for measured in self.measured:
            if self.may_be_stored(measured.result):
                by_key.setdefault(measured.result.provenance.hardware_key, []).append(measured)
        return [self._baselines.save(name, key, document(key, group)) for key, group in by_key.items()]

    def may_be_stored(self, result: Judged) -> bool:
        """Valid, of what is declared, of a test that passed its own assertions, and no regression nobody accepted."""
        accepted = result.verdict not in (Verdict.REGRESSED, Verdict.INVALID_RUN)
        return accepted and result.is_level and bool(result.validity) and result.provenance.test not in self.failed

    def hardware_of(self, spec: EngineSpec | None) -> Hardware:
        """The hardware that an engine runs on: this machine, what the user declared, a simulated one, or unknown."""
        if spec is not None and spec.kind == "sim":
            here = self.hardware
            return here if here.simulated and spec.part in (None, here.part) else simulated_hardware(spec)
        if spec is None or spec.url is None or self.hardware.declared:
            return self.hardware
        address = Address.parse(spec.url)
        return self.hardware if address.is_loopback else remote(address.host)

    def close(self) -> None:
        """Stop every engine and every worker that still runs."""
        self._team.close()
        self.pool.stop_all()
        self._locks.let_go()

    def _check_unused(self, nodeid: str, name: str | None) -> None:
        taken = [m.result.provenance for m in self.measured]
        if any(p.test == nodeid and p.name == name for p in taken):
            msg = f"{nodeid} measures {name or 'without a name'} twice; give each llm_perf call its own name=..."
            raise ConfigurationError(msg)

    def _criteria(self, nodeid: str, result: PerfResult, *, open_load: bool) -> tuple[Criterion, ...]:
        """What the marks ask, or of the defaults whatever was measured or has been before."""
        test = self._tests.get(nodeid)
        asked = tuple(one for one in test.criteria if one.metric in METRICS) if test is not None else ()
        if asked:
            return asked
        entries = self._baselines.entries(result.provenance.hardware_key) if self.gate is not None else []
        stored = {entry.metric for entry in entries if entry.measurement == result.provenance.measurement}
        return tuple(
            Criterion(name)
            for name in gated_by_default(open_load=open_load)
            if name in stored or any(value is not None for value in result.value(METRICS[name]))
        )

    def _family_size(self) -> int:
        """How many comparisons the session can make, counted before anything is measured."""
        if self._second.is_given and self.options.confirm is None:
            defaults = len(gated_by_default(open_load=False))
            return sum(len(test.criteria) or defaults for test in self._tests.values())
        by_key: dict[str, list[PlannedTest]] = {}
        for test in self._tests.values():
            by_key.setdefault(self.hardware_of(test.spec).key, []).append(test)
        return sum(
            self._baselines.gated_pairs(key, [test.nodeid for test in tests], _gated(tests))
            for key, tests in by_key.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flagged:
    """A measurement that is to be taken again, and how."""

    result: PerfResult
    engine: Engine
    request: Request


def devices_of(spec: EngineSpec, hardware: Hardware) -> tuple[str, ...]:
    """What no two measurements of such an engine may use at a time; nothing for one in virtual time.

    GPUs by their UUID, a slice's whole GPU included, whose clocks and power it shares; without GPUs the machine's
    processors; a server elsewhere by its address.
    """
    if spec.kind == "sim" or hardware.simulated:
        return ()
    if spec.url is not None and (hardware.declared or not Address.parse(spec.url).is_loopback):
        address = Address.parse(spec.url)
        return (f"{address.host}:{address.port}",)
    return tuple(dict.fromkeys(gpu.gpu_uuid or gpu.uuid or gpu.name for gpu in hardware.gpus)) or (_PROCESSORS,)


_PROCESSORS = "CPU"
_ANY_TEST = ""
"""Whose engines of a factory are: their tests are not known when they are made."""


def _check_client(result: PerfResult, criteria: Sequence[Criterion]) -> None:
    """Make a result invalid that the client itself may have falsified by too much."""
    if result.validity:
        limits = {criterion.metric: tolerated(criterion.detect) for criterion in criteria}
        found = excesses([METRICS[name] for name in limits], result.records, limits)
        result.validity = Validity(tuple(map(str, found)))


def _hold_against_roof(result: PerfResult, engine: Engine, request: Request, hardware: Hardware) -> None:
    """Say what share of the hardware's roofline was reached, where that roofline is known."""
    about = result.provenance
    model, prefix_caching = str(about.engine_identity["model"]), about.engine.get("prefix_caching")
    roof = roof_of(engine.spec, hardware, model=model, prefix_caching=prefix_caching)
    if roof is None:
        return
    result.ceiling = ceiling_of(result.records, roof, [session.shared_tokens for session in request.workload])
    if result.ceiling is not None:
        result.doubts += result.ceiling.doubts


def _gated(tests: Sequence[PlannedTest]) -> Mapping[str, Sequence[str]]:
    """What may be judged of each test; whether its load is open is not known yet, so either default counts."""
    defaults = sorted({name for is_open in (False, True) for name in gated_by_default(open_load=is_open)})
    return {test.nodeid: [c.metric for c in test.criteria] or defaults for test in tests}
