"""`pytest-llmperf doctor` as its users meet it."""

from __future__ import annotations

import re
import time

import pytest

from pytest_llmperf import calibration
from pytest_llmperf.calibration import Step
from pytest_llmperf.cli import doctor, main
from pytest_llmperf.hardware import Gpu, Hardware, Host

GOOD = Step(
    streams=1024,
    failures=None,
    peak=1024,
    reported_s=0.10043,
    true_s=0.10042,
    rate=76199.0,
    possible=79839.0,
    excess=None,
    client_cpu=0.8,
    server_cpu=0.62,
)
DOUBTFUL = Step(
    streams=2048,
    failures=None,
    peak=2048,
    reported_s=0.12083,
    true_s=0.12082,
    rate=77882.0,
    possible=152119.0,
    excess=None,
    client_cpu=0.81,
    server_cpu=0.97,
)
BAD = Step(
    streams=16,
    failures="6 of 16 requests failed, as in connect_failed (http://127.0.0.1:34057: [Errno 24] Too many open files)",
    peak=10,
    reported_s=0.1,
    true_s=0.1,
    rate=600.0,
    possible=1250.0,
    excess=None,
    client_cpu=0.03,
    server_cpu=0.02,
)
TABLE = """\

The client against a server on this machine that sends first tokens after 100 ms
and further ones every 10 ms; by how much it was late with first tokens is known:
            TTFT, mean                              CPU used by
  streams   true       reported    tokens/s  of possible  client  server
     1024   100.42 ms   100.43 ms      76,199        95.4%     80%     62%  ok
     2048   120.82 ms   120.83 ms      77,882        51.2%     81%     97%  ?
           ? the server sent 77,882 of 152,119 tokens/s: it has no more to give
             (97% of a processor)
client            truthful up to 1024 streams and 76,199 tokens/s with one
                  worker, beside the server; what it can do beyond that cannot
                  be told here
"""


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command on a quiet, well-kept machine on which these steps are measured."""
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    monkeypatch.setattr(doctor, "read_host", Host)

    def run(*arguments, steps=()):
        def calibrate(progress):
            for step in steps:
                progress(step.streams)
                yield step

        monkeypatch.setattr(calibration, "calibrate", calibrate)
        code = main(["doctor", *arguments])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out

    return run


def test_the_machine(call, monkeypatch):
    """Each fact in its line."""
    monkeypatch.setattr(doctor, "detect", lambda: Hardware(cpu="AMD EPYC", cpus=2, problem="none here", key="X"))
    code, out = call("--no-calibration")
    names = ["hardware key", "GPUs", "driver", "CUDA", "CPU", "marks satisfied"]
    assert names == re.findall(r"^(\w.*?)  ", out, re.MULTILINE)
    assert code == 0


def test_a_long_key_stays_whole(call, monkeypatch):
    """It is there to be copied, as that of a GPU cut into slices."""
    key = "2x-NVIDIA-A100-SXM4-40GB-MIG-1g.5gb+NVIDIA-A100-SXM4-40GB-MIG-3g.20gb"
    monkeypatch.setattr(doctor, "detect", lambda: Hardware(cpu="AMD EPYC", cpus=2, key=key))
    _, out = call("--no-calibration")
    assert out.splitlines()[0] == f"hardware key      {key}"


def test_a_long_fact_goes_on_below_itself(call, monkeypatch):
    """No line is longer than 80 columns, and nothing is lost."""
    hardware = Hardware(cpu="a processor with a name " + "that goes on and on " * 5, key="X")
    monkeypatch.setattr(doctor, "detect", lambda: hardware)
    _, out = call("--no-calibration")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert hardware.cpu.split() == re.search(r"CPU  +(a processor.*?), None", out, re.DOTALL)[1].split()


def test_what_to_change_stands_below_the_facts(call, monkeypatch):
    """A line for each thing, no longer than 80 columns, and a command is not torn at its dashes."""
    gpu = Gpu(name="NVIDIA H200", index=0, pcie_generation=1, pcie_generation_max=5, pcie_width=16, pcie_width_max=16)
    monkeypatch.setattr(doctor, "detect", lambda: Hardware(gpus=(gpu,), cpu="AMD EPYC", cpus=2, key="NVIDIA-H200"))
    monkeypatch.setattr(doctor, "read_host", lambda: Host(swap_used_bytes=2**30))

    _, out = call("--no-calibration")

    assert (
        out
        == """\
hardware key      NVIDIA-H200
GPUs              1 x NVIDIA H200
driver            -
CUDA              -
CPU               AMD EPYC, 2 usable
marks satisfied   h200
GPU 0             PCIe generation 1 x16 of 5 x16
advice            GPU 0: its PCIe link is at generation 1 of 5, which is normal
                  while idle; look again under load: nvidia-smi -i 0
                  --query-gpu=pcie.link.gen.current --format=csv
advice            1.00 GiB of swap is in use; stop what needs the memory, then
                  sudo swapoff -a && sudo swapon -a
"""
    )


def test_the_calibration(call):
    """A table of what was true and what was reported, and what that means."""
    code, out = call(steps=[GOOD, DOUBTFUL])
    assert out.endswith(TABLE)
    assert code == 0


def test_a_client_that_failed(call):
    """The reason stands below its line, whatever its length."""
    code, out = call(steps=[BAD])
    rows = out.splitlines()
    (row,) = [number for number, line in enumerate(rows) if line.endswith("  x")]
    reason = " ".join(line.strip() for line in rows[row + 1 : row + 3])
    assert reason == f"x {BAD.failures}"
    assert "measures no load truthfully at the moment" in rows[-2]
    assert code == 0


def test_without_calibration_nothing_is_measured(call, monkeypatch):
    """It costs seconds, and a processor."""
    _, out = call("--no-calibration", steps=[GOOD])
    assert "client" not in out


def test_a_busy_machine_is_told(call, monkeypatch):
    """What the client reaches then is less than it could."""
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (999.5, 0.0, 0.0))
    _, out = call(steps=[GOOD])
    assert "\nnote              load average 999.5 on " in out


class Raising(list):
    """Steps that end in an error."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error


def test_a_server_that_does_not_start_is_no_reason_to_fail(call):
    """The facts stand, and it is said what was not found out."""
    code, out = call(steps=Raising(RuntimeError("the server did not come up")))
    assert code == 0
    assert out.endswith("\nclient            could not be measured: the server did not come up\n")


def test_control_c(call):
    """It ends without a traceback."""
    code, _ = call(steps=Raising(KeyboardInterrupt()))
    assert code == 130


@pytest.mark.slow
def test_it_takes_no_longer_than_it_may(capsys):
    """The real thing, from its first line to its last one."""
    began = time.monotonic()
    assert main(["doctor"]) == 0
    assert time.monotonic() - began < 20
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^ +16 .* (ok|x|\?)$", out, re.MULTILINE)
    assert re.search(r"^client            (truthful up to \d+ streams|measures no load)", out, re.MULTILINE)
    assert all(len(line) <= 81 for line in out.splitlines())


def test_what_killed_sessions_have_left_is_said_first(capsys, monkeypatch):
    """It may hold what the rest is about."""
    monkeypatch.setattr(doctor, "clear_up", lambda clock, progress: ["cleared up after a session: ended 2 processes"])

    main(["doctor", "--no-calibration"])

    assert capsys.readouterr().out.startswith("left behind       cleared up after a session: ended 2 processes\n")
