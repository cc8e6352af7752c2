"""Connections that break, stall or cannot be made: each is counted under its name, and the run is INVALID."""

from __future__ import annotations

import resource
import socket

import pytest
from fakes import no_progress
from faulty_proxy import Fault, Proxy

from pytest_llmperf.client import Limits, http
from pytest_llmperf.clock import RealClock
from pytest_llmperf.driver import LocalTeam
from pytest_llmperf.engines import make_spec, openai
from pytest_llmperf.engines.base import Surroundings
from pytest_llmperf.load import closed_loop, constant, open_loop
from pytest_llmperf.origin import OriginProcess
from pytest_llmperf.request import checked_request
from pytest_llmperf.session import Measurement, Setting
from pytest_llmperf.workloads import multi_round, single_turn

pytestmark = pytest.mark.real_time

REQUESTS, STREAMS = 24, 4
ONE_TURN = single_turn(requests=REQUESTS, input_tokens=16, output_tokens=8)


@pytest.fixture
def begin(tmp_path):
    """Connects to a URL while all is well; returns the measurement, whose runs are then made."""
    started = []

    def begin(url, workload=ONE_TURN, load=None, silence_s=5.0):
        clock = RealClock()
        surroundings = Surroundings(
            clock=clock,
            log_dir=tmp_path,
            cache_dir=tmp_path,
            start_timeout_s=10,
            limits=Limits(silence_s=silence_s),
            api_key=None,
            progress=no_progress,
        )
        request = checked_request(
            workload, load=load or closed_loop(STREAMS), runs=1, warmup_runs=0, cache="as_is", prefill_context=False,
            slo=None, name=None,
        )  # fmt: skip
        setting = Setting(
            test="faults",
            hardware_key="here",
            clock=clock,
            record_dir=tmp_path,
            progress=no_progress,
            team=LocalTeam(clock),
        )
        started.append(Measurement(openai.make(make_spec("openai", {"url": url}), surroundings), request, setting))
        return started[-1]

    yield begin
    for measurement in started:
        measurement.close()


@pytest.fixture(scope="module")
def origin():
    with OriginProcess(ttft_s=0.02, itl_s=0.002) as server:
        yield server


@pytest.fixture
def proxy(origin):
    with Proxy(int(origin.url.rpartition(":")[2])) as proxy:
        yield proxy


def outcome(measurement):
    """Answered requests, how many failed of each kind, and why the run cannot be believed."""
    measurement.run(0)
    (run,) = measurement.records
    kinds = {}
    for request in run.requests:
        if request.failure is not None:
            kinds[request.failure.kind] = kinds.get(request.failure.kind, 0) + 1
    return sum(request.ok for request in run.requests), kinds, measurement.result().validity.reasons


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (Fault(reset_after=1500, every=2), {"connection_reset"}),
        (Fault(close_after=1500, every=2), {"connection_closed"}),
        (Fault(stall_after=1500, every=2), {"timeout"}),
        (Fault(most=2), {"connection_reset", "connect_failed"}),
    ],
    ids=["reset", "closed", "stalled", "a limit of connections"],
)
def test_a_fault_in_the_middle(begin, proxy, fault, kinds):
    """What was asked for before is answered, and what the fault met has its name; nothing is unaccounted for."""
    measurement = begin(proxy.url, silence_s=0.5)
    proxy.fault = fault

    ok, found, reasons = outcome(measurement)

    assert set(found) <= kinds
    assert found
    assert ok + sum(found.values()) == REQUESTS
    assert any(f"of {REQUESTS} requests failed: " in reason and next(iter(found)) in reason for reason in reasons)
    assert not any("lost account" in reason for reason in reasons)


def test_answers_in_the_smallest_pieces(begin, proxy):
    """Cut anywhere, an answer is the same; and pieces are no disturbance of the network."""
    measurement = begin(proxy.url, single_turn(requests=4, input_tokens=8, output_tokens=4))
    proxy.fault = Fault(piece=1)

    assert (4, {}, ()) == outcome(measurement)


@pytest.mark.slow
def test_turns_after_a_fault_are_accounted_for(begin, proxy):
    """Those that could never be sent are failures, too, under a name of their own."""
    measurement = begin(proxy.url, multi_round(users=6, rounds=3, context_tokens=8, input_tokens=8, output_tokens=8))
    proxy.fault = Fault(reset_after=1500, every=2)

    ok, found, reasons = outcome(measurement)

    assert ok + sum(found.values()) == 6 * 3
    assert found["abandoned"]
    assert "abandoned (never sent, because turn" in reasons[0]


@pytest.mark.slow
def test_nobody_listens_any_more(begin, origin):
    """The server is gone when the run begins."""
    with Proxy(int(origin.url.rpartition(":")[2])) as proxy:
        measurement = begin(proxy.url)

    ok, found, reasons = outcome(measurement)

    assert (0, {"connection_refused": REQUESTS}) == (ok, found)
    assert f"nothing listens at {proxy.url}" in reasons[0]


@pytest.mark.slow
def test_a_server_that_accepts_no_more(begin, origin, monkeypatch):
    """Its queue of connections is full: the kernel asks again and again, and the run says who did not accept."""
    monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.5)
    with Proxy(int(origin.url.rpartition(":")[2])) as proxy:
        measurement = begin(proxy.url, single_turn(requests=2, input_tokens=8, output_tokens=2), closed_loop(2))
    with socket.create_server(("127.0.0.1", proxy.port), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        ok, found, reasons = outcome(measurement)
        for sock in waiting:
            sock.close()

    assert (0, {"connect_timeout": 2}) == (ok, found)
    assert f"{proxy.url} did not accept a connection within 0.5 s" in reasons[0]


@pytest.mark.slow
def test_no_descriptor_is_left_in_the_middle_of_a_run(begin, monkeypatch):
    """Beyond what was foreseen: that it is this machine's limit is said, not that the server failed."""
    monkeypatch.setattr(open_loop, "_LIKELY_S", 0.02)  # a rate of 200 has 4 connections made ahead
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with OriginProcess(ttft_s=1.0, itl_s=0.001) as server:
        workload = single_turn(requests=80, input_tokens=8, output_tokens=2)
        measurement = begin(server.url, workload, constant(200))
        with socket.socket() as probe:
            resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno() + 48, hard))
        try:
            ok, found, reasons = outcome(measurement)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert {"too_many_files": 80 - ok} == found
    assert 20 < ok < 60
    assert (
        "Too many open files; raise this process's limit (ulimit -n), or ask for fewer requests at a time" in reasons[0]
    )
