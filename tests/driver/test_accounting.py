"""All that was meant to be sent is completed, failed or shed, whatever fails, under any load."""

from __future__ import annotations

import pytest
from fakes import Script, VirtualEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.driver import Job, LocalTeam
from pytest_llmperf.load import burst, closed_loop, constant, poisson, round_robin
from pytest_llmperf.records import Failure, Phase
from pytest_llmperf.workloads import multi_round

LOADS = {
    "round robin": round_robin(),
    "barrier": round_robin(barrier=True),
    "closed loop": closed_loop(3),
    "constant": constant(80.0),
    "poisson, shedding": poisson(300.0, max_in_flight=2),
    "burst, shedding": burst(200.0, shape=0.3, max_in_flight=1),
}


def drive(engine, workload, load):
    rows = []
    job = Job(connector=engine.connector(), sessions=workload, load=load, run=0, phase=Phase.MEASURED)
    return LocalTeam(engine.clock).run(job, rows.append, lambda: None), rows


@pytest.mark.parametrize("name", LOADS)
@settings(max_examples=30, deadline=None)
@given(users=st.integers(1, 8), rounds=st.integers(1, 4), broken=st.sets(st.integers(0, 31)), ids=st.booleans())
def test_whatever_fails(name, users, rounds, broken, ids):
    """Faults hit any requests; with the engine giving no token ids every session breaks off after its first turn."""
    fail = Script(
        fail=lambda number: Failure("connection_reset", "") if number in broken else None, token_ids=ids, itl_s=0.001
    )
    engine = VirtualEngine(fail, concurrent=True)
    workload = multi_round(users=users, rounds=rounds, context_tokens=4, input_tokens=2, output_tokens=3)

    driven, rows = drive(engine, workload, LOADS[name])

    completed = sum(row.ok for row in rows)
    failed = len(rows) - completed
    assert users * rounds == completed + failed + driven.shed
    assert driven.sent == len(engine.sent)
    assert [] == list(driven.unaccounted(rows))


@settings(max_examples=30, deadline=None)
@given(users=st.integers(2, 8), broken=st.sets(st.integers(0, 15)), lost=st.integers(0, 15))
def test_a_record_that_is_lost_is_missed(users, broken, lost):
    """The invariant is one that can be broken: without any one of the sent requests' records it says so."""
    engine = VirtualEngine(Script(fail=lambda number: Failure("reset", "") if number in broken else None))
    workload = multi_round(users=users, rounds=2, context_tokens=4, input_tokens=2, output_tokens=3)
    driven, rows = drive(engine, workload, closed_loop(2))

    sent = [row for row in rows if row.sent_ns is not None]
    rows.remove(sent[lost % len(sent)])

    assert 1 == len(list(driven.unaccounted(rows)))
