"""Two builds measured in turn, on engines in virtual time: whose turn it is, and what is up meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from fakes import Script, VirtualEngine, setting
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.arms import BASE, HEAD, Arm, SecondBuild, measure_in_turn, order, sameness
from pytest_llmperf.clock import VirtualClock
from pytest_llmperf.engines import make_spec
from pytest_llmperf.errors import EngineDiedError, EngineStartError
from pytest_llmperf.option_values import Budget
from pytest_llmperf.record_file import RecordFile, read_requests
from pytest_llmperf.records import Failure, Phase
from pytest_llmperf.request import checked_request
from pytest_llmperf.workloads import single_turn

REQUESTS = 4
VLLM = make_spec("vllm", {"model": "m", "prefix_caching": True})
SIM = make_spec("sim", {"model": "llama-3.1-8b", "part": "gh200"})


class Diary:
    """What happened to the two engines, in order."""

    def __init__(self):
        self.events = []
        self.up = set()
        self.most = 0

    def note(self, name, what):
        """Repeated starts and stops of an engine change nothing and are left out."""
        if what == "start" and name not in self.up:
            self.up.add(name)
            self.events.append((name, what))
        elif what == "stop" and name in self.up:
            self.up.remove(name)
            self.events.append((name, what))
        elif what == "request":
            assert name in self.up, f"{name} was sent a request while it was down"
            if self.events[-1] != (name, what):
                self.events.append((name, what))
        self.most = max(self.most, len(self.up))


class Kept(VirtualEngine):
    """An engine that keeps a diary, and may not start."""

    name = ""
    diary = None
    broken = False

    def start(self):
        super().start()
        if self.broken:
            raise EngineStartError(f"{self.name} does not start")
        self.diary.note(self.name, "start")

    def stop(self):
        super().stop()
        self.diary.note(self.name, "stop")

    def serve(self, ids):
        self.diary.note(self.name, "request")
        return super().serve(ids)


@pytest.fixture
def builds(tmp_path):
    """Two arms that share a clock and a diary: `builds(head=Script(...), base=Script(...))`."""

    def make(head=None, base=None, base_words=()):
        clock, diary = VirtualClock(), Diary()
        arms = {}
        for name, script in ((HEAD, head), (BASE, base)):
            engine = Kept(script or Script(), clock=clock)
            engine.name, engine.diary = name, diary
            around = setting(tmp_path, clock, arm=name)
            arms[name] = Arm(engine, around)
        for word, value in dict(base_words).items():
            setattr(arms[BASE].engine, word, value)
        return arms, diary

    return make


def ask(runs=4, warmup_runs=1):
    workload = single_turn(requests=REQUESTS, input_tokens=32, output_tokens=4)
    return checked_request(
        workload,
        load=None,
        runs=runs,
        warmup_runs=warmup_runs,
        cache="as_is",
        prefill_context=False,
        slo=None,
        name=None,
    )


def failing(*numbers):
    """Requests of these numbers have no answer."""
    return Script(fail=lambda number: Failure("timeout", f"request {number}") if number in numbers else None)


class TestOrder:
    """Whose turn it is."""

    @given(runs=st.integers(1, 60), seed=st.integers())
    def test_each_pair_has_one_run_of_each(self, runs, seed):
        """And either comes first equally often, give or take one."""
        turns = list(order(runs, seed))
        pairs = list(zip(turns[::2], turns[1::2], strict=True))

        assert runs == len(pairs)
        assert all({HEAD, BASE} == set(pair) for pair in pairs)
        first = Counter(pair[0] for pair in pairs)
        assert abs(first[HEAD] - first[BASE]) == runs % 2

    def test_it_can_be_repeated_and_hangs_on_the_seed(self):
        """It does not simply alternate either, which something periodic could fall in with."""
        assert list(order(12, 5)) == list(order(12, 5))
        assert 1 < len({tuple(order(12, seed)) for seed in range(20)})
        assert any(one == other for one, other in pairwise(list(order(12))))


class TestTogether:
    """Both engines stay up."""

    def test_each_is_warmed_up_once(self, builds):
        """Before its first run; then it is measured as often as asked."""
        arms, diary = builds()

        head, base = measure_in_turn(arms[HEAD], arms[BASE], ask(runs=4, warmup_runs=2), together=True)

        assert [4, 4] == [len(head.records), len(base.records)]
        assert [6 * REQUESTS] * 2 == [len(arm.engine.sent) for arm in arms.values()]
        assert 2 == diary.most
        assert {HEAD} == diary.up

    def test_runs_are_taken_in_turn(self, builds):
        """As the order says, within what can be seen of it."""
        arms, _ = builds()

        head, base = measure_in_turn(arms[HEAD], arms[BASE], ask(runs=6, warmup_runs=0), together=True)

        runs = [(record.start_ns, name) for name, result in ((HEAD, head), (BASE, base)) for record in result.records]
        assert list(order(6)) == [name for _, name in sorted(runs)]

    def test_each_has_its_own_figures_and_records(self, builds, tmp_path):
        """The base is twice as slow; each has a record file with its warm-up."""
        arms, _ = builds(base=Script(ttft_s=lambda computed, number: 0.02), head=Script(ttft_s=lambda *_: 0.01))

        head, base = measure_in_turn(arms[HEAD], arms[BASE], ask(runs=2), together=True)

        assert (0.01, 0.02) == pytest.approx((head.ttft.p50, base.ttft.p50))
        files = sorted(tmp_path.glob("*.jsonl"))
        assert 2 == len(files)
        phases = Counter(request.phase for request in read_requests(files[0]))
        assert {Phase.WARMUP: REQUESTS, Phase.MEASURED: 2 * REQUESTS} == phases

    def test_no_two_runs_of_an_engine_share_a_prompt(self, builds):
        arms, _ = builds()

        measure_in_turn(arms[HEAD], arms[BASE], ask(runs=3), together=True)

        for arm in arms.values():
            assert (0, 4 * REQUESTS) == (arm.engine.counters["hit"], len({tuple(g.token_ids) for g in arm.engine.sent}))

    def test_both_are_sent_the_same(self, builds):
        """Else their inputs would be a part of the difference."""
        arms, _ = builds()

        measure_in_turn(arms[HEAD], arms[BASE], ask(runs=3), together=True)

        head, base = ([tuple(g.token_ids) for g in arm.engine.sent] for arm in arms.values())
        assert head == base


class TestFresh:
    """One engine at a time, a fresh one for every run."""

    def test_exactly_one_is_up_at_any_time(self, builds):
        """Two seldom fit one GPU."""
        arms, diary = builds()

        measure_in_turn(arms[HEAD], arms[BASE], ask(), together=False)

        assert 1 == diary.most
        assert BASE not in diary.up

    @pytest.mark.parametrize("warmup_runs", [0, 1, 2])
    def test_every_run_has_its_own_start_and_warm_ups(self, builds, warmup_runs):
        """A start is a part of what differs between two runs."""
        arms, diary = builds()

        head, base = measure_in_turn(arms[HEAD], arms[BASE], ask(runs=3, warmup_runs=warmup_runs), together=False)

        starts = [name for name, what in diary.events if what == "start"]
        assert list(order(3)) == starts
        assert [3, 3] == [len(result.records) for result in (head, base)]
        assert [0, 1, 2] == [record.index for record in head.records]
        assert [3 * (1 + warmup_runs) * REQUESTS] * 2 == [len(arm.engine.sent) for arm in arms.values()]

    def test_an_engine_that_a_test_has_started_is_no_fresh_one(self, builds):
        """Earlier tests' requests are in it."""
        arms, diary = builds()
        arms[HEAD].engine.start()
        diary.most = 0

        measure_in_turn(arms[HEAD], arms[BASE], ask(runs=2), together=False)

        starts = [name for name, what in diary.events if what == "start"]
        assert ([HEAD, *order(2)], 1) == (starts, diary.most)


