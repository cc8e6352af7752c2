"""The thread that samples: when, what it costs a run that it cannot, and that nothing of it stays."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

from pytest_llmperf.clock import NS_PER_S, RealClock
from pytest_llmperf.readings import GpuSample, HostSample
from pytest_llmperf.telemetry import read_samples, sampler
from pytest_llmperf.telemetry.gpu import GpuAddress
from pytest_llmperf.telemetry.sampler import Sampler, Sensors

SOON_S = 10


class Gpu:
    """A GPU that counts how often it is read; `lost_after` so many reads, `stuck` until it is let go."""

    def __init__(self, number=0, lost_after=None, stuck_at=None, lag_s=0.0):
        self.lag_s = lag_s
        self.address = GpuAddress(number, uuid=f"GPU-{number}")
        self.lost = None
        self.reads = []
        self.let_go = threading.Event()
        self._lost_after = lost_after
        self._stuck_at = stuck_at
        self._read = threading.Condition()

    def read(self, at_ns, *, everything, links=True):
        if len(self.reads) == self._stuck_at:
            self.let_go.wait(SOON_S)
        with self._read:
            self.reads.append((at_ns, everything))
            self._read.notify_all()
        if self._lost_after is not None and len(self.reads) > self._lost_after:
            self.lost = "GPU is lost"
            return None
        return GpuSample(at_ns=at_ns, gpu=self.address.gpu, power_w=100.0, energy_j=at_ns / NS_PER_S * 100)

    def wait_for(self, reads):
        """Until it has been read so often."""
        with self._read:
            assert self._read.wait_for(lambda: len(self.reads) >= reads, SOON_S)


class Host:
    def read(self, at_ns):
        return HostSample(at_ns=at_ns, memory_available_bytes=5)


@pytest.fixture
def sampling(tmp_path):
    """`sampling(gpu, ...)`: a running sampler over these sensors, closed in the end."""
    made = []

    def make(*gpus, rate_hz=100.0, host=None, opening=None, problems=()):
        closed = threading.Event()

        @contextmanager
        def opened():
            yield Sensors(gpus, host, None, problems)
            closed.set()

        made.append(
            Sampler(
                opening or opened,
                gpus=[gpu.address for gpu in gpus],
                rate_hz=rate_hz,
                clock=RealClock(),
                path=tmp_path / f"{len(made)}.telemetry.jsonl",
                header={"measurement": "test"},
            )
        )
        made[-1].closed = closed
        made[-1].path = tmp_path / f"{len(made) - 1}.telemetry.jsonl"
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def impatient(monkeypatch):
    """Nothing waits long for a driver."""
    monkeypatch.setattr(sampler, "_ANSWERING_S", 0.05)
    monkeypatch.setattr(sampler, "_OPENING_S", 0.05)


def one_run(sampling_, gpu, reads, index=0):
    """A run that lasts for so many samples; returns the part of it that counts."""
    sampling_.begin(index)
    start_ns = RealClock().now_ns()
    gpu.wait_for(len(gpu.reads) + reads)
    end_ns = RealClock().now_ns()
    sampling_.end()
    return start_ns, end_ns


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "llmperf-telemetry"]


def test_a_run_is_sampled_from_just_before_to_just_after(sampling):
    """At its rate, and everything at both ends, so that counters can be taken there."""
    gpu = Gpu()
    one = sampling(gpu)

    span = one_run(one, gpu, 10)
    summary = one.summary(span)

    (found,) = summary.gpus
    assert (found.uuid, summary.rate_hz, summary.problems) == ("GPU-0", 100.0, ())
    assert 9 <= found.samples <= len(gpu.reads) - 2  # all but those at its two ends
    assert found.energy_j == pytest.approx(100 * (span[1] - span[0]) / NS_PER_S)
    assert [everything for _, everything in gpu.reads][0 :: len(gpu.reads) - 1] == [True, True]
    assert gpu.reads[0][0] <= span[0]
    assert span[1] <= gpu.reads[-1][0]
    assert 0 < summary.cost_share < 1


def test_between_runs_everything_is_read(sampling):
    """Temperatures, which have to hold still before a run, are not in the frequent samples."""
    gpu = Gpu()

    (sample,) = sampling(gpu).look()

    assert (sample.gpu, [everything for _, everything in gpu.reads]) == (0, [True])


def test_links_that_lag_are_read_once_more_when_all_that_passed_can_be_seen(sampling):
    """After the sample at the run's end, which energy needs at once."""
    gpu = Gpu(lag_s=0.12)
    one = sampling(gpu)

    span = one_run(one, gpu, 3)

    (at_end, _), (later, everything) = gpu.reads[-2:]
    assert everything
    assert span[1] <= at_end
    assert later - at_end >= 0.12 * NS_PER_S
    assert one.summary(span).gpus[0].energy_j == pytest.approx(100 * (span[1] - span[0]) / NS_PER_S)


def test_nothing_is_sampled_between_runs(sampling):
    """Preparation and other arms have the machine to themselves."""
    gpu = Gpu()
    one = sampling(gpu)
    one_run(one, gpu, 3)
    reads = len(gpu.reads)

    threading.Event().wait(0.05)
    assert len(gpu.reads) == reads

    one_run(one, gpu, 3, index=1)
    assert len(gpu.reads) > reads


