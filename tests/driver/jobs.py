"""Jobs for a team to drive against a real server, and what can be said of their records."""

from __future__ import annotations

import time
from dataclasses import replace

from pytest_llmperf.arrivals import Arrivals
from pytest_llmperf.client import Address, Limits
from pytest_llmperf.driver import Job
from pytest_llmperf.engines.completions import CompletionsConnector, Dialect
from pytest_llmperf.load import closed_loop
from pytest_llmperf.records import Phase
from pytest_llmperf.workloads import multi_round

WAIT_S = 15.0
ROUNDS = multi_round(users=7, rounds=3, context_tokens=20, input_tokens=5, output_tokens=6)
ENDLESS = multi_round(users=4, rounds=400, context_tokens=0, input_tokens=1, output_tokens=3)
"""Takes seconds, so that something can happen in the middle of it."""
_TIMES = ("released_ns", "sent_ns", "flushed_ns", "connect_ns", "end_ns")

# A workload that is known to nobody but the file of the test.
TEST = """
import pytest
from pytest_llmperf import closed_loop, multi_round

class Mine:
    name, digest, token_ids = "mine", "0123456789abcdef", range(1000, 2048)

    def within(self, namespace):
        return self

    def __iter__(self):
        return iter(multi_round(users=5, rounds=2, context_tokens=8, input_tokens=4, output_tokens=5))

@pytest.mark.parametrize("load", [closed_loop(4), None], ids=["closed", "rounds"])
def test_it(llm_engine, llm_perf, load):
    result = llm_perf(llm_engine, Mine(), load=load)
    print(f"{result.client.workers} workers, {[len(run.requests) for run in result.records]} requests")
"""


def job(server, sessions=ROUNDS, load=None):
    """A run of these sessions on the server with a known answer."""
    connector = CompletionsConnector(
        address=Address.parse(server.url),
        model="origin",
        dialect=Dialect(extended=True),
        limits=Limits(silence_s=WAIT_S),
    )
    return Job(connector=connector, sessions=sessions, load=load or closed_loop(4), run=3, phase=Phase.MEASURED)


def drive(team, job, record=None, check_engine=lambda: None):
    """What came of a job, and its records."""
    rows = []

    def take(row):
        rows.append(row)
        if record is not None:
            record(row)

    return team.run(job, take, check_engine), rows


def content(rows):
    """All that is not time, in one order."""
    plain = [
        replace(
            row,
            **dict.fromkeys(_TIMES, 0),
            arrivals=Arrivals([0] * len(row.arrivals), [arrival.tokens for arrival in row.arrivals], ()),
        )
        for row in rows
    ]
    return sorted(map(repr, plain))


def eventually(condition):
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