class TestEnough:
    """Runs that are looked at while they are measured."""

    def looked(self, builds, enough_at=None, **arms_words):
        """The numbers of runs at each look, and of the results in the end."""
        arms, _ = builds(**arms_words)
        looks = []

        def is_enough(head, base):
            looks.append((len(head.records), len(base.records)))
            return len(looks) == enough_at

        request = replace(ask(), budget=Budget((2, 4, 6)))
        results = measure_in_turn(arms[HEAD], arms[BASE], request, together=True, is_enough=is_enough)
        return looks, tuple(len(result.records) for result in results)

    def test_both_have_as_many_at_each_look(self, builds):
        """Not at the last, after which there is nothing to decide."""
        assert ([(2, 2), (4, 4)], (6, 6)) == self.looked(builds)

    @pytest.mark.parametrize(("enough_at", "runs"), [(1, 2), (2, 4)])
    def test_what_is_enough_ends_both(self, builds, enough_at, runs):
        looks, measured = self.looked(builds, enough_at)

        assert (enough_at, (runs, runs)) == (len(looks), measured)

    def test_a_spoiled_run_is_not_looked_at(self, builds):
        looks, _ = self.looked(builds, base=failing(0))

        assert [] == looks


class TestSpoiled:
    """What is spoiled on either side ends both."""

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("name", [HEAD, BASE])
    @pytest.mark.parametrize("number", [0, REQUESTS, 3 * REQUESTS])
    def test_a_spoiled_run(self, builds, together, name, number):
        """Also in a warm-up: nobody waits for what cannot be compared any more."""
        arms, diary = builds(**{name: failing(number)})

        results = dict(
            zip((HEAD, BASE), measure_in_turn(arms[HEAD], arms[BASE], ask(), together=together), strict=True)
        )

        other = BASE if name == HEAD else HEAD
        assert not results[name].validity
        assert "1 of 4 requests failed: 1 timeout" in str(results[name].validity)
        assert results[other].validity
        assert len(arms[name].engine.sent) == (number // REQUESTS + 1) * REQUESTS
        assert len(arms[other].engine.sent) <= len(arms[name].engine.sent) + 2 * REQUESTS
        assert BASE not in diary.up

    def test_one_whose_turn_never_came_has_no_runs(self, builds):
        """It is not invalid: nothing was asked of it. It has no figures either."""
        first, second = list(order(4))[:2]
        arms, diary = builds(**{first: failing(0)})

        head, base = measure_in_turn(arms[HEAD], arms[BASE], ask(), together=False)

        spared = {HEAD: head, BASE: base}[second]
        assert ((), [], 0) == (tuple(spared.records), arms[second].engine.sent, spared.ttft.count)
        assert (1, False) == (diary.most, BASE in diary.up)


class TestExceptions:
    """However it ends, the base's engine does not stay."""

    @pytest.mark.parametrize("together", [True, False])
    def test_a_base_that_does_not_start(self, builds, together):
        arms, diary = builds(base_words={"broken": True})

        with pytest.raises(EngineStartError, match="base does not start"):
            measure_in_turn(arms[HEAD], arms[BASE], ask(), together=together)

        assert arms[BASE].engine.stopped
        assert BASE not in diary.up

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("name", [HEAD, BASE])
    def test_an_engine_that_dies(self, builds, together, name):
        """What it said is told, and the other does not stay either where it is ours to stop."""
        arms, diary = builds(**{name: failing(5)})
        arms[name].engine.dies_after = 5

        with pytest.raises(EngineDiedError, match="killed by SIGKILL"):
            measure_in_turn(arms[HEAD], arms[BASE], ask(), together=together)

        assert BASE not in diary.up

    @pytest.mark.parametrize("together", [True, False])
    def test_an_interrupt(self, builds, together):
        """Ctrl-C in the middle of a run."""

        def interrupted(number):
            if number == 6:
                raise KeyboardInterrupt

        arms, diary = builds(base=Script(fail=interrupted))

        with pytest.raises(KeyboardInterrupt):
            measure_in_turn(arms[HEAD], arms[BASE], ask(), together=together)

        assert BASE not in diary.up

    def test_a_record_file_that_cannot_be_finished(self, builds, monkeypatch):
        """A full disk keeps no server alive."""
        arms, diary = builds()

        close = RecordFile.close

        def fail(file):
            close(file)
            raise OSError("disk full")

        monkeypatch.setattr(RecordFile, "close", fail)

        with pytest.raises(OSError, match="disk full"):
            measure_in_turn(arms[HEAD], arms[BASE], ask(), together=True)

        assert BASE not in diary.up


class TestSecondBuild:
    """What the other build is, from the words that were given."""

    def test_without_words_there_is_none(self):
        build = SecondBuild({}, None, is_given=False)

        assert [] == list(build.problems([VLLM]))

    def test_the_words_take_the_place_of_the_engine_s(self):
        """The rest stays."""
        spec = SecondBuild({"executable": "/venvs/main/bin/python"}, None).spec_of(VLLM)

        assert replace(VLLM, executable="/venvs/main/bin/python") == spec

    def test_a_word_can_be_taken_back(self):
        assert SecondBuild({"prefix_caching": None}, None).spec_of(VLLM).prefix_caching is None

    def test_two_simulated_builds_do_not_have_the_same_luck(self):
        """Unless that is asked for."""
        noisy = replace(SIM, run_noise=0.01, noise_seed=7)

        assert 8 == SecondBuild({"slow": "decode:+1%"}, None).spec_of(noisy).noise_seed
        assert 7 == SecondBuild({"noise_seed": 7}, None).spec_of(noisy).noise_seed

    def test_problems_are_told_once_for_each_engine(self):
        """With what is accepted."""
        problems = list(SecondBuild({"slow": "decode:+1%"}, None).problems([VLLM, VLLM, SIM]))

        assert 1 == len(problems)
        assert problems[0].startswith("--llmperf-base: vllm: unknown word 'slow'; ")

    def test_a_build_that_is_the_other_is_doubted(self):
        """Whichever way it comes about; luck is no difference."""
        noisy = replace(SIM, run_noise=0.01, slow="decode:+1%")

        (doubt,) = sameness(noisy, replace(noisy, noise_seed=2))

        assert "both builds have the same words" in doubt
        assert () == sameness(noisy, replace(noisy, slow=None))

    @pytest.mark.parametrize(("servers", "expected"), [("both", True), ("fresh", False), (None, None)])
    @pytest.mark.parametrize(
        ("words", "natural"),
        [
            ({"is_simulated": True}, True),
            ({"spec": VLLM}, False),
            ({"spec": replace(VLLM, url="http://a")}, True),
        ],
    )
    def test_both_stay_up_where_neither_is_started_by_us(self, servers, expected, words, natural):
        """Or nothing has to be started; what is asked for counts more."""
        engine = VirtualEngine(**words)

        assert (natural if expected is None else expected) == SecondBuild({}, servers).stays_up(engine, engine)

    def test_one_that_we_start_is_enough_to_take_turns(self):
        """A server elsewhere against one of ours, which is one more on the GPU, if it is the same."""
        elsewhere, ours = VirtualEngine(spec=replace(VLLM, url="http://a")), VirtualEngine(spec=VLLM)

        assert not SecondBuild({}, None).stays_up(elsewhere, ours)
        assert not SecondBuild({}, None).stays_up(ours, elsewhere)
