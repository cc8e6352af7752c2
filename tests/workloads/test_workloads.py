"""Workloads: exact lengths, the same everywhere, and no prefix in common by accident."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.engines.base import TOKEN_IDS
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.workloads import Session, Turn, digest, multi_round, shared_prefix, single_turn
from pytest_llmperf.workloads.base import TokenSource

ROUNDS = multi_round(users=2, rounds=3, context_tokens=5, input_tokens=4, output_tokens=6, seed=7)
SINGLE = single_turn(requests=2, input_tokens=5, output_tokens=3, seed=7)
SHARED = shared_prefix(prefixes=2, requests_per_prefix=2, prefix_tokens=3, input_tokens=2, output_tokens=3, seed=7)
ALL = [ROUNDS, SINGLE, SHARED]

# Ids that were drawn once, with numpy 1.26 and 2.4 alike. If one of these tests fails after an upgrade, every
# stored baseline was measured with other prompts than those that would be sent now.
GOLDEN = [
    (
        ROUNDS,
        "5be5fa32a0d4c25c",
        [
            [
                [1686, 1001, 1298, 1730, 1325, 1200, 1426, 1985, 1931],
                [1669, 1535, 1237, 1482],
                [1569, 1580, 2019, 1917],
            ],
            [
                [1564, 1701, 1916, 1576, 1401, 1845, 2029, 1618, 1077],
                [1299, 1015, 1097, 1494],
                [1270, 1218, 1665, 1599],
            ],
        ],
    ),
    (SINGLE, "2d7c8dcb02b0bbb4", [[[1189, 1521, 1738, 1930, 1435]], [[1396, 1180, 1902, 1531, 2037]]]),
    (
        SHARED,
        "07ba67da4098c392",
        [
            [[1461, 1262, 1367, 1226, 1642]],
            [[1874, 1951, 1861, 1908, 1230]],
            [[1461, 1262, 1367, 1357, 1478]],
            [[1874, 1951, 1861, 1963, 1039]],
        ],
    ),
]


def ids(workload):
    """What each turn sends by itself, history left out."""
    nothing = np.empty(0, np.int32)
    return [[turn.input_after(nothing).tolist() for turn in session.turns] for session in workload]


@pytest.mark.parametrize(("workload", "_", "expected"), GOLDEN)
def test_the_ids_are_those_of_every_other_machine(workload, _, expected):
    """The same arguments give the same ids for any numpy and Python."""
    assert expected == ids(workload)


@pytest.mark.parametrize(("workload", "expected", "_"), GOLDEN)
def test_the_digest_is_that_of_every_other_machine(workload, expected, _):
    """Stored baselines keep fitting the workloads they were measured with."""
    assert expected == workload.digest


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        (range(1000, 2048), [1802, 1039, 1160, 1280]),
        (range(1000, 1002), [1000 + one for one in (0, 1, 0, 0)]),
        (range(2**31 - 1), [246820201, 574000549, 1699828911]),
    ],
)
def test_a_token_source_draws_what_it_always_drew(token_ids, expected):
    """The stream under all workloads is fixed, for small and for large vocabularies."""
    namespace = "n" if token_ids.start == 0 else ""

    drawn = TokenSource(7, namespace, token_ids).draw("x", len(expected))

    assert expected == drawn.tolist()
    assert np.int32 == drawn.dtype


@pytest.mark.slow
def test_another_process_draws_the_same_ids():
    """Nothing depends on the hash seed or on what was drawn before."""
    code = f"from pytest_llmperf import multi_round; print(multi_round({_arguments(ROUNDS)}).digest)"

    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert ROUNDS.digest == run.stdout.strip()


def _arguments(workload):
    names = ("users", "rounds", "context_tokens", "input_tokens", "output_tokens", "seed")
    return ", ".join(f"{name}={getattr(workload, name)}" for name in names)


@pytest.mark.parametrize("workload", ALL)
def test_iterating_again_yields_the_same(workload):
    """A workload is a value, not a stream that runs out."""
    assert ids(workload) == ids(workload)


@pytest.mark.parametrize("workload", ALL)
def test_ids_are_ordinary_tokens(workload):
    """All ids come from the range that is text in every vocabulary."""
    assert all(token in TOKEN_IDS for session in ids(workload) for turn in session for token in turn)


def test_ids_come_from_the_range_that_was_given():
    """`token_ids` replaces the range, and all of it is used."""
    workload = single_turn(requests=20, input_tokens=50, output_tokens=1, token_ids=range(10, 14))

    assert {10, 11, 12, 13} == {token for session in ids(workload) for turn in session for token in turn}


@pytest.mark.parametrize("workload", ALL)
def test_another_seed_gives_other_ids_of_the_same_shape(workload):
    """Seeds are told apart by digest; lengths stay."""
    other = replace(workload, seed=8)

    assert ids(workload) != ids(other)
    assert workload.digest != other.digest
    assert [[len(t) for t in s] for s in ids(workload)] == [[len(t) for t in s] for s in ids(other)]


@pytest.mark.parametrize("workload", ALL)
def test_a_namespace_gives_other_ids_of_the_same_shape(workload):
    """Each run has its own prompts, and all are the same workload."""
    one, other = workload.within("run 0"), workload.within("run 1")

    assert workload.digest == one.digest == other.digest
    assert [[len(t) for t in s] for s in ids(workload)] == [[len(t) for t in s] for s in ids(one)]
    assert not set(map(tuple, _firsts(one))) & set(map(tuple, _firsts(other)))


def _firsts(workload):
    return [session.turns[0].input_tokens for session in workload]


@settings(deadline=None, max_examples=30)
@given(namespaces=st.lists(st.text(max_size=5), min_size=2, max_size=4, unique=True), seed=st.integers(0, 2**64))
def test_namespaces_share_no_block_of_tokens(namespaces, seed):
    """No prompt of one namespace begins with a block of another's, so no cache can serve it."""
    workloads = [
        workload.within(namespace)
        for namespace in namespaces
        for workload in (
            multi_round(users=3, rounds=1, context_tokens=16, input_tokens=1, output_tokens=1, seed=seed),
            single_turn(requests=3, input_tokens=16, output_tokens=1, seed=seed),
            shared_prefix(
                prefixes=3, requests_per_prefix=1, prefix_tokens=16, input_tokens=1, output_tokens=1, seed=seed
            ),
        )
    ]
    blocks = [tuple(first[:16]) for workload in workloads for first in _firsts(workload)]

    assert len(blocks) == len(set(blocks))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ROUNDS, replace(ROUNDS, users=3)),
        (ROUNDS, replace(ROUNDS, rounds=2)),
        (ROUNDS, replace(ROUNDS, context_tokens=6)),
        (ROUNDS, replace(ROUNDS, input_tokens=3)),
        (ROUNDS, replace(ROUNDS, output_tokens=7)),
        (SINGLE, replace(SINGLE, requests=3)),
        (SINGLE, replace(SINGLE, output_tokens=4)),
        (SHARED, replace(SHARED, prefixes=1)),
        (SHARED, replace(SHARED, requests_per_prefix=3)),
        (SHARED, replace(SHARED, prefix_tokens=2)),
        (SHARED, replace(SHARED, token_ids=range(1000, 1100))),
    ],
)
def test_every_argument_is_part_of_the_digest(one, other):
    """Workloads that differ anywhere have different digests."""
    assert one.digest != other.digest


