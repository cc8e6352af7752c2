"""What others hold of a GPU's memory before an engine of ours is started on it."""

from __future__ import annotations

import json

import pytest
from nvml import GPUS, NO_PERMISSION, error, over_time
from stub_engine import installed

from pytest_llmperf.clock import VirtualClock, seconds_between
from pytest_llmperf.engines.spec import EngineSpec
from pytest_llmperf.readings import GpuSample, ProcessSeen, Taken
from pytest_llmperf.telemetry import Beforehand, beforehand
from pytest_llmperf.telemetry.beforehand import RELEASE_S, taken
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.processes import GpuProcesses
from pytest_llmperf.units import GIB

OURS, THEIRS = 100, 200
ALONE = GpuProcesses(frozenset({OURS}), may_hold_memory=False)
WITH_AN_ENGINE = GpuProcesses(frozenset({OURS}), may_hold_memory=True)
SPEC = EngineSpec(kind="vllm", model="m")
NOT_OURS = 4_194_304
"""A pid that Linux gives to nobody."""


def sample(used_gib, processes=None, gpu=0):
    listed = None if processes is None else {pid: None if gib is None else gib * GIB for pid, gib in processes.items()}
    return GpuSample(at_ns=0, gpu=gpu, memory_used_bytes=None if used_gib is None else used_gib * GIB, processes=listed)


@pytest.mark.parametrize(
    ("now", "ours", "gib"),
    [
        (sample(40, {THEIRS: 39}), ALONE, 40),
        (sample(40, {}), ALONE, 40),
        (sample(40), ALONE, 40),
        (sample(60, {THEIRS: 39, OURS: 20}), WITH_AN_ENGINE, 40),
        (sample(20, {OURS: 20}), WITH_AN_ENGINE, 0),
        (sample(20, {OURS: 21}), WITH_AN_ENGINE, 0),
    ],
    ids=["another's", "hidden ones", "none listed", "another's beside ours", "ours", "ours, by other counts"],
)
def test_what_is_not_ours_is_another_s(now, ours, gib):
    """Whether or not the driver lists whose it is, as long as none of it can be ours."""
    assert taken([now], ours)[0].memory_bytes == gib * GIB


@pytest.mark.parametrize(
    ("now", "ours"),
    [
        (sample(40, {THEIRS: 39}), WITH_AN_ENGINE),
        (sample(40), WITH_AN_ENGINE),
        (sample(40, {THEIRS: 10, OURS: None}), WITH_AN_ENGINE),
        (sample(None, {THEIRS: 39}), ALONE),
    ],
    ids=["numbers of another namespace", "none listed", "ours withheld", "no figure"],
)
def test_what_may_be_our_other_engine_s_accuses_nobody(now, ours):
    """Where an engine of ours runs and the driver does not tell which process it is, nothing is known."""
    assert taken([now], ours) == {}


def test_others_are_named():
    """With what each holds; ours are not among them."""
    found = taken([sample(60, {THEIRS: 39, 7: None, OURS: 20}), sample(0, {}, gpu=1)], WITH_AN_ENGINE)
    assert found == {0: Taken(40 * GIB, (ProcessSeen(7, None), ProcessSeen(THEIRS, 39 * GIB)))}
    assert taken([sample(0, {}, gpu=1)], ALONE) == {1: Taken(0)}


