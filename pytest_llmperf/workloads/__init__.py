"""Workloads: one file each, seeded, streamed, with a digest."""

from pytest_llmperf.workloads.base import Session, Turn, Workload, digest
from pytest_llmperf.workloads.conversations import Conversations, conversations
from pytest_llmperf.workloads.multi_round import MultiRound, multi_round
from pytest_llmperf.workloads.shared_prefix import SharedPrefix, shared_prefix
from pytest_llmperf.workloads.single_turn import SingleTurn, single_turn

__all__ = [
    "Conversations",
    "MultiRound",
    "Session",
    "SharedPrefix",
    "SingleTurn",
    "Turn",
    "Workload",
    "conversations",
    "digest",
    "multi_round",
    "shared_prefix",
    "single_turn",
]