def test_the_digest_has_the_schedule_in_it():
    """The same tokens at other times are another workload."""
    turn = Turn(prefix=np.array([1], np.int32), new_ids=np.array([2], np.int32), output_tokens=3)

    digests = {digest([Session(turns=(replace(turn, at_s=at_s),))]) for at_s in (None, 0.0, 1.5)}

    assert 3 == len(digests)


def test_the_digest_has_the_boundaries_of_turns_and_sessions_in_it():
    """The same tokens cut otherwise are another workload."""
    first = Turn(prefix=np.array([1], np.int32), new_ids=np.array([2], np.int32), output_tokens=3)
    moved = Turn(prefix=np.array([1, 2], np.int32), new_ids=np.empty(0, np.int32), output_tokens=3)
    workloads = (
        [Session(turns=(first,)), Session(turns=(first,))],
        [Session(turns=(first, first))],
        [Session(turns=(first,)), Session(turns=(moved,))],
        [Session(turns=(first,), shared_tokens=1), Session(turns=(first,))],
    )

    assert 4 == len({digest(workload) for workload in workloads})


def test_rounds_have_the_lengths_that_were_asked_for():
    """Each session has its context once, and the same new tokens each round."""
    workload = multi_round(users=3, rounds=4, context_tokens=1000, input_tokens=64, output_tokens=32)

    sessions = list(workload)

    assert [1000] * 3 == [len(session.context) for session in sessions]
    assert [[64] * 4] * 3 == [[turn.new_tokens for turn in session.turns] for session in sessions]
    assert [[32] * 4] * 3 == [[turn.output_tokens for turn in session.turns] for session in sessions]
    assert [1064] * 3 == [len(session.turns[0].input_tokens) for session in sessions]
    assert [0] * 3 == [session.shared_tokens for session in sessions]
    assert [1000 + 4 * (64 + 32)] * 3 == [session.total_tokens for session in sessions]
    assert [1064] * 3 == [session.fewest_input_tokens for session in sessions]