class TestLook:
    @pytest.fixture
    def look(self, nvml_here):
        """`look(gpu)`: what was found, the stub, and how long that took."""

        def run(gpu, **lines):
            stub = nvml_here(gpu, **lines)

            class Clock(VirtualClock):
                def sleep(self, duration_s):
                    super().sleep(duration_s)
                    stub.advance(duration_s)

            clock = Clock()
            before = Beforehand(clock)
            before.look(SPEC, [GpuAddress(0, uuid="GPU-0")])
            return before.of(SPEC), stub, seconds_between(0, clock.now_ns())

        return run

    def test_a_free_gpu_is_not_waited_for(self, look):
        """Nothing of NVML stays open, and what GPM has lent is given back."""
        found, stub, took_s = look("gh200")
        assert (found, took_s) == ({0: Taken(0)}, 0)
        assert (stub.open_sessions, stub.gpm_samples) == (0, 0)

    def test_what_an_engine_before_this_one_held_is_waited_for(self, look):
        """A driver takes a moment to free it."""
        found, _, took_s = look(GPUS["h200"] | {"memory_used_mib": over_time((0, 90_000), (2.9, 100))})
        assert found == {0: Taken(100 << 20)}
        assert 2.9 <= took_s < 3.5

    def test_what_stays_is_another_s(self, look):
        """After a while it is taken down as it is."""
        busy = {"memory_used_mib": 40 << 10, "processes": [{"pid": NOT_OURS, "memory_mib": 39 << 10}]}
        found, _, took_s = look(GPUS["h200"] | busy)
        assert found == {0: Taken(40 * GIB, (ProcessSeen(NOT_OURS, 39 * GIB),))}
        assert took_s == pytest.approx(RELEASE_S)

    @pytest.mark.parametrize(
        ("gpu", "lines"),
        [
            (GPUS["lost"], {}),
            (GPUS["withheld"], {}),
            (GPUS["h200"] | {"memory_mib": error(NO_PERMISSION)}, {}),
            ("h200", {"init_error": 999}),
        ],
        ids=["lost", "withheld", "no permission", "no driver"],
    )
    def test_what_is_not_told_is_not_known(self, look, gpu, lines):
        """Nor is it waited for."""
        found, stub, took_s = look(gpu, **lines)
        assert (found, took_s, stub.open_sessions) == ({}, 0, 0)

    def test_an_engine_that_was_not_looked_for(self):
        assert Beforehand(VirtualClock()).of(SPEC) == {}


TEST = """
import pytest
from pytest_llmperf import closed_loop, single_turn

pytestmark = pytest.mark.llm_gate(metric="cache_hit_rate")  # a stub answers in no time, which no client can measure
WORK = single_turn(requests=4, input_tokens=64, output_tokens=4, seed=1)

@pytest.mark.llm_engine("vllm", **{words!r})
def test_first(llm_engine, llm_perf):
    llm_perf(llm_engine, WORK)

@pytest.mark.llm_engine("vllm", **{words!r})
def test_same_engine(llm_engine, llm_perf):
    llm_perf(llm_engine, WORK)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def session(pytester, python, nvml_here, monkeypatch):
    """`session(gpu)`: two tests that share an engine, on a machine with that GPU, where it is started in second 10."""
    monkeypatch.setattr(beforehand, "RELEASE_S", 0.3)
    look = Beforehand.look

    def go(gpu):
        stub = nvml_here(gpu)
        monkeypatch.setattr(Beforehand, "look", lambda *given: (look(*given), stub.advance(10)))
        words = {"model": "m", "executable": python, "max_model_len": 2048}
        pytester.makepyfile(test_it=TEST.format(words=words))
        once = ("--llmperf-runs", "1", "--llmperf-warmup-runs", "0", "--llmperf-gate", "off")
        return pytester.runpytest_inprocess(
            "-p", "no:cacheprovider", "-W", "default", *once, "--benchmark-json", "out.json"
        )

    return go


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.timeout(90)
def test_memory_that_is_taken_invalidates_every_run_on_that_engine(session, pytester):
    """Of each test that shares it; the sentence has figures, a culprit and what to do."""
    held = {"memory_used_mib": 40 << 10, "processes": [{"pid": NOT_OURS, "memory_mib": 39 << 10}]}

    result = session(GPUS["h200"] | held)

    result.assert_outcomes(passed=0, errors=2)
    said = " ".join(result.stdout.str().split())
    assert (
        f"GPU 0 had 40.0 GiB of its memory taken by process {NOT_OURS} (39.0 GiB) when the engine was started, where "
        "1.00 GiB is allowed, so that it had less for its KV cache; stop what nvidia-smi shows on the host, or give "
        "the tests a GPU of their own [memory]"
    ) in said


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.timeout(90)
def test_memory_that_the_engine_itself_takes_is_its_own(session, pytester):
    """It was not there before; what was, is in the result."""
    result = session(GPUS["h200"] | {"memory_used_mib": over_time((0, 100), (10, 100_000))})

    result.assert_outcomes(passed=2)
    files = sorted(pytester.path.glob(".llmperf/*/records/*.jsonl"))
    runs = [row["run"] for path in files for row in map(json.loads, path.read_text().splitlines()) if "run" in row]
    assert [run["telemetry"]["gpus"][0]["taken"] for run in runs] == [{"memory_bytes": 100 << 20, "processes": []}] * 2