def test_each_run_is_summed_by_itself(sampling):
    """Of the samples of the run before nothing is in it."""
    gpu = Gpu()
    one = sampling(gpu)

    first = one.summary(one_run(one, gpu, 3)).gpus[0].samples
    second = one.summary(one_run(one, gpu, 8, index=1)).gpus[0].samples

    assert first >= 2
    assert second >= 7
    assert first + second <= len(gpu.reads) - 4  # each run's own, without those at its two ends


def test_a_gpu_that_is_lost_ends_its_own_sampling_only(sampling):
    """It is said of it, and the other one goes on."""
    lost, other = Gpu(0, lost_after=3), Gpu(1)
    one = sampling(lost, other)

    summary = one.summary(one_run(one, other, 10))

    assert [gpu.lost for gpu in summary.gpus] == ["GPU is lost", None]
    assert summary.gpus[0].samples < summary.gpus[1].samples
    assert summary.gpus[0].energy_j is None
    assert summary.gpus[1].energy_j is not None


def test_the_machine_is_sampled_once_a_second_and_at_both_ends(sampling):
    """Also where there is no GPU at all; then nothing wakes up ten times a second."""
    one = sampling(host=Host())

    one.begin(0)
    span = RealClock().now_ns(), RealClock().now_ns() + 1
    one.end()
    summary = one.summary(span)

    assert (summary.gpus, summary.host.samples) == ((), 1)
    assert len(list(read_samples(one.path))) == 2


def test_without_the_gpus_there_is_a_reason(sampling):
    """As the opening of the sensors gave it."""
    one = sampling(host=Host(), problems=("no telemetry of the GPUs: NVML: Driver Not Loaded",))
    one.begin(0)
    one.end()

    assert one.summary((0, 1)).problems == ("no telemetry of the GPUs: NVML: Driver Not Loaded",)


def test_a_run_in_which_nothing_was_sent_has_no_values(sampling):
    """There is no part of it that counts."""
    gpu = Gpu()
    one = sampling(gpu)
    one_run(one, gpu, 2)

    assert one.summary(None).gpus == ()


@pytest.mark.parametrize("stuck_at", [0, 3], ids=["before the run", "in mid-run"])
def test_a_driver_that_does_not_answer_hangs_no_run(sampling, impatient, stuck_at):
    """What it cost is said, the run goes on, and the thread is left behind."""
    gpu = Gpu(stuck_at=stuck_at)
    one = sampling(gpu)

    one.begin(0)
    if stuck_at:
        gpu.wait_for(stuck_at)
    one.end()
    one.begin(1)
    one.end()
    one.close()
    summary = one.summary((0, NS_PER_S))

    (problem,) = summary.problems
    assert problem.startswith("the GPU driver (NVML) did not answer for 0.05 s, so ")
    assert ".py" not in problem
    assert "read (test_sampler.py:" in one.path.with_suffix(".stack.txt").read_text(encoding="utf-8")
    assert (summary.gpus, summary.cost_share) == ((), None)
    gpu.let_go.set()
    one.closed.wait(SOON_S)


def test_a_driver_that_does_not_open_hangs_no_run(sampling, impatient):
    """NVML may hang before it has said anything."""
    let_go = threading.Event()

    @contextmanager
    def opening():
        let_go.wait(SOON_S)
        yield Sensors()

    one = sampling(opening=opening)
    one.begin(0)
    one.end()

    (problem,) = one.summary((0, 1)).problems
    assert problem.startswith("the GPU driver (NVML) did not answer for 0.05 s, so ")
    assert "opening (test_sampler.py:" in one.path.with_suffix(".stack.txt").read_text(encoding="utf-8")
    let_go.set()


def test_a_disk_that_is_full_ends_the_sampling_and_not_the_run(sampling):
    """It is said, and nothing waits for a thread that is gone."""
    gpu = Gpu()
    one = sampling(gpu)

    def full():
        raise OSError(28, "No space left on device")

    before = one.summary(one_run(one, gpu, 3))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(one._file, "flush", full)
        one.begin(1)
        one.end()
        one.begin(2)
        one.end()
    summary = one.summary((0, RealClock().now_ns()))

    assert before.gpus[0].samples > 0
    assert summary.problems == ("telemetry stopped: [Errno 28] No space left on device",)
    assert (summary.gpus, summary.cost_share) == ((), None)


def test_nothing_is_left_behind(sampling):
    """Neither the thread nor the sensors, and the file is whole; closing twice does no harm."""
    before = len(threads())
    gpu = Gpu()
    one = sampling(gpu)
    one_run(one, gpu, 3)

    one.close()
    one.close()

    assert one.closed.is_set()
    assert len(threads()) == before
    assert len(list(read_samples(one.path))) == len(gpu.reads)


def test_a_run_that_is_broken_off_can_be_closed(sampling):
    """An engine that dies in mid-run ends the measurement without the run's end."""
    gpu = Gpu()
    one = sampling(gpu)
    one.begin(0)
    gpu.wait_for(3)

    one.close()

    assert one.closed.is_set()
    assert one.summary((0, 1)).gpus == ()