def test_the_shortest_input_of_a_session():
    """A turn that continues is longer than what it continues from; one with a beginning of its own may be shorter."""
    ids = np.arange(1000, 1040)
    asks = [
        Turn(prefix=prefix, new_ids=ids[:new], output_tokens=1) for prefix, new in ((ids[:30], 5), (None, 2), (ids, 1))
    ]

    assert 35 == Session(turns=tuple(asks[:2])).fewest_input_tokens
    assert 35 == Session(turns=tuple(asks)).fewest_input_tokens
    assert 5 == Session(turns=(asks[0], Turn(prefix=ids[:2], new_ids=ids[:3], output_tokens=1))).fewest_input_tokens


def test_only_the_first_turn_is_known_beforehand():
    """A later turn's input is None until the engine's answer is known."""
    for session in ROUNDS:
        assert [False, True, True] == [turn.input_tokens is None for turn in session.turns]


def test_a_later_turn_continues_from_the_history():
    """Its input is all that was exchanged so far and its new ids."""
    later = next(iter(ROUNDS)).turns[1]

    assert [1, 2, 3, 1669, 1535, 1237, 1482] == later.input_after(np.array([1, 2, 3])).tolist()


def test_the_first_turn_does_not_look_at_the_history():
    """It begins with its own context."""
    first = next(iter(ROUNDS)).turns[0]

    assert first.input_tokens == first.input_after(np.array([1, 2, 3])).tolist()


def test_rounds_without_a_context_begin_with_their_first_question():
    """A context of nothing is allowed; there is nothing to send ahead then."""
    workload = multi_round(users=1, rounds=2, context_tokens=0, input_tokens=4, output_tokens=2)

    session = next(iter(workload))

    assert [] == session.context
    assert 4 == len(session.turns[0].input_tokens)
    assert 12 == session.total_tokens


BRANCHES = multi_round(
    users=2,
    rounds=3,
    context_tokens=4,
    shared_context_tokens=2,
    input_tokens=2,
    input_growth=1,
    output_tokens=3,
    output_growth=5,
    forks=2,
    seed=7,
)


def test_branches_have_the_ids_of_every_other_machine():
    """Shared contexts, growing rounds and forks draw the same everywhere."""
    assert [
        [
            [1622, 1962, 1686, 1001, 1200, 1426],
            [1985, 1931, 1669],
            [1535, 1237, 1482, 1569],
            [1050, 1214, 1551],
            [1689, 1244, 1185, 1223],
        ],
        [
            [1622, 1962, 1564, 1701, 1845, 2029],
            [1618, 1077, 1299],
            [1015, 1097, 1494, 1270],
            [1201, 1999, 1199],
            [1205, 1782, 1341, 1805],
        ],
    ] == ids(BRANCHES)
    assert "e3ea1ad96390f10b" == BRANCHES.digest


def test_the_first_branch_asks_what_a_session_without_forks_asks():
    """What is added changes nothing that was there."""
    plain = replace(BRANCHES, forks=1)

    assert ids(plain) == [session[:3] for session in ids(BRANCHES)]


def test_a_context_is_shared_as_far_as_was_asked_and_no_further():
    """And the sessions say how far."""
    one, other = BRANCHES

    assert (one.context[:2], 2, 2) == (other.context[:2], one.shared_tokens, other.shared_tokens)
    assert one.context[2] != other.context[2]
    assert [4, 4] == [len(one.context), len(other.context)]
    assert [0] == [session.shared_tokens for session in replace(BRANCHES, users=1)]


def test_rounds_grow_by_what_was_asked():
    """The inputs and the answers, in each branch anew."""
    for session in BRANCHES:
        assert [2, 3, 4, 3, 4] == [turn.new_tokens for turn in session.turns]
        assert [3, 8, 13, 8, 13] == [turn.output_tokens for turn in session.turns]
        assert 4 + (2 + 3) + (3 + 8) + (4 + 13) == session.total_tokens


def test_branches_continue_from_the_first_round():
    """One after the other, each from the same answer, with questions of their own."""
    for session in BRANCHES:
        assert [None, None, None, 0, None] == [turn.after for turn in session.turns]
        assert [0, 1, 0, 3] == [session.continued(number) for number in range(1, 5)]
        assert {0, 1, 3} == session.continued_from
        assert session.turns[1].new_ids.tolist() != session.turns[3].new_ids.tolist()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"shared_context_tokens": 6}, "is a part of context_tokens and can be no more than 5, got 6"),
        ({"forks": 2, "rounds": 1}, "forks=2 needs a second round to fork into; got rounds=1"),
        ({"input_growth": -1}, "input_growth must be a whole number of at least 0, got -1"),
        ({"forks": 0}, "forks must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_told(arguments, problem):
    """Where two arguments contradict each other, both are in the sentence."""
    good = {"users": 1, "rounds": 2, "context_tokens": 5, "input_tokens": 1, "output_tokens": 1}

    with pytest.raises(ConfigurationError, match=problem):
        multi_round(**good | arguments)


def test_single_turns_have_nothing_in_common():
    """Each request is a session of one turn with exact lengths and no context."""
    sessions = list(single_turn(requests=50, input_tokens=100, output_tokens=8))

    assert [1] * 50 == [len(session.turns) for session in sessions]
    assert [100] * 50 == [len(session.turns[0].input_tokens) for session in sessions]
    assert [[]] * 50 == [session.context for session in sessions]
    assert [108] * 50 == [session.total_tokens for session in sessions]
    assert 50 == len({tuple(session.turns[0].input_tokens[:16]) for session in sessions})


def test_requests_of_a_group_share_their_prefix_and_nothing_else():
    """Groups take turns; each input is its group's prefix and ids of its own."""
    workload = shared_prefix(
        prefixes=3, requests_per_prefix=4, prefix_tokens=32, input_tokens=16, output_tokens=8, seed=1
    )

    sessions = list(workload)

    assert 12 == len(sessions)
    assert [48] * 12 == [len(session.turns[0].input_tokens) for session in sessions]
    assert [(32, 56)] * 12 == [(session.shared_tokens, session.total_tokens) for session in sessions]
    assert 3 == len({tuple(session.context) for session in sessions})
    assert [sessions[n % 3].context for n in range(12)] == [session.context for session in sessions]
    assert 12 == len({tuple(session.turns[0].new_ids.tolist()) for session in sessions})


@pytest.mark.parametrize(
    ("make", "bad", "problems"),
    [
        (
            multi_round,
            {
                "users": 0,
                "rounds": 1.5,
                "context_tokens": -1,
                "input_tokens": True,
                "output_tokens": "64",
                "seed": None,
                "token_ids": range(5, 6),
            },
            (
                "multi_round: users must be a whole number of at least 1, got 0",
                "multi_round: rounds must be a whole number of at least 1, got 1.5",
                "multi_round: context_tokens must be a whole number of at least 0, got -1",
                "multi_round: input_tokens must be a whole number of at least 1, got True",
                "multi_round: output_tokens must be a whole number of at least 1, got '64'",
                "multi_round: seed must be a whole number of at least 0, got None",
                "multi_round: token_ids must be a range of at least two ids with step 1, got range(5, 6)",
            ),
        ),
        (
            single_turn,
            {"requests": 0, "input_tokens": 0, "output_tokens": 0, "seed": -1, "token_ids": range(-1, 5)},
            (
                "single_turn: requests must be a whole number of at least 1, got 0",
                "single_turn: input_tokens must be a whole number of at least 1, got 0",
                "single_turn: output_tokens must be a whole number of at least 1, got 0",
                "single_turn: seed must be a whole number of at least 0, got -1",
                "single_turn: token_ids must be a range of at least two ids with step 1, got range(-1, 5)",
            ),
        ),
        (
            shared_prefix,
            {
                "prefixes": 0,
                "requests_per_prefix": 0,
                "prefix_tokens": 0,
                "input_tokens": 0,
                "output_tokens": 0,
                "token_ids": range(0, 100, 2),
            },
            (
                "shared_prefix: prefixes must be a whole number of at least 1, got 0",
                "shared_prefix: requests_per_prefix must be a whole number of at least 1, got 0",
                "shared_prefix: prefix_tokens must be a whole number of at least 1, got 0",
                "shared_prefix: input_tokens must be a whole number of at least 1, got 0",
                "shared_prefix: output_tokens must be a whole number of at least 1, got 0",
                "shared_prefix: token_ids must be a range of at least two ids with step 1, got range(0, 100, 2)",
            ),
        ),
    ],
)
def test_all_bad_arguments_are_reported_at_once(make, bad, problems):
    """The error lists each argument that is out of range, what it was and what is accepted."""
    with pytest.raises(ConfigurationError) as caught:
        make(**bad)

    assert problems == caught.value.problems
